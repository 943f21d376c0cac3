"""Numbers from per-prompt values: accuracy, intervals, head rankings, overlaps and their nulls.

Every random draw comes from a generator of its own (`rng`), so that draws do not depend on order.
`make calibration` simulates whether intervals cover as often as they say, and nulls err as seldom;
where they do not, the docstring says when.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from replib import clusters
from replib.errors import UsageError
from replib.interventions.network import Head
from replib.prompts.pairs import PromptPairs


@dataclass(frozen=True)
class Estimate:
    """A number that was measured, and the ends of its 95% interval.

    `n` is how many items it was measured on: prompts, seeds, heads.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        return self.low, self.high


def rng(seed: int, *labels: object) -> np.random.Generator:
    """A generator of its own for each purpose (TransformerLens' seeding convention)."""
    return np.random.default_rng(derive_generator(seed, *labels).initial_seed())


def head_label(head: Head) -> str:
    return f"L{head[0]}H{head[1]}"


def logit_diff(
    logits: Float[Tensor, "prompt d_vocab"], pairs: PromptPairs
) -> Float[Tensor, " prompt"]:
    """`logit[answer] − logit[foil]` of each prompt, from a model's logits at END. In float32: the
    difference of two large numbers would be coarse in bfloat16."""
    rows = torch.arange(len(pairs))
    return logits[rows, pairs.answer].float() - logits[rows, pairs.foil].float()


# --- Proportions and means with intervals --------------------------------------------------------


