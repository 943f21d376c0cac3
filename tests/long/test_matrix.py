"""A part of `make matrix`."""

import pytest
from matrix import PAIRWISE, is_sound, run_all


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run_all(PAIRWISE, tmp_path_factory.mktemp("matrix"))


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRWISE, ids="-".join)
def test_it_completes_or_is_refused_in_one_line(outcomes, pair):
    paper, architecture = pair
    code, text = outcomes[pair]
    assert is_sound(architecture, code, text), text
    refused = {"gemma2", "mamba", "mamba2"} - (
        {"mamba2"} if paper == "copying-pretrained" else set()
    )
    assert code == (2 if architecture in refused else 0), text
