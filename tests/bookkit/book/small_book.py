"""The small book that several files test: a paper about nothing that ran on two models.

conftest.py builds it once; `stage`, `build` and `gate` do to it what `make book` does.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from bookkit.book import stage as staging
from bookkit.book.gate import faults
from bookkit.book.pdf import find_chromium
from bookkit.book.runs import Run
from bookkit.records import read_record, write_record
from bookkit.run.chapter import find_chapter
from replib.claims.file import MIME
from replib.claims.measure import Claims
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
     source: {mark: none, where: null}, null: null, gate: null, gate_text: null, unit: nats,
     holds_if: value < 0.1, fails_if: value > 0.2, decision: Below a tenth.}
  - {id: "1.10", statement: It is the largest, reported: "0.69",
     source: {mark: second-hand, where: Sec. 5}, null: null, gate: null, gate_text: null,
     holds_if: value > 0, fails_if: value < 0, decision: Above zero.}
  - {id: "1.11", statement: Most models <i>gain</i>, reported: "3 of 4 models", across: [gain, bar],
     source: {mark: abstract, where: null}, null: null, gate: models >= 2,
     gate_text: at least two models, holds_if: share_low > 0.1, fails_if: share_high < 0.1,
     decision: Share of models above the bar.}
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
    chapters: [{file: scorecard}, {file: across}, {file: atlas/index}, {file: references}]
"""
FILES = {
    "_toc.yml": TOC,
    "notebooks/fake-paper/claims.yaml": CLAIMS,
    "notebooks/fake-paper/profiles.yaml": PROFILES,
    "book/index.md": "# Home\n\nThe gain was {record}`fake-paper/model-b claims.1.1.value:.1%` "
    "and $x_1$. See [the scorecard](scorecard.md) and {cite:p}`nobody`.\n",
    "book/scorecard.md": "# Scorecard\n\n```{transfer}\n```\n\n```{scorecard}\n```\n",
    "book/across.md": "# Across models\n\n```{across}\n```\n",
    "book/atlas/index.md": "# Head atlas\n",
    "book/references.md": "# References\n\n```{bibliography}\n```\n",
    "book/references.bib": "@misc{nobody, author={A. Nobody}, title={Nothing}, year={2001}}\n",
    "book/chapters/fake-paper.md": "What this chapter asks.",
}
PARAMETERS = """model_name: str = "tiny"
device: str = "cpu"
seed: int = 0
profile: str = "laptop"
n_prompts: int = 100  # prompts
ratio: float = 0.5"""
# One pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5E"
PNG += "rkJggg=="
TEXT = """# A Paper About Nothing

(start)=
The gain was {record}`claims.1.1.value:.1%`, [{record}`claims.1.1.low:.2f`], on
{record}`model.name`, {record}`model.source`; claim 1.10:
{record}`claims.1.10.outcome`, {record}`claims.1.10.value:.2f`; accuracy
{record}`claims.1.1.accuracy:.2f`.
{numref}`fig-gain` shows it; {eq}`logit-diff` and [the start](#start) too, and [below](#verdicts).

$$ d = a - b $$ (logit-diff)
"""


def code(source: str, count: int, outputs: list | None = None, **metadata: object) -> dict:
    cell = {"cell_type": "code", "id": f"cell{count}", "metadata": metadata, "source": source}
    return cell | {"execution_count": count, "outputs": outputs or []}


def words(source: str, id: str) -> dict:
    return {"cell_type": "markdown", "id": id, "metadata": {}, "source": source}


def show(data: dict, **metadata: object) -> dict:
    return {"output_type": "display_data", "metadata": metadata, "data": data}


def notebook(cells: list[dict]) -> str:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content)


