"""Faults put into real runs: a few of each kind that needs no minute, and whether we would see."""

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import faults
import pytest
from faults import KINDS, TOLD, Ended, Place, Wrong, inject, lacks

BY_NAME = {kind.name: kind for kind in KINDS}
SHORT = (
    ("kernel killed by its own cell", 0),
    ("papermill's process killed", 0),
    ("runner killed at its n-th file", 4),
    ("runner killed at its n-th file", 11),
    ("disk full at the runner's n-th file", 3),
    ("disk full at the runner's n-th file", 5),
    ("disk full (tmpfs)", 0),
    ("a cell raises", faults.RAISES.index("raise SystemExit(0)")),
    ("a cell raises", faults.RAISES.index("import os; os._exit(0)")),
    ("a measured value is not finite", 1),
    ("memory limit hit", 0),
    ("cache with one flipped bit", 3),  # in the header, which planning reads
    ("clock set back", 0),
    ("eight runs of one pair at once", 0),
)


@pytest.fixture(scope="module")
def ends():
    """How the short form's faults ended; two at a time."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    chosen = [(BY_NAME[name], number) for name, number in SHORT if not lacks(BY_NAME[name])]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda pair: inject(*pair), chosen))
    signal.signal(signal.SIGINT, before)
    return {(kind.name, number): end for (kind, number), end in zip(chosen, found, strict=True)}


@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: f"{fault[0]}, {fault[1]}")
def test_a_fault_tells_no_lie_and_damages_nothing(ends, fault):
    if lack := lacks(BY_NAME[fault[0]]):
        pytest.skip(lack)
    assert not ends[fault].startswith("wrong"), ends[fault]
    if "tmpfs" in fault[0] or "raises" in fault[0]:
        assert ends[fault] == TOLD


def test_the_long_form_is_long():
    assert sum(kind.count for kind in KINDS) >= 200


# --- would we see it? -----------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    """A place with an earlier result, which no run made."""
    place = Place(tmp_path / "p")
    place.result.mkdir(parents=True)
    (place.result / "record.json").write_text("{}")
    return place


@pytest.mark.parametrize(
    ("ended", "message"),
    [
        (Ended(0, ""), "false success"),
        (Ended(1, ""), "not one line"),
        (Ended(1, "replib: one\nreplib: two"), "not one line"),
        (Ended(1, "Traceback (most recent call last):"), "not one line"),
        (Ended(1, "replib: " + "x" * 3000), "not one line"),
        (Ended(3, "replib: one"), "ended with 3"),
    ],
)
def test_what_is_not_told_well_is_seen(ended, message):
    with pytest.raises(Wrong, match=message):
        faults.told(ended, 1, 0)
    assert faults.told(Ended(1, "replib: toy on tiny: cell 1 of 7\nreplib: one"), 1) == TOLD


@pytest.mark.parametrize("ended", [Ended(1, ""), Ended(0, "replib: but"), Ended(0, "Warning")])
def test_what_did_not_finish_rightly_is_seen(ended):
    with pytest.raises(Wrong, match="did not finish"):
        faults.finished(ended)


def test_damage_is_seen(place, monkeypatch):
    before = place.snapshot()
    faults.undamaged(place, before)
    (place.result / "record.json").write_text('{"changed": 1}')
    with pytest.raises(Wrong, match="was changed"):
        faults.undamaged(place, before)
    failed = place.results / "tiny.failed"
    failed.mkdir()
    (failed / "record.json").touch()
    with pytest.raises(Wrong, match="a failed run has a record"):
        faults.undamaged(place, place.snapshot())
    place.result.rename(place.results / "elsewhere")
    with pytest.raises(Wrong, match="is gone"):
        faults.undamaged(place, before)


def test_a_process_that_is_left_is_seen(place, monkeypatch):
    monkeypatch.setattr(faults, "PATIENCE", 0.1)
    left = subprocess.Popen(["sleep", "60"], env=os.environ | {"FAULT": place.mark})
    try:
        with pytest.raises(Wrong, match="left a process"):
            faults.undamaged(place, place.snapshot())
    finally:
        left.kill()
        left.wait()


def test_a_notebook_that_does_not_show_where_it_stopped_is_seen(place):
    with pytest.raises(Wrong, match="no notebook"):
        faults.stopped_at(place)
    failed = place.results / "tiny.failed"
    failed.mkdir()
    (failed / "notebook.ipynb").write_text(place.whole)
    with pytest.raises(Wrong, match="shows 0 failed cells"):
        faults.stopped_at(place)


def test_a_run_that_does_not_recover_is_seen(place, monkeypatch):
    monkeypatch.setattr(Place, "run", lambda place: Ended(1, "replib: no"))
    with pytest.raises(Wrong, match="did not recover"):
        faults.recovers(place, place.snapshot())


def test_the_script_fails_when_a_fault_went_wrong(monkeypatch, tmp_path, capsys):
    kinds = (BY_NAME["hub unreachable, slow or wrong"], BY_NAME["clock set back"])
    monkeypatch.setattr(faults, "KINDS", kinds)
    answers = {kinds[0].name: TOLD, kinds[1].name: "wrong: false success"}
    monkeypatch.setattr(faults, "inject", lambda kind, number, seed: answers[kind.name])
    out = tmp_path / "new" / "faults.json"
    monkeypatch.setattr("sys.argv", ["faults.py", "--out", str(out)])
    assert faults.main() == 1
    report = json.loads(out.read_text())
    assert [row[0] for row in report["rows"]] == [kind.name for kind in kinds]
    assert [row[-1] for row in report["rows"]] == [0, kinds[1].count]
    assert "false success" in capsys.readouterr().out
