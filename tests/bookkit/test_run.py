"""Runs of a small notebook: how they end, and what is left of them."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bookkit.project import list_papers
from bookkit.records import read_record
from bookkit.run.chapter import Parameter, to_text, find_chapter, read_parameters
from bookkit.run.environment import environment as run_environment
from bookkit.run.environment import n_threads
from bookkit.run.execute import RunFailed, _bundle, _mark, _sweep, execute
from bookkit.run.plan import plan
from bookkit.run.watch import Watched
from replib.errors import UsageError, find_control
from replib.files import find_root
from replib.hashes import library_hash, notebook_hash
from replib.models.sources import model_slug

HERE = Path(__file__).parents[1]  # has notebooks/toy.*, so it is a project to the runner
CHAPTER = find_chapter(HERE, "toy")
END = "the cell that decides how it ends"


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def run(out, mode="well", model="tiny", profile="smoke", **options):
    return execute(plan(CHAPTER, model, profile, {"mode": mode}, out=out, **options))


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_times(record):
    of_the_run = ("wall_time_s", "peak_memory_mb", "started", "seal")
    return {key: value for key, value in record.items() if key not in of_the_run}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A finished run, in a folder with an awkward name, after a failed one."""
    out = tmp_path_factory.mktemp("runs") / "with {braces}, spaces and ü"
    failed = out / "toy" / "tiny.failed"
    failed.mkdir(parents=True)
    (failed / "notebook.ipynb").write_text("an earlier failure")
    return run(out)


# --- finished runs --------------------------------------------------------------------------------


def test_a_finished_run(good):
    assert files(good) == ["notebook.ipynb", "record.json", "run.log"]
    assert files(good.parent) == ["tiny"]  # no hidden folder, and the failure is gone
    record = read_record(good / "record.json")
    assert record["claims"][0]["outcome"] == "holds"
    assert record["claims"][1]["outcome"] == "not_attempted"
    assert record["claims"][0]["n"] == 10
    assert {claim["scope"] for claim in record["claims"]} == {"transfer"}
    assert record["parameters"]["n_prompts"] == 10
    assert record["parameters"]["mode"] == "well"
    assert record["model"] == {"name": "tiny", "sha256": None}
    assert record["hashes"]["library"] == library_hash(CHAPTER.notebook)
    assert record["hashes"]["notebook"] == notebook_hash(CHAPTER.notebook)
    assert record["hashes"]["claims"] == CHAPTER.claims.sha256
    assert record["versions"]["papermill"] == "2.7.0" or record["versions"]["papermill"]
    assert 20 < record["peak_memory_mb"] < 2000
    assert 0.5 < record["wall_time_s"] < 300