def write_run(
    root: Path, paper: str, model: str, cells: list[dict], weights: str | None, record: dict
) -> None:
    """A run as the runner leaves it: an executed notebook, and a record of it; and the chapter's
    notebook, if it is not there."""
    folder = root / "build" / "runs" / paper / model
    folder.mkdir(parents=True)
    (folder / "notebook.ipynb").write_text(notebook(cells))
    path = root / "notebooks" / paper / f"{paper}.ipynb"
    if not path.exists():
        own = [cell for cell in cells if cell["metadata"].get("tags") != ["injected-parameters"]]
        path.write_text(notebook(own))
    chapter, source = find_chapter(root, paper), path.read_text()
    hashes = {"weights": weights, "requirements": None, "inputs": {}, "environment": "0" * 64}
    hashes |= {"notebook": notebook_hash(source), "library": library_hash(source)}
    hashes |= {"claims": chapter.claims.sha256, "parameters": chapter.parameters_hash("laptop")}
    usual = {
        "schema_version": 1,
        "profile": "laptop",
        "seed": 3,
        "status": "finished",
        "hashes": hashes,
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "threads": 2,
        "wall_time_s": 75.2,
        "calibration": None,
        "peak_memory_mb": 900.0,
        "started": "2026-01-02T03:04:05Z",
        "numerics": {"threads": 2, "instructions": "all", "processor": "the builder's"},
    }
    write_record(folder / "record.json", usual | record)


def make_run(root: Path, model: str, gain: float, **roles: list[tuple[int, int]]) -> None:
    """A run of the paper about nothing; `roles` are the heads that it found."""
    claims = Claims.load(root / "notebooks" / f"{PAPER}/claims.yaml")
    null = {"mean": 0.01, "q95": 0.05}
    claims.measure("1.1", gain, interval=(gain - 0.1, gain + 0.1), n=40, null=null, accuracy=0.9)
    claims.measure("1.2", 0.15)
    claims.measure("1.10", None, otherwise="too small")
    claims.report("gain", gain, interval=(gain - 0.1, gain + 0.1), n=40)
    claims.report("bar", 0.05)
    for role, heads in roles.items():
        claims.role(role, heads, f"rule of {role}")
    info = {"name": model, "sha256": "0" * 64, "source": "made <here>", "n_params": 1234}
    info |= {"dtype": "float32", "note": "quantised", "n_layers": 3, "n_heads": 4}
    bundle = claims.bundle(info)
    content = bundle[MIME]
    alt = {"image/png": {"alt": f"A grey box for {model}"}}
    figure = show({"image/png": PNG, "text/plain": "<Figure>"}, **alt)
    caption = "The gain, {record}`claims.1.1.value:.1%`, see {numref}`fig-gain`."
    cells = [
        words(TEXT, "text"),
        code(PARAMETERS, 1, tags=["parameters"]),
        code("# Parameters\nn_prompts = 30\n", 2, tags=["injected-parameters"]),
        code("draw()", 3, [figure], mystnb={"figure": {"name": "fig-gain", "caption": caption}}),
        words("## Verdicts", "v"),
        code("claims.verdicts(model_info(model))", 4, [show(bundle)], tags=["claims"]),
    ]
    record = {k: v for k, v in content.items() if k not in ("paper_model", "claims_sha256")}
    record["claims"] = [claim | {"scope": "transfer"} for claim in content["claims"]]
    record["parameters"] = {"n_prompts": 30, "model_name": model, "ratio": 0.5}
    write_run(root, PAPER, model, cells, None, record)


def make_project(root: Path, **roles: list[tuple[int, int]]) -> None:
    """Two finished runs, nothing staged; the first has the heads of `roles`."""
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    shutil.copytree(ROOT / "book" / "_static", root / "book" / "_static")
    shutil.copy(ROOT / "_config.yml", root)
    shutil.copy(ROOT / "CITATION.cff", root)
    make_run(root, MODELS[0], 0.3, **roles)
    make_run(root, MODELS[1], 0.06)


def make_old(root: Path, pair: str) -> None:
    """A run becomes one of another notebook, which had no accuracy, and only its record is left."""
    folder = root / "build/runs" / pair
    (folder / "notebook.ipynb").unlink()
    record = read_record(folder / "record.json")
    record["hashes"] |= {"notebook": "1" * 64, "library": "2" * 64}
    record["claims"][0]["measured"].pop("accuracy")
    write_record(folder / "record.json", record)


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
