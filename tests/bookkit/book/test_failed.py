"""Pages of runs that failed: what they show, what they must not, and what the gate says of them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import hostile
import pytest
from bs4 import BeautifulSoup
from small_book import EXPECTED, MODELS, PAPER, code, gate, stage

from bookkit.book import failed as failed_runs
from bookkit.book.failed import find_failed
from bookkit.run.execute import _mark
from bookkit.run.watch import Watched
from replib.errors import UsageError

REASON = "ValueError: no in cell [3], `draw()`"
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "no"}
ERROR |= {"traceback": ["\x1b[0;31mno\x1b[0m at line 1"]}


def fail(root: Path, model: str, reason: str = REASON, error: dict | None = ERROR) -> Path:
    """A failed run of the paper about nothing: a copy of the good one's notebook, stopped."""
    folder = root / "build/runs" / PAPER / f"{model}.failed"
    folder.mkdir(parents=True)
    notebook = json.loads((root / "build/runs" / EXPECTED[0] / "notebook.ipynb").read_text())
    notebook["cells"][3]["outputs"] = [error] if error else []
    (folder / "notebook.ipynb").write_text(json.dumps(notebook))
    log = f"{PAPER} on {model}, profile laptop, 2026-01-02T03:04:05Z\n"
    log += f'parameters: {{"n_prompts": 30}}\nprinted\n\nfailed: {reason}\n'
    (folder / "run.log").write_text(log)
    return folder


def page(root: Path) -> BeautifulSoup:
    """The page of the one failed run."""
    (run,) = find_failed(root / "build/runs")
    text = failed_runs.page(run, "Its *title*", "<nav></nav>")
    assert text.startswith("# Its \\*title\\* (model-c, failed)\n\n```{raw} html\n<nav>")
    return BeautifulSoup(text, "html.parser")


def entries(soup: BeautifulSoup) -> dict[str, str]:
    rows = soup.select(".failed-note dl > div")
    return {row.dt.get_text(): row.dd.get_text() for row in rows}


def test_a_failed_run_is_known_by_the_end_of_its_log(project: Path) -> None:
    folder = fail(project, "model-c")
    log = folder / "run.log"
    log.write_text(log.read_text().replace("printed", "failed: so it says\n" + "x" * 100_000))
    shutil.copytree(folder, folder.with_name(".model-c.failed"))  # the runner's, while it replaces
    (run,) = find_failed(project / "build/runs")
    assert (run.key, run.reason) == (f"{PAPER}/model-c.failed", REASON)
    assert run.started == "2026-01-02T03:04:05Z"


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


def test_the_page_says_why_where_and_how_to_run_it_again(project: Path) -> None:
    fail(project, "model-c")
    soup = page(project)
    assert entries(soup) == {
        "Why": REASON,
        "Stopped": "in cell [3]",
        "Started": "2026-01-02 03:04:05 UTC",
        "Run it again": f"replib run {PAPER} --model model-c --profile laptop",
        "Parameters": '{"n_prompts": 30}',
    }
    source, error, log = (part.get_text() for part in soup.select("pre"))
    assert (source, error) == ("draw()", "no at line 1")
    assert log.endswith(f"printed\n\nfailed: {REASON}")
    assert not soup.select(".outcome, .run-box, .record")


def test_what_is_long_is_cut(project: Path) -> None:
    long = ERROR | {"traceback": ["y" * 30_000]}
    log = fail(project, "model-c", error=long) / "run.log"
    log.write_text(log.read_text().replace("printed\n", "printed\n" * 50))
    _, error, shown = (part.get_text() for part in page(project).select("pre"))
    assert error.endswith("… (10,000 more characters)\n")
    assert len(shown.splitlines()) == failed_runs.SHOWN


@pytest.mark.parametrize("notebook", ["no cell", "broken"])
def test_a_run_that_stopped_in_no_cell_shows_its_log(project: Path, notebook: str) -> None:
    reason = "its process ended with -9 before its first cell"
    folder = fail(project, "model-c", reason, error=None)
    if notebook == "broken":
        (folder / "notebook.ipynb").write_text('{"cells": [')
    soup = page(project)
    assert entries(soup)["Stopped"] == "before its first cell"
    assert len(soup.select("pre")) == 1


