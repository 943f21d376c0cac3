"""Pages of runs that failed: what they show, what they must not, and what the gate says of them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import pytest
import small_book
from bs4 import BeautifulSoup
from small_book import EXPECTED, MODELS, PAPER, code, gate, stage

from bookkit.book import failed as failed_runs
from bookkit.book.failed import FailedRun, find_failed
from bookkit.run.execute import _mark
from bookkit.run.watch import Watched
from replib.errors import UsageError

REASON = "ValueError: no in cell [3], `draw()`"
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "no"}
ERROR |= {"traceback": ["no at line 1"]}


def fail(root: Path, model: str, reason: str = REASON, cells: list | None = None) -> Path:
    """A failed run of the paper about nothing: a copy of the good one's notebook, stopped."""
    folder = root / "build/runs" / PAPER / f"{model}.failed"
    folder.mkdir(parents=True)
    notebook = json.loads((root / "build/runs" / EXPECTED[0] / "notebook.ipynb").read_text())
    if cells is None:
        cells = notebook["cells"]
        cells[3]["outputs"] = [ERROR]
        for cell in cells[4:]:
            cell |= {"execution_count": None, "outputs": []} if "outputs" in cell else {}
    (folder / "notebook.ipynb").write_text(json.dumps(notebook | {"cells": cells}))
    log = f"{PAPER} on {model}, profile laptop, 2026-01-02T03:04:05Z\nprinted\n\nfailed: {reason}\n"
    (folder / "run.log").write_text(log)
    return folder


