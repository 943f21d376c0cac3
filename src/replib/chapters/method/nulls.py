"""The page on nulls and intervals: how much of a variance lies between groups."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Variances:
    """The two parts of a variance."""

    between: float  # of the groups' own means, sigma_b squared
    within: float  # of the values of one group around its mean, sigma_e squared

    @property
    def rho(self) -> float:
        """The part between groups, as a share of both: 0 to 1. NaN if nothing varies."""
        both = self.between + self.within
        return self.between / both if both else math.nan


def split_variance(values: Float[np.ndarray, " value"], groups: Sequence[str]) -> Variances:
    """Estimate both parts by the analysis of variance, for groups of equal or unequal size.

    Even if `between` is 0, the groups' means differ, by what each has of the variance within; that
    is taken off, and what falls below 0 is 0. One group alone gives `between` 0; with one value a
    group, `within` is not known (NaN).
    """
    names = list(dict.fromkeys(groups))
    n, n_groups = len(values), len(names)
    if n == n_groups:
        return Variances(between=0.0, within=math.nan)
    member = np.array([names.index(name) for name in groups])
    sizes = np.bincount(member)
    means = np.bincount(member, values) / sizes
    within = float(((values - means[member]) ** 2).sum() / (n - n_groups))
    if n_groups == 1:
        return Variances(between=0.0, within=within)
    of_means = (sizes * (means - values.mean()) ** 2).sum() / (n_groups - 1)
    size = (n - (sizes**2).sum() / n) / (n_groups - 1)  # of a group, where all are equal
    return Variances(between=max(0.0, float((of_means - within) / size)), within=within)
