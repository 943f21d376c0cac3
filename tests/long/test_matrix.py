"""Part of the matrix of chapters and architectures; all of it: `make matrix`."""

import matrix
import pytest
from matrix import ARCHITECTURES, PAIRWISE, ROOT, run_all

from bookkit.project import list_papers


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    return {(o.paper, o.architecture): o for o in run_all(PAIRWISE, folder)}


def test_the_part_has_every_chapter_and_every_architecture():
    assert {paper for paper, _ in PAIRWISE} == set(list_papers(ROOT)) == set(matrix.SMALL)
    assert {name for _, name in PAIRWISE} == set(ARCHITECTURES)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRWISE, ids="-".join)
def test_it_completes_or_is_refused_in_one_line(outcomes, pair):
    assert outcomes[pair].fault == ""
    refused = {"gemma2", "mamba", "mamba2"} - ({"mamba2"} if pair[0] == "copying-mamba" else set())
    assert outcomes[pair].code == (2 if pair[1] in refused else 0), outcomes[pair].text