def text(id: str, source: str, *tags: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": id, "metadata": {"tags": list(tags)}, "source": source}


def page(root: Path, *cells: dict[str, Any], reason: str = REASON) -> list[dict[str, Any]]:
    """The cells of a failed run's page."""
    fail(root, "model-c", reason, list(cells))
    (run,) = find_failed(root / "build/runs")
    return failed_runs.page(run, "Its *title*", "<nav>")["cells"]


# --- what is known --------------------------------------------------------------------------------


def test_a_failed_run_is_known_by_the_end_of_its_log(project: Path) -> None:
    folder = fail(project, "model-c")
    log = folder / "run.log"
    log.write_text(log.read_text().replace("printed", "failed: so it says\n" + "x" * 100_000))
    shutil.copytree(folder, folder.with_name(".model-c.failed"))  # the runner's, while it replaces
    runs = find_failed(project / "build/runs")
    assert runs == [FailedRun(PAPER, "model-c", folder, REASON, "2026-01-02T03:04:05Z")]
    assert runs[0].key == f"{PAPER}/model-c.failed"


@pytest.mark.parametrize(("log", "message"), [(None, "No such file"), ("begun", "not say why")])
def test_a_failed_run_that_says_nothing_is_refused_in_a_line(
    project: Path, log: str | None, message: str
) -> None:
    path = fail(project, "model-c") / "run.log"
    path.unlink() if log is None else path.write_text(log)
    with pytest.raises(UsageError, match=message):
        find_failed(project / "build/runs")


def test_the_last_line_names_what_failed_since(project: Path, tmp_path: Path) -> None:
    runs, begun = project / "build/runs", tmp_path / "begun"
    fail(project, "model-c")
    begun.touch()
    os.utime(begun, (begun.stat().st_mtime + 60,) * 2)
    assert failed_runs.last_line(runs, begun) == ""
    os.utime(begun, (0, 0))
    assert failed_runs.last_line(runs, begun) == (
        "fake-paper on model-c failed, so there is no new book; for one with a page that "
        "shows where it stopped: make book RECORDS=build/runs"
    )


# --- the page -------------------------------------------------------------------------------------


def test_the_page_ends_with_the_cell_that_failed(project: Path) -> None:
    cells = page(
        project,
        text("error", "An Exception was encountered", failed_runs.OF_PAPERMILL),
        text("title", "# Title\n\nIt is {record}`claims.1.1.value`, see {ref}`end` and [x](#end)."),
        code("first()", 1),
        code("draw()", 2, [ERROR], tags=["hide-input", "remove-output"]),
        text("end", "(end)=\n## End"),
        code("last()", 3),
    )
    assert [cell["id"] for cell in cells] == ["failed-head", "cell1", "failed-place", "cell2"]
    top, prose = cells[0]["source"].split("\n", 1)
    assert top == "# Title (model-c, failed)"
    assert prose.endswith("It is not measured, see (not reached) and x.")
    assert "<nav>" in prose and "ValueError: no in cell [3], `draw()`" in prose
    assert cells[-1]["metadata"]["tags"] == []
    printed = {"output_type": "stream", "name": "stdout"}
    assert cells[-1]["outputs"] == [printed | {"text": "no at line 1\n"}]


def test_the_page_shows_no_result(project: Path) -> None:
    good = json.loads((project / "build/runs" / EXPECTED[0] / "notebook.ipynb").read_text())
    verdicts = good["cells"][-1]
    assert "outcome-holds" in json.dumps(verdicts)
    cells = page(project, *good["cells"], reason="claim 1.1 is missing from the verdicts")
    assert "outcome" not in json.dumps(cells)
    assert cells[-1]["source"] == verdicts["source"]  # nothing failed in it: it is there, bare
    assert "failed-place" not in {cell["id"] for cell in cells}
    assert "<dd>after its last cell</dd>" in cells[0]["source"]


def test_a_run_that_never_began_has_a_page_without_cells(project: Path) -> None:
    unexecuted = {key: x for key, x in code("a", 1).items() if key != "outputs"}
    reason = "its process ended with -9 before its first cell"
    cells = page(project, text("t", "# T"), unexecuted | {"execution_count": None}, reason=reason)
    assert [cell["id"] for cell in cells] == ["failed-head"]
    assert "<dd>before its first cell</dd>" in cells[0]["source"]


def test_a_broken_notebook_leaves_the_notice(project: Path) -> None:
    folder = fail(project, "model-c")
    (folder / "notebook.ipynb").write_text('{"cells": [')
    (run,) = find_failed(project / "build/runs")
    (cell,) = failed_runs.page(run, "Its *title*", "")["cells"]
    assert cell["source"].startswith("# Its \\*title\\* (model-c, failed)\n")


def test_the_place_is_the_runner_s_word_not_the_error_s(tmp_path: Path) -> None:
    run = FailedRun("p", "m", tmp_path, "KeyError: in cell [9] in cell [2], `b`", "")
    assert "<dt>Stopped</dt><dd>in cell [2]</dd>" in failed_runs.notice(run, False)


def test_what_a_page_cannot_show_is_left_out(project: Path) -> None:
    picture = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "x"}}
    script = {"application/javascript": "1", "text/plain": "kept"}
    said = {"output_type": "stream", "name": "stdout", "text": ["y" * 30_000, "z"]}
    show = {"output_type": "display_data", "metadata": {}, "data": script}
    figure = {"figure": {"name": "fig", "caption": "c"}}
    cells = page(
        project,
        text("title", "# T\n\nSee {numref}`fig`."),
        code("a", 1, [picture], mystnb=figure),
        code("b", 2, [said, show]),
        code("c", 3, [ERROR]),
    )
    first, second = cells[1], cells[2]
    assert first["outputs"] == [] and "figure" not in first["metadata"]["mystnb"]
    assert "See (not reached)." in cells[0]["source"]
    assert second["outputs"][0]["text"].endswith("\n… (10,001 more characters)\n")
    assert second["outputs"][1]["data"] == {"text/plain": "kept"}


def test_a_killed_kernel_stops_in_the_cell_that_the_runner_marks(project: Path) -> None:
    folder = fail(project, "model-c", "the kernel died in cell [2], `b` (out of memory, or killed)")
    cells = [text("t", "# T"), code("a", 1), code("b", 2), code("c", 3)]
    done = {"papermill": {"status": "completed", "exception": None}}
    cells = [cell | {"metadata": done} for cell in cells]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    source = json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    (folder / "notebook.ipynb").write_text(source)
    watched = Watched(cell={"id": "cell2", "code": 2}, end={"end": "dead"})
    _mark(folder / "notebook.ipynb", watched, "the kernel died", source)
    (run,) = find_failed(project / "build/runs")
    shown = failed_runs.page(run, "T", "")["cells"]
    assert [cell["id"] for cell in shown] == ["failed-head", "cell1", "failed-place", "cell2"]
    assert f'<a href="#{failed_runs.PLACE}">in cell [2]</a>' in shown[0]["source"]


