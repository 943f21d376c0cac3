"""What a chapter's numbers depend on: which modules, and when they count as changed."""

import json

import pytest

from replib import project
from replib.errors import UsageError
from replib.project import PACKAGE, find_root, library_files, library_hash, list_papers
from replib.records import read_record
from replib.runner import changed_since, execute, find_chapter, plan

ROOT = find_root(PACKAGE)


def notebook(*sources):
    cells = [{"cell_type": "code", "metadata": {}, "source": source} for source in sources]
    return json.dumps({"cells": cells})


def names(*sources):
    return {path.stem for path in library_files(notebook(*sources))}


@pytest.mark.parametrize("code", ["def", "a\0b", "'\ud800'", "-" * 10_000 + "1"])
def test_code_that_does_not_parse_names_no_module(code):
    assert names(code) == set()


def test_modules_are_followed_wherever_they_are_imported():
    assert names("import torch") == set()
    assert names("from replib.errors import UsageError") == {"errors"}
    assert names("from replib import metrics") == names("import replib.metrics")
    inside = names("def f():\n    from replib.claims import Claims")
    assert {"claims", "errors"} <= inside and "models" not in inside
    # `models` imports the planted models by name, `prompts` inside a function.
    assert {"planted", "planted_gate", "prompts", "sources"} <= names(
        "from replib.models import load_model"
    )


@pytest.mark.parametrize("paper", list_papers(ROOT))
def test_no_chapter_depends_on_the_command_line_or_the_book(paper):
    text = (ROOT / "notebooks" / f"{paper}.ipynb").read_text()
    used = {path.stem for path in library_files(text)}
    assert {"models", "claims", "figures"} <= used
    assert not used & {"cli", "runner", "book", "book_gate", "performance"}


def test_the_hash_is_of_these_modules_only(tmp_path, monkeypatch):
    for name, text in (("one", "from replib.two import x"), ("two", "x = 1"), ("three", "")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(project, "PACKAGE", tmp_path)
    project._modules_of.cache_clear()
    text = notebook("from replib.one import x")
    first = library_hash(text)
    (tmp_path / "three.py").write_text("y = 1")
    assert library_hash(text) == first
    (tmp_path / "two.py").write_text("x = 2")
    assert library_hash(text) != first
    # What moves from the end of one module to the beginning of the next counts too.
    hashes = set()
    for one, two in (("", "y = 1\nx = 2"), ("y = 1\n", "x = 2")):
        (tmp_path / "one.py").write_text(f"from replib.two import x\n{one}")
        (tmp_path / "two.py").write_text(two)
        hashes.add(library_hash(text))
    assert len(hashes) == 2
    project._modules_of.cache_clear()


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
