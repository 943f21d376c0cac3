"""Errors by groups, beside slow and obvious versions of themselves."""

import numpy as np
import pytest
from scipy import stats

from replib.clusters import least_squares_errors, mean_interval, worth


def test_errors_of_least_squares_are_those_of_the_definition():
    """Bell and McCaffrey 2002 with all matrices written out."""
    generator = np.random.default_rng(0)
    design = np.column_stack([generator.normal(size=14), np.ones(14)])
    y, groups = generator.normal(size=14), list("aabbbccccddeee")
    bread = np.linalg.inv(design.T @ design)
    rest = np.eye(14) - design @ bread @ design.T
    weights = []  # of the residuals, a row a group, of each coefficient
    for group in "abcde":
        at = np.array([one == group for one in groups])
        size, axes = np.linalg.eigh(rest[np.ix_(at, at)])
        row = np.zeros((2, 14))
        row[:, at] = bread @ design[at].T @ (axes / np.sqrt(size)) @ axes.T
        weights.append(row)
    variance, freedom = least_squares_errors(design, rest @ y, bread, groups)
    for term in (0, 1):
        w = np.array(weights)[:, term]
        assert variance[term] == pytest.approx(((w @ rest @ y) ** 2).sum())
        products = w @ rest @ w.T
        assert freedom[term] == pytest.approx(np.trace(products) ** 2 / (products**2).sum())


def test_every_item_a_group_is_students_t():
    values = np.array([0.5, 1.0, 3.0, 3.5, 7.0])
    half = stats.t.ppf(0.975, 4) * stats.sem(values)
    assert mean_interval(values, range(5)) == pytest.approx((3 - half, 3 + half))
    assert np.isnan(mean_interval(values, [0] * 5)).all()


def test_groups_are_worth_fewer_but_no_fewer_than_they_are():
    right = np.array([1.0, 1, 1, 0]).repeat(5)
    assert worth(right, np.arange(4).repeat(5).tolist(), 0.1875) == pytest.approx(4)
    assert worth(right, range(20), 0.1875) == pytest.approx(20)
    assert worth(right, [0] * 20, 0.1875) == 0
    # groups of 1 and 19 are as good as 20² / (1 + 19²) = 1.105 equal ones
    assert worth(right, [0] + [1] * 19, 0.1875) >= 400 / 362
