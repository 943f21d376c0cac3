"""Staging the small book: what is shown, what is refused, and what of a notebook becomes a page."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_book import EXPECTED, MODELS, PAPER, ROOT, TOC, code, make_project, show, stage

from bookkit.book import contents
from bookkit.book.cells import lift_alt_text, localise_labels
from bookkit.book.gate import faults
from bookkit.book.pages import command, model_switch
from bookkit.book.runs import find_runs
from bookkit.book.stage import stage as stage_book
from bookkit.book.tables import scorecard, transfer
from replib.errors import UsageError


def staged(project: Path, pair: str) -> Path:
    return project / f"build/book/chapters/{pair}.ipynb"


def test_a_chapter_has_a_page_a_model_and_one_without_runs_none(tmp_path: Path) -> None:
    make_project(tmp_path, mover=[(0, 1)])
    assert [run.key for run in stage(tmp_path)] == EXPECTED
    toc = (tmp_path / "build/book/_toc.yml").read_text()
    assert re.findall(r"file: (\S+)", toc) == [
        "chapters/fake-paper/index",
        *(f"chapters/{pair}" for pair in EXPECTED),
        "scorecard",
        "across",
        "atlas/index",
        "atlas/model-a",
        "references",
    ]


def test_only_runs_asked_for_and_certified_ones_of_the_prose_are_shown(project: Path) -> None:
    runs, named, asked = project / "build/runs", EXPECTED[1], EXPECTED[:1]
    shutil.copytree(runs / EXPECTED[0], runs / PAPER / ".model-a.tmp-1")  # of a run that goes on
    assert [run.key for run in find_runs(runs, None)] == EXPECTED
    assert [run.key for run in stage(project, asked)] == asked
    assert not staged(project, named).exists()
    (project / "results" / PAPER).mkdir(parents=True)
    shutil.move(runs / named, project / "results" / named)
    assert [run.key for run in stage(project, asked)] == EXPECTED


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("record.json", '"finished"', '"running"', "finished"),
        ("record.json", None, "", "no finished run of fake-paper on model-a"),
        ("notebook.ipynb", '"alt"', '"Alt"', "no alternative text"),
        ("notebook.ipynb", "# A Paper", "A Paper", "starts with '# Title'"),
    ],
)
def test_stage_refuses_a_run_that_it_cannot_show_and_leaves_the_staged_book(
    project, file, old, new, message
) -> None:
    stage(project, EXPECTED)
    path = project / "build/runs" / EXPECTED[0] / file
    if old is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError, match=message):
        stage(project, EXPECTED)
    assert staged(project, EXPECTED[0]).exists()


@pytest.mark.parametrize(
    "name",
    [
        *("p/<img src=x>", "p/index", "p/a b", "p/a\u202eb", "p/é", "p/.hidden", "x\x1b/../tiny"),
        *("..", "a/../b", "p/..", "p/a/b", "a/" + "x" * 300),
    ],
)
def test_a_run_is_named_by_two_plain_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"s folder cannot be|a run is named paper/m") as no:
        find_runs(tmp_path, [name])
    assert str(no.value).isprintable()


def test_stage_refuses_contents_that_do_not_fit_the_pages(project: Path) -> None:
    (project / "book/references.md").unlink()
    with pytest.raises(UsageError, match="names references, which"):
        stage(project)
    (project / "_toc.yml").write_text(TOC.replace("fake-paper", "other-paper"))
    with pytest.raises(UsageError, match="no entry chapters/fake-paper/index"):
        stage(project)


def test_labels_are_made_unique_with_their_references_and_nothing_else() -> None:
    text = (
        "(here)=\n{ref}`here`, {ref}`text <here>`, [a](#here), [b](#there), {eq}`e`, here\n"
        ":::{note}\n:name: box\n:::\n$$ x $$ (e)\n{numref}`Figure %s <fig>` {cite}`here`"
    )
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": text.splitlines(keepends=True)},
        code("", 1, mystnb={"figure": {"name": "fig", "caption": "As [above](#here)."}}),
    ]
    localise_labels(cells, "m")
    assert cells[0]["source"] == (
        "(here-m)=\n{ref}`here-m`, {ref}`text <here-m>`, [a](#here-m), [b](#there), {eq}`e-m`, here"
        "\n:::{note}\n:name: box-m\n:::\n$$ x $$ (e-m)\n{numref}`Figure %s <fig-m>` {cite}`here`"
    )
    figure = cells[1]["metadata"]["mystnb"]["figure"]
    assert figure == {"name": "fig-m", "caption": "As [above](#here-m)."}


def test_the_alternative_text_of_the_output_wins_over_that_of_the_cell() -> None:
    for own, alt in (({}, "of the cell"), ({"image/png": {"alt": "of the\nown"}}, "of the own")):
        picture = show({"image/png": ""}, **own)
        cells = [code("", 1, [picture], mystnb={"image": {"alt": "of the cell"}})]
        lift_alt_text(cells, "here")
        assert cells[0]["metadata"]["mystnb"]["image"]["alt"] == alt
    with pytest.raises(UsageError, match="cell 1: 2 pictures"):
        lift_alt_text([code("", 1, [picture, picture])], "here")


def test_controls_and_replications_stand_apart(project: Path) -> None:
    run, other = find_runs(project / "build/runs", None)
    control = replace(run, model="tiny")
    switch = model_switch(control.key, [control, run])
    assert re.findall(r'label">(\w+)<|>([\w-]+)</a>', switch) == [
        *(("Models", ""), ("", "model-a")),
        *(("Controls", ""), ("", "tiny")),
    ]
    assert 'href="tiny.html" aria-current="page"' in switch
    assert scorecard([run]).count("outcomes-table") == 1
    both = scorecard([run, control])
    assert both.count("outcomes-table") == 2
    assert both.index("<strong>Controls.</strong>") < both.index('data-record="fake-paper/tiny"')
    claims = [claim | {"scope": "replication"} for claim in run.record["claims"]]
    own = replace(run, record=run.record | {"claims": claims})
    replications, transfers = transfer([own, other]).split("<h3>Transfer")
    assert MODELS[0] in replications and MODELS[1] not in replications
    assert MODELS[1] in transfers and MODELS[0] not in transfers


def test_the_command_does_nothing_else_in_a_shell() -> None:
    given = {"notes": "a'b; echo $(id)", "x; ls": [1, "`id`"], "whole": True}
    record = {"paper": "p", "model": {"name": "m; ls"}, "profile": "laptop", "parameters": given}
    assert command(record, given) == "replib run p --model 'm; ls' --profile laptop"
    line = f"printf '%s\\n' {command(record, {})}"
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        *("replib", "run", "p", "--model", "m; ls", "--profile", "laptop"),
        *("-p", "notes=a'b; echo $(id)", "-p", 'x; ls=[1, "`id`"]', "-p", "whole=true"),
    ]


def some_runs(folder: Path, *pairs: str) -> Path:
    """A folder of runs, of which the records are there."""
    for pair in pairs:
        shutil.copytree(ROOT / "results" / pair, folder / pair)
    return folder


def one_that_failed(folder: Path, paper: str) -> Path:
    stopped = folder / paper / "tiny.failed"
    stopped.mkdir(parents=True)
    shutil.copy(ROOT / f"notebooks/{paper}/{paper}.ipynb", stopped / "notebook.ipynb")
    (stopped / "run.log").write_text(f"{paper} on tiny, profile smoke\n\nfailed: on purpose\n")
    return folder


RUNS = {
    "a chapter": lambda folder: some_runs(folder, "copying-mamba/smollm2-135m"),
    "a method": lambda folder: some_runs(folder, "method-nulls/smollm2-135m"),
    "a control": lambda folder: some_runs(folder, "factual-recall/planted-facts"),
    "of a sweep": lambda folder: some_runs(
        folder / "build/sweeps/s/seed-0", "successor-heads/tiny", "context-knob/gemma3-270m"
    ),
    "failed": lambda folder: one_that_failed(folder, "ioi-circuit-reuse"),
    "a method failed": lambda folder: one_that_failed(folder, "method-patching"),
}


FAST = ("a method", "of a sweep")  # staging the whole book takes its time


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in RUNS]
)
def test_every_link_of_the_book_leads_somewhere_whatever_was_run(tmp_path, kind) -> None:
    out = tmp_path / "book"
    stage_book(ROOT, RUNS[kind](tmp_path / "runs"), out)
    pages = contents.pages_in(out / "_toc.yml")
    there = {str(path) for page in pages for path in out.glob(f"{page}.[mi]*")}
    texts = {path: Path(path).read_text() for path in there}
    labels = {label for text in texts.values() for label in re.findall(r"\(([a-z0-9-]+)\)=", text)}
    dead = []
    for path, text in texts.items():
        for target in re.findall(r"\]\(([^()\s]+)\)", text):
            file, _, label = target.partition("#")
            if file.endswith((".md", ".ipynb")):
                if os.path.normpath(Path(path).parent / file) not in there:
                    dead.append((path, target))
            elif not file and label not in labels:
                dead.append((path, target))
    assert len(texts) > 40 and not dead


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["of a sweep", "a method failed"])
def test_the_book_can_be_built_whatever_was_run(tmp_path, kind) -> None:
    """With warnings as errors, and the gate."""
    runs = RUNS[kind](tmp_path / "runs")
    stage_book(ROOT, runs, tmp_path / "build/book")
    line = [Path(sys.executable).with_name("jupyter-book"), "build", "build/book", "--path-output"]
    line += [".", "-W", "-n", "--keep-going", "-q"]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    built = subprocess.run(line, cwd=tmp_path, **both)
    assert built.returncode == 0, built.stdout
    html, book = tmp_path / "_build/html", tmp_path / "build/book"
    assert faults(html, runs, book, certified=ROOT / "results") == []


def test_a_folder_that_holds_runs_elsewhere_says_where(tmp_path) -> None:
    runs = some_runs(tmp_path / "s/seed-0", "method-nulls/smollm2-135m")
    for given in (runs / "method-nulls/smollm2-135m", runs / "method-nulls", tmp_path / "s"):
        with pytest.raises(UsageError, match=rf"no finished run in {given}; give {runs}$"):
            find_runs(given, None)
