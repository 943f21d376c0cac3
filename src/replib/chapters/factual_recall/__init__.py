"""Characterizing mechanisms for factual recall (2310.15910)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def file_readers() -> dict[str, Callable]:
    """How the chapter reads the user's own files: by parameter, functions of tokenizer and path."""
    from replib.chapters.factual_recall.facts import check_facts, facts_from_file, readable

    def read(tokenizer: Any, path: str | Path, n_new: int = 8) -> None:
        found = facts_from_file(path)
        check_facts(tokenizer, path, found, n_new)
        readable(tokenizer, found, 8)

    return {"facts_file": read}