# --- the book -------------------------------------------------------------------------------------


def test_a_failed_run_gets_a_page_beside_the_good_one_and_counts_for_nothing(
    project: Path,
) -> None:
    fail(project, MODELS[0])
    assert [run.key for run in stage(project)] == EXPECTED
    book = project / "build/book"
    assert (book / f"chapters/{PAPER}/{MODELS[0]}.ipynb").is_file()
    failed = json.loads((book / f"chapters/{PAPER}/{MODELS[0]}.failed.ipynb").read_text())
    assert 'aria-current="page">model-a</a></li></ul></div>\n</nav>' in failed["cells"][0]["source"]
    assert f"chapters/{PAPER}/{MODELS[0]}.failed" in (book / "_toc.yml").read_text()
    landing = (book / f"chapters/{PAPER}/index.md").read_text()
    assert landing.count("the run **failed**: ValueError\\: no") == 1
    records = sorted(path.stem for path in (book / "static/records").glob("*/*.json"))
    assert records == list(MODELS)


def test_a_book_of_named_runs_has_no_failed_ones(project: Path) -> None:
    fail(project, "model-c")
    stage(project, EXPECTED)
    assert not (project / f"build/book/chapters/{PAPER}/model-c.failed.ipynb").exists()


def test_a_book_of_failed_runs_alone(project: Path) -> None:
    fail(project, "model-c")
    for model in MODELS:
        shutil.rmtree(project / "build/runs" / PAPER / model)
    (project / "book/index.md").write_text("# Home\n")
    assert stage(project) == []
    text = (project / f"build/book/chapters/{PAPER}/index.md").read_text()
    assert "No run of this chapter finished" in text and "model-c.failed.ipynb" in text


PAGE = f"_build/html/chapters/{hostile.PAPER}/{hostile.MODEL}.failed.html"
BREAKS = {
    "no page": (PAGE, None, "", "is missing"),
    "no notice": (PAGE, 'class="failed-note"', 'class="note"', "does not say that the run failed"),
    "another run": (PAGE, 'data-run="', 'data-run="x', "does not say that the run failed"),
    "another reason": (PAGE, "in cell [6], `fail()`</dd>", "</dd>", "does not say why"),
    "too late": (
        PAGE,
        '<aside class="failed-note"',
        '<p class="cell"></p><aside class="failed-note"',
        "says that the run failed after",
    ),
    "a result": (PAGE, "</article>", '<b class="outcome">holds</b></article>', "shows a result"),
    "a number": (PAGE, "</article>", '<b class="record">0.5</b></article>', "shows a result"),
    "no failed run": (
        small_book.CHAPTER,
        "</article>",
        '<p class="failed-note"></p></article>',
        "failed run that is not there",
    ),
    "an error elsewhere": (
        small_book.CHAPTER,
        "</article>",
        '<div class="cell_output"><p class="output traceback"></p></div></article>',
        "output of an error",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_gate_sees(built: Path, broken: Callable, name: str) -> None:
    file, old, new, message = BREAKS[name]
    broken(file, old, new)
    found = gate(built)
    assert len(found) >= 1 and any(message in fault for fault in found), found


def test_in_the_built_book_the_failed_page_stands_apart(built: Path) -> None:
    page = BeautifulSoup((built / PAGE).read_text(), "html.parser")
    cells = page.select("div.cell")
    assert "[error]" in cells[-1].select_one(".cell_output").get_text()
    assert "fail()" in cells[-1].get_text()
    assert page.select_one(".failed-place").find_next(class_="cell") is cells[-1]
    good = BeautifulSoup((built / PAGE.replace(".failed", "")).read_text(), "html.parser")
    link = good.select_one(f'.model-switch a[href="{hostile.MODEL}.failed.html"]')
    assert link.find_parent("div").select_one("span").get_text() == "Failed"
    scorecard = (built / "_build/html/scorecard.html").read_text()
    article = BeautifulSoup(scorecard, "html.parser").article
    assert not article.select('a[href*=".failed"]')
