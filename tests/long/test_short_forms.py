"""Parts of the long forms: `make matrix`, `make faults` and `make fuzz` have all of it."""

import os

import fuzz
import pytest
from faults import KINDS, TOLD, inject
from matrix import PAIRWISE, is_sound, run_all

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


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_every_hostile_case_ends_in_success_or_in_one_line(name):
    counts = fuzz.run(name, 20, 0)
    assert counts.total() > 10 and counts["refused"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run_all(PAIRWISE, tmp_path_factory.mktemp("matrix"))


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRWISE, ids="-".join)
def test_it_completes_or_is_refused_in_one_line(outcomes, pair):
    paper, architecture = pair
    code, text = outcomes[pair]
    assert is_sound(architecture, code, text), text
    refused = {"gemma2", "mamba", "mamba2"} - ({"mamba2"} if paper == "copying-mamba" else set())
    assert code == (2 if architecture in refused else 0), text
