"""Staging the small book: what is shown, what is refused, and what of a notebook becomes a page."""

import copy
import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from small_book import EXPECTED, MODELS, PAPER, TOC, code, stage

from bookkit.book.cells import lift_alt_text, localise_labels
from bookkit.book.html import duration, show_value
from bookkit.book.pages import command, model_switch
from bookkit.book.runs import Run, find_runs
from bookkit.book.tables import scorecard
from bookkit.records import write_record
from replib.errors import UsageError


def test_stage_puts_a_page_a_model_under_the_chapter_and_drops_chapters_without_runs(
    project: Path,
) -> None:
    runs = stage(project)
    assert [run.key for run in runs] == EXPECTED
    toc = (project / "build/book/_toc.yml").read_text()
    assert "unwritten-paper" not in toc
    assert re.findall(r"file: (\S+)", toc) == [
        "chapters/fake-paper/index",
        *(f"chapters/{pair}" for pair in EXPECTED),
        "scorecard",
        "references",
    ]


def test_labels_carry_the_paper_and_the_model(project: Path) -> None:
    stage(project)
    for pair in EXPECTED:
        text = (project / f"build/book/chapters/{pair}.ipynb").read_text()
        assert f'"fig-gain-{pair.replace("/", "-")}"' in text


def test_stage_shows_only_the_runs_asked_for(project: Path) -> None:
    assert [run.model for run in stage(project, EXPECTED[:1])] == ["model-a"]
    assert not (project / f"build/book/chapters/{EXPECTED[1]}.ipynb").exists()


def test_a_certified_record_that_the_prose_names_is_shown_too(project: Path) -> None:
    named, asked = EXPECTED[1], EXPECTED[:1]
    prose = project / "book/index.md"
    prose.write_text(f"{prose.read_text()}\n{{record}}`{named} claims.1.1.value`\n")
    shutil.rmtree(project / "build/runs" / named)
    assert [run.key for run in stage(project, asked)] == asked
    shutil.copytree(project / "build/runs" / EXPECTED[0], project / "results" / named)
    path = project / "results" / named / "record.json"
    record = json.loads(path.read_text())
    record["model"]["name"] = MODELS[1]
    write_record(path, {key: value for key, value in record.items() if key != "seal"})
    assert [run.key for run in stage(project, asked)] == EXPECTED


def test_stage_refuses_a_missing_run_and_leaves_the_staged_book(project: Path) -> None:
    stage(project, EXPECTED)
    shutil.rmtree(project / "build/runs" / EXPECTED[1])
    with pytest.raises(UsageError, match="no finished run of fake-paper on model-b"):
        stage(project, EXPECTED)
    assert (project / f"build/book/chapters/{EXPECTED[1]}.ipynb").exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("record.json", '"finished"', '"running"', "finished"),
        ("record.json", '"schema_version"', '"schema"', "schema"),
        ("record.json", "}", "", "not valid JSON"),
        ("notebook.ipynb", '"alt"', '"Alt"', "no alternative text"),
        ("notebook.ipynb", "# A Paper", "A Paper", "starts with '# Title'"),
    ],
)
def test_stage_refuses_a_run_that_it_cannot_show(
    project: Path, file: str, old: str, new: str, message: str
) -> None:
    path = project / "build/runs" / EXPECTED[0] / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError, match=message):
        stage(project, EXPECTED)


@pytest.mark.parametrize("name", ["<img src=x>", "index", "a b", "x'y", ".hidden", "a\u202eb", "é"])
def test_stage_refuses_a_folder_that_cannot_name_a_page(project: Path, name: str) -> None:
    folder = project / "build/runs" / PAPER
    (folder / MODELS[0]).rename(folder / name)
    with pytest.raises(
        UsageError, match=r"a run's folder cannot be called|a run is named paper/model"
    ):
        stage(project, [f"{PAPER}/{name}"])


