"""A chapter as it lies in notebooks/: its parameters, its profiles, what its numbers need."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, MixtralConfig

from bookkit.project import list_papers
from bookkit.records import read_record
from bookkit.run.chapter import Chapter, Parameter, find_chapter, read_parameters, to_text
from bookkit.run.execute import execute
from bookkit.run.plan import NEEDS, changed_since, plan, prepare
from replib.errors import UsageError
from replib.files import find_root, sha256_file
from replib.hashes import file_hash, notebook_hash, reached
from replib.models.sources import absolute_model, model_slug, networks_of
from replib.prompts.vocabulary import word_tokenizer

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests"  # has notebooks/toy, so it is a project to the runner
CHAPTER = find_chapter(HERE, "toy")


def planned(profile="smoke", settings=None, model="tiny", out=HERE / "never", **options):
    return plan(CHAPTER, model, profile, settings or {}, out=out, **options)


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
    "int | float": {"3": 3, "3.0": 3.0},
    "float": {"1": 1.0, "1e-3": 0.001},
    "bool": {"false": False},
    "str": {" a=b ": " a=b ", "": ""},
    "str | int | None": {"None": None, " null": None, "1_0": "1_0", "9" * 19: "9" * 19},
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


WRONG = {
    "int": ["many", "1.5", "1_0", "true", "9" * 19, "9" * 5000],
    "float": ["half", "nan", "1e999"],
    "bool": ["1"],
    "list[int]": ["1,x", "1,,2"],
}


@pytest.mark.parametrize("annotation", WRONG)
def test_a_text_of_another_type(annotation):
    for text in WRONG[annotation]:
        with pytest.raises(UsageError) as error:
            Parameter("x", annotation, 3, "prompts").read(text)
        said = f"is not {annotation}; it is: prompts (for example: -p x=3)"
        assert said in str(error.value)


VALUES = st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
LONGS = st.integers(1 - 10**18, 10**18 - 1)


@given(value=VALUES | LONGS, items=st.lists(LONGS))
def test_what_is_written_is_read_back(value, items):
    assert Parameter("x", "bool | int | float | None", None, "").read(to_text(value)) == value
    assert Parameter("x", "list[int]", [], "").read(to_text(items)) == items


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
        ("n: float = 1e999", "n is inf, which is not float"),
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
    assert find_root(tmp_path) == ROOT  # outside a project, the package's own
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


# --- where the result is to stand -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"settings": {"n_prompts": "-4"}}, "n_prompts is -4; give a whole number, 1 or more"),
        ({"settings": {"n_promts": "3"}}, "no parameter 'n_promts'; did you mean 'n_prompts'"),
        ({"settings": {"model_name": "x"}}, "parameter model_name is set by --model"),
        ({"settings": {"seed": "-1"}}, "parameter seed is -1; give a whole number, 0 or more"),
        ({"settings": {"n_prompts": "0"}}, "parameter n_prompts is 0; give a whole number, 1 or"),
        ({"settings": {"n_prompts": "-3"}}, "parameter n_prompts is -3"),
        ({"settings": {"prompts_file": "pointer"}}, "prompts_file: pointer is a Git LFS pointer"),
        ({"settings": {"prompts_file": "/no/such"}}, "prompts_file: /no/such: No such file"),
        ({"settings": {"prompts_file": "pipe"}}, "pipe is not a file"),  # it would be waited for
        ({"settings": {"prompts_file": "a\0b"}}, "prompts_file: '\\x00' cannot stand in"),
        ({"settings": {"prompts_file": "~no-such-user/x"}}, "Could not determine home"),
        ({"model": "x" * 300}, "model 'xxx"),
        ({"model": "~no-such-user/x"}, "model '~no-such-user/x': Could not determine home"),
        ({"model": "tiny\n"}, "'\\n' cannot stand in a name"),
        ({"out": Path("file")}, "file is not a folder"),
        ({"out": Path("has-file")}, "tiny is a file"),
        ({"out": Path("link")}, "link is not a folder"),
        ({"out": Path("~no-such-user/x")}, "output folder ~no-such-user/x: Could not determine"),
        ({"out": Path("a\nb")}, "'\\n' cannot stand in its name"),
        # root may write anywhere
        *([({"out": Path("closed/out")}, "cannot be written to")] if os.geteuid() else []),
    ],
)
def test_what_no_run_could_use(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("file").touch()
    Path("pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    Path("has-file/toy").mkdir(parents=True)
    Path("has-file/toy/tiny").touch()
    Path("link").symlink_to("nowhere")
    Path("closed").mkdir(mode=0o500)
    with pytest.raises(UsageError) as error:
        planned(**given)
    assert message in str(error.value)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there nobody can make a folder")
def test_an_output_folder_that_cannot_be_made():
    with pytest.raises(UsageError, match="output folder /proc/none"):
        execute(planned(out=Path("/proc/none")))


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
    monkeypatch.chdir(tmp_path)
    Path("models/mine").mkdir(parents=True)
    for name in ("../../" + "x" * 200, "models/mine"):
        folder = planned(model=name, out=Path("out")).folder
        assert folder.parent == tmp_path / "out" / "toy"
    assert folder.name == model_slug(str(tmp_path / "models" / "mine"))
    assert planned(model="org/Name-1.5_b", out=Path("out")).folder.name == "org--Name-1.5_b"


# --- what the numbers depend on -------------------------------------------------------------------


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
    with pytest.raises(UsageError, match="no profile"):
        changed_since(record | {"profile": "huge"}, CHAPTER)


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


HASHES = """
from pathlib import Path
from bookkit.project import list_chapters, stored_module
from bookkit.run.chapter import find_chapter
for name in list_chapters(Path.cwd()):
    print(name, find_chapter(Path.cwd(), name).hashes("tiny", "smoke"))
    if stored := stored_module(name):
        print(stored.code_sha256())
