"""Observations that go together (prompts of one template, facts of one country), and what their
means and regressions are worth. Each group may differ from the next in ways that its members share,
so errors are counted by groups.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

Interval = tuple[float, float]


def members(groups: Sequence[Hashable]) -> tuple[Int[np.ndarray, " item"], int]:
    """The group of each item, by number, and how many groups there are."""
    names, member = np.unique(np.asarray(list(map(str, groups))), return_inverse=True)
    return member, len(names)


def worth(values: Float[np.ndarray, " item"], groups: Sequence[Hashable], spread: float) -> float:
    """How many independent draws of variance `spread` the mean of the values is worth, for an
    interval that asks a binomial or normal quantile of it; 0 where there is one group.

    By the design effect that the data show, and by what t asks of few groups (Korn and Graubard
    1998); never fewer than there are groups, counted as if they were equally large.
    """
    n, (member, n_groups) = len(values), members(groups)
    if n_groups == 1:
        return 0.0
    apart = values - values.mean()
    by_group = (np.bincount(member, apart) ** 2).sum() * n_groups / (n_groups - 1) / n**2
    error = max(by_group, (apart**2).sum() / (n - 1) / n)  # squared, of the mean
    draws = spread / error if error > 1e-24 else float(n)
    few = stats.t.ppf(0.975, max(draws, n) - 1) / stats.t.ppf(0.975, n_groups - 1)
    return max(draws * float(few) ** 2, n**2 / float((np.bincount(member) ** 2).sum()))


def least_squares_errors(
    design: Float[np.ndarray, "item term"],
    residual: Float[np.ndarray, " item"],
    bread: Float[np.ndarray, "term term"],
    groups: Sequence[Hashable],
) -> tuple[Float[np.ndarray, " term"], Float[np.ndarray, " term"]]:
    """(Variance, degrees of freedom) of each coefficient of least squares, by groups of any size:
    CR2 with Satterthwaite's degrees of freedom (Bell and McCaffrey 2002). `bread` is (XᵀX)⁻¹.

    With H = X bread Xᵀ, a group's residuals are taken times (1 − H_group)^(−½), which undoes what
    the fit has taken from them. So a coefficient's variance is a sum over groups of (vᵀ residual)²,
    and residuals that were normal would have products of groups g and h of mean v_gᵀ (1 − H) v_h.
    """
    member, n_groups = members(groups)
    variance, square, ends = np.zeros(len(bread)), [], []
    for group in range(n_groups):
        rows, here = design[member == group], residual[member == group]
        size, axes = np.linalg.eigh(np.eye(len(rows)) - rows @ bread @ rows.T)
        size[size < 1e-9] = math.inf  # what the fit took whole cannot be undone
        v = (axes / np.sqrt(size)) @ axes.T @ rows @ bread  # item term
        variance += (v.T @ here) ** 2
        square.append((v**2).sum(0))
        ends.append(rows.T @ v)  # term of the fit, term
    own, z = np.array(square), np.array(ends)
    taken = np.einsum("gft,fk,gkt->gt", z, bread, z)
    between = np.einsum("gft,gkt->tfk", z, z) @ bread
    squared = (own**2 - 2 * own * taken).sum(0) + np.einsum("tfk,tkf->t", between, between)
    return variance, (own - taken).sum(0) ** 2 / squared


def mean_interval(values: Float[np.ndarray, " item"], groups: Sequence[Hashable]) -> Interval:
    """The 95% interval of a mean by Student's t, for few groups; NaN for one."""
    if members(groups)[1] == 1:
        return math.nan, math.nan
    mean, n = float(values.mean()), len(values)
    each = np.ones((n, 1)), values - mean, np.full((1, 1), 1 / n)
    variance, freedom = least_squares_errors(*each, groups)
    half = float(stats.t.ppf(0.975, freedom[0]) * np.sqrt(variance[0]))
    return mean - half, mean + half


def studentised(
    sums: Float[np.ndarray, " group"],
    sizes: Float[np.ndarray, " group"],
    counts: Int[np.ndarray, "draw group"],
) -> Interval:
    """The 95% interval of a mean, from the sums and sizes of groups and how often each resampling
    holds each: by how far the means of resamplings lie from it, each in errors of its own. Such an
    error is taken to be at least a fifth of that of the items, since some resamplings hold little
    but one value."""
    mean = sums.sum() / sizes.sum()
    apart = sums - mean * sizes
    powers = np.stack([sizes, apart, apart**2, apart * sizes, sizes**2], -1)
    size, one, square, cross, size_2 = (counts @ powers).T
    shift = one / size
    variance = (square - 2 * shift * cross + shift**2 * size_2) / size**2
    here = (apart**2).sum() / sizes.sum() ** 2
    t = shift / np.sqrt(np.maximum(variance, 0.04 * here) + 1e-300)
    low, high = np.quantile(t, [0.025, 0.975])
    return float(mean - high * math.sqrt(here)), float(mean - low * math.sqrt(here))
