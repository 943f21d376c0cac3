"""The head atlas: roles from records, and overlap against an exact null."""

import itertools

import numpy as np
import pytest

from bookkit.book import atlas
from bookkit.book.atlas import overlap_null, overlaps, page, roles_of
from replib.claims.file import ROLES
from replib.errors import UsageError

MODEL = {"name": "m", "n_layers": 3, "n_heads": 4}


def record(paper, **roles):
    heads = {
        name.replace("_", " "): {"heads": [list(h) for h in some], "rule": f"rule of {name}"}
        for name, some in roles.items()
    }
    return {"paper": paper, "model": MODEL, "heads": heads}


def test_roles_come_in_the_order_of_the_list_and_once():
    assert len(set(atlas._LETTERS.values())) == len(ROLES)
    records = [record("b", copy=[(0, 1)]), record("a", mover=[(1, 1)], memory=[])]
    assert [role.name for role in roles_of(records)] == ["mover", "memory", "copy"]
    with pytest.raises(UsageError, match="role copy of m is in the records of both b and c"):
        roles_of([*records, record("c", copy=[])])
    with pytest.raises(UsageError, match="a head outside the model"):
        roles_of([record("a", mover=[(3, 0)])])


def test_heads_of_a_model_of_unknown_size_are_refused():
    for model in ({"name": "m"}, {"name": "m", "n_layers": 3, "n_heads": None}):
        with pytest.raises(UsageError, match="not how many layers and heads the model has"):
            roles_of([record("a", mover=[]) | {"model": model}])
        assert roles_of([record("a") | {"model": model}]) == []


def test_the_null_is_the_share_of_all_draws():
    a, b, n = {(0, 0), (0, 1), (2, 3)}, {(0, 1), (2, 0), (2, 1), (1, 1)}, 4
    counts = np.zeros(4)
    for first in itertools.combinations(range(n), 1):  # b has one head in layer 0
        for third in itertools.combinations(range(n), 2):  # and two in layer 2
            drawn = {(0, h) for h in first} | {(2, h) for h in third}
            counts[len(a & drawn)] += 1
    null = overlap_null(frozenset(a), frozenset(b), n)
    assert null == pytest.approx((counts / counts.sum())[: len(null)])
    assert null.sum() == pytest.approx(1)


def test_overlap_is_counted_and_compared():
    a = [(0, 0), (0, 1), (1, 2)]
    (found,) = overlaps(roles_of([record("p", mover=a, copy=a, memory=[])]), 4)
    assert (found.common, found.jaccard) == (3, 1.0)
    assert found.pvalue == pytest.approx(1 / 6 / 4)  # two of four in layer 0, one of four in 1
    assert found.expected == pytest.approx(2 * 2 / 4 + 1 / 4)
    (apart,) = overlaps(roles_of([record("p", mover=[(0, 0)], copy=[(0, 1)])]), 4)
    assert (apart.common, apart.expected, apart.pvalue) == (0, 0.25, 1.0)
    assert overlaps(roles_of([record("p", mover=[(0, 0)], copy=[(1, 0)])]), 4) == []


def test_the_page_names_heads_rules_and_what_is_beyond_chance():
    a = [(0, 0), (0, 1), (1, 2), (2, 1)]
    text = page("m", [record("p", mover=a, copy=a, memory=[]), record("q", successor=[(1, 0)])])
    assert "L0H0, L0H1, L1H2, L2H1" in text and "rule of memory" in text and "none" in text
    assert "mover and copy (4 in common)" in text
    assert "Grid of 3 layers" in text and "**L1H2**: mover, copy" in text
    assert "5 of them play a\nrole in at least one chapter, 4 in more than one" in text
    assert atlas.figure([record("p", mover=a)]).startswith(b"\x89PNG")
