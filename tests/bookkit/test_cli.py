"""The command line: what is refused, in one line, and what a run prints."""

import subprocess
import sys
from pathlib import Path

import pytest

import replib
from bookkit.cli import main
from bookkit.records import read_record

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
        ((), "required: COMMAND"),
        (("run",), "required: PAPER"),
        (("walk",), "invalid choice: 'walk'"),
        (("run", "toi"), "no paper 'toi'; did you mean 'toy'?"),
        (("run", "toy", "--profile", "huge"), "invalid choice: 'huge'"),
        (("run", "toy", "--device", "abacus"), "invalid choice: 'abacus'"),
        (("run", "toy", "--device", "mps:7"), "invalid choice: 'mps:7'"),
        (("run", "toy", "--modl", "tiny"), "--modl"),
        (("run", "toy", "--model", ""), "the model's name is empty"),
        (("run", "toy", "-p", "n_promts=3"), "no parameter 'n_promts'; did you mean 'n_prompts'"),
        (("run", "toy", "-p", "n_prompts=many"), "'many' is not int"),
        (("run", "toy", "-p", "n_prompts"), "-p 'n_prompts' is not name=value"),
        (("run", "toy", "-p", "=3"), "-p '=3' is not name=value"),
        (("run", "toy", "-p", "seed=1", "-p", "seed=2"), "parameter seed is given twice"),
        (("run", "toy", "-p", "seed=1", "--seed", "2"), "parameter seed is given twice"),
        (("run", "toy", "--seed", "one"), "parameter seed: 'one' is not int"),
        (("run", "toy", "-p", "prompts_file=/no/such"), "prompts_file: /no/such: No such file"),
        (("run", "toy", "--time-limit", "soon"), "invalid float value: 'soon'"),
        (("run", "toy", "--time-limit", "-1"), "--time-limit"),
        (("run", "toy", "--time-limit", "nan"), "--time-limit is nan"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(cli, tmp_path, arguments, message):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("replib: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_parameter_loads_no_library(tmp_path):
    """So that it is answered at once."""
    script = (
        "import sys\nfrom replib.cli import main\n"
        "code = main(['run', 'toy', '-p', 'n_promts=3'])\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'papermill', 'IPython'}\n"
        "sys.exit(code if not heavy & set(sys.modules) else 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr


def test_an_unknown_model_is_refused_in_one_line(cli, tmp_path):
    code, out, err = cli("run", "toy", "--model", "gpt5")
    assert (code, out) == (2, "")
    assert "model 'gpt5' is not known" in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_broken_row_is_refused_in_one_line(cli, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"clean": "a", "corrupted": "b", "answer": " x"}]')
    code, out, err = cli("run", "toy", "--model", "tiny", "-p", f"prompts_file={path}")
    assert (code, out) == (2, "")
    assert f"{path} row 1: must have clean" in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_the_laptop_profile_runs_its_models(cli, tmp_path):
    code, out, err = cli("run", "toy", "--seed", "5")
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == 2
    for line, model in zip(lines, ("tiny", "planted-ioi"), strict=True):
        folder = tmp_path / "new" / "out" / "toy" / model
        assert line.startswith(f"toy on {model}: 1 holds, 1 not_attempted; ")
        assert line.endswith(str(folder))
        record = read_record(folder / "record.json")
        assert (record["seed"], record["profile"]) == (5, "laptop")
        assert record["parameters"]["n_prompts"] == 20
    assert "replib: toy on tiny: cell 1 of 8" in err  # not a terminal: a few plain lines
    assert len(err.splitlines()) <= 10


def test_one_model_s_failure_does_not_stop_the_next(cli, tmp_path):
    code, out, err = cli("run", "toy", "-p", "mode=error")
    assert (code, out) == (1, "")
    said = [line for line in err.splitlines() if " failed: " in line]
    assert len(said) == 2
    assert "toy on tiny failed: ZeroDivisionError: on purpose in cell [" in said[0]
    assert "Traceback" not in err
    folder = tmp_path / "new" / "out" / "toy"
    assert sorted(p.name for p in folder.iterdir()) == ["planted-ioi.failed", "tiny.failed"]


@pytest.mark.parametrize("refusal", ["file/refused", "folder"])
def test_a_refusal_that_cannot_be_kept_is_one_line(cli, tmp_path, refusal):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    where = str(tmp_path / refusal)
    code, out, err = cli("run", "toy", "--seed", "one", "--refusal", where)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'one' is not int" in err and f"--refusal {where}: " in err


def test_list(cli):
    code, out, _ = cli("list")
    assert code == 0
    assert out.startswith("toy\n  A toy chapter (arXiv 2310.08740)\n  smoke   tiny\n")
    assert "laptop  tiny, planted-ioi  (default)" in out
    assert out.splitlines()[-1].startswith("embedded models: smollm2-135m (")


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"replib {replib.__version__}\n"
