"""Choices made on a few cases, and how far they hang on which cases these were; and what a handful
of adapters show together."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from replib.metrics import Estimate, bootstrap, proportion, rng

STABLE = 0.9  # of the resamples make the same choice
MOST = 3  # choices that are followed up; rarer ones are left out


@dataclass(frozen=True)
class Choices:
    """How often each thing was chosen when the cases were drawn again, the most frequent first."""

    shares: Mapping[Hashable, float]

    @property
    def first(self) -> Hashable:
        return next(iter(self.shares))

    @property
    def stability(self) -> float:
        return self.shares[self.first]

    @property
    def followed(self) -> dict[Hashable, float]:
        """What is averaged, with weights that sum to 1: the first alone where it is `STABLE`,
        otherwise the `MOST` frequent in proportion."""
        if self.stability >= STABLE:
            return {self.first: 1.0}
        some = dict(list(self.shares.items())[:MOST])
        return {name: share / sum(some.values()) for name, share in some.items()}


def of_draws(chosen: Sequence[Hashable]) -> Choices:
    """Shares of what was chosen, draw by draw."""
    counts = {name: chosen.count(name) / len(chosen) for name in dict.fromkeys(chosen)}
    return Choices(dict(sorted(counts.items(), key=lambda pair: -pair[1])))


def case_weights(
    n: int, generator: np.random.Generator, draws: int = 200
) -> Float[np.ndarray, "draw case"]:
    """How often each case is in each resample."""
    return generator.multinomial(n, np.full(n, 1 / n), size=draws).astype(float)


def resampled_best(
    score: Float[Tensor, "choice case"], names: Sequence[Hashable], generator: np.random.Generator
) -> Choices:
    """Which choice has the highest mean score? Asked of 200 resamples of the cases; of equals the
    first."""
    values = score.double().numpy(force=True)
    best = (case_weights(values.shape[1], generator) @ values.T).argmax(1)
    return of_draws([names[i] for i in best])


# --- Several adapters together --------------------------------------------------------------------


def _weaker(mean: Float[np.ndarray, "*draw part adapter direction"]) -> np.ndarray:
    """(first part) / (last part), the median over adapters, in the weaker direction; 0 for an
    adapter without a right case."""
    hits, of = mean[..., 0, :, :], mean[..., -1, :, :]
    share = np.divide(hits, of, out=np.zeros_like(hits), where=of > 0)
    return np.asarray(np.median(share, -2).min(-1))


def weaker_median(
    hits: Float[Tensor, "adapter direction case"],
    of: Float[Tensor, "adapter direction case"],
    groups: Sequence[Hashable],
    seed: int,
    label: str,
) -> Estimate:
    """Sum of `hits` as a share of the sum of `of` over cases: the median over adapters, in the
    weaker direction, and its interval over groups of cases. Cases that an adapter does not get
    right have 0 in both."""
    values = torch.stack([hits, of]).movedim(-1, 0)  # case part adapter direction
    found = bootstrap(values, groups, rng(seed, label), _weaker)
    used = (of > 0).flatten(0, 1).any(0).tolist()
    theirs = [group for group, kept in zip(groups, used, strict=True) if kept] or groups
    return with_width(found, theirs, 0.0 if bool((hits >= 0).all()) else -1.0)


def each_share(
    hits: Float[Tensor, "adapter direction case"], of: Float[Tensor, "adapter direction case"]
) -> Float[Tensor, "adapter direction"]:
    """The same share, adapter by adapter and direction by direction."""
    return (hits.sum(-1) / of.sum(-1)).nan_to_num(0.0)  # 0 without a right case


def spread(shares: Float[Tensor, "adapter direction"]) -> dict[str, float]:
    """For the record: medians of both directions, and the lowest and highest adapter in the weaker
    one. The first direction is from the context to memory."""
    towards_memory, towards_context = shares.median(0).values.tolist()
    worst = shares.min(1).values
    numbers = {"towards_memory": towards_memory, "towards_context": towards_context}
    return numbers | {"lowest_adapter": float(worst.min()), "highest_adapter": float(worst.max())}


def gain_over_best(
    found: Float[Tensor, "adapter case"],
    others: Float[Tensor, "other case"],
    groups: Sequence[Hashable],
    seed: int,
    label: str,
) -> Estimate:
    """The median over adapters of their means over cases, less the best mean of the others."""
    n = len(found)

    def statistic(mean: Float[np.ndarray, "*draw item"]) -> np.ndarray:
        return np.asarray(np.median(mean[..., :n], -1) - mean[..., n:].max(-1))

    values = torch.cat([found, others]).T  # case item
    return with_width(bootstrap(values, groups, rng(seed, label), statistic), groups)


def with_width(found: Estimate, groups: Sequence[Hashable], least: float = -1.0) -> Estimate:
    """An interval without width, from cases that all agree, becomes as wide, to both sides and
    within `least` and 1, as that of a proportion of as many cases, in these groups, that agree."""
    if found.low < found.high:
        return found
    room = 1 - proportion(torch.ones(len(groups), dtype=torch.bool), groups).low
    low, high = max(found.value - room, least), min(found.value + room, 1.0)
    return Estimate(found.value, min(low, found.value), max(high, found.value), found.n)
