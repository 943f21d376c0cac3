"""Sweeps, and the workflow of the book, on a paper that needs no library: what a file means, what
is refused, what runs again when something changes, what a kill leaves.

The packages are copied, so that a test can change a module, and so that nobody else's change makes
anything run here.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest
import small_book
import yaml
from small_book import PAPER, PARAMETERS, ROOT, code, notebook, words

from bookkit.records import read_record
from bookkit.sweep import command, read_sweep
from replib.errors import UsageError

CELLS = {
    "parameters": PARAMETERS,
    "work": 'from replib.claims.measure import Claims\nclaims = Claims.load("claims.yaml")\n'
    'claims.measure("1.2", n_prompts);',
    "claims": 'claims.verdicts({"name": model_name, "sha256": None})',
}
STAMP = f"build/stamps/{PAPER}/tiny.ok"
RECORD = f"build/runs/{PAPER}/tiny/record.json"
CHAPTER, PAGES = f"notebooks/{PAPER}", f"_build/html/chapters/{PAPER}"
NOTEBOOK, PROFILES = f"{CHAPTER}/{PAPER}.ipynb", f"{CHAPTER}/profiles.yaml"
TEMPLATE = "src/bookkit/book/templates/trial.html"
SWEEP = {
    "name": "trial",
    "papers": [PAPER],
    "models": ["tiny", "planted-ioi"],
    "seeds": [0, 1],
    "profile": "smoke",
    "parameters": {"n_prompts": [3, 4]},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The small book's project with the code of this one, and nothing run."""
    root = tmp_path_factory.mktemp("project")
    small_book.make_project(root)
    shutil.rmtree(root / "build")
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    shutil.copytree(ROOT / "workflow", root / "workflow")
    (root / TEMPLATE).write_text("<p></p>\n")
    (root / "book/index.md").write_text("# Home\n\nSee {cite:p}`nobody`.\n")
    (root / "requirements.txt").write_text("torch==1\n")
    cells = [words("# A Paper About Nothing\n\nIt is {record}`claims.1.2.value`.", "title")]
    cells += [code(text, n, tags=[tag]) for n, (tag, text) in enumerate(CELLS.items(), 1)]
    (root / NOTEBOOK).write_text(notebook(cells))
    return root


@contextmanager
def edited(path, text="\n", old=""):
    """The file with some text at its end, or in place of another."""
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, text) if old else before + text)
    try:
        yield
    finally:
        path.write_text(before)


def prepended(project, text, place="claims.measure("):
    """The notebook with some code before a place in it."""
    return edited(project / NOTEBOOK, json.dumps(f"{text}\n{place}")[1:-1], place)


