"""Sweeps: what a file means, what is refused, what runs again, what a kill leaves.

The project is a copy with one paper that needs no library, as in test_workflow.
"""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import test_workflow as small
import yaml

from bookkit.records import read_record
from bookkit.sweep import command, read_sweep
from replib.errors import UsageError

ROOT = Path(__file__).parents[2]
SWEEP = {
    "name": "trial",
    "papers": ["small-paper"],
    "models": ["tiny", "planted-ioi"],
    "seeds": [0, 1],
    "profile": "smoke",
    "parameters": {"n_prompts": [3, 4]},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweeps")
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("sweep.smk", "profiles"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, root / name)
    (root / "notebooks").mkdir()
    (root / "notebooks/small-paper/claims.yaml").write_text(small.CLAIMS)
    (root / "notebooks/small-paper/profiles.yaml").write_text(yaml.safe_dump(small.PROFILES))
    small.write_notebook(root, small.MEASURE)
    (root / "requirements.txt").write_text("torch==1\n")
    return root


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


def test_the_sweep_of_the_book_can_be_planned(tmp_path):
    text = (ROOT / "book" / "rerun.md").read_text()
    (example,) = re.findall(r"```yaml\n(name: .*?)```", text, re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(example)
    found = read_sweep(ROOT, tmp_path / "sweep.yaml")
    assert len(found.jobs) == 9
    folder = re.search(r"RECORDS=(build/sweeps/\S+)", text)[1]
    assert any(f"{ROOT / folder}/" in str(job.run.folder) for job in found.jobs.values())


def test_a_profile_that_is_no_path_is_one_line(project, tmp_path):
    planned = read_sweep(project, write(tmp_path))
    for profile in ("~no-such-user/x", "x" * 5000, "a\0b"):
        with pytest.raises(UsageError, match=r"is neither a folder with config\.yaml nor one of"):
            command(project, tmp_path / "sweep.yaml", planned, profile, None, [])


# --- the file -------------------------------------------------------------------------------------


def test_a_sweep_is_the_product_of_its_lists(project, tmp_path):
    planned = read_sweep(project, write(tmp_path))
    assert len(planned.jobs) == 2 * 2 * 2
    name = "seed-1,n_prompts-3/small-paper/tiny"
    job = planned.jobs[name]
    assert job.settings == {"seed": "1", "n_prompts": "3"}
    assert job.run.parameters["n_prompts"] == 3 and job.run.parameters["seed"] == 1
    assert job.run.folder == project / "build/sweeps/trial" / name


def test_odd_values_make_folders_that_stay_inside_and_apart(project, tmp_path):
    notebook = project / "notebooks/small-paper/small-paper.ipynb"
    before = notebook.read_text()
    notebook.write_text(
        before.replace("n_prompts: int = 10", 'x: str = \\"\\"\\nn_prompts: int = 10')
    )
    try:
        values = ["../../a", "a/b", "a b", "a-b", "é" * 200]
        planned = read_sweep(project, write(tmp_path, parameters={"x": values}, seeds=[0]))
    finally:
        notebook.write_text(before)
    folders = {job.run.folder for job in planned.jobs.values()}
    assert len(folders) == 2 * len(values)
    inside = project / "build/sweeps/trial"
    assert all(inside == folder.resolve().parents[2] for folder in folders)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"papers": ["smal-paper"]}, "did you mean 'small-paper'"),
        ({"parameters": {"n_promts": 3}}, "did you mean 'n_prompts'"),
        ({"parameters": {"n_prompts": "many"}}, "'many' is not int"),
        ({"parameters": {"seed": [1]}}, "parameters"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"models": None}, "models"),
        ({"seedz": [1]}, "did you mean 'seeds'"),
        ({"name": "../up"}, "name"),
        ({"name": "up\n"}, "name"),
        ({"threads": 1.0}, "threads"),
        ({"memory_gb": math.nan}, "memory_gb: a number is not finite"),
        ({"memory_gb": math.inf}, "memory_gb: a number is not finite"),
        ({"parameters": {1: 2}}, "a key is not text"),
        ({"seeds": list(range(10_001)), "parameters": {}, "models": ["tiny"]}, "10001 jobs; at"),
        ({"models": ["tiny", "a\nb"]}, "'\\n' cannot stand in a name"),
        ({"profile": "paper", "models": [""]}, "models"),
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
        assert words[words.index("--profile") + 1] == str(project / "profiles" / name)
    (tmp_path / "config.yaml").write_text("executor: local\n")
    assert str(tmp_path) in command(project, path, planned, str(tmp_path), 3, [])
    with pytest.raises(UsageError, match="nor one of: local"):
        command(project, path, planned, "slrm", None, [])


# --- running --------------------------------------------------------------------------------------


