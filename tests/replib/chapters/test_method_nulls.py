"""A variance split into parts between and within groups, by hand."""

import math

import numpy as np
import pytest

from replib.chapters.method.nulls import Variances, split_variance


@pytest.mark.parametrize(
    ("values", "groups", "between", "within"),
    [
        # Means 2 and 6; within (1 + 1 + 1 + 1) / 2 = 2; of the means 2 (4 + 4) / 1 = 16.
        ([1, 3, 5, 7], "aabb", (16 - 2) / 2, 2),
        ([7, 1, 5, 3], "baba", 7, 2),
        # Means 1 and 4 around 2; within (1 + 1) / 1; of the means (2 · 1 + 1 · 4) / 1 = 6; the
        # size that stands for 2 and 1 is 3 − 5 / 3 = 4 / 3.
        ([0, 2, 4], "aab", (6 - 2) / (4 / 3), 2),
        ([0, 2, 0, 2], "aabb", 0, 2),  # the means differ less than they would by chance
        ([0, 2], "aa", 0, 2),
        ([0, 2], "ab", 0, math.nan),
    ],
)
def test_a_variance_is_split(values, groups, between, within):
    with np.errstate(all="raise"):  # nothing is divided by 0
        found = split_variance(np.array(values, float), list(groups))
    assert (found.between, found.within) == pytest.approx((between, within), nan_ok=True)


def test_rho_is_the_share_between_groups():
    assert Variances(between=7.0, within=2.0).rho == 7 / 9
    assert math.isnan(Variances(between=0.0, within=0.0).rho)
    assert math.isnan(Variances(between=0.0, within=math.nan).rho)
