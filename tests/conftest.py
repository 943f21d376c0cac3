"""The small book that several files test: built once, on two runs of a paper about nothing, one of
a hostile paper, and a failed one."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bookkit.records import seal


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two finished runs, nothing staged."""
    import small_book

    small_book.make_project(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the hostile paper's runs, staged and built; read only."""
    import hostile
    import small_book

    root = tmp_path_factory.mktemp("book")
    small_book.make_project(root)
    hostile.make_hostile(root)
    small_book.stage(root)
    result = small_book.build(root)
    assert result.returncode == 0, result.stdout + result.stderr
    return root


@pytest.fixture
def broken(built: Path) -> Iterator[Callable]:
    """`broken(file, old, new)` edits the built book until the test ends; paths are in its root."""
    kept: dict[Path, bytes | None] = {}

    def edit(name: str, old: str | None, new: str = "") -> None:
        path = built / name
        kept.setdefault(path, path.read_bytes() if path.exists() else None)
        if old is None:
            path.unlink()
            return
        text = path.read_text() if path.exists() else ""
        assert not old or old in text, f"{old!r} is not in {name}"
        path.write_text(text.replace(old, new, 1) if old else text + new)
        if path.name == "record.json":  # by somebody who also seals it again
            record = json.loads(path.read_text())
            path.write_text(json.dumps(record | {"seal": seal(record)}))

    yield edit
    for path, content in kept.items():
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
