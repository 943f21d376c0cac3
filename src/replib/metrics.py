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
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

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
    successes: Bool[Tensor, " prompt"], groups: Sequence[Hashable] | None = None
) -> Estimate:
    """A proportion and its 95% Wilson interval.

    Prompts of one group (template, entity) may go together: they count as fewer, by the design
    effect that the data show, and the quantile is that of t with a degree of freedom less than
    groups (Korn and Graubard 1998). Without `groups`, or where all prompts agree, each counts as
    one; with one group only, nothing is known of others, and the interval is 0 to 1. Near 0 and 1
    coverage swings around 95%, as few counts are possible.
    """
    if len(successes) == 0:
        raise UsageError("a proportion of no prompts: give at least one")
    values = successes.double().numpy(force=True)
    n, z = _effective(values, groups)
    share = float(values.mean())
    if z == math.inf:
        return Estimate(share, 0.0, 1.0, len(values))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), len(values))


def _effective(
    values: Float[np.ndarray, " prompt"], groups: Sequence[Hashable] | None
) -> tuple[float, float]:
    """How many independent prompts the grouped ones are worth, and the quantile for 95%."""
    n, z = float(len(values)), float(stats.norm.ppf(0.975))
    member, n_groups = _members(groups) if groups is not None else (None, n)
    if n_groups == n:
        return n, z
    if n_groups == 1:
        return n, math.inf
    z *= float(stats.t.ppf(0.975, n_groups - 1) / stats.t.ppf(0.975, n - 1))
    apart = values - values.mean()
    alone = (apart**2).sum() / (n - 1) / n  # variance of the mean, if prompts were independent
    together = (np.bincount(member, apart) ** 2).sum() * n_groups / (n_groups - 1) / n**2
    return (n * min(1.0, alone / together) if alone > 0 and together > 0 else n), z


def _members(groups: Sequence[Hashable]) -> tuple[Int[np.ndarray, " prompt"], int]:
    """The group of each prompt, by number, and how many groups there are."""
    names, member = np.unique(np.asarray(list(map(str, groups))), return_inverse=True)
    return member, len(names)


def seeds_mean(values: Sequence[float] | np.ndarray) -> Estimate:
    """The mean over a few seeds and its 95% t interval, which covers new seeds. Seeds that agree
    exactly give an interval without width; so where a seed either learns or does not, five of them
    often miss the truth. Skewed values, such as shares near 1, are covered less than they should
    be."""
    array = np.asarray(values, float)
    if len(array) < 2:
        raise UsageError(f"an interval over seeds needs at least 2, got {len(array)}")
    mean, error = float(array.mean()), float(stats.sem(array))
    half = error * float(stats.t.ppf(0.975, len(array) - 1))
    return Estimate(mean, mean - half, mean + half, len(array))


def seeds_difference(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Estimate:
    """Mean of a less mean of b, of separate seeds, and its 95% Welch interval."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if min(len(a), len(b)) < 2:
        raise UsageError(f"an interval over seeds needs at least 2, got {len(a)} and {len(b)}")
    value = float(a.mean() - b.mean())
    if np.ptp(a) == np.ptp(b) == 0:
        return Estimate(value, value, value, len(a) + len(b))
    ends = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return Estimate(value, float(ends.low), float(ends.high), len(a) + len(b))


def cluster_draws(
    groups: Sequence[Hashable], generator: np.random.Generator, draws: int = 5000
) -> Float[np.ndarray, "draw prompt"]:
    """Weights of the prompts under each resampling of whole groups, rows summing to 1. Prompts that
    share a template (or another entity) are drawn together, so an interval does not count them as
    independent. With as many groups as prompts it is the ordinary bootstrap."""
    member, counts = _group_draws(groups, generator, draws)
    weights = counts[:, member].astype(float)
    return weights / weights.sum(-1, keepdims=True)


def _group_draws(
    groups: Sequence[Hashable], generator: np.random.Generator, draws: int
) -> tuple[Int[np.ndarray, " prompt"], Int[np.ndarray, "draw group"]]:
    """The group of each prompt, and how often each group is in each resampling."""
    member, n_groups = _members(groups)
    even = np.full(n_groups, 1 / n_groups)
    return member, generator.multinomial(n_groups, even, size=draws)


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
    """`statistic` of the mean over prompts and its 95% cluster-bootstrap interval (`percentiles`).

    `statistic` maps means [..., *rest] to [...]; without one it is the mean itself. A mean of yes
    and no (bool) gets the interval of `proportion`. A mean of differences, all -1, 0 or 1, gets
    the adjusted Wald interval: one +1 and one -1 are added to the sample (after Agresti and Min
    2005), because resampling tells too little where few prompts differ. The interval is still too
    narrow where values are skewed and groups few.
    """
    if statistic is None and values.dtype == torch.bool:
        return proportion(values, groups)
    array = values.double().numpy(force=True)
    if statistic is None and array.ndim == 1 and np.isin(array, (-1.0, 0.0, 1.0)).all():
        return _difference(array, groups)
    of = statistic or (lambda mean: mean)
    member, counts = _group_draws(groups, generator, draws)
    n_groups = counts.shape[1]
    sums = np.zeros((n_groups, *array.shape[1:]))
    np.add.at(sums, member, array)
    drawn = counts @ np.bincount(member)  # prompts in each resampling
    means = np.tensordot(counts, sums, axes=1) / drawn.reshape(-1, *[1] * (array.ndim - 1))
    return Estimate(float(of(array.mean(0))), *percentiles(of(means), n_groups), len(array))


def _difference(values: Float[np.ndarray, " prompt"], groups: Sequence[Hashable]) -> Estimate:
    """Mean of paired differences -1, 0, 1 and its adjusted Wald interval."""
    n, z = _effective(values, groups)
    share = float(values.mean())
    if z == math.inf:
        return Estimate(share, -1.0, 1.0, len(values))
    mean = share * n / (n + 2)
    variance = (float((values**2).mean()) * n + 2) / (n + 2) - mean**2
    half = z * math.sqrt(variance / (n + 2))
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

    Null: a prompt's effects may as well have had the other sign. Each draw flips the signs of
    whole prompts (all heads together, which keeps their correlation) and keeps the largest
    |t| over heads, t = mean / standard error; a head's p-value is the share of draws whose
    maximum reaches its own |t|. Family-wise over all heads (Westfall and Young's max-T).
    Effects that are skewed about 0 are not of this null, even with mean 0, and are called strong
    too often. Heads that were not senders (NaN) get p = 1.
    """
    sent = ~effect.isnan().any(-1)
    x = effect.double()[sent]  # head prompt
    p = torch.ones(sent.shape, dtype=torch.float64)
    n = x.shape[-1]
    if n < 2 or len(x) == 0:
        return p
    square = (x**2).mean(-1)  # sign flips leave it as it is, so t follows from the mean alone

    def t_of(mean: Tensor) -> Tensor:
        variance = (square - mean**2).clamp_min(1e-12 * square + 1e-300) / (n - 1)
        return mean.abs() / variance.sqrt()

    signs = torch.from_numpy(generator.choice([-1.0, 1.0], size=(draws, n)))
    null = t_of((signs @ x.T) / n).max(-1).values
    observed = t_of(x.mean(-1))
    p[sent] = (1 + (null[:, None] >= observed).double().sum(0)) / (draws + 1)
    return p


def overlap(a: Sequence[set[Head]], b: Sequence[set[Head]]) -> float:
    """Heads in common, stage by stage, as a share of the heads of `a` (|A ∩ B| / |A|, pooled)."""
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