def test_the_place_is_the_runner_s_word_not_the_error_s(project: Path) -> None:
    fail(project, "model-c", "KeyError: in cell [9] in cell [2], `b`")
    assert entries(page(project))["Stopped"] == "in cell [2]"


def test_a_log_without_a_head_still_gives_a_command(project: Path) -> None:
    log = fail(project, "model-c") / "run.log"
    log.write_text(f"?\nfailed: {REASON}\n")
    shown = entries(page(project))
    assert shown["Run it again"] == f"replib run {PAPER} --model model-c"
    assert shown["Started"] == "–" and "Parameters" not in shown


def test_a_killed_kernel_stops_in_the_cell_that_the_runner_marks(project: Path) -> None:
    folder = fail(project, "model-c", "the kernel died in cell [2], `b`", error=None)
    path = folder / "notebook.ipynb"
    cells = [code("a", 1), code("b", 2), code("c", 3)]
    done = {"papermill": {"status": "completed", "exception": None}}
    notebook = json.loads(path.read_text()) | {"cells": [c | {"metadata": done} for c in cells]}
    path.write_text(json.dumps(notebook))
    _mark(path, Watched(cell={"id": "cell2", "code": 2}, end={"end": "dead"}), "it died", "")
    assert page(project).pre.get_text() == "b"


# --- the book -------------------------------------------------------------------------------------


def test_a_failed_run_gets_a_page_beside_the_good_one_and_counts_for_nothing(
    project: Path,
) -> None:
    fail(project, MODELS[0])
    assert [run.key for run in stage(project)] == EXPECTED
    book = project / "build/book"
    assert (book / f"chapters/{PAPER}/{MODELS[0]}.ipynb").is_file()
    failed = (book / f"chapters/{PAPER}/{MODELS[0]}.failed.md").read_text()
    assert 'aria-current="page">model-a</a></li></ul></div>\n</nav>' in failed
    assert f"chapters/{PAPER}/{MODELS[0]}.failed" in (book / "_toc.yml").read_text()
    landing = (book / f"chapters/{PAPER}/index.md").read_text()
    assert landing.count("the run **failed**: ValueError\\: no") == 1
    records = sorted(path.stem for path in (book / "static/records").glob("*/*.json"))
    assert records == list(MODELS)


def test_a_book_of_named_runs_has_no_failed_ones(project: Path) -> None:
    fail(project, "model-c")
    stage(project, EXPECTED)
    assert not (project / f"build/book/chapters/{PAPER}/model-c.failed.md").exists()


def test_a_book_of_failed_runs_alone(project: Path) -> None:
    fail(project, "model-c")
    for model in MODELS:
        shutil.rmtree(project / "build/runs" / PAPER / model)
    (project / "book/index.md").write_text("# Home\n")
    assert stage(project) == []
    text = (project / f"build/book/chapters/{PAPER}/index.md").read_text()
    assert "No run of this chapter finished" in text and "model-c.failed.md" in text


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
        f"_build/html/chapters/{EXPECTED[0]}.html",
        "</article>",
        '<p class="failed-note"></p></article>',
        "failed run that is not there",
    ),
    "an error elsewhere": (
        f"_build/html/chapters/{EXPECTED[0]}.html",
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
    source, error, log = (part.get_text() for part in page.select("article pre"))
    assert source == "fail()" and "[error]" in error and "[log]" in log
    good = BeautifulSoup((built / PAGE.replace(".failed", "")).read_text(), "html.parser")
    link = good.select_one(f'.model-switch a[href="{hostile.MODEL}.failed.html"]')
    assert link.find_parent("div").select_one("span").get_text() == "Failed"
    scorecard = (built / "_build/html/scorecard.html").read_text()
    article = BeautifulSoup(scorecard, "html.parser").article
    assert not article.select('a[href*=".failed"]')