def test_the_notebook_of_a_finished_run(good):
    notebook = nbformat.read(good / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    statuses = {cell.metadata.papermill["status"] for cell in notebook.cells}
    assert statuses == {"completed"}
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("claims-table" in output.get("data", {}).get("text/html", "") for output in outputs)
    assert str(good.parent.parent) not in (good / "notebook.ipynb").read_text()
    assert END in (good / "run.log").read_text()
    assert files(HERE / "notebooks") == ["toy/claims.yaml", "toy.ipynb", "toy/profiles.yaml"]


def test_two_runs_at_once_both_end_well(tmp_path):
    command = [sys.executable, "-m", "bookkit.cli", "run", "toy", "--model", "tiny", "-p", "seed=3"]
    command += ["--out", str(tmp_path / "out"), "--profile", "smoke"]
    both = [
        subprocess.Popen(command, cwd=HERE, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [(process.communicate(), process.returncode)[1] for process in both] == [0, 0]
    folder = tmp_path / "out" / "toy" / "tiny"
    assert files(folder.parent) == ["tiny"]
    first = read_record(folder / "record.json")
    log = (folder / "run.log").read_text()
    assert first["started"] in log and log.count("profile smoke") == 1
    again = execute(plan(CHAPTER, "tiny", "smoke", {"seed": "3"}, out=tmp_path / "out"))
    second = read_record(again / "record.json")
    assert without_times(first) == without_times(second)
    other = execute(plan(CHAPTER, "tiny", "smoke", {"seed": "4"}, out=tmp_path / "out"))
    third = read_record(other / "record.json")
    assert third["claims"][0]["measured"] != second["claims"][0]["measured"]


@pytest.mark.parametrize(
    ("model", "profile", "scope"),
    [
        ("toy-model", "paper", "replication"),
        ("toy-model", "smoke", "transfer"),
        ("tiny", "paper", "transfer"),
    ],
)
def test_scope(good, monkeypatch, tmp_path, model, profile, scope):
    """Replication is the paper's model at the paper's size. (The notebook is not run again.)"""
    text = (good / "notebook.ipynb").read_text()

    def watch(job, *rest):
        Path(job["notebook"]).write_text(text.replace('"name": "tiny"', f'"name": "{model}"'))
        return Watched(end={"end": "finished"}, exit_code=0)

    monkeypatch.setattr(watch, "watch_process", watch)
    record = read_record(run(tmp_path, model=model, profile=profile) / "record.json")
    assert {claim["scope"] for claim in record["claims"]} == {scope}


# --- failed runs ----------------------------------------------------------------------------------


def copied(good, tmp_path):
    """An earlier good result, in a folder of its own."""
    shutil.copytree(good, tmp_path / "toy" / "tiny")
    return snapshot(tmp_path / "toy" / "tiny")


def marked(folder):
    """(source, status, output) of the cells with an error output; statuses of those after."""
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [c for c in notebook.cells if "papermill" in c.metadata]
    bad = [
        (index, output)
        for index, cell in enumerate(cells)
        for output in cell.get("outputs", ())
        if output.output_type == "error"
    ]
    assert len(bad) == 1
    index, output = bad[0]
    assert notebook.metadata.papermill["exception"] is True
    assert cells[index].metadata.papermill["exception"] is True
    assert cells[index].metadata.papermill["status"] == "failed"
    after = {c.metadata.papermill["status"] for c in cells[index + 1 :]}
    return cells[index], output, after


@pytest.mark.parametrize(
    ("mode", "message", "cell", "name", "after"),
    [
        ("error", "ZeroDivisionError: on purpose in cell [6]", END, "ZeroDivisionError", "pending"),
        ("kill", "the kernel died in cell [6]", END, "RunFailed", "pending"),
        ("silent", "ended with 0 tables of verdicts", "claims.verdicts", "RunFailed", None),
        ("partial", "claim 1.10 is missing", "claims.verdicts", "RunFailed", None),
        ("other-model", "measured 'other', not 'tiny'", "claims.verdicts", "RunFailed", None),
    ],
)
def test_a_failed_run(good, tmp_path, mode, message, cell, name, after):
    before = copied(good, tmp_path)
    with pytest.raises(RunFailed) as error:
        run(tmp_path, mode)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "tiny.failed" in str(error.value)
    assert snapshot(tmp_path / "toy" / "tiny") == before
    assert files(tmp_path / "toy") == ["tiny", "tiny.failed"]
    failed = tmp_path / "toy" / "tiny.failed"
    assert files(failed) == ["notebook.ipynb", "run.log"]
    log = (failed / "run.log").read_text()
    assert message in log.splitlines()[-1]
    left = re.findall(r"left: (\d+)", log)  # what a cell started goes with the run
    assert len(left) == (mode == "kill")
    assert not any(psutil.pid_exists(int(pid)) for pid in left)
    culprit, output, rest = marked(failed)
    assert cell in culprit.source
    assert output.ename == name
    assert rest <= ({after} if after else set())


def test_a_run_that_takes_too_long(tmp_path):
    with pytest.raises(RunFailed, match=r"time limit of 12 s reached in cell \[6\]"):
        run(tmp_path, "hang", time_limit_s=12.0)
    failed = tmp_path / "toy" / "tiny.failed"
    assert files(failed) == ["notebook.ipynb", "run.log"]
    cell, output, after = marked(failed)
    assert END in cell.source
    assert cell.execution_count == 6
    assert (output.ename, after) == ("TimeLimit", {"pending"})


def test_no_time_at_all(tmp_path):
    with pytest.raises(RunFailed, match=r"time limit of 0\.01 s reached before its first cell"):
        run(tmp_path, time_limit_s=0.01)
    notebook = json.loads((tmp_path / "toy" / "tiny.failed" / "notebook.ipynb").read_text())
    assert notebook["metadata"]["papermill"]["exception"] is True


def test_the_user_s_mistake_leaves_nothing(good, tmp_path):
    out = tmp_path / "new" / "runs"
    with pytest.raises(UsageError, match=r"^row 3 is broken \(in cell \[6\]\)$"):
        run(out, "usage")
    assert files(tmp_path) == []
    before = copied(good, tmp_path)
    with pytest.raises(UsageError):
        run(tmp_path, "usage")
    assert files(tmp_path / "toy") == ["tiny"]
    assert snapshot(tmp_path / "toy" / "tiny") == before


def test_a_file_that_breaks_off_is_marked_all_the_same(tmp_path):
    path = tmp_path / "notebook.ipynb"
    cell = {"code": 6, "of": 8, "id": "end", "line": "x"}
    for text in (CHAPTER.notebook[:500], None):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        _mark(path, Watched(cell=cell), "killed", CHAPTER.notebook)
        culprit, output, after = marked(tmp_path)
        assert END in culprit.source
        assert (output.evalue, after) == ("killed", {"pending"})


def test_verdicts_about_another_claims_file(good):
    checked = plan(CHAPTER, "tiny", "smoke", {}, out=good.parent.parent)
    assert _bundle(checked, good / "notebook.ipynb")["paper"] == "toy"
    changed = replace(CHAPTER, claims=replace(CHAPTER.claims, sha256="0" * 64))
    with pytest.raises(RunFailed, match="about another claims file, or it changed"):
        _bundle(replace(checked, chapter=changed), good / "notebook.ipynb")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_process_and_no_result(tmp_path, sign):
    command = [sys.executable, "-m", "bookkit.cli", "run", "toy", "--profile", "smoke"]
    command += ["-p", "mode=hang", "--out", str(tmp_path / "out")]
    # Who ignores Ctrl-C, as a shell's background job does, passes that on; who handles it does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, cwd=HERE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    log = None
    for _ in range(600):
        log = next(tmp_path.glob("out/toy/.tiny.tmp-*/run.log"), None)
        if log is not None and END in log.read_text():
            break
        time.sleep(0.1)
    assert log is not None and END in log.read_text()
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2  # papermill's process and the kernel
    process.send_signal(sign)
    _, said = process.communicate(timeout=30)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    assert process.returncode == codes[sign]
    assert "Traceback" not in said
    if sign == signal.SIGKILL:
        assert not list(tmp_path.glob("out/toy/*"))[1:]  # the hidden folder only
        assert not list(tmp_path.glob("out/toy/**/record.json"))
    else:
        assert files(tmp_path) == []


def test_what_a_killed_run_left_is_swept_away(tmp_path):
    checked = plan(CHAPTER, "tiny", "smoke", {}, out=tmp_path)
    checked.folder.parent.mkdir(parents=True)
    old, held, new = (checked.folder.parent / f".tiny.tmp-{name}" for name in ("o", "h", "n"))
    for folder in (old, held, new):
        folder.mkdir()
        (folder / "run.log").write_text("x")
    for folder in (old, held):
        os.utime(folder, (0, 0))
    lock = os.open(held, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    _sweep(checked)
    os.close(lock)
    assert files(checked.folder.parent) == [".tiny.tmp-h", ".tiny.tmp-n"]


# --- what is checked before a run -----------------------------------------------------------------


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
        ("n_prompts", "-3", -3),
        ("share", "1", 1.0),
        ("share", "1e-3", 0.001),
        ("careful", "false", False),
        ("careful", "True", True),
        ("mode", " a=b ", " a=b "),
        ("mode", "", ""),
        ("sizes", "3,4", [3, 4]),
        ("sizes", "[3, 4]", [3, 4]),
        ("sizes", "", []),
        ("prompts_file", "none", None),
        ("prompts_file", "", ""),
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
        ("n_prompts", "", "is not int"),
        ("n_prompts", "9" * 5000, "is not int"),
        ("share", "half", "is not float"),
        ("share", "nan", "is not float"),
        ("share", "1e999", "is not float"),
        ("share", "1.2.3", "is not float"),
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


PLAIN = st.one_of(st.booleans(), st.integers(-(10**9), 10**9), st.none())
LONGS = st.integers(1 - 10**18, 10**18 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(value=st.one_of(PLAIN, FLOATS), items=st.lists(LONGS), text=st.text())
def test_what_is_written_is_read_back(value, items, text):
    parameter = Parameter("x", "bool | int | float | None", None, "")
    assert parameter.read(to_text(value)) == value
    listed = Parameter("x", "list[int]", [], "")
    assert listed.read(to_text(items)) == items
    try:
        read = parameter.read(text)
    except UsageError as error:
        assert "is not bool" in str(error) or find_control(text)
    else:
        assert parameter.check(read, "here") == read


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
        ("n: int", "is not `name: type = value`"),
        ("n: int = f()", "give a plain value of a plain type"),
        ("n: Tensor = 3", "give a plain value of a plain type"),
        ("n: int = 1\nn: int = 2", "n comes twice"),
        ("n: int = (", "parameters cell: "),
        ("a.b: int = 1", "'a.b: int = 1' is not `name: type = value`"),
        ("n: int = {[]: 1}", "give a plain value of a plain type"),
        ("n: int = " + "-" * 5000 + "1", "parameters cell: "),
        ("n: str = '\ud800'", "parameters cell: "),
        ("import os", "is not `name: type = value`"),
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
    for text in ("{}", "[]", "nothing"):
        with pytest.raises(UsageError, match=r"toy.ipynb is not a notebook"):
            read_parameters(text, "toy.ipynb")


@pytest.mark.parametrize(
    "cell",
    [
        {"cell_type": "code", "metadata": {}},
        {"cell_type": "code", "metadata": {}, "source": 3},
        {"cell_type": "code", "metadata": [], "source": ""},
        {"cell_type": "code", "metadata": {"tags": 3}, "source": ""},
        {"metadata": {}, "source": ""},
        "cell",
    ],
)
def test_a_cell_that_could_not_be_hashed(cell):
    notebook = json.loads(CHAPTER.notebook)
    notebook["cells"].append(cell)
    with pytest.raises(UsageError, match=r"^toy.ipynb is not a notebook$"):
        read_parameters(json.dumps(notebook), "toy.ipynb")


def project(tmp_path, **texts):
    """A copy of the toy chapter in which some files' texts are changed by a function."""
    shutil.copytree(HERE / "notebooks", tmp_path / "notebooks")
    for kind, change in texts.items():
        path = tmp_path / "notebooks" / {"profiles": "toy/profiles.yaml"}.get(kind, f"toy.{kind}")
        path.write_text(change(path.read_text()))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("n_prompts: 20", "n_promts: 20"), "laptop: toy has no parameter 'n_promts'; did you"),
        (("n_prompts: 20", "n_prompts: many"), "parameter n_prompts is 'many', which is not int"),
        (("n_prompts: 20", "n_prompts: true"), "parameter n_prompts is True, which is not int"),
        (("n_prompts: 20", "device: cuda"), "laptop, parameters"),
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


@pytest.mark.parametrize("limit", [".nan", ".inf", "1" + "0" * 400])
def test_a_time_limit_is_a_number(tmp_path, limit):
    change = ("time_limit_s: 7200", f"time_limit_s: {limit}")
    with pytest.raises(UsageError, match="time_limit_s: a number is not finite"):
        find_chapter(project(tmp_path, profiles=lambda text: text.replace(*change)), "toy")


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
    (root / "notebooks" / "second/claims.yaml").write_text("paper: second")  # no notebook
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


def test_an_output_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is not a folder"):
        run(tmp_path / "file")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "tiny").write_text("")
    with pytest.raises(UsageError, match="tiny is a file"):
        run(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="link is not a folder"):
        run(tmp_path / "link")
    if Path("/proc/self").exists():
        with pytest.raises(UsageError, match="output folder /proc/none"):
            run(Path("/proc/none"))


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
        run(Path(out))
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
        run(tmp_path / "closed" / "out")


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


def test_the_kernel_s_environment(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("REPLIB_THREADS", "3")
    environment = run_environment("/tmp/x")
    assert environment["TQDM_DISABLE"] == "1"
    assert environment["PYTHONHASHSEED"] == "0"
    assert environment["REPLIB_THREADS"] == "3"
    assert "MPLBACKEND" not in environment
    monkeypatch.setenv("REPLIB_THREADS", "all")
    with pytest.raises(UsageError, match="REPLIB_THREADS='all'"):
        n_threads()


def test_hashes_see_what_matters(tmp_path):
    notebook = json.loads(CHAPTER.notebook)
    first = notebook_hash(CHAPTER.notebook)
    notebook["metadata"]["note"] = 1
    notebook["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "x"}]
    notebook["cells"][2]["source"] = "".join(notebook["cells"][2]["source"])
    assert notebook_hash(json.dumps(notebook)) == first
    notebook["cells"][2]["source"] += " "
    assert notebook_hash(json.dumps(notebook)) != first
