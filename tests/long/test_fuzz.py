"""A fixed part of the fuzzing; all of it: `make fuzz`."""

import pytest
from fuzz import TARGETS, run, share


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_case_ends_in_success_or_in_one_line(target):
    wanted = share(target, 300)
    counts = run(target, wanted, 0)
    assert counts.total() > wanted / 2 and counts["refused"]