"""


def test_no_hash_sees_the_line_ends_of_a_checkout(tmp_path):
    """So that no certified record is stale where git, or an editor, turned them into Windows's."""
    named = ("src", "notebooks", "requirements.txt", "CITATION.cff")
    for path in (path for name in named for path in (ROOT / name, *(ROOT / name).rglob("*"))):
        is_text = path.suffix in (".py", ".ipynb", ".yaml", ".txt", ".json", ".cff")
        if path.is_file() and is_text:
            other = tmp_path / path.relative_to(ROOT)
            other.parent.mkdir(parents=True, exist_ok=True)
            other.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    found = []
    for folder in (ROOT, tmp_path):
        environment = os.environ | {"PYTHONPATH": str(folder / "src")}
        line = [sys.executable, "-c", HASHES]
        found.append(subprocess.check_output(line, cwd=folder, env=environment, text=True))
    assert found[0] == found[1] and found[0].count("library") > 5
    rows = [tmp_path / name for name in ("a.csv", "b.csv")]
    for path, end in zip(rows, (b"\n", b"\r\n"), strict=True):
        path.write_bytes(b"a,b" + end)
    assert file_hash(rows[0]) == file_hash(rows[1]) == sha256_file(rows[0])
    (tmp_path / "weights").write_bytes(b"\0\r\n")
    assert file_hash(tmp_path / "weights") == sha256_file(tmp_path / "weights")


@pytest.mark.parametrize(
    ("paper", "name", "value"),
    [
        ("ioi-circuit-reuse", "dtype", "float23"),
        ("method-nulls", "n_simulated", "0"),
        ("copying-mamba", "live_steps", "-1"),
        ("copying-pretrained", "text_lengths", "25,0"),
        ("context-knob", "adapter_seeds", ""),
        ("context-knob", "adapter_seeds", "1,-1"),
    ],
)
def test_a_value_that_no_chapter_can_use(paper, name, value, tmp_path):
    chapter = find_chapter(find_root(Path(__file__).parents[2]), paper)
    with pytest.raises(UsageError, match=f"parameter {name} is "):
        plan(chapter, (*networks_of(paper), "tiny")[0], "smoke", {name: value}, out=tmp_path)


def test_a_folder_with_a_model_is_taken_by_its_plain_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, file in {"mine": "model.safetensors", "runs": "notes.txt", "tiny": "a.gguf"}.items():
        Path(name).mkdir()
        Path(name, file).touch()
    taken = [absolute_model(name) for name in ("mine", "runs", "tiny")]
    assert taken == [str(tmp_path / "mine"), "runs", "tiny"]


@pytest.mark.parametrize(
    ("paper", "needs"),
    [
        ("ioi-circuit-reuse", {"heads"}),
        ("factual-recall", {"heads", "cache"}),
        ("context-knob", {"cache"}),
        ("copying-pretrained", set()),
    ],
)
def test_what_a_chapter_needs_of_a_model(paper, needs):
    notebook = find_chapter(ROOT, paper).notebook
    assert {what for what, by in NEEDS.items() if by in reached(notebook)} == needs


def test_a_model_without_what_is_needed_is_refused_before_the_run(tmp_path):
    config = MixtralConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    folder = str(tmp_path / "experts")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    run = plan(find_chapter(ROOT, "ioi-circuit-reuse"), folder, "smoke", {}, out=tmp_path / "runs")
    with pytest.raises(UsageError, match=r"a mixture of experts \(MixtralForCausalLM\)"):
        prepare([run])
    assert not (tmp_path / "runs").exists()
