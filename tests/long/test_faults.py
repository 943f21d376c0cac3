"""Faults put into real runs: a few of each kind that needs no minute; all: `make faults`."""

import signal
from concurrent.futures import ThreadPoolExecutor

import faults
import pytest
from faults import KINDS, TOLD, inject, lacks

pytestmark = pytest.mark.slow

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
