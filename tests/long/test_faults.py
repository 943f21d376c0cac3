"""Faults put into real runs: a few of each kind that needs no minute; all: `make faults`."""

import os

import faults
import pytest
from faults import KINDS, TOLD, inject

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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), SHORT)
def test_a_fault_tells_no_lie_and_damages_nothing(name, number):
    if BY_NAME[name].root and os.geteuid() != 0:
        pytest.skip("needs root")
    end = inject(BY_NAME[name], number)
    assert not end.startswith("wrong"), end
    if "tmpfs" in name or "raises" in name:
        assert end == TOLD
