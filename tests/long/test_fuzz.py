"""A part of `make fuzz`."""

import fuzz
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_every_hostile_case_ends_in_success_or_in_one_line(name):
    counts = fuzz.run(name, 20, 0)
    assert counts.total() > 10 and counts["refused"]