def test_jobs_run_once_and_again_when_something_changed(project, tmp_path):
    few = {"name": "again", "models": ["tiny"], "parameters": {"n_prompts": 3}}
    path = write(tmp_path, **few)
    assert "2 of 2 jobs would run" in finish(sweep(project, path, "--dry-run"))
    assert not (project / "build/sweeps/again").exists()  # a dry run leaves nothing
    assert "all 2 jobs are done" in finish(sweep(project, path, "--jobs", "2"))
    record = read_record(
        project / "build/sweeps/again/seed-1,n_prompts-3/small-paper/tiny/record.json"
    )
    assert (record["seed"], record["parameters"]["n_prompts"], record["threads"]) == (1, 3, 1)
    assert "0 of 2 jobs would run" in finish(sweep(project, path, "--dry-run"))
    lock = project / "requirements.txt"
    before = lock.read_text()
    lock.write_text("torch==2\n")
    out = finish(sweep(project, path, "--dry-run"))
    assert "2 of 2 jobs would run" in out and "Params have changed" in out
    lock.write_text(before)
    more = write(
        tmp_path, name="again", seeds=[0, 1, 2], models=["tiny"], parameters={"n_prompts": 3}
    )
    out = finish(sweep(project, more, "--dry-run"))
    assert "seed-2,n_prompts-3/small-paper/tiny: not done yet" in out
    assert "1 of 3 jobs would run" in out


def test_a_failing_job_keeps_its_log_and_only_it_runs_again(project, tmp_path):
    measure = small.MEASURE.replace(
        "claims.measure", "assert seed != 1, 'not this seed'\nclaims.measure"
    )
    small.write_notebook(project, measure)
    try:
        path = write(tmp_path, name="failing", models=["tiny"], parameters=None)
        out = finish(sweep(project, path, "--jobs", "2"), code=1)
        assert "not this seed" in out and "some jobs failed" in out
        failed = project / "build/sweeps/failing/seed-1/small-paper/tiny.failed"
        assert {"notebook.ipynb", "run.log"} <= {p.name for p in failed.iterdir()}
        out = finish(sweep(project, path, "--dry-run"))
        assert "seed-1/small-paper/tiny: not done yet" in out and "1 of 2 jobs would run" in out
    finally:
        small.write_notebook(project, small.MEASURE)


def test_a_refusal_is_a_result_and_is_not_asked_for_again(project, tmp_path):
    refuse = (
        "from replib.errors import UsageError\nif seed == 1: raise UsageError('no heads here')\n"
    )
    small.write_notebook(project, refuse + small.MEASURE)
    try:
        path = write(tmp_path, name="refused", models=["tiny"], parameters=None)
        out = finish(sweep(project, path, "--jobs", "2"))
        assert "seed-1/small-paper/tiny: refused: no heads here" in out
        assert "all 2 jobs are done" in out
        assert not list((project / "build/sweeps/refused").glob("seed-1/small-paper/*"))
        assert "0 of 2 jobs would run" in finish(sweep(project, path, "--dry-run"))
    finally:
        small.write_notebook(project, small.MEASURE)
    assert "2 of 2 jobs would run" in finish(sweep(project, path, "--dry-run"))


def test_a_killed_sweep_loses_what_was_running_and_nothing_else(project, tmp_path):
    slow = small.MEASURE.replace("claims.measure", "import time; time.sleep(2)\nclaims.measure")
    small.write_notebook(project, slow)
    try:
        path = write(tmp_path, name="killed", models=["tiny"], seeds=[*range(4)], parameters=None)
        process = sweep(project, path, "--jobs", "1")
        stamps = project / "build/sweeps/killed/stamps"
        deadline = time.monotonic() + 120
        while not list(stamps.glob("*/*/*.ok")) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)  # let it be noted, and the next one start
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        done = {path.parts[-3] for path in stamps.glob("*/*/*.ok")}
        assert 1 <= len(done) < 4
        out = finish(sweep(project, path, "--dry-run"))
        assert f"{4 - len(done)} of 4 jobs would run" in out
        assert "all 4 jobs are done" in finish(sweep(project, path, "--jobs", "2"))
        records = (project / "build/sweeps/killed").glob("seed-*/small-paper/tiny/record.json")
        assert sorted(read_record(path)["seed"] for path in records) == [0, 1, 2, 3]
    finally:
        small.write_notebook(project, small.MEASURE)


def test_one_sweep_runs_once_at_a_time(project, tmp_path):
    slow = small.MEASURE.replace("claims.measure", "import time; time.sleep(3)\nclaims.measure")
    small.write_notebook(project, slow)
    try:
        path = write(tmp_path, name="twice", models=["tiny"], seeds=[0], parameters=None)
        first = sweep(project, path)
        lock = project / "build/sweeps/twice/.lock"
        while not lock.exists():
            time.sleep(0.05)
        assert "sweep twice is running already" in finish(sweep(project, path), code=2)
        finish(first)
    finally:
        small.write_notebook(project, small.MEASURE)
