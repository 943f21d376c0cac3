"""Logistic regression with errors that know which observations belong together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from replib.errors import UsageError
from replib.metrics import Estimate


@dataclass(frozen=True)
class Logistic:
    """Coefficients in log odds, the intercept last; covariance by the sandwich estimator."""

    coefficient: Float[np.ndarray, " term"]
    covariance: Float[np.ndarray, "term term"]
    n_clusters: int  # of the kind that has fewer
    n: int  # observations

    def effect(self, term: int) -> Estimate:
        """One coefficient and its 95% interval, by t with a degree of freedom less than clusters;
        the interval is NaN for one cluster, or a column that does not vary: nothing is known."""
        value = float(self.coefficient[term])
        if self.n_clusters < 2 or self.covariance[term, term] == 0:
            return Estimate(value, math.nan, math.nan, self.n)
        error = float(np.sqrt(max(self.covariance[term, term], 0.0)))
        half = float(stats.t.ppf(0.975, self.n_clusters - 1)) * error
        return Estimate(value, value - half, value + half, self.n)


def standardised(columns: Float[np.ndarray, "item term"]) -> Float[np.ndarray, "item term"]:
    """Each column with mean 0 and standard deviation 1 (0 where it does not vary)."""
    spread = columns.std(0)
    return (columns - columns.mean(0)) / np.where(spread > 0, spread, 1.0)


def logistic(
    x: Float[np.ndarray, "item term"],
    y: Bool[np.ndarray, " item"],
    clusters: Sequence[Sequence[str]],
    ridge: float = 0.1,
    steps: int = 100,
) -> Logistic:
    """Logistic regression of `y` on `x` and an intercept, errors clustered by one or two entities.

    Newton's method; the covariance is the sandwich estimator with summed scores of each cluster.
    With two kinds of clusters (country, city) it is V_country + V_city − V_both (Cameron, Gelbach
    and Miller 2011), each with the usual factor G / (G − 1) for G clusters.
    `ridge` · coefficient² / 2 is taken off the log likelihood for every term but the intercept:
    hardly anything, but a term that decides a few observations alone keeps a finite coefficient.
    A column that does not vary gets coefficient 0 and variance 0. Where the fit gets every single
    observation right, nothing is known about errors: coefficients come out as NaN.
    Raises UsageError for other numbers of kinds, or one outcome only.
    """
    if len(clusters) not in (1, 2) or y.all() or not y.any():
        raise UsageError(
            "logistic regression needs both outcomes, and one or two kinds of clusters"
        )
    design = np.column_stack([x, np.ones(len(x))])
    used = np.append(x.std(0) > 0, True)
    a = design[:, used]
    beta = np.zeros(a.shape[1])
    penalty = np.append(np.full(a.shape[1] - 1, ridge), 0.0)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(a @ beta, -30, 30)))
        bread = np.linalg.pinv((a * (p * (1 - p))[:, None]).T @ a + np.diag(penalty))
        change = bread @ (a.T @ (y - p) - penalty * beta)
        beta = beta + change
        if np.abs(change).max() < 1e-8:
            break
    fewest = min(len(set(kind)) for kind in clusters)
    coefficient, covariance = np.zeros(len(used)), np.zeros((len(used), len(used)))
    if np.abs(y - p).max() < 0.5:
        return Logistic(
            np.full(len(used), np.nan), np.full(covariance.shape, np.nan), fewest, len(y)
        )
    scores = a * (y - p)[:, None]

    def meat(members: Sequence[str]) -> Float[np.ndarray, "term term"]:
        names, at = np.unique(np.asarray(members), return_inverse=True)
        summed = np.zeros((len(names), a.shape[1]))
        np.add.at(summed, at, scores)
        return summed.T @ summed * len(names) / max(1, len(names) - 1)

    middle = sum(meat(kind) for kind in clusters)
    if len(clusters) == 2:
        middle = middle - meat([f"{c}\0{d}" for c, d in zip(*clusters, strict=True)])
    coefficient[used] = beta
    covariance[np.ix_(used, used)] = bread @ middle @ bread
    return Logistic(coefficient, covariance, fewest, len(y))
