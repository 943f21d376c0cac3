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

from bookkit.records import read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import RunFailed, _mark, _sweep, execute
from bookkit.run.plan import changed_since, plan
from bookkit.run.watch import Watched
from replib.claims.file import MIME
from replib.errors import UsageError

HERE = Path(__file__).parents[1]  # has notebooks/toy.*, so it is a project to the runner
CHAPTER = find_chapter(HERE, "toy")
END = "the cell that decides how it ends"


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def planned(out, mode="well", model="tiny", profile="smoke", **options):
    return plan(CHAPTER, model, profile, {"mode": mode}, out=out, **options)


def run(*arguments, **options):
    return execute(planned(*arguments, **options))


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A finished run, in a folder with an awkward name, after a failed one."""
    out = tmp_path_factory.mktemp("runs") / "with {braces}, spaces and ü"
    failed = out / "toy" / "tiny.failed"
    failed.mkdir(parents=True)
    (failed / "notebook.ipynb").write_text("an earlier failure")
    return run(out)


HOME = {
    ".ipython/profile_default/startup/00.py": "import matplotlib; matplotlib.use('svg'); seed = 5",
    ".ipython/profile_default/ipython_kernel_config.py": "c.IPKernelApp.exec_lines = ['seed = 6']",
    ".ipython/profile_default/ipython_config.py": "c.InteractiveShell.autocall = 'x'",
    ".config/matplotlib/matplotlibrc": "text.usetex: True",
    ".local/share/jupyter/kernels/python3/kernel.json": '{"argv": ["false"], "display_name": "x"}',
    "start.py": "import matplotlib; matplotlib.use('pdf')",
}
DRAW = "import matplotlib.pyplot as plt\nassert 'seed' in dir()\nplt.plot([1]);"


def drawing(code, out):
    """A run whose cell before the last but one has a figure, and runs `code`."""
    content = json.loads(CHAPTER.notebook)
    (cell,) = [cell for cell in content["cells"] if cell.get("id") == "later"]
    cell |= {"source": code, "metadata": {"mystnb": {"figure": {"name": "fig-one"}}}}
    return replace(planned(out), chapter=replace(CHAPTER, notebook=json.dumps(content)))


def test_what_the_user_set_up_for_other_kernels_stays_outside(tmp_path, monkeypatch):
    """And the record says which kernel it was."""
    for name, text in HOME.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "start.py"))
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path / ".config/matplotlib/matplotlibrc"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / ".local/share/jupyter"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    for name in ("IPYTHONDIR", "XDG_CONFIG_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    see = "assert [plt.rcParams['text.usetex'], seed] == [False, 0], seed\n"
    folder = execute(drawing(DRAW.replace("plt.plot", f"{see}plt.plot"), tmp_path / "runs"))
    version = read_record(folder / "record.json")["versions"]["kernel"]
    assert re.fullmatch(r"python[0-9.]* 3\.[0-9.]+, ipykernel [0-9.]+", version)


def test_a_figure_that_was_not_drawn_ends_the_run(tmp_path):
    with pytest.raises(RunFailed, match=r"cell \[\d+\] drew no figure; was matplotlib's backend"):
        execute(drawing(f"import matplotlib\nmatplotlib.use('agg')\n{DRAW}", tmp_path))


# --- finished runs --------------------------------------------------------------------------------


def test_a_finished_run(good):
    assert files(good) == ["notebook.ipynb", "record.json", "run.log"]
    assert files(good.parent) == ["tiny"]  # no hidden folder, and the failure is gone
    assert files(HERE / "notebooks/toy") == ["claims.yaml", "profiles.yaml", "toy.ipynb"]
    record = read_record(good / "record.json")
    assert [claim["outcome"] for claim in record["claims"]] == ["holds", "not_attempted"]
    assert record["claims"][0]["n"] == record["parameters"]["n_prompts"] == 10
    assert record["model"] == {"name": "tiny", "sha256": None}
    assert changed_since(record, CHAPTER) == []
    assert record["versions"]["papermill"]
    assert 20 < record["peak_memory_mb"] < 2000
    assert 0.5 < record["wall_time_s"] < 300
    notebook = nbformat.read(good / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert {cell.metadata.papermill["status"] for cell in notebook.cells} == {"completed"}
    text = (good / "notebook.ipynb").read_text()
    assert "claims-table" in text and str(good.parent.parent) not in text
    assert END in (good / "run.log").read_text()


@pytest.fixture
def replayed(good, monkeypatch):
    """`replayed(change)`: no process is started; a run leaves the good run's notebook, in which
    `change(code cells)` was made."""

    def replayed(change):
        def watch(job, *rest):
            notebook = json.loads((good / "notebook.ipynb").read_text())
            change([cell for cell in notebook["cells"] if cell["cell_type"] == "code"])
            Path(job["notebook"]).write_text(json.dumps(notebook))
            last = {"code": 7, "of": 7, "id": "verdicts", "line": "x"}
            return Watched(cell=last, end={"end": "finished"}, exit_code=0)

        monkeypatch.setattr("bookkit.run.execute.watch_process", watch)

    return replayed


def bundle(cells):
    """What the last cell hands over."""
    return next(o["data"][MIME] for o in cells[-1]["outputs"] if MIME in o.get("data", ()))


def test_only_the_paper_s_model_at_the_paper_s_size_is_a_replication(replayed, tmp_path):
    for model, profile, scope in (
        ("toy-model", "paper", "replication"),
        ("toy-model", "smoke", "transfer"),
        ("tiny", "paper", "transfer"),
    ):
        replayed(lambda cells, name=model: bundle(cells)["model"].update(name=name))
        record = read_record(run(tmp_path, model=model, profile=profile) / "record.json")
        assert {claim["scope"] for claim in record["claims"]} == {scope}


# --- failed runs ----------------------------------------------------------------------------------


def copied(good, tmp_path):
    """An earlier good result, in a folder of its own."""
    shutil.copytree(good, tmp_path / "toy" / "tiny")
    return snapshot(tmp_path / "toy" / "tiny")


def marked(folder):
    """(source, name and text of the error) of the cell that failed; statuses of those after."""
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.papermill["exception"] is True
    cells = [cell for cell in notebook.cells if "papermill" in cell.metadata]
    ((index, error),) = [
        (index, output)
        for index, cell in enumerate(cells)
        for output in cell.get("outputs", ())
        if output.output_type == "error"
    ]
    assert cells[index].metadata.papermill["exception"] is True
    assert cells[index].metadata.papermill["status"] == "failed"
    after = {cell.metadata.papermill["status"] for cell in cells[index + 1 :]}
    return cells[index].source, (error.ename, error.evalue), after


@pytest.mark.parametrize(
    ("mode", "limit", "message", "name"),
    [
        ("error", None, "ZeroDivisionError: on purpose in cell [6]", "ZeroDivisionError"),
        ("kill", None, "the kernel died in cell [6]", "RunFailed"),
        pytest.param(
            *("hang", 12.0, "time limit of 12 s reached in cell [6]", "TimeLimit"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_failed_run(good, tmp_path, mode, limit, message, name):
    before = copied(good, tmp_path)
    with pytest.raises(RunFailed) as error:
        run(tmp_path, mode, time_limit_s=limit)
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
    source, error, after = marked(failed)
    assert END in source
    assert (error[0], after) == (name, {"pending"})


def test_the_user_s_mistake_leaves_nothing(good, tmp_path, monkeypatch):
    out = tmp_path / "new" / "runs"
    with pytest.raises(UsageError, match=r"^row 3 is broken \(in cell \[6\]\)$"):
        run(out, "usage")
    assert files(tmp_path) == []
    before = copied(good, tmp_path)
    watched = Watched(end={"end": "usage", "error": "row 3 is broken"}, exit_code=0)
    monkeypatch.setattr("bookkit.run.execute.watch_process", lambda *_: watched)
    with pytest.raises(UsageError, match=r"^row 3 is broken \(before its first cell\)$"):
        run(tmp_path, "usage")
    assert files(tmp_path / "toy") == ["tiny"]
    assert snapshot(tmp_path / "toy" / "tiny") == before


def test_a_file_that_breaks_off_is_marked_all_the_same(tmp_path):
    path = tmp_path / "notebook.ipynb"
    watched = Watched(cell={"code": 6, "of": 8, "id": "end", "line": "x"})
    for prepare in (lambda: path.write_text(CHAPTER.notebook[:500]), path.unlink):
        prepare()
        _mark(path, watched, "killed", CHAPTER.notebook)
        source, error, after = marked(tmp_path)
        assert END in source
        assert (error, after) == (("RunFailed", "killed"), {"pending"})


EARLY = {"output_type": "error", "ename": "SystemExit", "evalue": "0", "traceback": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cells: cells[-1]["outputs"].clear(), "ended with 0 tables of verdicts"),
        (lambda cells: cells[-1]["metadata"]["tags"].clear(), "with the tag claims"),
        (lambda cells: cells[-2]["outputs"].append(EARLY), "SystemExit: 0 in cell [6], which"),
        (lambda cells: bundle(cells)["claims"].pop(), "claim 1.10 is missing from the verdicts"),
        (lambda cells: bundle(cells).update(claims_sha256="0"), "about another claims file, or it"),
        (lambda cells: bundle(cells)["model"].update(name="x"), "measured 'x', not 'tiny'"),
    ],
)
def test_verdicts_that_a_notebook_does_not_hold(replayed, tmp_path, change, message):
    replayed(change)
    with pytest.raises(RunFailed, match=re.escape(message)):
        run(tmp_path)
    assert files(tmp_path / "toy") == ["tiny.failed"]
    notebook = json.loads((tmp_path / "toy/tiny.failed/notebook.ipynb").read_text())
    assert notebook["cells"][-1]["metadata"]["papermill"]["status"] == "failed"


def test_an_interrupted_run_leaves_no_process_and_no_result(tmp_path):
    command = [sys.executable, "-m", "bookkit.cli", "run", "toy", "--profile", "smoke"]
    command += ["-p", "mode=hang", "--out", str(tmp_path / "out")]
    # Who ignores Ctrl-C, as a shell's background job does, passes that on; who handles it does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, cwd=HERE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while not any(END in log.read_text() for log in tmp_path.glob("out/toy/.tiny.tmp-*/run.log")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2  # papermill's process and the kernel
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert process.returncode == 130
    assert "Traceback" not in said
    assert files(tmp_path) == []


def test_what_a_killed_run_left_is_swept_away(tmp_path):
    checked = planned(tmp_path)
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
