"""Do 95% intervals cover in 95 of 100 cases, and do nulls give 5 false positives in 100?

`make calibration` simulates every interval and every null of the library, and those that chapters
make themselves, at the sizes that chapters have: data with a known truth, again and again. A few of
these runs are in the tests.

The measured share has an error of its own. What counts as 95% (or 5%) is the region that holds
99.9% of the shares that exactly 95% (5%) would give in so many simulations; 2,000 are enough to see
a miss of two in a hundred. Coverage below the region, and false positives above it, are faults; the
other side is safe and called conservative. Where a method is known to miss what it says, `KNOWN`
says why; then the fault must be there, so that this list stays true.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy import stats
from trust import TRUST, show, write_table

from bookkit.book import atlas
from replib import metrics as m
from replib.chapters.factual_recall import scaling
from replib.chapters.factual_recall.regression import logistic
from replib.chapters.successor_heads import mlp0_features as ft
from replib.chapters.successor_heads import ov_circuit as su
from replib.chapters.successor_heads.ordinals import OrdinalClass

RUNS = 2000
COLUMNS = ("method", "simulated", "says", "measured", "counts as it", "simulations", "as it says")
Generator = np.random.Generator

# What is simulated: why the method misses what it says.
KNOWN = {
    "10 templates of 2 to 40 prompts, all or nothing, 8 in 10 right": (
        "where ten templates agree, nothing shows that each is all or nothing"
    ),
    "5 seeds, about 0.98 if they learn, as 9 in 10 do": (
        "five seeds that all learn do not show that one in ten does not"
    ),
}


@dataclass(frozen=True)
class Case:
    """One simulation. `draw`, of a generator and `values`, returns an interval, which should hold
    `truth` (level 0.95); without a truth, whether a test was positive though nothing was there
    (level 0.05)."""

    method: str
    simulated: str
    draw: Callable[..., Any]
    values: tuple
    truth: float | None
    runs: int

    def trial(self, generator: Generator) -> bool:
        found = self.draw(generator, *self.values)
        if self.truth is None:
            return bool(found)
        return found[0] - 1e-12 <= self.truth <= found[1] + 1e-12

    def row(self, runs: int) -> tuple[list, bool]:
        """(its row of the table, is it other than it is said to be?)"""
        generator = m.rng(0, self.method, self.simulated)
        share = sum(self.trial(generator) for _ in range(runs)) / runs
        level = 0.05 if self.truth is None else 0.95
        low, high = (count / runs for count in stats.binom.interval(0.999, runs, level))
        word = "conservative" if (share > high) == (level > 0.5) else "no"
        word = "yes" if low <= share <= high else word
        known = KNOWN.get(self.simulated)
        said = f"{word}: {known}" if known else word
        counts = f"{low:.3f} to {high:.3f}"
        line = [self.method, self.simulated, level, round(share, 4), counts, runs, said]
        return line, (word == "no") != bool(known)


CASES: list[Case] = []


def case(method: str, simulated: str, *cases: Any, truth: Any = None, runs: int = RUNS) -> Callable:
    """Enter a function of a generator as `Case.draw`, for the values of each of the cases, which
    also fill in what is `simulated`; the truth may be a function of them."""

    def enter(draw: Callable) -> None:
        for values in cases or ((),):
            values = values if isinstance(values, tuple) else (values,)
            true = truth(*values) if callable(truth) else truth
            CASES.append(Case(method, simulated.format(*values), draw, values, true, runs))

    return enter


# --- Intervals: g is the generator ----------------------------------------------------------------


def each(n: int) -> list[str]:
    """Every prompt a group of its own."""
    return [str(i) for i in range(n)]


def right(g: Generator, n: int, p: Any) -> torch.Tensor:
    """Are the answers to n prompts right? Each with probability p."""
    return torch.from_numpy(g.random(n) < p)


def templates(g: Generator, n: int, each: int) -> tuple:
    """Right answers to prompts of n templates, which correlate by 0.1 within a template; the
    template of each, and its share of right answers."""
    shares = g.beta(0.8 * 9, (1 - 0.8) * 9, size=n).repeat(each)
    return right(g, n * each, shares), np.arange(n).repeat(each).tolist(), shares


SHARES = product((20, 100), (0.5, 0.9, 0.95, 0.98, 0.992))
case("proportion", "{} prompts, true share {}", *SHARES, truth=lambda n, p: p)(
    lambda g, n, p: m.proportion(right(g, n, p)).interval
)
TEMPLATES = "{2} prompts of {0} templates that correlate by 0.1, true share 0.8"
case("proportion, with groups", TEMPLATES, (5, 10, 50), (10, 10, 100), (20, 5, 100), truth=0.8)(
    lambda g, n, size, _: m.proportion(*templates(g, n, size)[:2]).interval
)


@case("proportion", "10 templates of 2 to 40 prompts, all or nothing, 8 in 10 right", truth=0.8)
def _(g):
    groups = np.arange(10).repeat([2, 4, 6, 8, 10, 12, 14, 16, 24, 40])
    answers = torch.from_numpy((g.random(10) < 0.8)[groups])
    return m.proportion(answers, groups.tolist()).interval


@case("proportion", "{} words that are each right in a share of 0 to 1 (beta)", 12, 40, truth=0.7)
def _(g, n):
    return m.proportion(torch.from_numpy(g.beta(0.7, 0.3, size=n))).interval


@case("proportion", "100 prompts of 10 templates, and others of the same ten", truth=0.0)
def _(g):
    answers, _, shares = templates(g, 10, 10)
    return np.subtract(m.proportion(answers).interval, shares.mean())


case("seeds_mean", "{} seeds, normal", 3, 5, truth=1.0)(
    lambda g, n: m.seeds_mean(g.normal(1.0, 0.3, size=n)).interval
)
case("seeds_mean of shares", "{} seeds, shares near 1 (beta, mean 0.9)", 3, 5, truth=0.9)(
    lambda g, n: m.seeds_mean(g.beta(9, 1, size=n), share=True).interval
)
case("seeds_mean of shares", "{} seeds, shares about 0.6 (beta)", 5, 10, truth=0.6)(
    lambda g, n: m.seeds_mean(g.beta(6, 4, size=n), share=True).interval
)
LEARN = "{} seeds, all or nothing, {:.0%} learn"
case("seeds_mean of shares", LEARN, (3, 0.9), (5, 0.9), (5, 0.5), truth=lambda n, p: p)(
    lambda g, n, p: m.seeds_mean((g.random(n) < p).astype(float), share=True).interval
)


@case("seeds_mean of shares", "5 seeds, about 0.98 if they learn, as 9 in 10 do", truth=0.882)
def _(g):
    shares = np.where(g.random(5) < 0.9, g.beta(49, 1, size=5), 0.0)
    return m.seeds_mean(shares, share=True).interval


SPREADS = "{} and {} seeds, normal, spreads 1 and {}"
case("seeds_difference", SPREADS, (5, 5, 1), (5, 5, 4), (5, 3, 4), truth=-1.0)(
    lambda g, n, k, spread: (
        m.seeds_difference(g.normal(size=n), g.normal(1, spread, size=k)).interval
    )
)
LEARN_2 = "5 and 5 seeds, all or nothing, {:.0%} and {:.0%} learn"
TWO_SHARES = ((0.9, 0.5), (0.9, 0.9), (0.98, 0.02))
case("seeds_difference of shares", LEARN_2, *TWO_SHARES, truth=lambda p, q: p - q)(
    lambda g, *two: (
        m.seeds_difference(*((g.random(5) < p).astype(float) for p in two), share=True).interval
    )
)
case("seeds_difference of shares", "5 and 5 seeds, beta with means 0.9 and 0.6", truth=0.3)(
    lambda g: m.seeds_difference(g.beta(9, 1, size=5), g.beta(6, 4, size=5), share=True).interval
)


def bootstrap(g: Generator, values: Any) -> tuple[float, float]:
    """Of prompts that are each a group of its own."""
    return m.bootstrap(torch.as_tensor(values), each(len(values)), g).interval


case("bootstrap", "{} prompts, normal", 12, 20, 100, truth=1.0)(
    lambda g, n: bootstrap(g, g.normal(1.0, 2.0, size=n))
)
RIGHT = product((20, 100), (0.5, 0.9, 0.98))
case("bootstrap", "{} prompts right or wrong, true share {}", *RIGHT, truth=lambda n, p: p)(
    lambda g, n, p: bootstrap(g, right(g, n, p))
)
TWICE = "{} prompts answered twice, {:.0%} gained, {:.0%} lost"
CHANGED = [(n, *p) for n in (20, 100) for p in ((0.3, 0.1), (0.1, 0.02), (0.03, 0.0))]


@case("bootstrap", TWICE, *CHANGED, truth=lambda n, gained, lost: gained - lost)
def _(g, n, gained, lost):
    u = g.random(n)
    return bootstrap(g, (u < gained).astype(float) - ((u >= gained) & (u < gained + lost)))


@case("bootstrap", "20 prompts of 10 words answered twice, 30% gained, 10% lost", truth=0.2)
def _(g):
    u = (g.random(10).repeat(2) + 0.3 * g.random(20)) % 1  # two prompts of a word go together
    change = torch.from_numpy((u < 0.3).astype(float) - ((u >= 0.3) & (u < 0.4)))
    return m.bootstrap(change, np.arange(10).repeat(2).tolist(), g).interval


case("bootstrap", "{} prompts, skewed (exponential)", 8, 12, 20, 100, truth=1.0)(
    lambda g, n: bootstrap(g, g.exponential(size=n))
)


@case("bootstrap", "{} templates of 1 to 14 prompts that correlate by 0.5", 3, 5, 9, 18, truth=1.0)
def _(g, n):
    groups = np.arange(n).repeat(g.integers(1, 15, size=n))
    values = g.normal(1.0, 1.0, size=n)[groups] + g.normal(size=len(groups))
    return m.bootstrap(torch.from_numpy(values), groups.tolist(), g).interval


@case("bootstrap", "{} prompts of which {:.0%} show 1.5, others none", (20, 0.95), (5, 0.8))
def _(g, n, p):
    """Missed too often? Where all agree, the interval is as in `_with_width`."""
    low, high = bootstrap(g, np.where(g.random(n) < p, 1.5, 0.0))
    return not low <= 1.5 * p <= high


@case(
    "bootstrap", "{} templates of 5 prompts that correlate by 0.5, normal", 5, 9, 18, 40, truth=1.0
)
def _(g, n):
    groups = np.arange(n).repeat(5)
    values = g.normal(1.0, 1.0, size=n)[groups] + g.normal(size=5 * n)
    return m.bootstrap(torch.from_numpy(values), list(map(str, groups)), g).interval


@case("bootstrap", "relative loss of two models, 40 items right or wrong (claim 5.9)", truth=0.25)
def _(g):
    shares = np.array([[0.8, 0.6], [0.6, 0.3]])  # model, plain or shuffled
    values = torch.from_numpy(g.random((40, 2, 2)) < shares).double()

    def drops(mean):
        lost = 1 - mean[..., 1] / np.maximum(mean[..., 0], 1e-9)
        return lost[..., 1] - lost[..., 0]

    return m.bootstrap(values, each(40), g, drops).interval


@case("cluster_draws", "gap of the means of two sets of 40 and 50 cases (claim 4.3)", truth=0.2)
def _(g):
    draws = [m.cluster_draws(each(n), g) @ (g.random(n) < p) for n, p in ((40, 0.8), (50, 0.6))]
    return m.percentiles(draws[0] - draws[1], 40)


@case("percentiles", "difference of the means of two sets of 6 and 9 cases, normal", truth=0.0)
def _(g):
    a, b = (m.cluster_draws(each(n), g) @ g.normal(size=n) for n in (6, 9))
    return m.percentiles(a - b, 6)


SUCCESSIONS = "classes of 7, 12, 26 and 100 successions, share right {}"


@case("macro_interval", SUCCESSIONS, 0.5, 0.9, 0.98, truth=lambda p: p)
def _(g, p):
    found = su.macro_interval({str(n): right(g, n, p) for n in (7, 12, 26, 100)}, g)
    return found.low, found.high


COUNTRIES = "{0} countries × {1} prompts, {0} cities, both clustered"


@case("logistic", COUNTRIES, (20, 2), (60, 2), (20, 6), truth=1.0)
def _(g, n, size):
    country, city = np.arange(n).repeat(size), g.permutation(np.arange(n).repeat(size))
    x = np.column_stack([g.normal(size=n)[country], g.normal(size=n)[city]])
    y = g.random(size * n) < 1 / (1 + np.exp(-x @ [1.0, -0.5]))
    if y.all() or not y.any():
        return -np.inf, np.inf
    low, high = logistic(x, y, [list(map(str, country)), list(map(str, city))]).effect(0).interval
    return (low, high) if np.isfinite(low) else (-np.inf, np.inf)


N_LAYERS, N_HEADS = 30, 9


case("spread of 20 SAE seeds (claim 2.8)", "their mean", truth=0.6)(
    lambda g: np.quantile(g.normal(0.6, 0.05, size=20), [0.025, 0.975])
)


# --- Nulls ----------------------------------------------------------------------------------------


def above(value: float, draws: Any) -> bool:
    return value > m.Null(np.asarray(draws)).asdict()["q95"]


def is_small(value: float, draws: np.ndarray) -> bool:
    return m.Null(draws).pvalue(value) < 0.05


def same(draws: np.ndarray) -> tuple[float, np.ndarray]:
    """A value, and draws from the same distribution."""
    return draws[0], draws[1:]


case("Null, value > q95", "{} draws", 20, 40, 100, 200, 1000)(
    lambda g, n: above(*same(g.normal(size=n + 1)))
)


@case("Null, value < q05", "20 draws")
def _(g):
    value, draws = same(g.normal(size=21))
    return value < m.Null(draws).asdict()["q05"]


case("Null.pvalue", "{} draws", 20, 1000)(lambda g, n: is_small(*same(g.normal(size=n + 1))))
case("Null.pvalue", "200 draws of shares of 12, many of them equal")(
    lambda g: is_small(*same(g.binomial(12, 0.5, size=201) / 12))
)


def best_of_all(g: Generator, effect: np.ndarray) -> bool:
    return (m.max_statistic_pvalues(torch.from_numpy(effect), g, 1000) < 0.05).any()


MAX, SIZES = "max_statistic_pvalues", ((30, 270, 12), (1, 9, 12), (30, 270, 100))
case(MAX, "{1} heads, {2} prompts", *SIZES, runs=1000)(
    lambda g, layers, _, n: best_of_all(g, g.normal(size=(layers, N_HEADS, n)))
)
case(MAX, "270 heads that correlate by 0.9, 12 prompts", runs=1000)(
    lambda g: best_of_all(g, 3 * g.normal(size=12) + g.normal(size=(N_LAYERS, N_HEADS, 12)))
)
SKEWED = "{1} heads, {2} prompts, skewed with mean 0 (exponential)"
case(MAX, SKEWED, (1, 9, 12), (1, 9, 50), (30, 270, 50), runs=1000)(
    lambda g, layers, _, n: best_of_all(g, g.exponential(size=(layers, N_HEADS, n)) - 1)
)


def random_heads(g: Generator, layers: list[int], n_heads: int = 9) -> set[m.Head]:
    """As many different heads of each layer as it is named."""
    return {
        (layer, int(head))
        for layer in set(layers)
        for head in g.choice(n_heads, layers.count(layer), replace=False)
    }


STAGES = ([24, 25, 25, 26, 28, 29], [18, 20, 20, 21, 21, 23], [5, 5, 6, 8, 9, 9])


@case("drawn_overlap_null, value > q95", "3 stages of 6 heads each, of 9 a layer")
def _(g):
    a, b = ([random_heads(g, stage) for stage in STAGES] for _ in range(2))
    return above(m.overlap(a, b), m.drawn_overlap_null(a, b, N_HEADS, g))


@case("spearman, Null.pvalue", "{} items, half of them tied", 8, 14, 100)
def _(g, n):
    a, b = g.normal(size=n), g.normal(size=n).round()
    return is_small(*m.spearman(*map(torch.from_numpy, (a, b)), g))


@case(
    *("layer_matched, value > q95", "{}, of {} a layer, from a window"),
    ("1 head", 9, [20]),
    ("2 heads of 2 layers", 9, [20, 22]),
    ("3 heads of 2 layers", 9, [20, 22, 22]),
    ("4 heads of 4 layers", 9, [20, 21, 22, 24]),
    ("3 heads of 3 layers", 4, [10, 11, 12]),
)
def _(g, _, n_heads, layers):
    effect = g.normal(size=(N_LAYERS, n_heads))
    heads = random_heads(g, layers, n_heads)
    sets = [heads, *(m.layer_matched(heads, N_LAYERS, n_heads, g) for _ in range(200))]
    return above(*same(np.array([np.mean([effect[head] for head in sorted(one)]) for one in sets])))


@case("matched_heads, value > the largest of 20", "30 layers of 9 heads")
def _(g):
    every = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
    effect = g.normal(size=(N_LAYERS, N_HEADS))
    found = scaling.matched_heads(SimpleNamespace(heads=lambda: every), (12, 3), 20, set(), g)
    return effect[12, 3] > max(effect[head] for head in found)


def ordinal(n: int) -> OrdinalClass:
    at = torch.arange(n)
    pairs = torch.stack([at[:-1], at[1:]], 1)
    return OrdinalClass(str(n), tuple(map(str, range(n))), at, at + 1, pairs)


@case("shuffled_null, the best of 270 heads > q95", "classes of 7, 12 and 26", runs=1000)
def _(g):
    classes = {str(n): ordinal(n) for n in (7, 12, 26)}
    said = {
        name: torch.from_numpy(g.integers(len(c), size=(N_LAYERS * N_HEADS, len(c))))
        for name, c in classes.items()
    }
    null = su.shuffled_null(said, classes, g, 100)
    return above(float(su.macro(su.hits(said, classes)).max()), null.best())


@case("period_null, value > q95", "the best of 64 neurons, 100 numbers", runs=1000)
def _(g):
    activation = torch.from_numpy(g.normal(size=(64, 100)))
    null = ft.period_null(activation, g, 100)
    return above(float(ft.period_power(activation).max()), null)


PERMUTED = "modal_coverage against permuted residues, value > q95"


@case(PERMUTED, "5 dictionaries, 100 numbers", runs=1000)
def _(g):
    feature, residue = g.integers(8, size=(5, 100)), np.arange(100) % 10
    draws = [ft.modal_coverage(feature, g.permutation(residue)).mean() for _ in range(100)]
    return above(ft.modal_coverage(feature, residue).mean(), draws)


@case("cosines with permuted features, value > q95", "10 residues (claim 2.9)")
def _(g):
    cosine, row = g.normal(size=(10, 10)), np.arange(10)
    draws = [cosine[row, g.permutation(10)].mean() for _ in range(200)]
    return above(cosine.diagonal().mean(), draws)


case("binomial test against 0.1 (claim 2.10)", "120 tokens")(
    lambda g: stats.binomtest(g.binomial(120, 0.1), 120, 0.1, alternative="greater").pvalue < 0.05
)


@case("atlas.overlap_null, p < 0.05", "roles of 6 and 18 heads, of 9 a layer")
def _(g):
    a = random_heads(g, STAGES[0])
    b = random_heads(g, [24, 24, 24, 25, 25, 25, *STAGES[0], *STAGES[1]])
    null = atlas.overlap_null(frozenset(a), frozenset(b), N_HEADS)
    return null[len(a & b) :].sum() < 0.05


def main() -> int:
    torch.set_num_threads(1)
    rows, faults, began = [], 0, time.monotonic()
    for one in CASES:
        row, is_fault = one.row(one.runs)
        print(*row, sep="  ", flush=True)
        rows.append(row)
        faults += is_fault
    print(show(COLUMNS, rows))
    print(f"{len(rows)} cases, {faults} not as they are said to be")
    what = "Coverage of every 95% interval and false positives of every null at 5%, simulated."
    write_table(TRUST / "calibration.json", what, COLUMNS, rows, time.monotonic() - began)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
