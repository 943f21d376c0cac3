"""The pages of the method: run like chapters, kept out of every table about papers."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from bookkit.book.contents import pages_in
from bookkit.book.stage import stage
from bookkit.book.tables import scorecard, transfer
from bookkit.project import list_chapters, list_methods, list_papers
from bookkit.records import read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import execute
from bookkit.run.plan import plan
from replib.claims.measure import Claims
from replib.errors import UsageError

ROOT = Path(__file__).parents[3]
METHODS = [
    *("method-logit-lens", "method-nulls", "method-patching", "method-planted"),
    *("method-residual-stream", "method-subspaces"),
]
CHEAP, OTHER = "method-residual-stream", "method-nulls"


def source(method):
    cells = json.loads((ROOT / f"notebooks/{method}/{method}.ipynb").read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def first_cell(book, model):
    path = book / f"chapters/{CHEAP}/{model}.ipynb"
    return json.loads(path.read_text())["cells"][0]["source"]


def outcomes(record):
    return {claim["id"]: claim["outcome"] for claim in record["claims"]}


# --- what is a method, and what is a paper --------------------------------------------------------


def test_methods_are_told_from_papers_by_their_missing_arxiv_number():
    assert list_methods(ROOT) == METHODS
    assert not set(list_papers(ROOT)) & set(METHODS)
    assert list_chapters(ROOT) == sorted([*list_papers(ROOT), *METHODS])


@pytest.mark.parametrize(
    "line", ["arxiv: null", "arxiv:", "arxiv: ~  # none", 'arxiv: "2001.00001"']
)
def test_the_quick_look_at_a_claims_file_agrees_with_its_reader(tmp_path, line):
    text = (ROOT / f"notebooks/{CHEAP}/claims.yaml").read_text().replace("arxiv: null", line)
    path = tmp_path / "notebooks" / CHEAP / "claims.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.with_name(f"{CHEAP}.ipynb").write_text("{}")
    assert Claims.load(path).is_method == (list_methods(tmp_path) == [CHEAP])


@pytest.mark.parametrize("arxiv", ["none", '""', "0"])
def test_no_number_is_null_and_nothing_else(tmp_path, arxiv):
    text = (ROOT / f"notebooks/{CHEAP}/claims.yaml").read_text()
    path = tmp_path / "claims.yaml"
    path.write_text(text.replace("arxiv: null", f"arxiv: {arxiv}"))
    with pytest.raises(UsageError, match="arxiv"):
        Claims.load(path)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_its_three_files_and_says_what_goes_wrong(method):
    chapter = find_chapter(ROOT, method)
    text = source(method)
    assert chapter.profiles["laptop"].models == ["smollm2-135m"]
    assert chapter.profiles["smoke"].models == ["tiny"]
    assert all(claim.reported is None for claim in chapter.claims.claims)
    for claim in chapter.claims.claims:
        assert f'"{claim.id}"' in text, claim.id
    assert "What goes wrong" in text
    assert "## Exercises" in text


def test_most_pages_have_a_figure_that_moves_beside_one_that_does_not():
    moving = [method for method in METHODS if "figures.slider(" in source(method)]
    assert len(moving) >= 3
    assert all("figures.show(" in source(method) for method in moving)


@pytest.mark.parametrize("method", METHODS)
def test_no_measured_number_is_typed_into_the_text(method):
    cells = json.loads((ROOT / f"notebooks/{method}/{method}.ipynb").read_text())["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    prose = re.sub(r"\{record\}`[^`]*`|\$\$?[^$]*\$\$?|`[^`]*`", "", prose)
    assert not re.search(r"\d\.\d\d|\d\.\d%", prose)


def test_the_table_of_claims_speaks_of_no_paper():
    table = Claims.load(ROOT / f"notebooks/{CHEAP}/claims.yaml").table()._repr_html_()
    assert "what must hold" in table and "paper" not in table and "its number" not in table


# --- run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    execute(plan(find_chapter(ROOT, CHEAP), "tiny", "smoke", {}, out=out))
    return out


@pytest.mark.slow
def test_a_method_runs_and_its_facts_hold_on_any_weights(runs):
    record = read_record(runs / CHEAP / "tiny" / "record.json")
    assert record["arxiv"] is None
    assert {claim["scope"] for claim in record["claims"]} == {"method"}
    assert set(outcomes(record).values()) == {"holds"}


@pytest.mark.slow
def test_the_planted_heads_are_found_and_noise_gives_none(tmp_path):
    chapter = find_chapter(ROOT, "method-planted")
    folder = execute(plan(chapter, "tiny", "smoke", {}, out=tmp_path))
    found = outcomes(read_record(folder / "record.json"))
    assert found == {"M6.1": "holds", "M6.2": "holds", "M6.3": "holds"}


@pytest.mark.slow
def test_a_stream_with_a_part_left_out_is_seen(tmp_path):
    """Broken on purpose: the embedding is not counted, and a head is not either."""
    shutil.copytree(ROOT / f"notebooks/{CHEAP}", tmp_path / f"notebooks/{CHEAP}")
    path = tmp_path / f"notebooks/{CHEAP}/{CHEAP}.ipynb"
    text = path.read_text()
    broken = text.replace("parts.sum(0) - stream", "parts[1:].sum(0) - stream")
    broken = broken.replace(", layer).sum(2)", ", layer)[:, :, 1:].sum(2)")
    assert broken.count("[1:].sum(0)") == broken.count("[:, :, 1:]") == 1
    path.write_text(broken)
    folder = execute(plan(find_chapter(tmp_path, CHEAP), "tiny", "smoke", {}, out=tmp_path / "out"))
    found = outcomes(read_record(folder / "record.json"))
    assert found == {"M1.1": "fails", "M1.2": "fails", "M1.3": "holds", "M1.4": "holds"}


# --- in the book ----------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    """A checkout of two methods and one paper, with hardly any other page."""
    root = tmp_path / "root"
    for name in (CHEAP, OTHER, "successor-heads"):
        kept = shutil.ignore_patterns("adapters", "checkpoints")
        shutil.copytree(ROOT / "notebooks" / name, root / "notebooks" / name, ignore=kept)
    (root / "book/_static").mkdir(parents=True)
    (root / "book/index.md").write_text("# Home\n")
    (root / "book/rerun.md").write_text("# Again\n\n<!-- paper-profiles -->\n")
    shutil.copy(ROOT / "_config.yml", root)
    shutil.copy(ROOT / "CITATION.cff", root)
    methods = [{"file": f"chapters/{name}/index"} for name in (CHEAP, OTHER)]
    papers = [{"file": "chapters/successor-heads/index"}]
    parts = [{"caption": "The method", "chapters": methods}]
    parts += [{"caption": "Chapters", "chapters": papers}]
    parts += [{"caption": "Other", "chapters": [{"file": "rerun"}]}]
    toc = {"format": "jb-book", "root": "index", "parts": parts}
    (root / "_toc.yml").write_text(yaml.safe_dump(toc))
    return root


@pytest.mark.slow
def test_a_method_is_one_page_and_in_no_table_of_results(project, runs, tmp_path):
    book = tmp_path / "book"
    found = stage(project, runs, book)
    pages = pages_in(book / "_toc.yml")
    assert f"chapters/{CHEAP}/tiny" in pages and f"chapters/{CHEAP}/index" not in pages
    first = first_cell(book, "tiny")
    assert first.startswith(f"({CHEAP})=\n# The residual stream and its heads\n")
    assert "run-box" in first and "model-switch" not in first and "transfer" not in first
    assert f"replib run {CHEAP} --model tiny --profile smoke" in first
    for text in (scorecard(found), transfer(found)):
        assert "method-" not in text
    again = (book / "rerun.md").read_text()
    assert "successor-heads" in again and "method-" not in again
    crate = json.loads((book / "ro-crate-metadata.json").read_text())["@graph"]
    assert any(CHEAP in entity["@id"] for entity in crate)
    assert not [entity for entity in crate if entity["@id"].endswith("/abs/None")]
    not_run = (book / f"chapters/{OTHER}/index.md").read_text()
    assert not_run.startswith(f"({OTHER})=\n# Nulls and intervals\n")
    assert "This page was not run" in not_run and "arXiv" not in not_run


@pytest.mark.slow
def test_a_method_on_two_models_has_a_switch_and_one_label(project, runs, tmp_path):
    """And one of which every run failed says so."""
    copy, book = tmp_path / "runs", tmp_path / "book"
    for model in ("tiny", "a-model"):
        shutil.copytree(runs / CHEAP / "tiny", copy / CHEAP / model)
    failed = copy / OTHER / "tiny.failed"
    shutil.copytree(runs / CHEAP / "tiny", failed)
    (failed / "record.json").unlink()
    (failed / "run.log").write_text("2026-11-26T12:00:00Z\nfailed: out of memory in cell [3]\n")
    stage(project, copy, book)
    toc = yaml.safe_load((book / "_toc.yml").read_text())
    pages = next(part for part in toc["parts"] if part["caption"] == "The method")["chapters"]
    # The page of a model stands for the method, not that of a control.
    entry = next(page for page in pages if CHEAP in page["file"])
    assert entry["file"] == f"chapters/{CHEAP}/a-model"
    assert [page["file"] for page in entry["sections"]] == [f"chapters/{CHEAP}/tiny"]
    firsts = [first_cell(book, model) for model in ("a-model", "tiny")]
    assert all("model-switch" in text for text in firsts)
    assert [text.startswith(f"({CHEAP})=") for text in firsts] == [True, False]
    text = (book / f"chapters/{OTHER}/index.md").read_text()
    assert "No run of this page finished" in text


@pytest.mark.slow
def test_a_record_without_its_notebook_shows_the_methods_verdicts(project, runs, tmp_path):
    folder = tmp_path / "runs" / CHEAP / "tiny"
    folder.mkdir(parents=True)
    shutil.copy(runs / CHEAP / "tiny" / "record.json", folder)
    stage(project, tmp_path / "runs", tmp_path / "book")
    text = (tmp_path / f"book/chapters/{CHEAP}/tiny.ipynb").read_text()
    assert "what must hold" in text and "the paper says" not in text
