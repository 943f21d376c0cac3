"""A chapter as it lies in notebooks/: its parameters, its profiles, what its numbers need."""

import json
import os
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


def settings(**texts):
    return plan(CHAPTER, "tiny", "smoke", texts, out=HERE / "never").parameters


def test_defaults_then_profile_then_the_user():
    assert settings()["n_prompts"] == 10
    laptop = plan(CHAPTER, "tiny", "laptop", {}, out=HERE / "never")
    assert laptop.parameters["n_prompts"] == 20
    assert laptop.parameters["profile"] == "laptop"
    assert laptop.parameters["model_name"] == "tiny"
    assert laptop.time_limit_s == 3600
    paper = plan(CHAPTER, "tiny", "paper", {"n_prompts": "7"}, out=HERE / "never", device="auto")
    assert (paper.parameters["n_prompts"], paper.parameters["device"]) == (7, "auto")
    assert paper.time_limit_s == 7200
    assert not (HERE / "never").exists()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("n_prompts", "100", 100),
        ("share", "1", 1.0),
        ("share", "1e-3", 0.001),
        ("careful", "false", False),
        ("mode", " a=b ", " a=b "),
        ("mode", "", ""),
        ("sizes", "3,4", [3, 4]),
        ("sizes", "[3, 4]", [3, 4]),
        ("sizes", "", []),
        ("prompts_file", "none", None),
    ],
)
def test_a_parameter_from_text(name, text, value):
    got = settings(**{name: text})[name]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n_promts", "3", "toy has no parameter 'n_promts'; did you mean 'n_prompts'"),
        ("n_prompts", "many", "parameter n_prompts: 'many' is not int; it is: prompts per task"),
        ("n_prompts", "1.5", "is not int"),
        ("n_prompts", "1_0", "is not int"),
        ("n_prompts", "true", "is not int"),
        ("n_prompts", "9" * 5000, "is not int"),
        ("share", "half", "is not float"),
        ("share", "nan", "is not float"),
        ("share", "1e999", "is not float"),
        ("careful", "1", "is not bool"),
        ("sizes", "1,x", r"is not list\[int\]"),
        ("sizes", "1,,2", r"is not list\[int\]"),
        ("prompts_file", "/no/such/file", "prompts_file: /no/such/file: No such file"),
        ("prompts_file", "/", "prompts_file: /: Is a directory"),
        ("model_name", "x", "parameter model_name is set by --model"),
        ("profile", "x", "parameter profile is set by --profile"),
        ("device", "x", "parameter device is set by --device"),
    ],
)
def test_a_parameter_that_is_refused(name, text, message):
    with pytest.raises(UsageError, match=message):
        settings(**{name: text})


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("int", "9" * 18, 10**18 - 1),
        ("int | None", "null", None),
        ("int | float", "3", 3),
        ("int | float", "3.0", 3.0),
        ("str | int | None", "None", None),
        ("str | int", "1_0", "1_0"),
        ("str | int", "9" * 19, "9" * 19),
        ("str | float", "1.2.3", "1.2.3"),
        ("str | bool", " TRUE", True),
        ("str | list[int]", "3,4", [3, 4]),
        ("str | list[int]", "a,b", "a,b"),
        ("list[str]", "a, b", ["a", "b"]),
        ("list[float | None]", "[1, none]", [1.0, None]),
    ],
)
def test_the_first_type_that_a_text_can_be(annotation, text, value):
    parameter = Parameter("x", annotation, None, "")
    got = parameter.read(text)
    assert got == value and type(got) is type(value)
    assert parameter.check(got, "here") is got


@pytest.mark.parametrize(
    ("annotation", "value", "fits"),
    [
        ("float", 3, True),
        ("float", True, False),
        ("float", 10**400, False),
        ("float", float("nan"), False),
        ("float", float("inf"), False),
        ("int", 3.0, False),
        ("int", True, False),
        ("bool", 1, False),
        ("str", None, False),
        ("str | None", None, True),
        ("list[int]", [1, True], False),
        ("list[int]", (1, 2), False),
        ("list[list[int] | None]", [[1], None], True),
    ],
)
def test_a_value_is_of_its_type_as_it_is(annotation, value, fits):
    assert Parameter("x", annotation, None, "").allows(value) == fits


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
    checked = plan(CHAPTER, "tiny", "smoke", {"prompts_file": "mine.json"}, out=Path("out"))
    assert checked.parameters["prompts_file"] == str(tmp_path / "mine.json")
    assert checked.given["prompts_file"] == "mine.json"
    assert checked.files == {"prompts_file": tmp_path / "mine.json"}
    assert checked.folder == tmp_path / "out" / "toy" / "tiny"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("n: int = 'x'", "n is 'x', which is not int"),
        ("n = 3", "'n = 3' is not `name: type = value`"),
        ("n: int = f()", "give a plain value of a plain type"),
        ("n: Tensor = 3", "give a plain value of a plain type"),
        ("n: int = 1\nn: int = 2", "n comes twice"),
        ("n: int = (", "parameters cell: "),
        ("a.b: int = 1", "'a.b: int = 1' is not `name: type = value`"),
        ("n: int = {[]: 1}", "give a plain value of a plain type"),
        ("n: int = " + "-" * 5000 + "1", "parameters cell: "),
        ("n: str = '\ud800'", "parameters cell: "),
        ("n: int = 1", "lacks `model_name: str`"),
        ("model_name: str | None = None", "lacks `model_name: str`"),
    ],
)
def test_a_parameters_cell_that_is_refused(cell, message):
    notebook = json.loads(CHAPTER.notebook)
    notebook["cells"][1]["source"] = cell
    with pytest.raises(UsageError) as error:
        read_parameters(json.dumps(notebook), "toy.ipynb")
    assert message in str(error.value)
    assert str(error.value).startswith("toy.ipynb")


