"""The small book that several files test: built once, on a current and an old run of a paper about
nothing, a finished and a failed one of a hostile paper."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two finished runs, nothing staged."""
    import small_book

    small_book.make_project(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The book on disk, read only: model-a has heads, model-b is stale and a record alone."""
    import hostile
    import small_book

    root = tmp_path_factory.mktemp("book")
    small_book.make_project(root, mover=[(0, 1), (2, 3)], copy=[(2, 3)])
    small_book.make_old(root, small_book.EXPECTED[1])
    hostile.make_hostile(root)
    small_book.stage(root)
    result = small_book.build(root)
    assert result.returncode == 0, result.stdout + result.stderr
    return root
