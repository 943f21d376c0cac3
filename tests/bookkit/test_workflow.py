"""The workflow: what runs again when something changes, on a paper that needs no library.

The packages are copied, so that a test can change a module, and so that nobody else's change makes
anything run here.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import small_book
from small_book import PAPER, PARAMETERS, ROOT, code, notebook, words

pytestmark = pytest.mark.slow  # each starts Snakemake

MEASURE = """from replib.claims.measure import Claims
claims = Claims.load("claims.yaml")
claims.measure("1.2", n_prompts);"""
VERDICTS = 'claims.verdicts({"name": model_name, "sha256": None})'
STAMP = f"build/stamps/{PAPER}/tiny.ok"
RECORD = f"build/runs/{PAPER}/tiny/record.json"
PROFILES = f"notebooks/{PAPER}/profiles.yaml"
MODULES = ("src/replib/claims/measure.py", "src/bookkit/run/execute.py")
CHAPTER, TEMPLATE = f"notebooks/{PAPER}", "src/bookkit/book/templates/trial.html"


def write_notebook(project: Path, measure: str, parameters: str = PARAMETERS) -> None:
    cells = [words("# A Paper About Nothing\n\nIt is {record}`claims.1.2.value`.", "title")]
    tagged = {"parameters": parameters, "work": measure, "claims": VERDICTS}
    for count, (tag, source) in enumerate(tagged.items(), 1):
        cells.append(code(source, count, tags=[tag]))
    (project / CHAPTER / f"{PAPER}.ipynb").write_text(notebook(cells))


def make_project(root: Path) -> Path:
    """The small book's project with the code of this one, and nothing run."""
    small_book.make_project(root)
    shutil.rmtree(root / "build")
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    shutil.copytree(ROOT / "workflow", root / "workflow")
    (root / TEMPLATE).write_text("<p></p>\n")
    (root / "book/index.md").write_text("# Home\n\nSee {cite:p}`nobody`.\n")
    (root / "requirements.txt").write_text("torch==1\n")
    write_notebook(root, MEASURE)
    return root


@contextmanager
def measuring(project: Path, before: str) -> Iterator[None]:
    """The notebook with some code before it measures."""
    write_notebook(project, MEASURE.replace("claims.measure(", f"{before}\nclaims.measure("))
    try:
        yield
    finally:
        write_notebook(project, MEASURE)


@contextmanager
def edited(path: Path, text: str, old: str = "") -> Iterator[None]:
    """The file with some text at its end, or in place of another."""
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, text) if old else before + text)
    yield
    path.write_text(before)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with its book, built once for `tiny`."""
    root = make_project(tmp_path_factory.mktemp("project"))
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


def would_run(project: Path, models: str = "tiny") -> list[tuple[str, str]]:
    """The jobs that would run, (rule, reason) of each; none is run."""
    result = snakemake(project, "--dry-run", models=models)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    return sorted(
        re.findall(r"^rule (chapter|html):\n(?:    .*\n)*?    reason: (.*)$", said, re.MULTILINE)
    )


def rules(project: Path, models: str = "tiny") -> list[str]:
    return [rule for rule, _ in would_run(project, models)]


def test_what_neither_run_nor_book_uses_and_the_same_content_run_nothing(project: Path) -> None:
    assert "It is" in (project / f"_build/html/chapters/{PAPER}/tiny.html").read_text()
    with ExitStack() as edits:
        edits.enter_context(edited(project / "src/replib/metrics.py", "# more\n"))
        edits.enter_context(edited(project / "_toc.yml", ""))
        edits.enter_context(edited(project / PROFILES, "n_prompts: 5", "n_prompts: 40"))
        assert would_run(project) == []


@pytest.mark.parametrize(
    ("jobs", "files"),
    [
        (["html"], ["book/index.md", "_toc.yml", "src/bookkit/book/atlas.py", TEMPLATE]),
        (
            ["chapter", "html"],
            [f"{CHAPTER}/claims.yaml", f"{CHAPTER}/{PAPER}.ipynb", *MODULES],
        ),
    ],
)
def test_a_changed_file_runs_what_uses_it(project: Path, jobs: list, files: list) -> None:
    """Text, looks and code of the book only build it again."""
    with ExitStack() as edits:
        for file in files:
            edits.enter_context(edited(project / file, "\n"))
        found = would_run(project)
    assert [rule for rule, _ in found] == jobs
    assert [file for file in files if file not in found[0][1]] == []


def test_packages_and_parameters_of_the_own_profile_run_the_chapter_again(project: Path) -> None:
    with edited(project / "requirements.txt", "numpy==2\n"):
        assert rules(project) == ["chapter", "html"]
    with edited(project / PROFILES, "[tiny], parameters: {n_prompts: 5}", "[tiny], parameters: {}"):
        assert rules(project) == ["chapter", "html"]


def test_a_control_runs_when_a_page_reads_its_record(project: Path) -> None:
    link = "[the planted model](chapters/fake-paper/planted-ioi.ipynb)\n"
    with edited(project / "book/index.md", link):
        assert rules(project) == ["chapter", "html"]


def test_a_record_written_by_hand_or_removed_runs_the_chapter_again(project: Path) -> None:
    later = (project / STAMP).stat().st_mtime + 5
    os.utime(project / RECORD, (later, later))
    assert rules(project) == ["chapter", "html"]
    assert not (project / STAMP).exists()


def test_a_run_that_fails_keeps_the_earlier_one_and_is_tried_again(project: Path) -> None:
    earlier = (project / RECORD).read_text()
    with measuring(project, "1 / 0"):
        result = snakemake(project)
        assert result.returncode != 0
        assert "ZeroDivisionError" in result.stdout + result.stderr
        assert (project / RECORD).read_text() == earlier
        assert rules(project) == ["chapter", "html"]


def test_a_chapter_that_refuses_a_model_that_was_asked_for_is_left_out(project: Path) -> None:
    refuse = (
        "from replib.errors import UsageError\n"
        "if model_name == 'planted-ioi': raise UsageError('no heads here')"
    )
    with measuring(project, refuse):
        result = snakemake(project, models="tiny planted-ioi")
        assert result.returncode == 0, result.stdout + result.stderr
        stamp = project / f"build/stamps/{PAPER}/planted-ioi.ok"
        assert "no heads here" in stamp.read_text()
        pages = project / f"_build/html/chapters/{PAPER}"
        assert (pages / "tiny.html").is_file() and not (pages / "planted-ioi.html").exists()
        assert rules(project, "tiny planted-ioi") == []
    assert rules(project, "tiny planted-ioi") == ["chapter", "chapter", "html"]


def test_a_book_that_the_gate_refuses_is_no_book(project: Path) -> None:
    with edited(project / "book/index.md", "\n<a href='nowhere.html'>there</a>\n"):
        result = snakemake(project)
        assert result.returncode != 0
        assert "index.html: links to nowhere.html" in result.stdout + result.stderr
        assert not (project / "_build/html/index.html").exists()
        assert rules(project) == ["html"]
