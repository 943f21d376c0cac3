"""Controllable context sensitivity and the knob behind it (2411.07404)."""

from collections.abc import Callable


def file_readers() -> dict[str, Callable]:
    """How the chapter reads the user's own files: by parameter, functions of tokenizer and path."""
    from replib.chapters.context_knob.contexts import cases_from_file

    return {"conflicts_file": lambda tokenizer, path: cases_from_file(path, tokenizer, 10)}