def proportion(
    values: Bool[Tensor, " prompt"] | Float[Tensor, " prompt"],
    groups: Sequence[Hashable] | None = None,
) -> Estimate:
    """A proportion of right answers (bool), or a mean of shares between 0 and 1, and its 95%
    interval after Clopper and Pearson, which covers at least as often as it says.

    Prompts of one group (template, entity) may go together: they count as fewer, by the design
    effect that the data show and by what t asks of few groups (Korn and Graubard 1998), though
    never as fewer than groups; so do shares, which vary less than right and wrong, count as more.
    Without `groups`, or where all agree, each counts as one. Of one group only, nothing is known of
    others, and the interval is 0 to 1.
    """
    if len(values) == 0:
        raise UsageError("a proportion of no prompts: give at least one")
    array = values.double().numpy(force=True)
    if not ((array >= 0) & (array <= 1)).all():
        raise UsageError(f"shares lie in 0 to 1, not at {array.min():.3g} to {array.max():.3g}")
    share, n = float(array.mean()), float(len(array))
    if groups is not None or values.dtype != torch.bool:
        groups = range(len(array)) if groups is None else groups
        n = clusters.worth(array, groups, share * (1 - share))
    if n == 0:
        return Estimate(share, 0.0, 1.0, len(array))
    k = share * n
    low = float(stats.beta.ppf(0.025, k, n - k + 1)) if k > 0 else 0.0
    high = float(stats.beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return Estimate(share, low, high, len(array))


def seeds_mean(values: Sequence[float] | np.ndarray, share: bool = False) -> Estimate:
    """The mean over a few seeds and its 95% interval, which covers new seeds: Student's t, and for
    shares that of `proportion`, which stays in 0 to 1 and holds where a seed either learns or does
    not. Seeds that agree are treated as in `bootstrap`."""
    array = np.asarray(values, float)
    if len(array) < 2:
        raise UsageError(f"an interval over seeds needs at least 2, got {len(array)}")
    if share:
        return proportion(torch.from_numpy(array))
    mean, error = float(array.mean()), float(stats.sem(array))
    half = error * float(stats.t.ppf(0.975, len(array) - 1))
    return Estimate(mean, *_with_width(mean, (mean - half, mean + half), len(array)), len(array))


def seeds_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, share: bool = False
) -> Estimate:
    """Mean of a less mean of b, of separate seeds, and its 95% interval: Welch's, and of shares
    that of two `proportion`s, whose errors add up (MOVER: Zou and Donner 2008)."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if min(len(a), len(b)) < 2:
        raise UsageError(f"an interval over seeds needs at least 2, got {len(a)} and {len(b)}")
    value, n = float(a.mean() - b.mean()), len(a) + len(b)
    if share:
        one, other = seeds_mean(a, share), seeds_mean(b, share)
        below = math.hypot(one.value - one.low, other.high - other.value)
        above = math.hypot(one.high - one.value, other.value - other.low)
        return Estimate(value, value - below, value + above, n)
    ends = (value, value)
    if np.ptp(a) > 0 or np.ptp(b) > 0:
        found = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        ends = float(found.low), float(found.high)
    return Estimate(value, *_with_width(value, ends, min(len(a), len(b))), n)


def _with_width(
    value: float, ends: tuple[float, float], n: int, groups: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """These ends, or where they agree (but for rounding) and so tell nothing of others: from the
    value to what it is if only as large a share shows it as n of n prove, and others show 0."""
    if not ends[1] - ends[0] <= 1e-6 * abs(value):
        return ends
    least = proportion(torch.ones(n, dtype=torch.bool), groups).low
    low, high = sorted((least * value, value))
    return (low, high) if value else (math.nan, math.nan)


def cluster_draws(
    groups: Sequence[Hashable], generator: np.random.Generator, draws: int = 5000
) -> Float[np.ndarray, "draw prompt"]:
    """Weights of the prompts under each resampling of whole groups, rows summing to 1. Prompts that
    share a template (or another entity) are drawn together, so an interval does not count them as
    independent. With as many groups as prompts it is the ordinary bootstrap."""
    member, n_groups = clusters.members(groups)
    counts = generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws)
    weights = counts[:, member].astype(float)
    return weights / weights.sum(-1, keepdims=True)


def percentiles(draws: Float[np.ndarray, " draw"], n_groups: int) -> tuple[float, float]:
    """The 95% percentile interval of bootstrap draws, expanded for few groups. Plain percentiles
    give too narrow an interval: the bootstrap's variance is (G − 1) / G of what it should be, and
    it has no t quantile. So percentiles further out are taken (Hesterberg 2015, Sec. 3.3). One
    group alone says nothing about others: the interval is NaN."""
    if n_groups < 2:
        return math.nan, math.nan
    far = stats.t.ppf(0.975, n_groups - 1) * math.sqrt(n_groups / (n_groups - 1))
    tail = float(stats.norm.cdf(-far))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap(
    values: Float[Tensor, " prompt *rest"] | Bool[Tensor, " prompt"],
    groups: Sequence[Hashable],
    generator: np.random.Generator,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    draws: int = 5000,
) -> Estimate:
    """The mean over prompts and its 95% interval, prompts of one group going together.

    Of six groups or more it is the studentised bootstrap, which also covers skewed values; of fewer
    Student's t with errors that are right for groups of any size (CR2, with Satterthwaite's degrees
    of freedom: Bell and McCaffrey 2002). Yes and no (bool) have the interval of `proportion`, and
    so should shares, by calling it: these ends may leave 0 to 1. Differences that are all -1, 0 or
    1 have the adjusted Wald interval: one +1 and one -1 are added (after Agresti and Min 2005).

    `statistic` maps means [..., *rest] to [...]; its interval is that of bootstrap `percentiles`.

    Values that agree tell nothing of how far others lie: the interval goes from v towards 0, to v
    times the share of prompts that show v at least (`proportion`), as if others showed none. For
    v = 0, and of one group only, its ends are NaN.
    """
    if statistic is None and values.dtype == torch.bool:
        return proportion(values, groups)
    array = values.double().numpy(force=True)
    if statistic is None and np.isin(array, (-1.0, 0.0, 1.0)).all():
        return _difference(array, groups)
    member, n_groups = clusters.members(groups)
    sizes = np.bincount(member).astype(float)
    sums = np.zeros((n_groups, *array.shape[1:]))
    np.add.at(sums, member, array)
    value = float(array.mean(0) if statistic is None else statistic(array.mean(0)))
    if statistic is None and n_groups < 6:
        ends = clusters.mean_interval(array, groups)
    else:
        counts = generator.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=draws)
        if statistic is None:
            ends = clusters.studentised(sums, sizes, counts)
        else:
            drawn = (counts @ sizes).reshape(-1, *[1] * (array.ndim - 1))  # prompts in each draw
            ends = percentiles(statistic(np.tensordot(counts, sums, axes=1) / drawn), n_groups)
    return Estimate(value, *_with_width(value, ends, len(array), groups), len(array))


def _difference(values: Float[np.ndarray, " prompt"], groups: Sequence[Hashable]) -> Estimate:
    """Mean of paired differences -1, 0, 1 and its adjusted Wald interval."""
    n, share = clusters.worth(values, groups, float(values.var())), float(values.mean())
    if n == 0:
        return Estimate(share, -1.0, 1.0, len(values))
    mean = share * n / (n + 2)
    variance = (float((values**2).mean()) * n + 2) / (n + 2) - mean**2
    half = 1.959964 * math.sqrt(variance / (n + 2))
    return Estimate(share, max(-1.0, mean - half), min(1.0, mean + half), len(values))


# --- Heads ranked, tested, compared --------------------------------------------------------------


def n_top(n_heads: int, fraction: float = 0.02) -> int:
    """How many heads a stage keeps: the top 2%, rounded up (Merullo et al., Fig. 3)."""
    return math.ceil(fraction * n_heads)


def top_heads(score: Float[Tensor, "layer head"], k: int) -> list[Head]:
    """The k heads of largest |score|, strongest first; heads without a score (NaN) never."""
    size = score.abs().nan_to_num(-1.0).flatten()
    order = size.argsort(descending=True, stable=True)[:k]
    n_heads = score.shape[1]
    return [(int(i) // n_heads, int(i) % n_heads) for i in order if size[i] >= 0]


def max_statistic_pvalues(
    effect: Float[Tensor, "layer head prompt"], generator: np.random.Generator, draws: int = 1000
) -> Float[Tensor, "layer head"]:
    """How often chance makes the *best* of all heads look as strong as each head does.

    Null: each head's mean effect is 0, whatever else its effects are like. Each draw resamples the
    prompts (for all heads together, which keeps their correlation), takes the effects less their
    mean, and keeps the largest |t| over heads, t = mean / standard error; a head's p-value is the
    share of draws whose maximum reaches its own |t|: the centred bootstrap of max-T, family-wise
    over all heads (Romano and Wolf 2005). An error is taken to be at least a fifth of that of all
    prompts, and above rounding. The cost of it, beside signs that are flipped at random, is power
    where prompts are few: of 12 prompts it misses heads that flips find. Flips call skewed effects
    of mean 0 strong too often, in a quarter of cases of 9 heads and 12 prompts.
    Heads that were not senders (NaN) get p = 1.
    """
    sent = ~effect.isnan().any(-1)
    x = effect.double()[sent]  # head prompt
    p = torch.ones(sent.shape, dtype=torch.float64)
    n = x.shape[-1]
    if n < 2 or len(x) == 0:
        return p
    mean = x.mean(-1)
    apart = x - mean[:, None]
    spread = (apart**2).mean(-1)
    rounding = 1e-10 * (x**2).mean(-1).max() + 1e-300

    def t_of(mean: Tensor, variance: Tensor, least: Tensor) -> Tensor:
        return mean.abs() / (variance.maximum(least + rounding) / (n - 1)).sqrt()

    counts = torch.from_numpy(generator.multinomial(n, np.full(n, 1 / n), size=draws)).double() / n
    drawn = counts @ apart.T  # draw head
    null = t_of(drawn, counts @ (apart**2).T - drawn**2, 0.04 * spread).max(-1).values
    observed = t_of(mean, spread, 0 * spread)
    p[sent] = (1 + (null[:, None] >= observed).double().sum(0)) / (draws + 1)
    return p


def overlap(a: Sequence[set[Head]], b: Sequence[set[Head]]) -> float:
    """Heads in common, stage by stage, as a share of the heads of `a` (|A ∩ B| / |A|, pooled).
    It has no interval: top heads of few prompts are partly chance, so it comes out too small, and
    no interval around it would cover. It is shown beside its ceiling, the overlap of a task with
    itself between the halves of its prompts."""
    size = sum(map(len, a))
    return sum(len(x & y) for x, y in zip(a, b, strict=True)) / size if size else 0.0


def drawn_overlap_null(
    a: Sequence[set[Head]],
    b: Sequence[set[Head]],
    n_heads: int,
    generator: np.random.Generator,
    draws: int = 1000,
) -> Float[np.ndarray, " draw"]:
    """Draws of the overlap when the heads of `b` are drawn anew within their own layers. Important
    heads cluster by depth; as each layer keeps its count, the null has the same clusters."""
    common = np.zeros(draws)
    for stage_a, stage_b in zip(a, b, strict=True):
        for layer in {layer for layer, _ in stage_b}:
            in_a, in_b = (sum(at == layer for at, _ in stage) for stage in (stage_a, stage_b))
            # heads of `a` among in_b heads of the layer drawn without replacement
            common += generator.hypergeometric(in_a, n_heads - in_a, in_b, size=draws)
    size = sum(map(len, a))
    return common / size if size else common


def layer_window(layer: int, n_layers: int) -> range:
    """The layers near one: about a fifth of the depth, at least three, as many at either end."""
    size = min(n_layers, 2 * max(1, round(n_layers / 10)) + 1)
    start = min(max(0, layer - size // 2), n_layers - size)
    return range(start, start + size)


def layer_matched(
    heads: Iterable[Head], n_layers: int, n_heads: int, generator: np.random.Generator
) -> set[Head]:
    """For each head another place: a random head of the layers near it (`layer_window`), none
    twice. `n_heads` is how many a layer has.

    Within one layer of few heads a random set often *is* the chosen one, so that nothing could be
    beyond such draws; a window of layers has the reach that the choice had. The null may draw the
    chosen heads too, as one draw of many; without them it would be passed by chance in more than 5%
    of cases. `holding` says how many draws do.
    """
    drawn: set[Head] = set()
    for layer, _ in sorted(heads):
        near = [(at, head) for at in layer_window(layer, n_layers) for head in range(n_heads)]
        free = [head for head in near if head not in drawn]
        drawn.add(free[generator.integers(len(free))])
    return drawn


def holding(sets: Sequence[Iterable[Head]], heads: Iterable[Head]) -> Bool[np.ndarray, " draw"]:
    """Which of a null's sets hold one of the chosen heads."""
    chosen = set(heads)
    return np.array([bool(chosen & set(one)) for one in sets])


