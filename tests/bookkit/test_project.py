"""What a chapter's numbers depend on: which modules, and when they count as changed."""

from pathlib import Path

import pytest

from bookkit.project import list_papers
from bookkit.records import read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import execute
from bookkit.run.plan import changed_since, plan
from replib.errors import UsageError
from replib.files import find_root
from replib.hashes import library_files

ROOT = find_root(Path(__file__))


@pytest.mark.parametrize("paper", list_papers(ROOT))
def test_no_chapter_depends_on_the_command_line_or_the_book(paper):
    text = (ROOT / "notebooks" / f"{paper}/{paper}.ipynb").read_text()
    used = {path.stem for path in library_files(text)}
    assert {"models", "claims", "figures"} <= used
    assert not used & {"cli", "runner", "book", "book_gate", "performance"}


def test_outside_a_project_the_package_s_own_is_found(tmp_path):
    assert find_root(tmp_path) == ROOT


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    here = find_chapter(ROOT / "tests", "toy")
    folder = execute(plan(here, "tiny", "smoke", {"mode": "well"}, out=out))
    return read_record(folder / "record.json")


def test_a_fresh_record_is_not_stale(record):
    assert changed_since(record, find_chapter(ROOT / "tests", "toy")) == []


@pytest.mark.parametrize("part", ["notebook", "claims", "library", "requirements", "parameters"])
def test_each_part_makes_a_record_stale(record, part):
    hashes = dict(record["hashes"], **{part: "1" * 64})
    chapter = find_chapter(ROOT / "tests", "toy")
    assert changed_since(dict(record, hashes=hashes), chapter) == [part]


def test_other_weights_make_a_record_stale(record, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"these")
    model = dict(record["model"], name=str(tmp_path))
    chapter = find_chapter(ROOT / "tests", "toy")
    assert changed_since(dict(record, model=model), chapter) == ["weights"]


@pytest.mark.parametrize("name", ["~no-such-user/x", "x" * 5000, "a/b"])
def test_a_record_of_a_model_that_is_no_path_here(record, name):
    model = dict(record["model"], name=name)
    assert changed_since(dict(record, model=model), find_chapter(ROOT / "tests", "toy")) == []


@pytest.mark.parametrize("seeds", [3, "12", [1.5], [10**300], {"1": 2}])
def test_a_record_with_seeds_that_are_none_is_stale(seeds):
    record = read_record(ROOT / "results/context-knob/smollm2-135m/record.json")
    chapter = find_chapter(ROOT, "context-knob")
    parameters = record["parameters"] | {"adapter_seeds": seeds}
    assert "stored trainings" not in changed_since(record, chapter)
    assert "stored trainings" in changed_since(dict(record, parameters=parameters), chapter)


def test_a_profile_that_is_gone_is_one_line(record):
    with pytest.raises(UsageError, match="no profile"):
        changed_since(dict(record, profile="huge"), find_chapter(ROOT / "tests", "toy"))
