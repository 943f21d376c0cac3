"""A chapter as it lies in notebooks/: its parameters, its profiles, what its numbers need."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bookkit.project import list_papers
from bookkit.records import read_record
from bookkit.run.chapter import Chapter, Parameter, find_chapter, read_parameters, to_text
from bookkit.run.execute import execute
from bookkit.run.plan import changed_since, plan
from replib.errors import UsageError, find_control
from replib.files import find_root
from replib.hashes import library_files, notebook_hash
from replib.models.sources import model_slug

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests"  # has notebooks/toy, so it is a project to the runner
CHAPTER = find_chapter(HERE, "toy")


def planned(profile="smoke", settings=None, out=HERE / "never", **options):
    return plan(CHAPTER, "tiny", profile, settings or {}, out=out, **options)


# --- parameters -----------------------------------------------------------------------------------


def test_defaults_then_profile_then_the_user():
    assert planned().parameters["n_prompts"] == 10
    laptop = planned("laptop")
    assert laptop.parameters["n_prompts"] == 20
    assert laptop.parameters["profile"] == "laptop"
    assert laptop.parameters["model_name"] == "tiny"
    assert laptop.time_limit_s == 3600
    paper = planned("paper", {"n_prompts": "7"}, device="auto")
    assert (paper.parameters["n_prompts"], paper.parameters["device"]) == (7, "auto")
    assert paper.time_limit_s == 7200
    assert not (HERE / "never").exists()


TEXTS = {
    "int": {"9" * 18: 10**18 - 1},
    "int | None": {"null": None},
    "int | float": {"3": 3, "3.0": 3.0},
    "float": {"1": 1.0, "1e-3": 0.001},
    "bool": {"false": False},
    "str": {" a=b ": " a=b ", "": ""},
    "str | int | None": {"None": None, "1_0": "1_0", "9" * 19: "9" * 19},
    "str | float": {"1.2.3": "1.2.3"},
    "str | bool": {" TRUE": True},
    "str | list[int]": {"3,4": [3, 4], "a,b": "a,b", "": []},
    "list[float | None]": {"[1, none]": [1.0, None]},
}


@pytest.mark.parametrize("annotation", TEXTS)
def test_the_first_type_that_a_text_can_be(annotation):
    parameter = Parameter("x", annotation, None, "")
    for text, value in TEXTS[annotation].items():
        got = parameter.read(text)
        assert got == value and type(got) is type(value)
        assert parameter.check(got, "here") is got


@pytest.mark.parametrize(
    ("annotation", "texts"),
    [
        ("int", ["many", "1.5", "1_0", "true", "9" * 19, "9" * 5000]),
        ("float", ["half", "nan", "1e999"]),
        ("bool", ["1"]),
        ("list[int]", ["1,x", "1,,2"]),
    ],
)
def test_a_text_of_another_type(annotation, texts):
    for text in texts:
        with pytest.raises(UsageError) as error:
            Parameter("x", annotation, 3, "prompts").read(text)
        said = f"is not {annotation}; it is: prompts (for example: -p x=3)"
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_promts": "3"}, "toy has no parameter 'n_promts'; did you mean 'n_prompts'"),
        ({"model_name": "x"}, "parameter model_name is set by --model"),
        ({"seed": "-1"}, "parameter seed is -1; give a whole number, 0 or more"),
        ({"prompts_file": "/no/such/file"}, "prompts_file: /no/such/file: No such file"),
        ({"prompts_file": "/"}, "prompts_file: /: Is a directory"),
        ({"prompts_file": "pipe"}, "pipe is not a file"),  # it would be waited for
        ({"prompts_file": "a\0b"}, "parameter prompts_file: '\\x00' cannot stand in"),
        ({"prompts_file": "~no-such-user/x"}, "Could not determine home"),
        ({"prompts_file": "x" * 5000}, "File name too long"),
    ],
)
def test_settings_that_no_run_could_use(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(UsageError) as error:
        planned(settings=settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("float", [3, 0.5], [True, 10**400, float("nan"), "3"]),
        ("int", [3], [3.0, True]),
        ("bool", [True], [1]),
        ("str", [""], [None]),
        ("list[list[int] | None]", [[[1], None]], [[[True]], [1]]),
    ],
)
def test_a_value_is_of_its_type_as_it_is(annotation, good, bad):
    parameter = Parameter("x", annotation, None, "")
    assert all(parameter.allows(value) for value in good)
    assert not any(parameter.allows(value) for value in bad)


PLAIN = st.one_of(st.booleans(), st.integers(-(10**9), 10**9), st.none())
LONGS = st.integers(1 - 10**18, 10**18 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
ANY = Parameter("x", "bool | int | float | None", None, "")
LISTED = Parameter("x", "list[int]", [], "")


@given(value=st.one_of(PLAIN, FLOATS), items=st.lists(LONGS), text=st.text())
def test_what_is_written_is_read_back(value, items, text):
    assert ANY.read(to_text(value)) == value
    assert LISTED.read(to_text(items)) == items
    try:
        read = ANY.read(text)
    except UsageError as error:
        assert "is not bool" in str(error) or find_control(text)
    else:
        assert ANY.check(read, "here") == read


def test_a_file_is_found_from_where_the_user_stands(tmp_path, monkeypatch):
    (tmp_path / "mine.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    checked = planned(settings={"prompts_file": "mine.json"}, out=Path("out"))
    assert checked.parameters["prompts_file"] == str(tmp_path / "mine.json")
    assert checked.given["prompts_file"] == "mine.json"
    assert checked.files == {"prompts_file": tmp_path / "mine.json"}
    assert checked.folder == tmp_path / "out" / "toy" / "tiny"


# --- the chapter's files --------------------------------------------------------------------------


def notebook(cell, tags=("parameters",)):
    """The toy's notebook with another parameters cell."""
    content = json.loads(CHAPTER.notebook)
    content["cells"][1] |= {"source": cell, "metadata": {"tags": list(tags)}}
    return json.dumps(content)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("n: int = 'x'", "n is 'x', which is not int"),
        ("n = 3", "'n = 3' is not `name: type = value`"),
        ("a.b: int = 1", "'a.b: int = 1' is not `name: type = value`"),
        ("n: int = f()", "give a plain value of a plain type"),
        ("n: Tensor = 3", "give a plain value of a plain type"),
        ("n: int = {[]: 1}", "give a plain value of a plain type"),
        ("n: int = 1\nn: int = 2", "n comes twice"),
        ("n: int = (", "parameters cell: "),
        ("n: int = " + "-" * 5000 + "1", "parameters cell: "),
        ("n: str = '\ud800'", "parameters cell: "),
        ("model_name: str | None = None", "lacks `model_name: str`"),
    ],
)
def test_a_parameters_cell_that_is_refused(cell, message):
    with pytest.raises(UsageError) as error:
        read_parameters(notebook(cell), "toy.ipynb")
    assert message in str(error.value)
    assert str(error.value).startswith("toy.ipynb")


