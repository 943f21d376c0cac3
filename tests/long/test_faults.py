"""A part of `make faults`."""

import os

import pytest
from faults import KINDS, TOLD, inject

SHORT = [(kind, number) for kind in KINDS for number in kind.short]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), SHORT, ids=lambda it: str(getattr(it, "name", it)))
def test_a_fault_tells_no_lie_and_damages_nothing(kind, number):
    if kind.root and os.geteuid() != 0:
        pytest.skip("needs root")
    end = inject(kind, number)
    assert not end.startswith("wrong"), end
    if "tmpfs" in kind.name or "raises" in kind.name:
        assert end == TOLD
