"""A fixed part of the fuzzing, and whether it would see a fault; all of it: `make fuzz`."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import fuzz
import pytest
from fuzz import TARGETS, Target, judge, run
from hypothesis import strategies as st

from bookkit.book.trust import code_hash
from replib.errors import UsageError

CASES = 300


@pytest.fixture(autouse=True)
def watching(monkeypatch):
    fuzz._warm_up()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.filterwarnings("ignore")
def test_every_case_ends_in_success_or_in_one_line(target, tmp_path):
    share = CASES * target.share // sum(target.share for target in TARGETS)
    tally = run(target, share, 0, tmp_path)
    assert tally.faults == {}
    assert tally.counts.total() > share / 2 and tally.counts["refused"]
    assert list(tmp_path.iterdir()) == []


# --- would it see one? ----------------------------------------------------------------------------


def ends(read, folder):
    return judge(Target("trial", st.none(), read, 1), None, folder)


def raises(error):
    def read(case, folder):
        raise error

    return read


def refusal(message):
    """A UsageError whose message the class has not put in order."""
    error = UsageError("")
    error.args = (message,)
    return error


def test_a_case_that_is_fine(tmp_path):
    def read(case, folder):
        (folder / "mine").mkdir()
        (folder / "mine" / "a.txt").write_text("a")
        Path("b.txt").write_text("b")  # the folder is the current one

    assert ends(read, tmp_path)[0] == "accepted"
    assert (tmp_path / "b.txt").exists()
    assert ends(raises(UsageError("no such thing")), tmp_path)[0] == "refused"


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (ValueError("no\nsuch thing"), r"ValueError at test_fuzz.py:\d+: 'no\\nsuch thing'"),
        (SystemExit(1), "SystemExit at"),
        (refusal("one\ntwo"), "is unprintable"),
        (refusal("\x1b[31m"), "is unprintable"),
        (refusal(" "), "is unprintable"),
        (refusal("x" * 2000), "is too long"),
    ],
)
def test_another_end_is_a_fault(error, seen, tmp_path):
    outcome, *fault = ends(raises(error), tmp_path)
    assert outcome == "other"
    assert re.search(seen, ": ".join(fault))


@pytest.mark.parametrize(
    "act",
    [
        lambda out: (out / "a.txt").write_text("a"),
        lambda out: os.open(out / "a.txt", os.O_CREAT),
        lambda out: (out / "a").mkdir(),
        lambda out: (out / "old.txt").unlink(),
        lambda out: (out / "old.txt").rename(out / "new.txt"),
        lambda out: (out / "link").symlink_to(out / "old.txt"),
        lambda out: Path("../outside/a.txt").write_text("a"),
        lambda out: subprocess.run(["true"], check=True),
        lambda out: os.system("true"),
    ],
)
def test_what_is_done_outside_the_folder_is_a_fault(act, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "old.txt").write_text("old")
    (tmp_path / "inside").mkdir()
    outcome, _, details = ends(lambda case, folder: act(tmp_path / "outside"), tmp_path / "inside")
    assert (outcome, "outside the folder" in details) == ("other", True)


def test_a_refusal_does_not_hide_what_was_written(tmp_path):
    (tmp_path / "inside").mkdir()

    def read(case, folder):
        (tmp_path / "left.json").write_text("{}")
        raise UsageError("refused")

    assert ends(read, tmp_path / "inside")[0] == "other"


def test_a_hang_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)

    def read(case, folder):
        try:
            time.sleep(5)
        except Exception:  # a hang is none, and passes
            raise UsageError("swallowed") from None

    outcome, fault, _ = ends(read, tmp_path)
    assert (outcome, fault.split(" ")[0]) == ("other", "Hang")


def test_faults_are_counted_told_and_written_down(tmp_path, monkeypatch, capsys):
    bad = []

    def read(case, folder):
        if case > 3:
            bad.append(str(case))
            raise KeyError(case // 100)
        if case:
            raise UsageError("not zero")

    targets = (
        Target("numbers", st.integers(0, 99), read, 1),
        Target("nothing", st.integers(), raises(UsageError("no")), 1),
    )
    monkeypatch.setattr(fuzz, "TARGETS", targets)
    out = tmp_path / "new" / "fuzz.json"
    assert fuzz.main(["--cases", "60", "--seed", "1", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "fuzz: numbers: KeyError at test_fuzz.py" in said
    assert said.splitlines()[1].strip() == min(bad, key=len)
    table = json.loads(out.read_text())
    columns = ["input", "cases", "accepted", "refused in one line", "other"]
    assert table["columns"] == columns
    names, *numbers = zip(*table["rows"], strict=True)
    assert names == ("numbers", "nothing")
    cases, accepted, refused, other = numbers
    assert cases == (30, 30) and table["cases"] == 60
    assert other[0] > 0 and accepted[1] == other[1] == 0
    assert [sum(row) for row in zip(accepted, refused, other, strict=True)] == [30, 30]
    assert set(table) == {"what", "columns", "rows", "cases", "seconds", "date", "code"}
    assert table["code"] == code_hash(fuzz.ROOT, "fuzz")
    monkeypatch.setattr(fuzz, "TARGETS", targets[1:])
    assert fuzz.main(["--cases", "5"]) == 0


def test_the_same_seed_gives_the_same_cases(tmp_path):
    def cases(seed):
        seen = []
        target = Target("trial", fuzz.TARGETS[2].cases, lambda case, folder: seen.append(case), 1)
        run(target, 10, seed, tmp_path)
        return seen

    assert cases(3) == cases(3) != cases(4)
