"""The workflow: what runs again when something changes, on a paper that needs no library.

The packages are copied, so that a test can change a module, and so that nobody else's change makes
anything run here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each starts Snakemake

ROOT = Path(__file__).parents[2]
CLAIMS = """
paper: small-paper
title: A Small Paper
arxiv: "2001.00001"
model: gpt2-medium
claims:
  - {id: "1.1", statement: It is positive, reported: null, source: {mark: none, where: null},
     null: null, gate: null, gate_text: null, holds_if: value > 0, fails_if: value < 0,
     decision: Above zero.}
"""
PROFILES = {
    "smoke": {"models": ["tiny"], "parameters": {"n_prompts": 4}},
    "laptop": {"models": ["tiny"], "parameters": {}},
    "paper": {"models": ["gpt2-medium"], "parameters": {}},
}
PARAMETERS = """model_name: str = "tiny"
device: str = "cpu"
seed: int = 0
profile: str = "laptop"
n_prompts: int = 10  # prompts"""
MEASURE = """from replib.claims.measure import Claims
claims = Claims.load("claims.yaml")
claims.measure("1.1", n_prompts);"""
VERDICTS = 'claims.verdicts({"name": model_name, "sha256": None})'
STAMP = "build/stamps/small-paper/tiny.ok"
RECORD = "build/runs/small-paper/tiny/record.json"
CHAPTER, TEMPLATE = "notebooks/small-paper", "src/bookkit/book/templates/trial.html"


def write_notebook(project: Path, measure: str, parameters: str = PARAMETERS) -> None:
    title = "# A Small Paper\n\nIt is {record}`claims.1.1.value`."
    cells = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": title}]
    for source, tag in ((parameters, "parameters"), (measure, "work"), (VERDICTS, "claims")):
        cell = {"cell_type": "code", "id": tag, "metadata": {"tags": [tag]}, "source": source}
        cells.append(cell | {"execution_count": None, "outputs": []})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}}
    content |= {"nbformat": 4, "nbformat_minor": 5}
    (project / CHAPTER / "small-paper.ipynb").write_text(json.dumps(content))


def make_project(root: Path) -> Path:
    """A project with one paper, and nothing run."""
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    shutil.copytree(ROOT / "workflow", root / "workflow")
    (root / CHAPTER).mkdir(parents=True)
    (root / CHAPTER / "claims.yaml").write_text(CLAIMS)
    (root / CHAPTER / "profiles.yaml").write_text(json.dumps(PROFILES))
    write_notebook(root, MEASURE)
    (root / "requirements.txt").write_text("torch==1\n")
    return root


