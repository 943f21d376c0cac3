"""A new paper's files: they run, make a page that the gate passes, and overwrite nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_book import ROOT, build

from bookkit.book.gate import faults
from bookkit.book.stage import stage
from bookkit.cli import main
from bookkit.new import new_paper
from bookkit.records import read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import execute
from bookkit.run.plan import plan
from replib.errors import UsageError

TITLE, ARXIV = "A Sixth Paper", "2601.00001"
TOC = """format: jb-book
root: index
parts:
  - caption: Chapters
    chapters:
      - file: chapters/other-paper/index
  - caption: Results
    chapters:
      - file: scorecard
      - file: models
"""


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    for name in ("notebooks/other-paper", "tests/replib/chapters", "book"):
        (root / name).mkdir(parents=True)
    shutil.copytree(ROOT / "book/_static", root / "book/_static")
    shutil.copy(ROOT / "_config.yml", root)
    shutil.copy(ROOT / "CITATION.cff", root)
    (root / "_toc.yml").write_text(TOC)
    for name in ("index", "models", "scorecard"):
        (root / f"book/{name}.md").write_text(f"# {name}\n")
    (root / "book/scorecard.md").write_text("# Scores\n\n```{scorecard}\n```\n")
    (root / "book/references.bib").write_text("")
    (root / "notebooks/other-paper/claims.yaml").write_text("paper: other-paper\n")
    return root


def everything(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_new_chapter_runs_and_its_page_passes_the_gate(project, tmp_path):
    written = new_paper(project, "sixth-paper", TITLE, ARXIV)
    assert [path.name for path in written[:2]] == ["sixth-paper.ipynb", "claims.yaml"]
    chapters = yaml.safe_load((project / "_toc.yml").read_text())["parts"][0]["chapters"]
    assert [entry["file"] for entry in chapters][1] == "chapters/sixth-paper/index"
    runs = project / "build/runs"
    chapter = find_chapter(project, "sixth-paper")
    tiny, planted = (
        read_record(execute(plan(chapter, model, "smoke", {}, out=runs)) / "record.json")
        for model in ("tiny", "planted-ioi")
    )
    (claim,) = tiny["claims"]
    assert claim["null"]["draws"] == 1000 and claim["interval"] and claim["n"] == 16
    assert claim["outcome"] != "holds"
    assert planted["claims"][0]["outcome"] == "holds"
    stage(project, runs, project / "build/book")
    assert build(project).returncode == 0
    assert faults(project / "_build/html", runs, project / "build/book") == []
    own_test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", written[3]]
    subprocess.run(own_test, cwd=project, check=True)


def test_its_files_pass_the_project_s_own_style(project):
    written = new_paper(project, "sixth-paper", TITLE, ARXIV)
    shutil.copy(ROOT / "pyproject.toml", project)
    shutil.copy(ROOT / "notebooks/ruff.toml", project / "notebooks")
    code = [path for path in written if path.suffix in (".py", ".ipynb")]
    for words in (["check"], ["format", "--check"]):
        ruff = Path(sys.executable).with_name("ruff")
        subprocess.run([ruff, *words, *code], cwd=project, check=True)
    cells = json.loads(code[0].read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)


@pytest.mark.parametrize(
    ("slug", "title", "arxiv", "message"),
    [
        ("../up", TITLE, ARXIV, "cannot name a paper"),
        ("Sixth", TITLE, ARXIV, "cannot name a paper"),
        *(("sixth", bad, ARXIV, "title") for bad in ('A "title"', "A\rTitle", " A title", "   ")),
        *(
            ("sixth", bad, ARXIV, "title")
            for bad in ("A title [MEM]", "A \u2028 title", "A \ud800")
        ),
        *(("sixth", TITLE, bad, "is not like") for bad in ("https://arxiv.org", "٢٣١٠.٠٨٧٤٤")),
        ("taken", TITLE, ARXIV, "is there already"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(project, slug, title, arxiv, message):
    (project / "tests/replib/chapters/test_taken.py").write_text("mine")
    before = everything(project)
    with pytest.raises(UsageError, match=message):
        new_paper(project, slug, title, arxiv)
    assert everything(project) == before


@pytest.mark.parametrize(
    ("slug", "title"),
    [("null", "null"), ("true", "3.14"), ("123", "[Draft] & *more*"), ("a", "- it's !all, 'ours'")],
)
def test_a_title_is_a_text_whatever_yaml_would_read(project, slug, title):
    new_paper(project, slug, title, ARXIV)
    claims = find_chapter(project, slug).claims
    assert (claims.paper, claims.title, claims.arxiv) == (slug, title, ARXIV)


@pytest.mark.parametrize(
    ("toc", "message"),
    [
        (None, "table of contents .*_toc.yml cannot be read: No such file"),
        (b"\xff", "is not text in UTF-8"),
        (TOC.replace("parts:", "parts: ["), "table of contents .*_toc.yml, line"),
        ("format: jb-book\n", "has no entry chapters"),
    ],
)
def test_a_broken_table_of_contents_is_left_as_it_is(project, toc, message):
    path = project / "_toc.yml"
    path.unlink()
    if toc is not None:
        path.write_bytes(toc if isinstance(toc, bytes) else toc.encode())
    before = everything(project)
    with pytest.raises(UsageError, match=message):
        new_paper(project, "sixth", TITLE, ARXIV)
    assert everything(project) == before


def test_the_command_says_what_it_wrote_and_what_to_do_next(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert main(["new", "sixth-paper", "--title", TITLE, "--arxiv", ARXIV]) == 0
    out = capsys.readouterr().out
    assert "claims.yaml" in out and "next: replib run sixth-paper" in out
    assert main(["new", "sixth-paper", "--title", TITLE, "--arxiv", ARXIV]) == 2
    assert capsys.readouterr().err.count("\n") == 1
