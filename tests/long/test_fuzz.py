"""A fixed part of the fuzzing; all of it: `make fuzz`."""

import fuzz
import pytest
from fuzz import TARGETS, run

CASES = 300


@pytest.fixture(autouse=True)
def watching(monkeypatch):
    fuzz._warm_up()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.filterwarnings("ignore")
def test_every_case_ends_in_success_or_in_one_line(target, tmp_path):
    share = CASES * target.share // sum(target.share for target in TARGETS)
    tally = run(target, share, 0, tmp_path)
    assert tally.faults == {}
    assert tally.counts.total() > share / 2 and tally.counts["refused"]
    assert list(tmp_path.iterdir()) == []
