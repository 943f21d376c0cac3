"""The book: staging, the {record} role and the gate, on a small paper that ran on two models.

The book is built once; every test of the gate breaks one thing in it and sees the gate say so.
"""

import base64
import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bookkit.book import stage as staging
from bookkit.book.browser import find_chromium
from bookkit.book.cells import lift_alt_text, localise_labels
from bookkit.book.gate import faults
from bookkit.book.pages import command, model_switch
from bookkit.book.requests import requests_in_css, requests_in_script
from bookkit.book.runs import Run, find_runs
from bookkit.book.stage import main
from bookkit.book.tables import CONTROLS, duration, scorecard, show_value
from bookkit.records import write_record
from bookkit.run.chapter import find_chapter
from replib.claims.file import MIME
from replib.claims.measure import Claims
from replib.errors import UsageError
from replib.hashes import library_hash, notebook_hash

ROOT = Path(__file__).parents[3]
PAPER = "fake-paper"
MODELS = ("model-a", "model-b")
EXPECTED = [f"{PAPER}/{model}" for model in MODELS]
CHROMIUM = find_chromium()

CLAIMS = """
paper: fake-paper
title: A Paper About Nothing
arxiv: "2001.00001"
model: gpt2-medium
claims:
  - {id: "1.1", statement: The gain <b>is</b> large & real, reported: "44 points",
     source: {mark: abstract, where: null}, null: random heads, gate: accuracy >= 0.5,
     gate_text: accuracy of at least one half, holds_if: low > null_q95, fails_if: high < null_q95,
     decision: The interval lies above the null.}
  - {id: "1.2", statement: Nothing else changes, reported: null,
     source: {mark: none, where: null}, null: null, gate: null, gate_text: null,
     holds_if: value < 0.1, fails_if: value > 0.2, decision: Below a tenth.}
  - {id: "1.10", statement: It is the largest, reported: "0.69",
     source: {mark: second-hand, where: Sec. 5}, null: null, gate: null, gate_text: null,
     holds_if: value > 0, fails_if: value < 0, decision: Above zero.}
"""
PROFILES = """
smoke: {models: [tiny], parameters: {}}
laptop: {models: [model-a, model-b], parameters: {n_prompts: 40}}
paper: {models: [gpt2-medium], parameters: {}}
"""
TOC = """
format: jb-book
root: index
parts:
  - caption: Chapters
    chapters: [{file: chapters/fake-paper/index}, {file: chapters/hostile-paper/index},
               {file: chapters/unwritten-paper/index}]
  - caption: Results
    chapters: [{file: scorecard}, {file: atlas/index}, {file: references}]
"""
PAGES = {
    "index.md": "# Home\n\nThe gain was {record}`fake-paper/model-b claims.1.1.value:.1%` "
    "and $x_1$. See [the scorecard](scorecard.md) and {cite:p}`nobody`.\n",
    "scorecard.md": "# Scorecard\n\n```{transfer}\n```\n\n```{scorecard}\n```\n",
    "atlas/index.md": "# Head atlas\n",
    "references.md": "# References\n\n```{bibliography}\n```\n",
    "references.bib": "@misc{nobody, author={A. Nobody}, title={Nothing}, year={2001}}\n",
    "chapters/fake-paper.md": "What this chapter asks.",
}
PARAMETERS = """model_name: str = "tiny"
device: str = "cpu"
seed: int = 0
profile: str = "laptop"
n_prompts: int = 100  # prompts
ratio: float = 0.5"""
TEXT = """# A Paper About Nothing

(start)=
The gain was {record}`claims.1.1.value:.1%`, [{record}`claims.1.1.low:.2f`], on
{record}`model.name`, {record}`model.source`; claim 1.10:
{record}`claims.1.10.outcome`, {record}`claims.1.10.value:.2f`.
{numref}`fig-gain` shows it; {eq}`logit-diff` and [the start](#start) too, and [below](#verdicts).

$$ d = a - b $$ (logit-diff)
"""


