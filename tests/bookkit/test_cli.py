"""The command line: what is refused, in one line, what a run prints, and `replib train`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import replib
from bookkit import train
from bookkit.cli import _progress, main
from bookkit.records import read_record
from bookkit.run.execute import RunFailed
from replib.chapters.copying_mamba import stored
from replib.files import find_root

KNOB, COPYING, SMOLLM = "context-knob", "copying-mamba", "smollm2-135m"
HERE = Path(__file__).parents[1]  # has notebooks/toy.*, so it is a project to the command line


@pytest.fixture
def cli(tmp_path, monkeypatch, capfd):
    """Run a command in the toy project; (exit code, stdout, stderr)."""
    monkeypatch.chdir(HERE)

    def run(*arguments):
        if arguments[:1] == ("run",):
            arguments = (*arguments, "--out", str(tmp_path / "new" / "out"))
        code = main(arguments)
        return code, *capfd.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing command. (see replib --help)"),
        (("run", "toy", "--profile", "huge"), "--profile is huge: 'huge' is not one of 'smoke'"),
        (("run", "toy", "--modl", "tiny"), "No such option: --modl (Possible options: --model)"),
        (("run", "toy", "--", "--cores", "1"), "'--cores' after --: only replib sweep passes"),
        (("run", "toy", "--model", ""), "the model's name is empty"),
        (("run", "toy", "-p", "n_prompts"), "-p 'n_prompts' is not name=value"),
        (("run", "toy", "-p", "seed=1", "--seed", "2"), "parameter seed is given twice"),
        (("run", "toy", "--time-limit", "nan"), "--time-limit is nan"),
        (("run", "toy", "--seed", "one", "--refusal", "conftest.py/x"), "--refusal conftest.py/x"),
        pytest.param(
            ("run", "toy", "--model", "tiny", "-p", "prompts_file=conftest.py"),
            "conftest.py: unknown kind of file",
            marks=pytest.mark.slow,  # it loads the model
        ),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(cli, tmp_path, arguments, message):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("replib: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_needs_no_model_loads_no_library():
    """So that it is answered at once."""
    script = (
        "import sys\nfrom bookkit.cli import main\n"
        "code = main(['run', 'toy', '-p', 'n_promts=3'])\n"
        "heavy = {'torch', 'transformers', 'papermill', 'IPython', 'sphinx', 'matplotlib'}\n"
        "sys.exit(code if not heavy & set(sys.modules) else 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr


def test_a_run_says_what_came_of_it(cli, tmp_path):
    code, out, err = cli("run", "toy", "--model", "tiny", "--seed", "5")
    assert code == 0, err
    folder = tmp_path / "new/out/toy/tiny"
    assert out.startswith("toy on tiny: 1 holds, 1 not_attempted; ")
    assert out.endswith(f"{folder}\n") and out.count("\n") == 1
    record = read_record(folder / "record.json")
    assert (record["seed"], record["profile"]) == (5, "laptop")
    assert record["parameters"]["n_prompts"] == 20
    assert "replib: toy on tiny: cell 1 of 8" in err  # not a terminal: a few plain lines
    assert err.count("\n") <= 5


def test_one_model_s_failure_does_not_stop_the_next(cli, monkeypatch):
    def fails(run, progress):
        raise RunFailed(f"{run.name} failed: on purpose")

    monkeypatch.setattr("bookkit.cli.execute", fails)
    said = "replib: toy on tiny failed: on purpose\nreplib: toy on planted-ioi failed: on purpose\n"
    assert cli("run", "toy") == (1, "", said)


def test_list(cli):
    code, out, _ = cli("list")
    assert code == 0
    assert out.startswith("toy\n  A toy chapter (arXiv 2310.08740)\n  smoke   tiny\n")
    assert "laptop  tiny, planted-ioi  (default)" in out
    assert out.splitlines()[-1].startswith("embedded models: smollm2-135m (")


def test_version_and_help_fit_a_terminal(cli):
    assert cli("--version") == (0, f"replib {replib.__version__}\n", "")
    verbs = re.findall(r"^  ([a-z]+)  +[A-Z]", cli("--help")[1].split("Commands:")[1], re.M)
    assert verbs == ["list", "run", "sweep", "certify", "verify", "new", "train", "book"]
    steps = [["book", step] for step in ["stage", "gate", "pdf", "failed", "classroom", "readme"]]
    for words in ([], *([verb] for verb in verbs), *steps):
        code, out, err = cli(*words, "-h")
        assert (code, err) == (0, "") and out.startswith(f"Usage: {' '.join(['replib', *words])} ")
        assert max(map(len, out.splitlines())) <= 80 and "..." not in out.partition("Commands:")[2]


def test_a_step_of_the_book_that_cannot_be_done_is_one_line(cli, tmp_path):
    where = ("--root", str(tmp_path), "--runs", str(tmp_path), "--out", str(tmp_path / "book"))
    code, out, err = cli("book", "stage", "toy/tiny", *where)
    assert (code, out) == (1, "") and err.startswith("book: no finished run of toy on tiny")
    assert err.count("\n") == 1
    code, out, err = cli("book", "failed", str(tmp_path), str(HERE / "conftest.py"))
    assert (code, out, err) == (0, "", "")


def test_a_terminal_shows_a_bar_for_any_name(monkeypatch, capsys):
    """And the names of models may hold what rich takes for markup."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with _progress("toy on [/b]") as show:
        show(3, 8)
    assert "toy on [/b]" in (err := capsys.readouterr().err) and "2/8" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ioi-circuit-reuse", "--model", SMOLLM, "--seed", "1"], "invalid choice"),
        ([COPYING, "--seed", "1"], "--seed does not belong to copying-mamba"),
        ([COPYING, "--cores", "0"], "--cores is 0"),
        ([KNOB, "--seed", "1"], "needs --model"),
        ([KNOB, "--model", SMOLLM, "--seed", "-1"], "--seed is -1"),
        ([KNOB, "--model", "tiny", "--seed", "1"], "made in memory"),
        ([KNOB, "--model", "a\0b", "--seed", "1"], "cannot stand in a name"),
    ],
)
def test_a_training_that_cannot_be_is_refused_in_one_line(arguments, words, capsys):
    assert main(["train", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err


@pytest.mark.parametrize("code", [0, 1])
def test_what_is_missing_is_trained_as_jobs_until_nothing_is(code, monkeypatch, capsys):
    left, commands = [["copy/rope-0.1-s10-101", "copy/lstm-0.1-s10-101"], []], []
    monkeypatch.setattr(stored, "missing", lambda root: left.pop(0))

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(train.subprocess, "run", run)
    assert main(["train", COPYING, "--cores", "3"]) == code
    (command,) = commands
    assert command[command.index("--cores") + 1] == "3"
    assert [word for word in command if str(word).startswith("build/")] == [
        "build/grid/copying-mamba/copy/rope-0.1-s10-101.done",
        "build/grid/copying-mamba/copy/lstm-0.1-s10-101.done",
    ]
    said = capsys.readouterr()
    assert "2 cells to train" in said.err
    assert ("all cells are there" in said.out) == (code == 0)
    assert ("to go on: replib train copying-mamba" in said.err) == (code == 1)


@pytest.mark.slow
def test_a_grid_s_jobs_train_one_cell_each():
    mark = f"build/grid/{COPYING}/copy/rope-0.1-s10-101.done"
    words = ["-m", "snakemake", "--snakefile", "workflow/grid.smk", "--cores", "1", "-n", "-p"]
    words += ["--config", "device=cpu", "--force", mark]
    told = subprocess.run(
        [train.sys.executable, *words], cwd=find_root(), capture_output=True, text=True, check=True
    ).stdout
    assert f"replib train {COPYING} --cell copy/rope-0.1-s10-101 --device cpu" in told
