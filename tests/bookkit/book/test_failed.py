"""Runs that failed: what is known of them, what their pages show, and what becomes of the book."""

import os
import shutil
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from small_book import EXPECTED, MODELS, PAPER, code, notebook, stage

from bookkit.book import failed
from bookkit.book.failed import find_failed
from replib.errors import UsageError

REASON = "ValueError: no in cell [3], `draw()`"
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "no"}
ERROR |= {"traceback": ["\x1b[0;31mno\x1b[0m at line 1"]}
BEGIN = f"{PAPER} on model-c, profile laptop, 2026-01-02T03:04:05Z\n"
BEGIN += 'parameters: {"n_prompts": 30}\nprinted\n'


def fail(root: Path, reason: str = REASON, begin: str = BEGIN, model: str = "model-c") -> Path:
    """A run of the paper about nothing that stopped in its third cell."""
    folder = root / "build/runs" / PAPER / f"{model}.failed"
    folder.mkdir(parents=True)
    cells = [code("a", 1), code("b", 2), code("draw()", 3, [ERROR]), code("c", 4)]
    (folder / "notebook.ipynb").write_text(notebook(cells))
    (folder / "run.log").write_text(f"{begin}\nfailed: {reason}\n")
    return folder


def page(root: Path) -> tuple[BeautifulSoup, dict[str, str]]:
    """The page of the one failed run, and what its box says."""
    (run,) = find_failed(root / "build/runs")
    text = failed.page(run, "Its *title*", "<nav></nav>")
    assert text.startswith("# Its \\*title\\* (model-c, failed)\n\n```{raw} html\n<nav>")
    soup = BeautifulSoup(text, "html.parser")
    rows = soup.select(".failed-note dl > div")
    return soup, {row.dt.get_text(): row.dd.get_text() for row in rows}


def test_a_failed_run_is_known_by_the_end_of_its_log(tmp_path: Path) -> None:
    folder = fail(tmp_path, begin=f"{BEGIN}failed: so it says\n{'x' * 100_000}")
    shutil.copytree(folder, folder.with_name(".model-c.failed"))  # the runner's, while it replaces
    (run,) = find_failed(tmp_path / "build/runs")
    assert (run.key, run.reason) == (f"{PAPER}/model-c.failed", REASON)
    assert run.started == "2026-01-02T03:04:05Z"
    (folder / "run.log").write_text("begun")
    with pytest.raises(UsageError, match="does not say why"):
        find_failed(tmp_path / "build/runs")
    (folder / "run.log").unlink()
    with pytest.raises(UsageError, match="No such file"):
        find_failed(tmp_path / "build/runs")


def test_the_last_line_names_what_failed_since(tmp_path: Path) -> None:
    runs, begun = tmp_path / "build/runs", tmp_path / "begun"
    fail(tmp_path)
    begun.touch()
    os.utime(begun, (begun.stat().st_mtime + 60,) * 2)
    assert failed.last_line(runs, begun) == ""
    os.utime(begun, (0, 0))
    assert failed.last_line(runs, begun) == (
        "fake-paper on model-c failed, so there is no new book; for one with a page that "
        "shows where it stopped: make book RECORDS=build/runs"
    )


def test_the_page_says_why_where_and_how_to_run_it_again(tmp_path: Path) -> None:
    folder = fail(tmp_path)
    soup, told = page(tmp_path)
    assert told == {
        "Why": REASON,
        "Stopped": "in cell [3]",
        "Started": "2026-01-02 03:04:05 UTC",
        "Run it again": f"replib run {PAPER} --model model-c --profile laptop",
        "Parameters": '{"n_prompts": 30}',
    }
    source, error, log = (part.get_text() for part in soup.select("pre"))
    assert (source, error) == ("draw()", "no at line 1")
    assert log.endswith(f"printed\n\nfailed: {REASON}")
    long = code("draw()", 3, [ERROR | {"traceback": ["y" * 30_000]}])
    (folder / "notebook.ipynb").write_text(notebook([long]))
    (folder / "run.log").write_text("printed\n" * 50 + f"failed: {REASON}\n")
    _, error, log = (part.get_text() for part in page(tmp_path)[0].select("pre"))
    assert error.endswith("… (10,000 more characters)\n")
    assert len(log.splitlines()) == failed.SHOWN


@pytest.mark.parametrize("text", [notebook([code("a", 1)]), '{"cells": ['])
def test_a_run_that_stopped_in_no_cell_shows_its_log(tmp_path: Path, text: str) -> None:
    folder = fail(tmp_path, "its process ended with -9 before its first cell")
    (folder / "notebook.ipynb").write_text(text)
    soup, told = page(tmp_path)
    assert told["Stopped"] == "before its first cell"
    assert len(soup.select("pre")) == 1


def test_a_killed_kernel_stops_in_the_cell_that_the_runner_marks(tmp_path: Path) -> None:
    folder = fail(tmp_path, "KeyError: in cell [9] in cell [2], `b`", begin="?")
    marked = code("b", 2, papermill={"status": "failed"})
    cells = [code("a", 1, papermill={"status": "completed"}), marked]
    (folder / "notebook.ipynb").write_text(notebook(cells))
    soup, told = page(tmp_path)
    assert soup.pre.get_text() == "b"
    assert told["Stopped"] == "in cell [2]"  # the runner's word, not the error's
    assert told["Run it again"] == f"replib run {PAPER} --model model-c"  # its log has no head
    assert told["Started"] == "–" and "Parameters" not in told


def test_a_failed_run_gets_a_page_and_counts_for_nothing(project: Path) -> None:
    fail(project, model=MODELS[0])
    assert [run.key for run in stage(project)] == EXPECTED
    book, name = project / "build/book", f"chapters/{PAPER}/{MODELS[0]}"
    text = (book / f"{name}.failed.md").read_text()
    assert 'aria-current="page">model-a</a></li></ul></div>\n</nav>' in text
    assert f"{name}.failed" in (book / "_toc.yml").read_text()
    assert 'href=\\"model-a.failed.html\\"' in (book / f"{name}.ipynb").read_text()
    landing = (book / f"chapters/{PAPER}/index.md").read_text()
    assert landing.count("the run **failed**: ValueError\\: no") == 1
    records = sorted(path.stem for path in (book / "static/records").glob("*/*.json"))
    assert records == list(MODELS)
    stage(project, EXPECTED)  # a book of named runs has no failed ones
    assert not (book / f"{name}.failed.md").exists()
    for model in MODELS:
        shutil.rmtree(project / "build/runs" / PAPER / model)
    (project / "book/index.md").write_text("# Home\n")
    assert stage(project) == []
    landing = (book / f"chapters/{PAPER}/index.md").read_text()
    assert "No run of this chapter finished" in landing and "model-a.failed.md" in landing
