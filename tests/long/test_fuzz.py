"""A fixed part of the fuzzing; all of it: `make fuzz`."""

import pytest
from fuzz import TARGETS, run


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_every_case_ends_in_success_or_in_one_line(name):
    counts = run(name, 20, 0)
    assert counts.total() > 10 and counts["refused"]