def test_parameters_know_what_they_are_for():
    helps = {name: parameter.help for name, parameter in CHAPTER.parameters.items()}
    assert helps["n_prompts"] == "prompts per task"
    assert helps["mode"].startswith("well, error, kill")  # in the middle of several lines


def test_one_parameters_cell():
    notebook = json.loads(CHAPTER.notebook)
    notebook["cells"][1]["metadata"] = {}
    with pytest.raises(UsageError, match="has 0 cells with the tag parameters"):
        read_parameters(json.dumps(notebook), "toy.ipynb")
    texts = ["{}", "[]", "nothing"]
    whole = json.loads(CHAPTER.notebook)
    for cell in ({"cell_type": "code", "metadata": {}}, {"metadata": {}, "source": ""}, "cell"):
        texts.append(json.dumps(whole | {"cells": [*whole["cells"], cell]}))
    for text in texts:
        with pytest.raises(UsageError, match=r"toy.ipynb is not a notebook"):
            read_parameters(text, "toy.ipynb")


def project(tmp_path, **texts):
    """A copy of the toy chapter in which some files' texts are changed by a function."""
    shutil.copytree(HERE / "notebooks", tmp_path / "notebooks")
    for kind, change in texts.items():
        path = tmp_path / "notebooks/toy" / {"ipynb": "toy.ipynb"}.get(kind, "profiles.yaml")
        path.write_text(change(path.read_text()))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("n_prompts: 20", "n_promts: 20"), "laptop: toy has no parameter 'n_promts'; did you"),
        (("n_prompts: 20", "n_prompts: many"), "parameter n_prompts is 'many', which is not int"),
        (("n_prompts: 20", "n_prompts: true"), "parameter n_prompts is True, which is not int"),
        (("n_prompts: 20", "device: cuda"), "laptop, parameters, device: device is set by"),
        (("time_limit_s: 7200", "time_limit_s: .nan"), "time_limit_s: a number is not finite"),
        (("time_limit_s: 7200", f"time_limit_s: 1{'0' * 400}"), "time_limit_s: a number is not"),
        (("models: [tiny, planted-ioi]", "models: []"), "laptop, models"),
        (("smoke:", "smok:"), "unknown key 'smok'; did you mean 'smoke'"),
        (("n_prompts: 20", "n_prompts: 20, n_prompts: 30"), "key 'n_prompts' is there twice"),
    ],
)
def test_a_profiles_file_that_is_refused(tmp_path, change, message):
    root = project(tmp_path, profiles=lambda text: text.replace(*change))
    with pytest.raises(UsageError) as error:
        find_chapter(root, "toy")
    assert message in str(error.value)
    assert "toy/profiles.yaml" in str(error.value)


def test_a_default_that_no_float_can_hold(tmp_path):
    change = ("n_prompts: 20", f"ratio: 1{'0' * 400}")
    root = project(
        tmp_path,
        profiles=lambda text: text.replace(*change),
        ipynb=lambda text: text.replace(
            "n_prompts: int = 10", "ratio: float = 1.0\\nn_prompts: int = 10"
        ),
    )
    with pytest.raises(UsageError, match=r"ratio is 1000.*which is not float"):
        find_chapter(root, "toy")


def test_papers(tmp_path, monkeypatch):
    assert list_papers(HERE) == ["toy"]
    root = project(tmp_path)
    (root / "notebooks/second").mkdir()  # no notebook
    (root / "notebooks/second/claims.yaml").write_text("paper: second")
    (root / "notebooks" / "below").mkdir()
    assert list_papers(root) == ["toy"]
    assert find_root(root / "notebooks" / "below") == root
    monkeypatch.chdir(root / "notebooks")
    assert find_root() == root
    with pytest.raises(UsageError, match=r"no paper 'toi'; did you mean 'toy'\? \(papers: toy\)"):
        find_chapter(root, "toi")
    with pytest.raises(UsageError, match="no paper"):
        find_chapter(root, "../notebooks/toy")
    (root / "notebooks" / "toy/profiles.yaml").unlink()
    with pytest.raises(UsageError, match=r"profiles file .* cannot be read"):
        find_chapter(root, "toy")


def planned(out):
    return plan(CHAPTER, "tiny", "smoke", {}, out=out)


