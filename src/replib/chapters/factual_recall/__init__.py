"""Characterizing mechanisms for factual recall (2310.15910)."""

from collections.abc import Callable
from typing import Any


def file_readers() -> dict[str, Callable]:
    """How the chapter reads the user's own files: by parameter, functions of tokenizer and path."""
    from replib.chapters.factual_recall.facts import facts_from_file, readable

    def read(tokenizer: Any, path: str) -> list:
        return readable(tokenizer, facts_from_file(path, tokenizer, n_new=16), at_least=8)

    return {"facts_file": read}