def png() -> str:
    """An 8 x 4 grey picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    head = chunk(b"IHDR", bytes([0, 0, 0, 8, 0, 0, 0, 4, 8, 0, 0, 0, 0]))
    rows = chunk(b"IDAT", zlib.compress((b"\0" + b"\x80" * 8) * 4))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + head + rows + chunk(b"IEND", b"")).decode()


def code(source: str, count: int, outputs: list | None = None, **metadata: object) -> dict:
    return {
        "cell_type": "code",
        "id": f"cell{count}",
        "metadata": metadata,
        "execution_count": count,
        "source": source,
        "outputs": outputs or [],
    }


def make_run(root: Path, model: str, gain: float) -> None:
    """`build/runs/fake-paper/<model>/`: a record and a notebook as the runner leaves them."""
    claims = Claims.load(root / "notebooks" / f"{PAPER}/claims.yaml")
    null = {"mean": 0.01, "q95": 0.05}
    claims.measure("1.1", gain, interval=(gain - 0.1, gain + 0.1), n=40, null=null, accuracy=0.9)
    claims.measure("1.2", 0.15, unit="nats")
    claims.not_testable("1.10", "too small")
    info = {"name": model, "sha256": "0" * 64, "source": "made <here>", "n_params": 1234}
    bundle = claims.bundle(info | {"dtype": "float32", "note": "quantised"})
    content = bundle[MIME]
    zero = "0" * 64
    record = {
        "schema_version": 1,
        "profile": "laptop",
        "parameters": {"n_prompts": 30, "model_name": model, "ratio": 0.5},
        "seed": 3,
        "claims": [claim | {"scope": "transfer"} for claim in content["claims"]],
        "status": "finished",
        "hashes": dict.fromkeys(
            ("notebook", "claims", "library", "environment", "parameters"), zero
        )
        | {"weights": None, "requirements": None, "inputs": {}},
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "threads": 2,
        "wall_time_s": 75.2,
        "calibration": None,
        "peak_memory_mb": 900.0,
        "started": "2026-01-02T03:04:05Z",
    } | {key: content[key] for key in ("paper", "title", "arxiv", "model", "measurements", "heads")}
    record["changes"] = content["changes"]
    show = {"output_type": "display_data", "metadata": {}, "data": bundle}
    picture = {"image/png": png(), "text/plain": "<Figure>"}
    alt = {"image/png": {"alt": f"A grey box for {model}"}}
    figure = {"output_type": "display_data", "metadata": alt, "data": picture}
    caption = "The gain, {record}`claims.1.1.value:.1%`, see {numref}`fig-gain`."
    cells = [
        {"cell_type": "markdown", "id": "text", "metadata": {}, "source": TEXT},
        code(PARAMETERS, 1, tags=["parameters"]),
        code("# Parameters\nn_prompts = 30\n", 2, tags=["injected-parameters"]),
        code("draw()", 3, [figure], mystnb={"figure": {"name": "fig-gain", "caption": caption}}),
        {"cell_type": "markdown", "id": "v", "metadata": {}, "source": "## Verdicts"},
        code("claims.verdicts(model_info(model))", 4, [show], tags=["claims"]),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    folder = root / "build" / "runs" / PAPER / model
    folder.mkdir(parents=True)
    (folder / "notebook.ipynb").write_text(json.dumps(notebook))
    source = root / "notebooks" / f"{PAPER}/{PAPER}.ipynb"
    if not source.exists():
        given = ["injected-parameters"]
        own = [cell for cell in cells if cell["metadata"].get("tags") != given]
        bare = [{k: v for k, v in cell.items() if k != "outputs"} for cell in own]
        source.write_text(json.dumps(notebook | {"cells": bare}))
    chapter = find_chapter(root, PAPER)
    record["hashes"] |= {
        "notebook": notebook_hash(source.read_text()),
        "claims": chapter.claims.sha256,
        "library": library_hash(source.read_text()),
        "parameters": chapter.parameters_hash("laptop"),
    }
    write_record(folder / "record.json", record)


def make_project(root: Path) -> None:
    for name, text in PAGES.items():
        (root / "book" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "book" / name).write_text(text)
    shutil.copytree(ROOT / "book" / "_static", root / "book" / "_static")
    shutil.copy(ROOT / "_config.yml", root)
    shutil.copy(ROOT / "CITATION.cff", root)
    (root / "_toc.yml").write_text(TOC)
    (root / "notebooks").mkdir()
    (root / "notebooks" / f"{PAPER}/claims.yaml").write_text(CLAIMS)
    (root / "notebooks" / f"{PAPER}/profiles.yaml").write_text(PROFILES)
    for model, gain in zip(MODELS, (0.3, 0.06), strict=True):
        make_run(root, model, gain)


def build(root: Path, *options: str) -> subprocess.CompletedProcess:
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [jupyter_book, "build", root / "build/book", "--path-output", root, "-W", "-n"]
    return subprocess.run(
        [*command, "--keep-going", "-q", *options], capture_output=True, text=True
    )


def stage(root: Path, expected: list[str] | None = None) -> list[Run]:
    return staging.stage(root, root / "build/runs", root / "build/book", expected)


def gate(root: Path, expected: list[str] | None = None) -> list[str]:
    return faults(root / "_build/html", root / "build/runs", root / "build/book", expected)


# --- staging --------------------------------------------------------------------------------------


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


def run_main(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, list[str]]:
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err.splitlines()


def stage_main(project: Path, capsys: pytest.CaptureFixture) -> tuple[int, list[str]]:
    options = ["--root", project, "--runs", project / "build/runs", "--out", project / "build/book"]
    return run_main(capsys, "stage", *options, "--expect", *EXPECTED)


def test_stage_refuses_a_missing_run_and_leaves_the_staged_book(
    project: Path, capsys: pytest.CaptureFixture
) -> None:
    assert stage_main(project, capsys) == (0, [])
    shutil.rmtree(project / "build/runs" / EXPECTED[1])
    code, lines = stage_main(project, capsys)
    assert (code, len(lines)) == (1, 1)
    assert "no finished run of fake-paper on model-b" in lines[0]
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
    project: Path, capsys: pytest.CaptureFixture, file: str, old: str, new: str, message: str
) -> None:
    path = project / "build/runs" / EXPECTED[0] / file
    path.write_text(path.read_text().replace(old, new))
    code, lines = stage_main(project, capsys)
    assert (code, len(lines)) == (1, 1)
    assert message in lines[0]


@pytest.mark.parametrize("name", ["<img src=x>", "index", "a b", "x'y", ".hidden", "a\u202eb", "é"])
def test_stage_refuses_a_folder_that_cannot_name_a_page(
    project: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    folder = project / "build/runs" / PAPER
    (folder / MODELS[0]).rename(folder / name)
    with pytest.raises(
        UsageError, match=r"a run's folder cannot be called|a run is named paper/model"
    ):
        stage(project, [f"{PAPER}/{name}"])


def test_messages_obey_no_text_of_others(project: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--root", project, "--runs", project / "build/runs", "--out", project / "book2"]
    code, lines = run_main(capsys, "stage", *options, "--expect", "x\x1b[31m/tiny")
    assert code == 1
    assert "x\\x1b[31m" in lines[0]


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
    assert both.index(CONTROLS) < both.index('data-record="fake-paper/tiny"')


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


# --- the built pages ------------------------------------------------------------------------------


def page(built: Path, name: str) -> str:
    return (built / "_build/html" / name).read_text()


def test_a_chapter_page_says_which_model_it_shows(built: Path) -> None:
    text = page(built, f"chapters/{EXPECTED[1]}.html")
    assert "<h1>A Paper About Nothing (model-b)" in text
    assert text.count('aria-current="page">model-b</a>') == 1
    assert '<a href="model-a.html">model-a</a>' in text
    assert "replib run fake-paper --model model-b --profile laptop -p n_prompts=30" in text
    assert "transfer (the paper used gpt2-medium)" in text
    assert "made &lt;here&gt;" in text


def test_numbers_come_from_the_record_of_the_page(built: Path) -> None:
    for model, gain in zip(MODELS, ("30.0%", "6.0%"), strict=True):
        assert f">{gain}</span>, [" in page(built, f"chapters/{PAPER}/{model}.html")
    assert ">6.0%</span>" in page(built, "index.html")
    assert ">made &lt;here&gt;</span>; claim" in page(built, f"chapters/{EXPECTED[0]}.html")


def test_figures_and_equations_are_numbered_by_page(built: Path) -> None:
    for pair in EXPECTED:
        text = page(built, f"chapters/{pair}.html")
        assert set(re.findall(r">Fig\. (\d+)", text)) == {"1"}
        assert set(re.findall(r">\((\d+)\)<", text)) == {"1"}


def test_the_scorecard_shows_every_claim_on_every_model(built: Path) -> None:
    text = page(built, "scorecard.html")
    for model, outcome in zip(MODELS, ("holds", "unclear"), strict=True):
        mark = f'class="outcome outcome-{outcome}" data-record="{PAPER}/{model}" data-claim="1.1"'
        assert text.count(f"{mark}>{outcome}</span>") == 3  # transfer, outcomes, evidence
    assert "The gain &lt;b&gt;is&lt;/b&gt; large &amp; real" in text
    assert ">not testable</span>" in text
    assert "random heads" in text
    assert f'href="chapters/{PAPER}/model-a.html"' in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{record}`fake-paper/model-a claims.1.1.vlaue`", "vlaue"),
        ("{record}`fake-paper/model-c wall_time_s`", "no record of fake-paper/model-c"),
        ("{record}`wall_time_s`", "shows no single run"),
        ("{record}`fake-paper/model-a model.name:.1%`", "format"),
    ],
)
def test_a_wrong_key_record_or_format_fails_the_build(
    project: Path, text: str, message: str
) -> None:
    (project / "book/index.md").write_text(f"# Home\n\n{text}\n")
    stage(project)
    result = build(project)
    assert result.returncode != 0
    assert message in re.sub(r"\s+", " ", result.stdout + result.stderr)


# --- the gate -------------------------------------------------------------------------------------

CHAPTER = f"_build/html/chapters/{EXPECTED[0]}.html"
RUN = f"build/runs/{EXPECTED[0]}"
END = "</article>"
NO_POLICY = "does not carry the content security policy"


def test_the_gate_passes_the_built_book(built: Path) -> None:
    assert gate(built) == []


BREAKS = {
    "a page is gone": ("_build/html/references.html", None, "", "references.html is missing"),
    "a chapter's page is gone": (CHAPTER, None, "", f"chapters/{EXPECTED[0]}.html is missing"),
    "no book": ("_build/html/index.html", None, "", "no book"),
    "no record": (f"{RUN}/record.json", None, "", "no finished run of fake-paper on model-a"),
    "unfinished": (f"{RUN}/record.json", '"finished"', '"running"', "finished"),
    "another run": (f"{RUN}/record.json", "900.0", "901.0", "built from another run"),
    "record differs": (f"{RUN}/record.json", '"value": 0.3', '"value": 0.4', "shows '30.0%' for"),
    "notebook differs": (
        f"{RUN}/record.json",
        '"value": 0.3',
        '"value": 0.4',
        "claim 1.1, measured",
    ),
    "a claim less": (f"{RUN}/notebook.ipynb", '"id": "1.2"', '"id": "1.3"', "claim 1.2 is in the"),
    "outcome differs": (f"{RUN}/notebook.ipynb", '"unclear"', '"fails"', "claim 1.2, outcome"),
    "error output": (
        f"{RUN}/notebook.ipynb",
        '"output_type": "display_data"',
        '"ename": "ValueError", "evalue": "no", "output_type": "error"',
        "cell 4 ended in ValueError: no",
    ),
    "dead kernel": (f"{RUN}/notebook.ipynb", "<Figure>", "DeadKernelError: died", "shows an error"),
    "a cell that never ran": (
        f"{RUN}/notebook.ipynb",
        '"execution_count": 3',
        '"execution_count": null',
        "cell 4 never ran",
    ),
    "a widget": (
        f"{RUN}/notebook.ipynb",
        '"text/plain": "<Figure>"',
        '"application/vnd.jupyter.widget-view+json": {}',
        "shows a widget",
    ),
    "no verdicts": (f"{RUN}/notebook.ipynb", MIME, "application/json", "0 outputs of verdicts"),
    "a run that failed": (
        f"{RUN}/notebook.ipynb",
        '"metadata": {"kernelspec"',
        '"metadata": {"papermill": {"exception": true}, "kernelspec"',
        "run that failed",
    ),
    "a number": (
        CHAPTER,
        ">30.0%</span>, [",
        ">31.0%</span>, [",
        "shows '31.0%' for claims.1.1.value",
    ),
    "a key": (CHAPTER, 'data-key="model.name"', 'data-key="model.nam"', "shows model.nam"),
    "a traceback": (
        CHAPTER,
        END,
        '<div class="cell_output"><div class="output traceback">no</div></div>',
        "output of an error",
    ),
    "a died kernel": (
        CHAPTER,
        END,
        '<div class="cell_output"><pre>nbclient.DeadKernelError</pre></div>',
        "shows DeadKernelError",
    ),
    "a verdict": (CHAPTER, 'outcome-holds">holds', 'outcome-fails">fails', "claim 1.1 fails, the"),
    "a verdict's class": (CHAPTER, 'outcome-holds">', 'outcome-fails">', "claim 1.1 holds, the"),
    "a verdict's number": (CHAPTER, "<td>0.3 [", "<td>0.7 [", "does not show 0.3 for claim 1.1"),
    "no verdict": (CHAPTER, "<tr><td>1.2</td>", "<tr><td>1.1</td>", "no verdict on claim 1.2"),
    "the scorecard": (
        "_build/html/scorecard.html",
        'outcome-unclear" data-record="fake-paper/model-b" data-claim="1.1">unclear',
        'outcome-holds" data-record="fake-paper/model-b" data-claim="1.1">holds',
        "claim 1.1 holds, the record of fake-paper/model-b says unclear",
    ),
    "the scorecard's number": (
        "_build/html/scorecard.html",
        'data-format=".3g">0.06<',
        'data-format=".3g">0.07<',
        "shows '0.07' for claims.1.1.value",
    ),
    "a role": (CHAPTER, END, "<p>is {record}`claims.1.1.value`</p>", "unresolved role"),
    "a role, half parsed": (CHAPTER, END, "<p>{term}<code>null</code></p>", "unresolved role"),
    "a message": (CHAPTER, END, '<p class="system-message">no</p>', "message of the build"),
    "no alt": (CHAPTER, 'alt="A grey box for model-a"', 'alt=""', "without alternative text"),
    "a link": (CHAPTER, 'href="model-b.html"', 'href="model-c.html"', "links to model-c.html"),
    "an anchor": (CHAPTER, 'href="#verdicts"', 'href="#verdict"', "links to #verdict, where"),
    "an anchor elsewhere": (
        CHAPTER,
        '<a href="model-b.html"',
        '<a href="model-b.html#x"',
        "model-b.html#x, where",
    ),
    "out of the book": (CHAPTER, END, '<a href="../../../../_toc.yml">x</a>', "is not in the book"),
    "from the root": (CHAPTER, END, '<a href="/index.html">x</a>', "not relative to the page"),
    "no policy": (CHAPTER, 'http-equiv="Content-Security-Policy"', 'name="policy"', NO_POLICY),
    "a wider policy": (
        CHAPTER,
        "script-src 'self'",
        "script-src 'self' 'unsafe-inline'",
        NO_POLICY,
    ),
    "a policy too late": (CHAPTER, "<head>", '<head><script src="../../a.js"></script>', NO_POLICY),
    "another script": (CHAPTER, "</head>", "<script>1</script></head>", NO_POLICY),
    "a script": (CHAPTER, END, "<script>let a = 1;</script>", "holds a script: let a = 1;"),
    "a module": (CHAPTER, END, '<script type="module">1</script>', "holds a script: 1"),
    "a handler": (CHAPTER, END, '<p onclick="a()">x</p>', "an event handler, onclick of p"),
    "a link that runs": (CHAPTER, END, '<a href=" JavaScript:a()">x</a>', "a script as href of a"),
    "a picture": (CHAPTER, 'src="../../_images/', 'src="../../_image/', "which is not in the book"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_gate_sees(built: Path, broken: Callable, name: str) -> None:
    file, old, new, message = BREAKS[name]
    if old == END:
        new += END
    broken(file, old, new)
    found = gate(built, EXPECTED)
    assert any(message in fault for fault in found), found
    assert not any("\n" in fault for fault in found)


EXTERNAL = {
    "script": '<script src="https://cdn.example.com/a.js"></script>',
    "protocol-relative": '<script src="//cdn.example.com/a.js"></script>',
    "style sheet": '<link rel="stylesheet" href="https://cdn.example.com/a.css">',
    "preload": '<link rel="preload" as="font" href="https://cdn.example.com/a.woff2">',
    "preconnect": '<link rel="preconnect" href="https://cdn.example.com">',
    "image": '<img alt="x" src="https://cdn.example.com/a.png">',
    "srcset": '<img alt="x" src="data:," srcset="https://cdn.example.com/a.png 2x">',
    "frame": '<iframe src="https://cdn.example.com/"></iframe>',
    "frame's text": "<iframe srcdoc='<img src=\"https://cdn.example.com/a.png\">'></iframe>",
    "video": '<video poster="https://cdn.example.com/a.png"></video>',
    "object": '<object data="https://cdn.example.com/a.svg"></object>',
    "svg": '<svg><image href="https://cdn.example.com/a.png"/></svg>',
    "refresh": '<meta http-equiv="refresh" content="0; url=https://cdn.example.com/">',
    "base": '<base href="https://cdn.example.com/">',
    "ping": '<a href="#" ping="https://cdn.example.com/">x</a>',
    "style": "<style>p { background: url('https://cdn.example.com/a.png') }</style>",
    "import": '<style>@import "https://cdn.example.com/a.css";</style>',
    "style attribute": '<p style="background: url(https://cdn.example.com/a.png)">x</p>',
    "inline script": "<script>fetch('https://cdn.example.com/a')</script>",
    "inline script, no scheme": "<script>import('//cdn.example.com/a')</script>",
    "handler": "<p onclick=\"fetch('https://cdn.example.com/a')\">x</p>",
}


@pytest.mark.parametrize("name", EXTERNAL)
def test_the_gate_sees_requests_to_other_hosts(built: Path, broken: Callable, name: str) -> None:
    broken(CHAPTER, END, EXTERNAL[name] + END)
    assert any("requests" in f and "cdn.example.com" in f for f in gate(built, EXPECTED))


def test_the_gate_lets_plain_links_and_data_pass(built: Path, broken: Callable) -> None:
    links = (
        '<a href="https://arxiv.org/abs/2310.08744">x</a><img alt="x" src="data:image/png;base64,">'
        '<link rel="canonical" href="https://example.com/"><code>{record}`claims.1.1.value`</code>'
        '<script type="application/json">["https://example.com/"]</script>'
    )
    broken(CHAPTER, END, links + END)
    assert gate(built) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("replib.css", "@font-face { src: url(https://fonts.example.com/a.woff2) }"),
        ("more.js", 'load("https://cdn.example.com/a.js")'),
        ("more.js", "new WebSocket('wss://cdn.example.com')"),
    ],
)
def test_the_gate_reads_style_sheets_and_scripts(
    built: Path, broken: Callable, file: str, text: str
) -> None:
    broken(f"_build/html/_static/{file}", "", text)
    assert any(f"_static/{file} requests" in fault for fault in gate(built, EXPECTED))


def test_what_a_script_or_style_sheet_may_name() -> None:
    assert requests_in_css("/* https://a.org */ a { b: url(data:x) url(../a.png) }") == []
    assert requests_in_script("x = 'http://www.w3.org/2000/svg'") == []
    assert requests_in_script("// https://clipboardjs.com/", "clipboard.min.js") == []
    assert requests_in_script("// https://clipboardjs.com/", "other.js") == ["clipboardjs.com"]


def test_the_gate_misses_no_expected_run(built: Path, capsys: pytest.CaptureFixture) -> None:
    places = ["--html", built / "_build/html", "--book", built / "build/book"]
    places += ["--runs", built / "build/runs"]
    assert run_main(capsys, "gate", *places) == (0, [])  # of all that is in build/runs
    code, lines = run_main(capsys, "gate", *places, "--expect", *EXPECTED, f"{PAPER}/model-c")
    assert code == 1
    assert lines[0].startswith("book: no finished run of fake-paper on model-c")


def test_mathjax_is_vendored_with_its_licence(built: Path) -> None:
    assert 'src="../../_static/mathjax/tex-svg-full.js' in page(
        built, f"chapters/{EXPECTED[0]}.html"
    )
    assert "mathjax" not in page(built, "references.html").lower().replace("mathjax_ignore", "")
    assert "Apache License" in (ROOT / "book/_static/mathjax/LICENSE").read_text()


def requested_hosts(page: Path, scratch: Path) -> set[str]:
    """Hosts that a headless browser asks on behalf of the page, whether or not they answer."""
    scratch.mkdir()
    log = scratch / "net.json"
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}"),
        *("--virtual-time-budget=5000", "--dump-dom"),
    ]
    command = [CHROMIUM, *flags, page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    events = json.loads(log.read_text())["events"]
    asked = [event["params"] for event in events if "url" in event.get("params", {})]
    # "not an origin": the browser itself asks, not the page
    own = [
        params for params in asked if params.get("initiator", "not an origin") != "not an origin"
    ]
    return {urlsplit(params["url"]).netloc for params in own} - {""}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_asks_no_other_host_for_anything(built: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("index.html", f"chapters/{EXPECTED[0]}.html", "scorecard.html")):
        assert requested_hosts(built / "_build/html" / name, tmp_path / str(number)) == set()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_browser_test_sees_a_request(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        "<script>new Image().src = 'http:/' + '/cdn.example.com/a'</script>"
    )
    hosts = requested_hosts(tmp_path / "a.html", tmp_path / "profile")
    assert hosts == {"cdn.example.com"}
