"""A new paper's files: they run, make a page that the gate passes, and overwrite nothing."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from small_book import ROOT, build, gate, stage

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
      - file: chapters/fake-paper/index
  - caption: Results
    chapters: [{file: scorecard}, {file: models}, {file: atlas/index}, {file: references}]
"""


@pytest.fixture
def project(project):
    """The small book's, with a table of contents that a chapter can be entered in."""
    (project / "_toc.yml").write_text(TOC)
    (project / "book/models.md").write_text("# Models\n")
    return project


def everything(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_new_chapter_runs_in_our_style_and_its_page_passes_the_gate(project):
    written = new_paper(project, "sixth-paper", TITLE, ARXIV)
    assert [path.name for path in written[:2]] == ["sixth-paper.ipynb", "claims.yaml"]
    chapters = yaml.safe_load((project / "_toc.yml").read_text())["parts"][0]["chapters"]
    assert [entry["file"] for entry in chapters][1] == "chapters/sixth-paper/index"
    chapter = find_chapter(project, "sixth-paper")
    tiny, planted = (
        execute(plan(chapter, model, "smoke", {}, out=project / "build/runs"))
        for model in ("tiny", "planted-ioi")
    )
    (claim,) = read_record(tiny / "record.json")["claims"]
    assert claim["null"]["draws"] == 1000 and claim["interval"] and claim["n"] == 16
    assert claim["outcome"] != "holds"
    assert read_record(planted / "record.json")["claims"][0]["outcome"] == "holds"
    stage(project)
    assert build(project).returncode == 0
    assert gate(project) == []
    shutil.copy(ROOT / "pyproject.toml", project)
    shutil.copy(ROOT / "notebooks/ruff.toml", project / "notebooks")
    for words in (
        ["pytest", "-q", "-p", "no:cacheprovider", written[3]],
        ["ruff", "check", written[0], written[3]],
        ["ruff", "format", "--check", written[0], written[3]],
    ):
        subprocess.run([sys.executable, "-m", *words], cwd=project, check=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"slug": "../up"}, "cannot name a paper"),
        ({"slug": "taken"}, "is there already"),
        ({"title": "A \\title"}, "title"),
        ({"title": "A {{title}}"}, "title"),
        ({"title": " \n a "}, "title"),
        ({"title": "A title [MEM]"}, "title"),
        ({"title": "A \u202e title"}, "title"),
        ({"arxiv": "https://arxiv.org"}, "is not like"),
        ({"arxiv": "٢٣١٠.٠٨٧٤٤"}, "is not like"),
        ({"toc": TOC.replace("parts:", "parts: [")}, "table of contents .*_toc.yml, line"),
        ({"toc": "format: jb-book\n"}, "has no entry chapters"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(project, given, message):
    given = {"slug": "sixth", "title": TITLE, "arxiv": ARXIV, "toc": TOC} | given
    (project / "_toc.yml").write_text(given.pop("toc"))
    (project / "book/chapters/taken.md").write_text("mine")
    before = everything(project)
    with pytest.raises(UsageError, match=message):
        new_paper(project, **given)
    assert everything(project) == before


def test_a_title_is_a_text_whatever_yaml_would_read(project):
    titles = {"null": "null", "123": "3.14", "true": "[Draft] & *more*", "a": "- it's !all, 'ours'"}
    titles |= {"b": 'Look-up: "how" `why`?', "c": "C#: # 1", "d": " two\n lines"}
    seen = set()
    for slug, title in titles.items():
        new_paper(project, slug, title, ARXIV)
        chapter = find_chapter(project, slug)
        claims, title = chapter.claims, " ".join(title.split())
        assert (claims.paper, claims.title, claims.arxiv) == (slug, title, ARXIV)
        cells = json.loads(chapter.notebook)["cells"]
        heading = "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")
        page = BeautifulSoup(MarkdownIt().render(f"# {heading}"), "html.parser")
        assert page.text.strip() == title and not page.h1.find()  # nothing but text
        ids = {cell["id"] for cell in cells}
        assert len(ids) == len(cells) and not ids & seen
        seen |= ids


def test_the_command_says_what_it_wrote_and_what_to_do_next(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert main(["new", "sixth-paper", "--title", TITLE, "--arxiv", ARXIV]) == 0
    out = capsys.readouterr().out
    assert "claims.yaml" in out and "next: replib run sixth-paper" in out
    assert main(["new", "sixth-paper", "--title", TITLE, "--arxiv", ARXIV]) == 2
    assert capsys.readouterr().err.count("\n") == 1
