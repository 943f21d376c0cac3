"""`replib train`: what can be asked of a chapter, and what is refused in one line."""

import subprocess

import pytest

from bookkit import train
from bookkit.cli import main
from replib.chapters.copying_mamba import stored
from replib.files import find_root

KNOB, COPYING, SMOLLM = "context-knob", "copying-mamba", "smollm2-135m"


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
    left, commands = [["copy/rope-0.1-0", "copy/lstm-0.1-0"], []], []
    monkeypatch.setattr(stored, "missing", lambda root: left.pop(0))

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(train.subprocess, "run", run)
    assert main(["train", COPYING, "--cores", "3"]) == code
    (command,) = commands
    assert command[command.index("--cores") + 1] == "3"
    assert [word for word in command if str(word).startswith("build/")] == [
        "build/grid/copying-mamba/copy/rope-0.1-0.done",
        "build/grid/copying-mamba/copy/lstm-0.1-0.done",
    ]
    said = capsys.readouterr()
    assert "2 cells to train" in said.err
    assert ("all cells are there" in said.out) == (code == 0)
    assert ("to go on: replib train copying-mamba" in said.err) == (code == 1)


@pytest.mark.slow
def test_a_grid_s_jobs_train_one_cell_each():
    mark = f"build/grid/{COPYING}/copy/rope-0.1-0.done"
    words = ["-m", "snakemake", "--snakefile", "workflow/grid.smk", "--cores", "1", "-n", "-p"]
    words += ["--config", "device=cpu", "--force", mark]
    told = subprocess.run(
        [train.sys.executable, *words], cwd=find_root(), capture_output=True, text=True, check=True
    ).stdout
    assert f"replib train {COPYING} --cell copy/rope-0.1-0 --device cpu" in told
