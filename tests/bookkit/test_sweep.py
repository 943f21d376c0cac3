"""Sweeps: what a file means, what is refused, what runs again, what a kill leaves.

The project is that of test_workflow.
"""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from small_book import PARAMETERS, ROOT
from test_workflow import MEASURE, edited, make_project, measuring, write_notebook

from bookkit.records import read_record
from bookkit.sweep import command, read_sweep
from replib.errors import UsageError

SWEEP = {
    "name": "trial",
    "papers": ["fake-paper"],
    "models": ["tiny", "planted-ioi"],
    "seeds": [0, 1],
    "profile": "smoke",
    "parameters": {"n_prompts": [3, 4]},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("sweeps"))


def write(folder, **changes):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (SWEEP | changes).items() if v is not None}))
    return path


def sweep(project, path, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "bookkit.cli", "sweep", str(path), *options],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, code=0):
    out = process.communicate(timeout=300)[0]
    assert process.returncode == code, out
    return out


# --- the file -------------------------------------------------------------------------------------


def test_the_sweep_of_the_book_can_be_planned(tmp_path):
    text = (ROOT / "book" / "rerun.md").read_text()
    (example,) = re.findall(r"```yaml\n(name: .*?)```", text, re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(example)
    found = read_sweep(ROOT, tmp_path / "sweep.yaml")
    assert len(found.jobs) == 9
    folder = re.search(r"RECORDS=(build/sweeps/\S+)", text)[1]
    assert any(f"{ROOT / folder}/" in str(job.run.folder) for job in found.jobs.values())


def test_a_sweep_is_the_product_of_its_lists(project, tmp_path):
    planned = read_sweep(project, write(tmp_path))
    assert len(planned.jobs) == 2 * 2 * 2
    name = "seed-1,n_prompts-3/fake-paper/tiny"
    job = planned.jobs[name]
    assert job.settings == {"seed": "1", "n_prompts": "3"}
    assert job.run.parameters["n_prompts"] == 3 and job.run.parameters["seed"] == 1
    assert job.run.folder == project / "build/sweeps/trial" / name


def test_odd_values_make_folders_that_stay_inside_and_apart(project, tmp_path):
    write_notebook(project, MEASURE, f'{PARAMETERS}\nx: str = ""')
    values = ["../../a", "a/b", "a b", "a-b", "é" * 200]
    planned = read_sweep(project, write(tmp_path, parameters={"x": values}, seeds=[0]))
    write_notebook(project, MEASURE)
    folders = {job.run.folder for job in planned.jobs.values()}
    assert len(folders) == 2 * len(values)
    inside = project / "build/sweeps/trial"
    assert all(inside == folder.resolve().parents[2] for folder in folders)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"papers": ["fake-papr"]}, "did you mean 'fake-paper'"),
        ({"parameters": {"n_prompts": "many"}}, "'many' is not int"),
        ({"parameters": {"seed": 1}}, "seed is no parameter of a sweep; it has a key of its own"),
        ({"seeds": [1, 1]}, "seeds: 1 is there twice"),
        ({"name": "../up"}, "name"),
        ({"seeds": [*range(101)], "parameters": {"n_prompts": [*range(50)]}}, "10100 jobs; at"),
        ({"models": ["tiny", "a\nb"]}, "'\\n' cannot stand in a"),
    ],
)
def test_a_wrong_file_is_one_line(project, tmp_path, changes, message):
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        read_sweep(project, write(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_a_profile_is_known_or_a_folder(project, tmp_path):
    path = write(tmp_path)
    planned = read_sweep(project, path)
    for name in ("local", "slurm", "kubernetes"):
        words = command(project, path, planned, name, None, [])
        assert words[words.index("--profile") + 1] == str(project / "workflow/profiles" / name)
    (tmp_path / "config.yaml").write_text("executor: local\n")
    assert str(tmp_path) in command(project, path, planned, str(tmp_path), 3, [])
    for name in ("slrm", "~no-such-user/x", "x" * 5000, "a\0b"):
        with pytest.raises(UsageError, match=r"neither a folder with config\.yaml nor one of: loc"):
            command(project, path, planned, name, None, [])


# --- running --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_jobs_run_once_and_again_when_something_changed(project, tmp_path):
    """A job that fails keeps its log; of one that is refused the reason is a result."""
    of = {"name": "again", "models": ["tiny"], "parameters": {"n_prompts": 3}}
    path = write(tmp_path, **of, seeds=[0, 1, 2])
    folder = project / "build/sweeps/again"
    assert "3 of 3 jobs would run" in finish(sweep(project, path, "--dry-run"))
    assert not folder.exists()  # a dry run leaves nothing
    before = (
        "from replib.errors import UsageError\n"
        "if seed == 2: raise UsageError('no heads here')\n"
        "assert seed != 1, 'not this seed'"
    )
    with measuring(project, before):
        out = finish(sweep(project, path, "--jobs", "2"), code=1)
        assert "not this seed" in out and "some jobs failed" in out
        record = read_record(folder / "seed-0,n_prompts-3/fake-paper/tiny/record.json")
        assert (record["seed"], record["parameters"]["n_prompts"]) == (0, 3)
        assert record["threads"] == 1
        failed = folder / "seed-1,n_prompts-3/fake-paper/tiny.failed"
        assert {"notebook.ipynb", "run.log"} <= {path.name for path in failed.iterdir()}
        assert not list(folder.glob("seed-2*/fake-paper/*"))
        with edited(project / "src/bookkit/book/atlas.py", "# more\n"):  # no run uses it
            out = finish(sweep(project, path, "--dry-run"))
        assert "seed-1,n_prompts-3/fake-paper/tiny: not done yet" in out
        assert "1 of 3 jobs would run" in out
        path = write(tmp_path, **of, seeds=[0, 2])
        out = finish(sweep(project, path))
        assert "seed-2,n_prompts-3/fake-paper/tiny: refused: no heads here" in out
        assert "all 2 jobs are done" in out
        with edited(project / "requirements.txt", "numpy==2\n"):
            out = finish(sweep(project, path, "--dry-run"))
    assert "2 of 2 jobs would run" in out and "Params have changed" in out


@pytest.mark.slow
def test_a_killed_sweep_loses_what_was_running_and_nothing_else(project, tmp_path):
    """And while it runs, no other one of the same name does."""
    with measuring(project, "import time; time.sleep(2)"):
        path = write(tmp_path, name="killed", models=["tiny"], seeds=[*range(4)], parameters=None)
        process = sweep(project, path, "--jobs", "1")
        folder = project / "build/sweeps/killed"
        deadline = time.monotonic() + 120
        while not list(folder.glob("stamps/*/*/*.ok")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert "sweep killed is running already" in finish(sweep(project, path), code=2)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        done = {stamp: stamp.stat().st_mtime_ns for stamp in folder.glob("stamps/*/*/*.ok")}
        assert 1 <= len(done) < 4
        assert "all 4 jobs are done" in finish(sweep(project, path, "--jobs", "2"))
    assert {stamp: stamp.stat().st_mtime_ns for stamp in done} == done
    records = folder.glob("seed-*/fake-paper/tiny/record.json")
    assert sorted(read_record(path)["seed"] for path in records) == [0, 1, 2, 3]