def test_an_output_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is not a folder"):
        planned(tmp_path / "file")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "tiny").write_text("")
    with pytest.raises(UsageError, match="tiny is a file"):
        planned(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="link is not a folder"):
        planned(tmp_path / "link")
    if Path("/proc/self").exists():
        with pytest.raises(UsageError, match="output folder /proc/none"):
            execute(planned(Path("/proc/none")))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("~no-such-user/x", "output folder ~no-such-user/x: Could not determine home"),
        ("x" * 5000, "File name too long"),
        ("a\nb", "'\\n' cannot stand in its name"),
        ("\udcff", "cannot stand in its name"),
    ],
)
def test_an_output_folder_that_has_no_such_name(out, message):
    with pytest.raises(UsageError) as error:
        planned(Path(out))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts_file": "a\0b"}, "parameter prompts_file: '\\x00' cannot stand in"),
        ({"prompts_file": "~no-such-user/x"}, "Could not determine home"),
        ({"prompts_file": "x" * 5000}, "File name too long"),
        ({"n_prompts": "9" * 19}, "is not int"),
        ({"seed": "-1"}, "parameter seed is -1; give a whole number, 0 or more"),
    ],
)
def test_settings_that_no_run_could_use(tmp_path, settings, message):
    with pytest.raises(UsageError) as error:
        plan(CHAPTER, "tiny", "smoke", settings, out=tmp_path)
    assert message in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    pipe = str(tmp_path / "pipe.json")
    with pytest.raises(UsageError, match=r"pipe.json is not a file"):
        plan(CHAPTER, "tiny", "smoke", {"prompts_file": pipe}, out=tmp_path)


@pytest.mark.parametrize("name", ["tiny\n", "\ud800", "a\0b", "\x1b[31m"])
def test_a_model_s_name_can_be_shown(tmp_path, name):
    with pytest.raises(UsageError, match="cannot stand in a name"):
        plan(CHAPTER, name, "smoke", {}, out=tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be written to"):
        planned(tmp_path / "closed" / "out")


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("org/Name-1.5_b", "org--Name-1.5_b"),
        ("../../etc/passwd", "passwd@2fae18a7"),
        ("..", "model@5ec1f7e7"),
        ("/", "model@8a5edab2"),
        ("tiny.failed", "tiny-failed@"),
        ("a--b", "a-b@"),
        ("a b\n", "a-b@"),
        ("modèle", "mod-le@"),
    ],
)
def test_model_slug(model, slug):
    assert model_slug(model).split("@")[0] == slug.split("@")[0]
    assert ("@" in model_slug(model)) == ("@" in slug)


@given(
    st.lists(st.text(alphabet="ab./-@~\\ \n\0é", min_size=1), min_size=2, max_size=2, unique=True)
)
def test_a_slug_stays_in_the_folder_and_is_one_model_s(names):
    slugs = [model_slug(name) for name in names]
    assert slugs[0] != slugs[1]
    for slug in slugs:
        assert Path("out", slug).name == slug
        assert slug not in (".", "..") and not slug.startswith(".")
        assert slug.isascii() and slug.isprintable() and len(slug) <= 100
        assert not slug.endswith(".failed")


def test_a_hostile_model_name_writes_inside_the_output_folder(tmp_path, monkeypatch):
    checked = plan(CHAPTER, "../../" + "x" * 200, "smoke", {}, out=tmp_path / "out")
    assert checked.folder.parent == tmp_path / "out" / "toy"
    for name in ("x" * 300, "../" + "x" * 300, "~no-such-user/x"):
        with pytest.raises(UsageError, match="model "):
            plan(CHAPTER, name, "smoke", {}, out=tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    checked = plan(CHAPTER, "models/mine", "smoke", {}, out=tmp_path / "out")
    assert checked.model == str(tmp_path / "models" / "mine")
    assert checked.folder.name.startswith("mine@")


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


@pytest.mark.parametrize("name", ["~no-such-user/x", "x" * 5000, "a/b"])
def test_a_record_of_a_model_that_is_no_path_here(record, name):
    record["model"]["name"] = name
    assert changed_since(record, CHAPTER) == []


@pytest.mark.parametrize("seeds", [3, [10**300]])
def test_a_record_with_seeds_that_are_none_is_stale(seeds, monkeypatch):
    monkeypatch.setattr(Chapter, "library_hash", lambda *_: "")  # takes seconds
    record = read_record(ROOT / "results/context-knob/smollm2-135m/record.json")
    chapter = find_chapter(ROOT, "context-knob")
    parameters = record["parameters"] | {"adapter_seeds": seeds}
    assert "stored trainings" not in changed_since(record, chapter)
    assert "stored trainings" in changed_since(dict(record, parameters=parameters), chapter)


def test_a_profile_that_is_gone_is_one_line(record):
    with pytest.raises(UsageError, match="no profile"):
        changed_since(dict(record, profile="huge"), CHAPTER)


def test_outside_a_project_the_package_s_own_is_found(tmp_path):
    assert find_root(tmp_path) == ROOT