def test_messages_obey_no_text_of_others(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\\x1b\[31m"):
        find_runs(tmp_path, ["x\x1b[31m/../tiny"])


def test_the_heads_of_a_model_of_unknown_size_are_refused_in_a_line(project: Path) -> None:
    path = project / "build/runs" / EXPECTED[0] / "record.json"
    record = json.loads(path.read_text())
    record["heads"] = {"mover": {"heads": [[0, 1]], "rule": "r"}}
    write_record(path, record)
    with pytest.raises(UsageError, match="not how many layers and heads the model has"):
        stage(project)


def test_stage_refuses_two_pictures_in_a_cell() -> None:
    show = {"output_type": "display_data", "metadata": {}, "data": {"image/png": ""}}
    with pytest.raises(UsageError, match="cell 1: 2 pictures"):
        lift_alt_text([code("", 1, [show, show])], "here")


def test_stage_refuses_a_page_that_the_contents_name_and_nobody_wrote(project: Path) -> None:
    (project / "book/references.md").unlink()
    with pytest.raises(UsageError, match="names references, which"):
        stage(project)


def test_stage_refuses_a_paper_that_the_contents_do_not_name(project: Path) -> None:
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
    show = {"output_type": "display_data", "data": {"image/png": ""}}
    own = [code("", 1, [show | {"metadata": {}}], mystnb={"image": {"alt": "of the cell"}})]
    lift_alt_text(own, "here")
    assert own[0]["metadata"]["mystnb"]["image"]["alt"] == "of the cell"
    both = copy.deepcopy(own)
    both[0]["outputs"][0]["metadata"] = {"image/png": {"alt": "of the\noutput"}}
    lift_alt_text(both, "here")
    assert both[0]["metadata"]["mystnb"]["image"]["alt"] == "of the output"


def test_controls_stand_apart_from_the_models(built: Path) -> None:
    run = Run.read(built / "build/runs", PAPER, "model-a")
    control = dataclasses.replace(run, model="tiny")
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


@pytest.mark.parametrize(
    "name",
    ["..", "../..", "a/../b", "fake-paper/..", "fake-paper/a/b", "fake-paper/.x", "a/" + "x" * 300],
)
def test_a_run_is_named_by_two_names(project: Path, name: str) -> None:
    with pytest.raises(UsageError, match="a run is named paper/model, not"):
        find_runs(project / "build/runs", [name])


def test_a_run_that_goes_on_is_not_shown(project: Path) -> None:
    runs = project / "build/runs"
    shutil.copytree(runs / EXPECTED[0], runs / PAPER / ".model-a.tmp-1")
    assert [run.key for run in find_runs(runs, None)] == EXPECTED


def test_the_command_names_what_was_not_chosen_by_default_or_profile(built: Path) -> None:
    record = json.loads((built / "build/runs" / EXPECTED[0] / "record.json").read_text())
    again = command(record, {"n_prompts": 40, "ratio": 0.5})
    assert again == "replib run fake-paper --model model-a --profile laptop -p n_prompts=30"
    assert command(record, {"n_prompts": 30, "ratio": 0.5}).endswith("--profile laptop")


def test_the_command_does_nothing_else_in_a_shell() -> None:
    given = {"notes": "a'b; echo $(id)", "x; ls": [1, "`id`"], "whole": True}
    record = {"paper": "p", "model": {"name": "m; ls"}, "profile": "laptop", "parameters": given}
    line = f"printf '%s\\n' {command(record, {})}"
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        *("replib", "run", "p", "--model", "m; ls", "--profile", "laptop"),
        *("-p", "notes=a'b; echo $(id)", "-p", 'x; ls=[1, "`id`"]', "-p", "whole=true"),
    ]


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        (0.1234, ".1%", "12.3%"),
        (3, "", "3"),
        (None, ".2f", "not measured"),
        (True, ".2f", "yes"),
        ("not_testable", "", "not testable"),
    ],
)
def test_values_as_pages_show_them(value: object, spec: str, text: str) -> None:
    assert show_value(value, spec) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42.4, "42 s"), (75.2, "1 min 15 s"), (59.7, "1 min 0 s"), (7300.0, "2 h 1 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