def test_parameters_know_what_they_are_for():
    helps = {name: parameter.help for name, parameter in CHAPTER.parameters.items()}
    assert helps["n_prompts"] == "prompts per task"
    assert helps["mode"].startswith("well, error, kill")  # in the middle of several lines


def test_a_notebook_without_a_parameters_cell():
    with pytest.raises(UsageError, match="has 0 cells with the tag parameters"):
        read_parameters(notebook("n: int = 1", tags=()), "toy.ipynb")
    for text in ("{}", "nothing", '{"cells": ["cell"]}', '{"cells": [{"cell_type": "code"}]}'):
        with pytest.raises(UsageError, match=r"toy.ipynb is not a notebook"):
            read_parameters(text, "toy.ipynb")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_prompts: 20", "n_promts: 20", "laptop: toy has no parameter 'n_promts'; did you"),
        ("n_prompts: 20", "n_prompts: many", "parameter n_prompts is 'many', which is not int"),
        ("n_prompts: 20", "n_prompts: true", "parameter n_prompts is True, which is not int"),
        ("n_prompts: 20", "device: cuda", "laptop, parameters, device: device is set by"),
        ("smoke:", "smok:", "unknown key 'smok'; did you mean 'smoke'"),
    ],
)
def test_a_profiles_file_that_is_refused(tmp_path, old, new, message):
    shutil.copytree(HERE / "notebooks", tmp_path / "notebooks")
    path = tmp_path / "notebooks/toy/profiles.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError) as error:
        find_chapter(tmp_path, "toy")
    assert message in str(error.value)
    assert "toy/profiles.yaml" in str(error.value)


def test_papers(tmp_path, monkeypatch):
    assert list_papers(HERE) == ["toy"]
    shutil.copytree(HERE / "notebooks", tmp_path / "notebooks")
    (tmp_path / "notebooks/second").mkdir()  # no notebook
    (tmp_path / "notebooks/second/claims.yaml").write_text("paper: second")
    assert list_papers(tmp_path) == ["toy"]
    monkeypatch.chdir(tmp_path / "notebooks/second")
    assert find_root() == tmp_path
    with pytest.raises(UsageError, match=r"no paper 'toi'; did you mean 'toy'\? \(papers: toy\)"):
        find_chapter(tmp_path, "toi")
    with pytest.raises(UsageError, match="no paper"):
        find_chapter(tmp_path, "../notebooks/toy")
    (tmp_path / "notebooks/toy/profiles.yaml").unlink()
    with pytest.raises(UsageError, match=r"profiles file .* cannot be read"):
        find_chapter(tmp_path, "toy")


def test_outside_a_project_the_package_s_own_is_found(tmp_path):
    assert find_root(tmp_path) == ROOT


