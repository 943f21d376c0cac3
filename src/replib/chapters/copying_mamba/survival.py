"""How many examples a network needs until it can copy, where some never get there (Jelassi et al.,
2402.01032, Sec. 3.2). A seed that does not get there has seen *at least* its examples: it is
censored there, neither left out nor counted as if it had arrived."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from replib.metrics import Estimate

COPIED = 0.9  # of the strings
FURTHEST = 100.0  # times as many examples: factors beyond it, or its inverse, are not told apart


@dataclass(frozen=True)
class Arrivals:
    """Examples seen by each seed until it could copy, or at the end if it never could."""

    examples: Float[np.ndarray, " seed"]
    arrived: Bool[np.ndarray, " seed"]

    @property
    def n_arrived(self) -> int:
        return int(self.arrived.sum())

    @property
    def median(self) -> float:
        """The number of examples at which half of the seeds can copy (Kaplan and Meier); if fewer
        than half ever could, the least that it can be: the largest number that any seed saw."""
        survival = stats.ecdf(_censored(self)).sf
        below = survival.quantiles[survival.probabilities <= 0.5]
        return float(below[0]) if len(below) else float(self.examples.max())


def _censored(some: Arrivals, factor: float = 1.0) -> stats.CensoredData:
    times = some.examples * factor
    return stats.CensoredData(uncensored=times[some.arrived], right=times[~some.arrived])


def arrivals(curves: Sequence[Mapping[str, Sequence[float]]]) -> Arrivals:
    """From the curves of several seeds: the first point at which `COPIED` of the strings are
    right."""
    examples, arrived = [], []
    for curve in curves:
        points = zip(curve["examples"], curve["string"], strict=True)
        there = [seen for seen, share in points if share >= COPIED]
        examples.append(float(there[0] if there else curve["examples"][-1]))
        arrived.append(bool(there))
    return Arrivals(np.array(examples), np.array(arrived))


def factor(slow: Arrivals, fast: Arrivals) -> Estimate:
    """How many times as many examples `slow` needs as `fast`: the quotient of the medians, which is
    a lower bound where half of `slow` never arrive. Its 95% interval are all factors by which the
    examples of `fast` can be multiplied so that a log-rank test finds no difference (Wei and Gail
    1983), from 1 / `FURTHEST` to `FURTHEST`. n is the number of seeds of both."""
    n = len(slow.examples) + len(fast.examples)
    value = float(np.clip(slow.median / fast.median, 1 / FURTHEST, FURTHEST))
    # The test sees the order of the examples only, which changes at their quotients.
    quotients = np.unique(slow.examples[:, None] / fast.examples)
    inside = quotients[(quotients > 1 / FURTHEST) & (quotients < FURTHEST)]
    edges = np.array([1 / FURTHEST, *inside, FURTHEST])
    middles = np.sqrt(edges[1:] * edges[:-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        tests = [stats.logrank(_censored(slow), _censored(fast, x)).pvalue for x in middles]
    kept = np.array([not p < 0.05 for p in tests])  # where none arrives, p is no number
    low, high = edges[:-1][kept].min(initial=value), edges[1:][kept].max(initial=value)
    return Estimate(value, float(low), float(high), n)
