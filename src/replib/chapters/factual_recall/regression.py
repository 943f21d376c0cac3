"""Logistic regression with errors that know which observations belong together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from replib.clusters import least_squares_errors
from replib.errors import UsageError
from replib.metrics import Estimate


@dataclass(frozen=True)
class Logistic:
    """Coefficients in log odds, the intercept last, and their errors by the sandwich estimator."""

    coefficient: Float[np.ndarray, " term"]
    error: Float[np.ndarray, " term"]
    freedom: Float[np.ndarray, " term"]  # degrees of freedom of the error
    n: int  # observations

    def effect(self, term: int) -> Estimate:
        """One coefficient and its 95% interval by t; NaN where the error is unknown or 0."""
        value, error = float(self.coefficient[term]), float(self.error[term])
        if not error > 0:
            return Estimate(value, math.nan, math.nan, self.n)
        half = float(stats.t.ppf(0.975, self.freedom[term])) * error
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

    Newton's method. The error is the sandwich estimator with CR2's correction for few clusters and
    Satterthwaite's degrees of freedom (Bell and McCaffrey 2002), in the last step's weighted
    least squares. With two kinds of clusters (country, city) the variance is V_country + V_city −
    V_both (Cameron, Gelbach and Miller 2011), but at least the larger of the first two (MacKinnon,
    Nielsen and Webb 2024), with the fewer degrees of freedom.
    `ridge` · coefficient² / 2 is taken off the log likelihood for every term but the intercept:
    hardly anything, but a term that decides a few observations alone keeps a finite coefficient.
    A column that does not vary gets coefficient 0 and no error; with one cluster none has any.
    Where the fit gets every single observation right, nothing is known about errors: coefficients
    come out as NaN. Raises UsageError for other numbers of kinds, or one outcome only.
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
    coefficient, error, freedom = np.zeros(len(used)), *np.full((2, len(used)), np.nan)
    if np.abs(y - p).max() < 0.5:
        return Logistic(np.full(len(used), np.nan), error, freedom, len(y))
    coefficient[used] = beta
    root = np.sqrt(p * (1 - p))
    weighted = a * root[:, None], (y - p) / root
    if all(len(set(kind)) > 1 for kind in clusters):
        one = [least_squares_errors(*weighted, bread, kind) for kind in clusters]
        variance, freedom[used] = one[0][0], np.min([f for _, f in one], 0)
        if len(one) == 2:
            pairs = list(zip(*clusters, strict=True))
            both = least_squares_errors(*weighted, bread, pairs)
            each = [v for v, _ in one]
            variance = np.max([*each, each[0] + each[1] - both[0]], 0)
        error[used] = np.sqrt(variance)
    return Logistic(coefficient, error, freedom, len(y))