# --- where the result is to stand -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "file is not a folder"),
        ("has-file", "tiny is a file"),
        ("link", "link is not a folder"),
        *([("closed/out", "cannot be written to")] if os.geteuid() else []),  # root may anywhere
        ("~no-such-user/x", "output folder ~no-such-user/x: Could not determine home"),
        ("x" * 5000, "File name too long"),
        ("a\nb", "'\\n' cannot stand in its name"),
    ],
)
def test_an_output_folder_that_cannot_be(tmp_path, monkeypatch, out, message):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("has-file/toy").mkdir(parents=True)
    Path("has-file/toy/tiny").touch()
    Path("link").symlink_to("nowhere")
    Path("closed").mkdir(mode=0o500)
    with pytest.raises(UsageError) as error:
        planned(out=Path(out))
    assert message in str(error.value)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there nobody can make a folder")
def test_an_output_folder_that_cannot_be_made():
    with pytest.raises(UsageError, match="output folder /proc/none"):
        execute(planned(out=Path("/proc/none")))


def test_a_model_s_folder():
    assert model_slug("smollm2-135m") == "smollm2-135m"
    assert model_slug("org/Name-1.5_b") == "org--Name-1.5_b"
    assert re.fullmatch("passwd@[0-9a-f]{8}", model_slug("../../etc/passwd"))


NAMES = st.text(alphabet="ab./-@~\\ \n\0é", min_size=1) | st.just("tiny.failed")


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_a_slug_stays_in_the_folder_and_is_one_model_s(names):
    slugs = [model_slug(name) for name in names]
    assert slugs[0] != slugs[1]
    for slug in slugs:
        assert Path("out", slug).name == slug
        assert slug not in (".", "..") and not slug.startswith(".")
        assert slug.isascii() and slug.isprintable() and len(slug) <= 100
        assert not slug.endswith(".failed")


def test_a_hostile_model_name_writes_inside_the_output_folder(tmp_path, monkeypatch):
    def folder(name):
        return plan(CHAPTER, name, "smoke", {}, out=tmp_path / "out").folder

    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for name in ("../../" + "x" * 200, "models/mine"):
        assert folder(name).parent == tmp_path / "out" / "toy"
    assert folder("models/mine").name == model_slug(str(tmp_path / "models" / "mine"))
    for name in ("x" * 300, "~no-such-user/x", "tiny\n", "\ud800", "a\0b", "\x1b[31m"):
        with pytest.raises(UsageError, match=r"model |cannot stand in a name"):
            folder(name)


# --- what the numbers depend on -------------------------------------------------------------------


def test_a_chapter_does_not_depend_on_the_workshop():
    text = (ROOT / "notebooks/ioi-circuit-reuse/ioi-circuit-reuse.ipynb").read_text()
    used = {path.relative_to(ROOT / "src").parts for path in library_files(text)}
    assert {parts[0] for parts in used} == {"replib"}
    assert {"models", "claims", "figures.py"} <= {parts[1] for parts in used}


@pytest.fixture
def record():
    """What a run of the toy chapter that ends now would record of what it depends on."""
    hashes = {"notebook": notebook_hash(CHAPTER.notebook), "claims": CHAPTER.claims.sha256}
    hashes |= {"library": CHAPTER.library_hash("tiny"), "requirements": None}
    hashes |= {"parameters": CHAPTER.parameters_hash("smoke"), "weights": None, "inputs": {}}
    model = {"name": "tiny", "sha256": None}
    return {"hashes": hashes, "model": model, "profile": "smoke", "parameters": {}}


@pytest.mark.parametrize("part", ["notebook", "claims", "library", "requirements", "parameters"])
def test_each_part_makes_a_record_stale(record, part):
    assert changed_since(record, CHAPTER) == []
    record["hashes"][part] = "1" * 64
    assert changed_since(record, CHAPTER) == [part]


def test_other_weights_make_a_record_stale(record, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"these")
    record["model"]["name"] = str(tmp_path)
    assert changed_since(record, CHAPTER) == ["weights"]
    for name in ("~no-such-user/x", "x" * 5000, "a/b"):  # no path of this machine
        record["model"]["name"] = name
        assert changed_since(record, CHAPTER) == []


def test_a_record_with_seeds_that_are_none_is_stale(monkeypatch):
    monkeypatch.setattr(Chapter, "library_hash", lambda *_: "")  # takes seconds
    record = read_record(ROOT / "results/context-knob/smollm2-135m/record.json")
    chapter = find_chapter(ROOT, "context-knob")
    assert "stored trainings" not in changed_since(record, chapter)
    for seeds in (3, [10**300]):
        record["parameters"]["adapter_seeds"] = seeds
        assert "stored trainings" in changed_since(record, chapter)


def test_a_profile_that_is_gone_is_one_line(record):
    with pytest.raises(UsageError, match="no profile"):
        changed_since(dict(record, profile="huge"), CHAPTER)