@contextmanager
def measuring(project: Path, before: str) -> Iterator[None]:
    """The notebook with some code before it measures."""
    write_notebook(project, MEASURE.replace("claims.measure(", f"{before}\nclaims.measure("))
    try:
        yield
    finally:
        write_notebook(project, MEASURE)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with its book, built once for `tiny`."""
    root = make_project(tmp_path_factory.mktemp("project"))
    shutil.copytree(ROOT / "book/_static", root / "book/_static")
    shutil.copy(ROOT / "_config.yml", root)
    shutil.copy(ROOT / "CITATION.cff", root)
    (root / TEMPLATE).parent.mkdir(exist_ok=True)
    (root / TEMPLATE).write_text("<p></p>\n")
    chapters = "chapters: [{file: chapters/small-paper/index}, {file: scorecard}]\n"
    (root / "_toc.yml").write_text(f"format: jb-book\nroot: index\n{chapters}")
    (root / "book/index.md").write_text("# Home\n\n{record}`small-paper/tiny claims.1.1.value`\n")
    (root / "book/scorecard.md").write_text("# Scorecard\n\n```{scorecard}\n```\n")
    (root / "book/references.bib").write_text("")
    result = snakemake(root)
    assert result.returncode == 0, result.stdout + result.stderr
    return root


def snakemake(project: Path, *options: str, models: str = "tiny") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "book", "--snakefile", "workflow/Snakefile"]
    return subprocess.run(
        [*command, "--cores", "all", *options, "--config", "profile=smoke", f"models={models}"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project / "src")},
        capture_output=True,
        text=True,
    )


def would_run(project: Path, models: str = "tiny") -> dict[str, int]:
    """Jobs by rule, without running any."""
    result = snakemake(project, "--dry-run", models=models)
    assert result.returncode == 0, result.stdout + result.stderr
    table = re.findall(r"^(chapter|html) +(\d+)$", result.stdout + result.stderr, re.MULTILINE)
    return {rule: int(count) for rule, count in table}


@contextmanager
def edited(path: Path, text: str) -> Iterator[None]:
    before = path.read_text()
    path.write_text(before + text)
    yield
    path.write_text(before)


def test_the_book_is_there_and_nothing_runs_again(project: Path) -> None:
    assert "It is" in (project / "_build/html/chapters/small-paper/tiny.html").read_text()
    assert would_run(project) == {}


@pytest.mark.parametrize(
    "file", ["book/index.md", "_toc.yml", "src/bookkit/book/atlas.py", TEMPLATE]
)
def test_text_looks_and_code_of_the_book_only_build_it_again(project: Path, file: str) -> None:
    with edited(project / file, "\n"):
        assert would_run(project) == {"html": 1}


def test_what_neither_run_nor_book_uses_and_the_same_content_run_nothing(project: Path) -> None:
    with edited(project / "src/replib/metrics.py", "# more\n"), edited(project / "_toc.yml", ""):
        assert would_run(project) == {}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (f"{CHAPTER}/claims.yaml", "# more\n"),
        (f"{CHAPTER}/small-paper.ipynb", "\n"),
        ("src/replib/claims/measure.py", "# more\n"),
        ("src/bookkit/run/execute.py", "# more\n"),
        ("requirements.txt", "numpy==2\n"),
    ],
)
def test_what_the_numbers_depend_on_runs_the_chapter_again(
    project: Path, file: str, text: str
) -> None:
    with edited(project / file, text):
        assert would_run(project) == {"chapter": 1, "html": 1}


def test_only_the_parameters_of_the_own_profile_count(project: Path) -> None:
    path = project / CHAPTER / "profiles.yaml"
    changed = {"models": ["tiny"], "parameters": {"n_prompts": 5}}
    path.write_text(json.dumps(PROFILES | {"laptop": changed}))
    assert would_run(project) == {}
    path.write_text(json.dumps(PROFILES | {"smoke": changed}))
    assert would_run(project) == {"chapter": 1, "html": 1}
    path.write_text(json.dumps(PROFILES))


def test_a_control_runs_when_a_page_reads_its_record(project: Path) -> None:
    link = "[the planted model](chapters/small-paper/planted-ioi.ipynb)\n"
    with edited(project / "book/index.md", link):
        assert would_run(project) == {"chapter": 1, "html": 1}


def test_a_record_written_by_hand_or_removed_runs_the_chapter_again(project: Path) -> None:
    later = (project / STAMP).stat().st_mtime + 5
    os.utime(project / RECORD, (later, later))
    assert would_run(project) == {"chapter": 1, "html": 1}
    assert not (project / STAMP).exists()


@pytest.mark.slow
def test_a_run_that_fails_keeps_the_earlier_one_and_is_tried_again(project: Path) -> None:
    earlier = (project / RECORD).read_text()
    with measuring(project, "1 / 0"):
        result = snakemake(project)
        assert result.returncode != 0
        assert "ZeroDivisionError" in result.stdout + result.stderr
        assert (project / RECORD).read_text() == earlier
        assert would_run(project) == {"chapter": 1, "html": 1}


@pytest.mark.slow
def test_a_chapter_that_refuses_a_model_that_was_asked_for_is_left_out(project: Path) -> None:
    refuse = (
        "from replib.errors import UsageError\n"
        "if model_name == 'planted-ioi': raise UsageError('no heads here')"
    )
    with measuring(project, refuse):
        result = snakemake(project, models="tiny planted-ioi")
        assert result.returncode == 0, result.stdout + result.stderr
        stamp = project / "build/stamps/small-paper/planted-ioi.ok"
        assert "no heads here" in stamp.read_text()
        pages = project / "_build/html/chapters/small-paper"
        assert (pages / "tiny.html").is_file() and not (pages / "planted-ioi.html").exists()
        assert would_run(project, "tiny planted-ioi") == {}
    assert would_run(project, "tiny planted-ioi") == {"chapter": 2, "html": 1}


@pytest.mark.slow
def test_a_book_that_the_gate_refuses_is_no_book(project: Path) -> None:
    with edited(project / "book/index.md", "\n<a href='nowhere.html'>there</a>\n"):
        result = snakemake(project)
        assert result.returncode != 0
        assert "index.html: links to nowhere.html" in result.stdout + result.stderr
        assert not (project / "_build/html/index.html").exists()
        assert would_run(project) == {"html": 1}
