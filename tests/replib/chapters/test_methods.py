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
from bookkit.project import list_methods
from bookkit.records import read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import execute
from bookkit.run.plan import plan
from replib.claims.measure import Claims
from replib.errors import UsageError

ROOT = Path(__file__).parents[3]
METHODS = list_methods(ROOT)
CHEAP, OTHER = "method-residual-stream", "method-nulls"


def run(name, out, root=ROOT, model="tiny"):
    return execute(plan(find_chapter(root, name), model, "smoke", {}, out=out))


def outcomes(folder):
    claims = read_record(folder / "record.json")["claims"]
    return {claim["id"]: claim["outcome"] for claim in claims}


@pytest.mark.parametrize("given", ["null", "", "~  # none", '"2001.00001"', "none", '""', "0"])
def test_no_number_is_null_and_nothing_else(tmp_path, given):
    """And the quick look at a claims file agrees with its reader."""
    path = tmp_path / "notebooks" / CHEAP / "claims.yaml"
    shutil.copytree(ROOT / f"notebooks/{CHEAP}", path.parent)
    path.write_text(path.read_text().replace("arxiv: null", f"arxiv: {given}"))
    if given in ("none", '""', "0"):
        with pytest.raises(UsageError, match="arxiv"):
            Claims.load(path)
    else:
        assert Claims.load(path).is_method == (list_methods(tmp_path) == [CHEAP])


@pytest.mark.parametrize("method", METHODS)
def test_a_method_measures_its_claims_and_says_what_goes_wrong(method):
    chapter = find_chapter(ROOT, method)
    cells = json.loads(chapter.notebook)["cells"]
    kinds = {"code": "", "markdown": ""}
    for cell in cells:
        kinds[cell["cell_type"]] += "".join(cell["source"]) + "\n"
    for claim in chapter.claims.claims:
        assert claim.reported is None and f'"{claim.id}"' in kinds["code"], claim.id
    prose = kinds["markdown"]
    assert "What goes wrong" in prose and "## Exercises" in prose
    prose = re.sub(r"\{record\}`[^`]*`|\$\$?[^$]*\$\$?|`[^`]*`", "", prose)
    assert not re.search(r"\d\.\d\d|\d\.\d%", prose)  # no measured number is typed


def test_the_table_of_claims_speaks_of_no_paper():
    table = Claims.load(ROOT / f"notebooks/{CHEAP}/claims.yaml").table()._repr_html_()
    assert "what must hold" in table and "paper" not in table and "its number" not in table


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return run(CHEAP, tmp_path_factory.mktemp("runs")).parents[1]


@pytest.mark.slow
def test_a_method_runs_and_its_facts_hold_on_any_weights(runs):
    assert set(outcomes(runs / CHEAP / "tiny").values()) == {"holds"}


@pytest.mark.slow
def test_the_planted_heads_are_found_and_noise_gives_none(tmp_path):
    found = outcomes(run("method-planted", tmp_path))
    assert found == {"M6.1": "holds", "M6.2": "holds", "M6.3": "holds"}


@pytest.mark.slow
def test_the_planted_induction_head_is_found_and_noise_gives_none(tmp_path):
    """Its OV circuit copies nothing that the unembedding reads: planted so."""
    folder = run("method-attention", tmp_path, model="planted-ioi")
    found = {"M7.1": "holds", "M7.2": "holds", "M7.3": "holds", "M7.4": "fails"}
    assert outcomes(folder) == found
    claims = read_record(folder / "record.json")["claims"]
    assert [claim["measured"]["note"] for claim in claims[:2]] == ["L1H2", "L0H1"]
    noise = outcomes(run("method-attention", tmp_path))
    assert "holds" not in noise.values()
    assert [noise[id_] for id_ in ("M7.2", "M7.3", "M7.4")] == ["not_testable"] * 3


@pytest.mark.slow
def test_a_stream_with_a_part_left_out_is_seen(tmp_path):
    """Broken on purpose: the embedding is not counted, and a head is not either."""
    path = tmp_path / f"notebooks/{CHEAP}/{CHEAP}.ipynb"
    shutil.copytree(ROOT / f"notebooks/{CHEAP}", path.parent)
    broken = path.read_text().replace("parts.sum(0) - stream", "parts[1:].sum(0) - stream")
    broken = broken.replace(", layer).sum(2)", ", layer)[:, :, 1:].sum(2)")
    assert broken.count("[1:].sum(0)") == broken.count("[:, :, 1:]") == 1
    path.write_text(broken)
    found = outcomes(run(CHEAP, tmp_path / "out", tmp_path))
    assert found == {"M1.1": "fails", "M1.2": "fails", "M1.3": "holds", "M1.4": "holds"}


def first_cell(book, model):
    path = book / f"chapters/{CHEAP}/{model}.ipynb"
    return json.loads(path.read_text())["cells"][0]["source"]


@pytest.mark.slow
def test_a_method_is_one_page_and_in_no_table_of_results(runs, tmp_path):
    book = tmp_path / "book"
    found = stage(ROOT, runs, book)
    pages = pages_in(book / "_toc.yml")
    assert f"chapters/{CHEAP}/tiny" in pages and f"chapters/{CHEAP}/index" not in pages
    first = first_cell(book, "tiny")
    assert first.startswith(f"({CHEAP})=\n# The residual stream and its heads\n")
    assert "run-box" in first and "model-switch" not in first and "transfer" not in first
    assert f"replib run {CHEAP} --model tiny --profile smoke" in first
    tables = scorecard(found) + transfer(found) + (book / "rerun.md").read_text()
    assert "successor-heads" in tables and "method-" not in tables
    crate = (book / "ro-crate-metadata.json").read_text()
    assert re.search(rf'"@id": "[^"]*{CHEAP}', crate) and "/abs/None" not in crate
    not_run = (book / f"chapters/{OTHER}/index.md").read_text()
    assert not_run.startswith(f"({OTHER})=\n# Nulls and intervals\n")
    assert "This page was not run" in not_run and "arXiv" not in not_run


@pytest.mark.slow
def test_a_method_on_two_models_has_a_switch_and_one_label(runs, tmp_path):
    copy, book = tmp_path / "runs", tmp_path / "book"
    for model in ("tiny", "a-model"):
        shutil.copytree(runs / CHEAP / "tiny", copy / CHEAP / model)
    stage(ROOT, copy, book)
    parts = yaml.safe_load((book / "_toc.yml").read_text())["parts"]
    entry = next(page for part in parts for page in part["chapters"] if CHEAP in page["file"])
    # The page of a model stands for the method, not that of a control.
    assert entry["file"] == f"chapters/{CHEAP}/a-model"
    assert [page["file"] for page in entry["sections"]] == [f"chapters/{CHEAP}/tiny"]
    firsts = [first_cell(book, model) for model in ("a-model", "tiny")]
    assert all("model-switch" in text for text in firsts)
    assert [text.startswith(f"({CHEAP})=") for text in firsts] == [True, False]
