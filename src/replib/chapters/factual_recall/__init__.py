"""Characterizing mechanisms for factual recall (2310.15910)."""

from collections.abc import Callable


def file_readers() -> dict[str, Callable]:
    """How the chapter reads the user's own files: by parameter, functions of tokenizer and path."""
    from replib.chapters.factual_recall.facts import facts_from_file, readable

    return {"facts_file": lambda tokenizer, path: readable(tokenizer, facts_from_file(path), 8)}