def spearman(
    a: Float[Tensor, " item"],
    b: Float[Tensor, " item"],
    generator: np.random.Generator,
    draws: int = 2000,
) -> tuple[float, Float[np.ndarray, " draw"]]:
    """Rank correlation, and its distribution when the items of `b` are permuted."""
    x, y = (stats.rankdata(t.double().numpy(force=True)) for t in (a, b))
    x, y = (t - t.mean() for t in (x, y))
    size = np.sqrt((x**2).sum() * (y**2).sum())
    if size == 0:
        return math.nan, np.zeros(draws)
    null = np.array([(x * generator.permutation(y)).sum() / size for _ in range(draws)])
    return float((x * y).sum() / size), null


@dataclass(frozen=True)
class Null:
    """A null distribution, and what a claim's rule needs to know of it."""

    draws: Float[np.ndarray, " draw"]

    def asdict(self) -> Mapping[str, float | int]:
        """Mean, 5th and 95th percentile, and how many draws. The percentiles are draws, such that a
        value of the null itself is beyond each in at most 5% of cases; with fewer than 19 draws
        none is, and they are the smallest and the largest. (Interpolated between the largest two of
        20 draws, the 95th would be exceeded in 9%.)"""
        ordered, n = np.sort(self.draws), len(self.draws)
        beyond = max(1, (n + 1) // 20)  # of the n + 1 places that one more draw could take
        ends = {"q05": float(ordered[beyond - 1]), "q95": float(ordered[-beyond])}
        return {"mean": float(self.draws.mean()), **ends, "draws": n}

    def pvalue(self, value: float) -> float:
        """Share of draws at least as large, the observed one counted (one-sided)."""
        return float((1 + (self.draws >= value).sum()) / (len(self.draws) + 1))