def start(project, *arguments, **variables):
    """A process in the project, with the project's own packages."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project / "src")} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, code=0):
    out = process.communicate(timeout=600)[0]
    assert process.returncode == code, out
    return out


# --- a sweep's file -------------------------------------------------------------------------------


def write(folder, **changes):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (SWEEP | changes).items() if v is not None}))
    return path


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
    values = ["../../a", "a/b", "a b", "a-b", "é" * 200]
    with prepended(project, 'x: str = ""', "ratio: float"):
        planned = read_sweep(project, write(tmp_path, parameters={"x": values}, seeds=[0]))
    folders = {job.run.folder for job in planned.jobs.values()}
    assert len(folders) == 2 * len(values)
    inside = project / "build/sweeps/trial"
    assert all(inside == folder.resolve().parents[2] for folder in folders)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
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
    planned = read_sweep(project, write(tmp_path))
    for name in ("local", "slurm", "kubernetes"):
        line = command(project, planned, name, None, [])
        assert line[line.index("--profile") + 1] == str(project / "workflow/profiles" / name)
    (tmp_path / "config.yaml").write_text("executor: local\n")
    assert str(tmp_path) in command(project, planned, str(tmp_path), 3, [])
    for name in ("slrm", "~no-such-user/x", "x" * 5000, "a\0b"):
        with pytest.raises(UsageError, match=r"neither a folder with config\.yaml nor one of: loc"):
            command(project, planned, name, None, [])


@pytest.mark.parametrize("name", ["a: b #2 {paper}", '-x it\'s "5%" $HOME\n[1]'])
def test_a_sweep_s_file_is_the_one_that_was_given_whatever_its_name(project, tmp_path, name):
    """Two files, of which one's name may read as the other's."""
    write(tmp_path, name="other", models=["tiny"], seeds=[0], parameters=None)
    folder = tmp_path / name
    folder.mkdir()
    path = write(folder, name="own", models=["tiny"], seeds=[0, 1], parameters=None)
    own = path.rename(folder / f"sweep.yaml {name}")
    out = finish(sweep(project, own, "--dry-run"))
    assert "sweep own: 2 jobs" in out and "2 of 2 jobs would run" in out
    assert "seed-1/fake-paper/tiny: not done yet" in out


@pytest.mark.slow
def test_a_model_and_a_file_of_prompts_may_have_any_name(project, tmp_path):
    odd = tmp_path / "{x} a: #b"
    odd.mkdir()
    (odd / "{rows}.csv").write_text("a,b\n")
    settings = {"name": "odd", "seeds": [0], "models": ["tiny"]}
    with prepended(project, 'rows_file: str = ""', "ratio: float"):
        path = write(odd, **settings, parameters={"rows_file": str(odd / "{rows}.csv")})
        assert "all 1 jobs are done" in finish(sweep(project, path))
        assert "0 of 1 jobs would run" in finish(sweep(project, path, "--dry-run"))
        (odd / "{rows}.csv").write_text("a,c\n")
        assert "1 of 1 jobs would run" in finish(sweep(project, path, "--dry-run"))


# --- sweeps that run ------------------------------------------------------------------------------


def sweep(project, path, *options):
    return start(project, "bookkit.cli", "sweep", str(path), *options)


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
    with prepended(project, before):
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
    with prepended(project, "import time; time.sleep(2)"):
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


# --- the book -------------------------------------------------------------------------------------


def make_book(project, *options, models="tiny", code=0):
    """What Snakemake said."""
    line = ["snakemake", "book", "--snakefile", "workflow/Snakefile", "--cores", "all", *options]
    return finish(start(project, *line, PROFILE="smoke", MODELS=models), code)


def would_run(project, models="tiny"):
    """The jobs that would run, (rule, reason) of each; none is run."""
    said = make_book(project, "--dry-run", models=models)
    return sorted(
        re.findall(r"^rule (chapter|html):\n(?:    .*\n)*?    reason: (.*)$", said, re.MULTILINE)
    )


def rules(project, models="tiny"):
    return [rule for rule, _ in would_run(project, models)]


@pytest.fixture(scope="module")
def built(project):
    """The project with its book, built once for `tiny`."""
    make_book(project)
    assert "It is" in (project / PAGES / "tiny.html").read_text()
    return project


BOTH = ["chapter", "html"]
LOOKS = ("book/index.md", "_toc.yml", "src/bookkit/book/atlas.py", TEMPLATE)
MODULES = ("src/replib/claims/measure.py", "src/bookkit/run/execute.py")
UNUSED = [
    ("src/replib/metrics.py", "# more\n"),
    ("_toc.yml", ""),  # the same content
    (PROFILES, "n_prompts: 5", "n_prompts: 40"),  # of another profile
]
PLANTED = "[the planted model](chapters/fake-paper/planted-ioi.ipynb)\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jobs", "edits"),
    [
        ([], UNUSED),
        (["html"], [(file,) for file in LOOKS]),
        (BOTH, [(file,) for file in (f"{CHAPTER}/claims.yaml", NOTEBOOK, *MODULES)]),
        (BOTH, [("requirements.txt", "numpy==2\n")]),
        (BOTH, [(PROFILES, "[tiny], parameters: {n_prompts: 5}", "[tiny], parameters: {}")]),
        (BOTH, [("book/index.md", PLANTED)]),  # a control of which a page reads the record
    ],
)
def test_a_change_runs_what_uses_it(built, jobs, edits):
    """Each file that only got an empty line is named as a reason."""
    with ExitStack() as changes:
        for file, *change in edits:
            changes.enter_context(edited(built / file, *change))
        found = would_run(built)
    assert [rule for rule, _ in found] == jobs
    assert all(edit[0] in found[0][1] for edit in edits if len(edit) == 1)


@pytest.mark.slow
def test_a_record_written_by_hand_or_removed_runs_the_chapter_again(built):
    later = (built / STAMP).stat().st_mtime + 5
    os.utime(built / RECORD, (later, later))
    assert rules(built) == BOTH
    assert not (built / STAMP).exists()


@pytest.mark.slow
def test_a_chapter_that_refuses_a_model_that_was_asked_for_is_left_out(built):
    both = "tiny planted-ioi"
    refuse = (
        "from replib.errors import UsageError\n"
        "if model_name == 'planted-ioi': raise UsageError('no heads here')"
    )
    with prepended(built, refuse):
        make_book(built, models=both)
        assert "no heads here" in (built / f"build/stamps/{PAPER}/planted-ioi.ok").read_text()
        assert (built / PAGES / "tiny.html").is_file()
        assert not (built / PAGES / "planted-ioi.html").exists()
        assert rules(built, both) == []
    assert rules(built, both) == ["chapter", *BOTH]


@pytest.mark.slow
def test_a_book_that_the_gate_refuses_is_no_book(built):
    with edited(built / "book/index.md", "\n<a href='nowhere.html'>there</a>\n"):
        assert "index.html: links to nowhere.html" in make_book(built, code=1)
        assert not (built / "_build/html/index.html").exists()
        assert rules(built) == ["html"]
