"""Do 95% intervals cover in 95 of 100 cases, and do nulls give 5 false positives in 100?

`make calibration` simulates every interval and every null of the library, and those that notebooks
make themselves, at the sizes that chapters have: data with a known truth, again and again. A few of
these runs are in the tests.

The measured share has an error of its own. What counts as 95% (or 5%) is the region that holds
99.9% of the shares that exactly 95% (5%) would give in so many simulations; 2,000 are enough to see
a miss of two in a hundred. Coverage below the region, and false positives above it, are faults; the
other side is safe and called conservative. Where a method is known to miss what it says, `KNOWN`
says why; then the fault must be there, so that this list stays true.
"""

import argparse
import ast
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy import stats
from trust import ROOT, TRUST, show, write_table

from bookkit.book import atlas
from replib import metrics as m
from replib.chapters.factual_recall import scaling as knobs
from replib.chapters.factual_recall.regression import logistic
from replib.chapters.successor_heads import mlp0_features as ft
from replib.chapters.successor_heads import ov_circuit as su
from replib.chapters.successor_heads.ordinals import OrdinalClass

RUNS = 2000
COLUMNS = ("method", "simulated", "says", "measured", "counts as it", "simulations", "as it says")
Generator = np.random.Generator

# What is simulated: why the method misses what it says.
KNOWN = {
    **dict.fromkeys(
        ("20 prompts, true share 0.95", "20 prompts, true share 0.992"),
        "near 0 and 1 few counts are possible",
    ),
    "5 seeds, shares near 1 (beta, mean 0.9)": "a t interval of few skewed values",
    "5 seeds, all or nothing, 9 in 10 learn": (
        "seeds that agree give no width, though another one may not"
    ),
    "100 prompts right or wrong, true share 0.9": (
        "Wilson's interval, which covers 0.936 here; what is missing to that is chance"
    ),
    "20 prompts, skewed (exponential)": "few skewed values",
    "5 templates of 5 prompts that correlate by 0.5, normal": (
        "five templates say too little about how far templates differ"
    ),
    "classes of 7, 12, 26 and 100 successions, share right 0.9": (
        "near 1 it is missed from one side only, by an upper end that is too low"
    ),
    "20 countries × 2 prompts, 20 cities, both clustered": (
        "of few clusters the robust variance is too small, and t makes up for part of it"
    ),
    "50 prompts, heads that hardly stand out": (
        "top heads of few prompts are partly chance and overlap less than the true ones"
    ),
    "9 heads, 12 prompts, skewed with mean 0 (exponential)": (
        "flipped signs suppose that effects are as often above as below, not only in the mean"
    ),
}


@dataclass(frozen=True)
class Case:
    """One simulation. `trial`: did the interval cover (level 0.95), was the test positive though
    nothing was there (level 0.05)?"""

    method: str
    simulated: str
    level: float
    trial: Callable[[Generator], bool]
    runs: int

    @property
    def known(self) -> str:
        return KNOWN.get(self.simulated, "")

    def share(self, runs: int) -> float:
        generator = m.rng(0, self.method, self.simulated)
        return sum(bool(self.trial(generator)) for _ in range(runs)) / runs


def region(level: float, runs: int) -> tuple[float, float]:
    """Where 99.9% of the shares lie that a probability of exactly `level` gives."""
    low, high = stats.binom.interval(0.999, runs, level)
    return low / runs, high / runs


def verdict(level: float, share: float, runs: int) -> str:
    """yes, conservative or no."""
    low, high = region(level, runs)
    if low <= share <= high:
        return "yes"
    return "conservative" if (share > high) == (level > 0.5) else "no"


CASES: list[Case] = []


def positive(
    method: str, simulated: str, *cases: tuple, runs: int = RUNS, level: float = 0.05
) -> Callable:
    """Enter a test of something that is not there: a function of a generator, and of the values of
    a case, which also fill in what is `simulated`."""

    def enter(test: Callable) -> None:
        for values in cases or ((),):
            trial = partial(lambda generator, values: test(generator, *values), values=values)
            CASES.append(Case(method, simulated.format(*values), level, trial, runs))

    return enter


def covers(method: str, simulated: str, truth: Any, *cases: tuple, runs: int = RUNS) -> Callable:
    """Enter a function to (low, high), an interval of the truth, which may be a function of a
    case's values."""

    def enter(interval: Callable) -> None:
        def test(generator: Generator, *values: Any) -> bool:
            low, high = interval(generator, *values)
            true = truth(*values) if callable(truth) else truth
            return low - 1e-12 <= true <= high + 1e-12

        positive(method, simulated, *cases, runs=runs, level=0.95)(test)

    return enter


# --- Intervals ------------------------------------------------------------------------------------


def each(n: int) -> list[str]:
    """Every prompt a group of its own."""
    return [str(i) for i in range(n)]


def right(generator: Generator, n: int, p: Any) -> torch.Tensor:
    """Are the answers to n prompts right? Each with probability p."""
    return torch.from_numpy(generator.random(n) < p)


def templates(generator: Generator, n: int, each: int) -> tuple:
    """Right answers to prompts of n templates, which correlate by 0.1 within a template; the
    template of each, and its share of right answers."""
    shares = generator.beta(0.8 * 9, (1 - 0.8) * 9, size=n).repeat(each)
    return right(generator, n * each, shares), np.arange(n).repeat(each).tolist(), shares


covers(
    *("wilson", "{} prompts, true share {}", lambda n, p: p),
    *itertools.product((20, 100), (0.5, 0.9, 0.95, 0.98, 0.992)),
)(lambda g, n, p: m.wilson(right(g, n, p))[1])
covers(
    *("wilson, with groups", "{2} prompts of {0} templates that correlate by 0.1, true share 0.8"),
    *(0.8, (5, 10, 50), (10, 10, 100), (20, 5, 100)),
)(lambda g, n, size, _: m.wilson(*templates(g, n, size)[:2])[1])


@positive("wilson", "100 prompts of 10 templates, and others of the same ten", level=0.95)
def _(generator: Generator) -> bool:
    answers, _, shares = templates(generator, 10, 10)
    low, high = m.wilson(answers)[1]
    return low <= shares.mean() <= high


def seeds(draw: Callable) -> Callable:
    return lambda g, *values: m.seeds_mean(draw(g, *values))[1]


covers("seeds_mean", "{} seeds, normal", 1.0, (3,), (5,))(
    seeds(lambda g, n: g.normal(1.0, 0.3, size=n))
)
covers("seeds_mean", "5 seeds, shares near 1 (beta, mean 0.9)", 0.9)(
    seeds(lambda g: g.beta(9, 1, size=5))
)
covers("seeds_mean", "5 seeds, all or nothing, 9 in 10 learn", 0.9)(
    seeds(lambda g: (g.random(5) < 0.9).astype(float))
)


@covers(
    *("seeds_difference", "{} and {} seeds, normal, spreads 1 and {}", -1.0),
    *((5, 5, 1), (5, 5, 4), (5, 3, 4)),
)
def _(generator: Generator, n: int, other: int, spread: int) -> m.Interval:
    a, b = generator.normal(0, 1, size=n), generator.normal(1, spread, size=other)
    return m.seeds_difference(a, b)[1]


@covers("seeds_difference", "5 and 5 seeds, all or nothing, 9 and 5 in 10 learn", 0.4)
def _(generator: Generator) -> m.Interval:
    return m.seeds_difference(*((generator.random(5) < p).astype(float) for p in (0.9, 0.5)))[1]


def prompts(draw: Callable) -> Callable:
    """The bootstrap of n prompts that are each a group of its own; what draws their values."""
    return lambda g, n, *values: m.bootstrap(torch.as_tensor(draw(g, n, *values)), each(n), g)[1]


def gained(generator: Generator, n: int, more: float, less: float) -> np.ndarray:
    u = generator.random(n)
    return (u < more).astype(float) - ((u >= more) & (u < more + less))


covers("bootstrap", "{} prompts, normal", 1.0, (12,), (20,), (100,))(
    prompts(lambda g, n: g.normal(1.0, 2.0, size=n))
)
covers(
    *("bootstrap", "{} prompts right or wrong, true share {}", lambda n, p: p),
    *itertools.product((20, 100), (0.5, 0.9, 0.98)),
)(prompts(right))
covers(
    *("bootstrap", "{} prompts answered twice, {:.0%} gained, {:.0%} lost", lambda n, a, b: a - b),
    *((n, *p) for n in (20, 100) for p in ((0.3, 0.1), (0.1, 0.02), (0.03, 0.0))),
)(prompts(gained))
covers("bootstrap", "{} prompts, skewed (exponential)", 1.0, (20,), (100,))(
    prompts(lambda g, n: g.exponential(size=n))
)


@covers(
    *("bootstrap", "{} templates of 5 prompts that correlate by 0.5, normal", 1.0),
    *((5,), (9,), (18,), (40,)),
)
def _(generator: Generator, n: int) -> m.Interval:
    groups = np.arange(n).repeat(5)
    values = generator.normal(1.0, 1.0, size=n)[groups] + generator.normal(size=5 * n)
    return m.bootstrap(torch.from_numpy(values), list(map(str, groups)), generator)[1]


@covers("bootstrap", "relative loss of two models, 40 items right or wrong (claim 5.9)", 0.25)
def _(generator: Generator) -> m.Interval:
    shares = np.array([[0.8, 0.6], [0.6, 0.3]])  # model, plain or shuffled
    values = torch.from_numpy(generator.random((40, 2, 2)) < shares).double()

    def drops(mean: np.ndarray) -> np.ndarray:
        lost = 1 - mean[..., 1] / np.maximum(mean[..., 0], 1e-9)
        return lost[..., 1] - lost[..., 0]

    return m.bootstrap(values, each(40), generator, drops)[1]


@covers("cluster_draws", "gap of the means of two sets of 40 and 50 cases (claim 4.3)", 0.2)
def _(generator: Generator) -> tuple[float, float]:
    draws = []
    for n, p in ((40, 0.8), (50, 0.6)):
        weights = m.cluster_draws(each(n), generator)
        draws.append(weights @ (generator.random(n) < p))
    return m.percentiles(draws[0] - draws[1], 40)


@covers("percentiles", "difference of the means of two sets of 6 and 9 cases, normal", 0.0)
def _(generator: Generator) -> tuple[float, float]:
    a, b = (m.cluster_draws(each(n), generator) @ generator.normal(size=n) for n in (6, 9))
    return m.percentiles(a - b, 6)


@covers(
    *("macro_interval", "classes of 7, 12, 26 and 100 successions, share right {}"),
    *(lambda p: p, (0.5,), (0.9,)),
)
def _(generator: Generator, p: float) -> m.Interval:
    answers = {str(n): right(generator, n, p) for n in (7, 12, 26, 100)}
    return su.macro_interval(answers, generator)


@covers("logistic", "{0} countries × 2 prompts, {0} cities, both clustered", 1.0, (20,), (60,))
def _(generator: Generator, n: int) -> m.Interval:
    country, city = np.arange(n).repeat(2), generator.permutation(np.arange(n).repeat(2))
    x = np.column_stack([generator.normal(size=n)[country], generator.normal(size=n)[city]])
    y = generator.random(2 * n) < 1 / (1 + np.exp(-x @ [1.0, -0.5]))
    if y.all() or not y.any():
        return -np.inf, np.inf
    low, high = logistic(x, y, [list(map(str, country)), list(map(str, city))]).interval(0)
    return (low, high) if np.isfinite(low) else (-np.inf, np.inf)


K, N_LAYERS, N_HEADS = 6, 30, 9


def in_notebook(paper: str, name: str, known: dict[str, Any]) -> Callable:
    """A function that a notebook defines, with what it uses from there."""
    cells = json.loads((ROOT / f"notebooks/{paper}/{paper}.ipynb").read_text("utf-8"))["cells"]
    code = "".join(next(c["source"] for c in cells if f"def {name}(" in "".join(c["source"])))
    body = [node for node in ast.parse(code).body if getattr(node, "name", "") == name]
    exec(compile(ast.Module(body, []), paper, "exec"), known)
    return known[name]


known = {"metrics": m, "rng": m.rng, "torch": torch, "k": K}
resampled = in_notebook("ioi-circuit-reuse", "resampled", known)


def two_tasks(far: float) -> torch.Tensor:
    """True effects of all heads on two tasks of one stage: of the top heads, `far` stronger than
    all others, four of six are the same."""
    effects = 0.1 * torch.randn(2, N_LAYERS, N_HEADS, generator=torch.Generator().manual_seed(1))
    effects = effects.clamp(-0.2, 0.2)
    effects[:, 10, :4] += far
    effects[0, 20, :2] += far
    effects[1, 25, :2] += far
    return effects


@covers(
    *("overlap of two tasks' top heads (claim 1.3)", "50 prompts, heads that {}"),
    lambda _, far: m.overlap(*([set(m.top_heads(e, K))] for e in two_tasks(far))),
    *(("stand out", 1.0), ("hardly stand out", 0.3)),
    runs=500,
)
def _(generator: Generator, _: str, far: float) -> tuple[float, float]:
    resampled.__globals__["seed"] = int(generator.integers(2**31))
    tops = []
    for effect in two_tasks(far):
        noise = torch.from_numpy(generator.normal(size=(N_LAYERS, N_HEADS, 50)))
        values = effect[..., None] + noise
        patch = SimpleNamespace(clean=range(50), effect=lambda values=values: values)
        tops.append(resampled([patch], each(50), "task", 200))
    drawn = [m.overlap(a, b) for a, b in zip(*tops, strict=True)]
    return tuple(np.quantile(drawn, [0.025, 0.975]))


covers("spread of 20 SAE seeds (claim 2.8)", "their mean", 0.6)(
    lambda g: tuple(np.quantile(g.normal(0.6, 0.05, size=20), [0.025, 0.975]))
)


# --- Nulls ----------------------------------------------------------------------------------------


def above(value: float, draws: Any) -> bool:
    return bool(value > m.Null(np.asarray(draws)).asdict()["q95"])


def below(value: float, draws: Any) -> bool:
    return bool(value < m.Null(draws).asdict()["q05"])


def is_small(value: float, draws: Any) -> bool:
    return m.Null(draws).pvalue(value) < 0.05


def same(draws: np.ndarray) -> tuple[float, np.ndarray]:
    """A value, and draws from the same distribution."""
    return draws[0], draws[1:]


positive("Null, value > q95", "{} draws", (20,), (40,), (100,), (200,), (1000,))(
    lambda g, n: above(*same(g.normal(size=n + 1)))
)
positive("Null, value < q05", "20 draws")(lambda g: below(*same(g.normal(size=21))))
positive("Null.pvalue", "{} draws", (20,), (1000,))(
    lambda g, n: is_small(*same(g.normal(size=n + 1)))
)
positive("Null.pvalue", "200 draws of shares of 12, many of them equal")(
    lambda g: is_small(*same(g.binomial(12, 0.5, size=201) / 12))
)


def best_of_all(generator: Generator, effect: np.ndarray) -> bool:
    p = m.max_statistic_pvalues(torch.from_numpy(effect), generator, 1000)
    return bool((p < 0.05).any())


MAX = "max_statistic_pvalues"
positive(
    *(MAX, "{1} heads, {2} prompts", (30, 270, 12), (1, 9, 12), (30, 270, 100)),
    runs=1000,
)(lambda g, layers, _, n: best_of_all(g, g.normal(size=(layers, N_HEADS, n))))
positive(MAX, "270 heads that correlate by 0.9, 12 prompts", runs=1000)(
    lambda g: best_of_all(g, 3 * g.normal(size=12) + g.normal(size=(N_LAYERS, N_HEADS, 12)))
)
positive(MAX, "9 heads, 12 prompts, skewed with mean 0 (exponential)")(
    lambda g: best_of_all(g, g.exponential(size=(1, N_HEADS, 12)) - 1)
)


def random_heads(generator: Generator, layers: list[int], n_heads: int = 9) -> set[m.Head]:
    """As many different heads of each layer as it is named."""
    return {
        (layer, int(head))
        for layer in set(layers)
        for head in generator.choice(n_heads, layers.count(layer), replace=False)
    }


STAGES = ([24, 25, 25, 26, 28, 29], [18, 20, 20, 21, 21, 23], [5, 5, 6, 8, 9, 9])


@positive("drawn_overlap_null, value > q95", "3 stages of 6 heads each, of 9 a layer")
def _(generator: Generator) -> bool:
    a, b = ([random_heads(generator, stage) for stage in STAGES] for _ in range(2))
    return above(m.overlap(a, b), m.drawn_overlap_null(a, b, N_HEADS, generator))


@positive("spearman, Null.pvalue", "{} items, half of them tied", (8,), (14,), (100,))
def _(generator: Generator, n: int) -> bool:
    a, b = generator.normal(size=n), generator.normal(size=n).round()
    return is_small(*m.spearman(*map(torch.from_numpy, (a, b)), generator))


@positive(
    *("layer_matched, value > q95", "{}, of {} a layer"),
    ("1 head", 9, [20]),
    ("2 heads of 2 layers", 9, [20, 22]),
    ("3 heads of 2 layers", 9, [20, 22, 22]),
    ("4 heads of 4 layers", 9, [20, 21, 22, 24]),
    ("3 heads of 3 layers", 4, [10, 11, 12]),
)
def _(generator: Generator, _: str, n_heads: int, layers: list[int]) -> bool:
    effect = generator.normal(size=(N_LAYERS, n_heads))

    def mean(heads: set[m.Head]) -> float:
        return float(np.mean([effect[head] for head in sorted(heads)]))

    heads = random_heads(generator, layers, n_heads)
    return above(
        mean(heads), [mean(m.layer_matched(heads, n_heads, generator)) for _ in range(200)]
    )


@positive("matched_heads, value > the largest of 20", "30 layers of 9 heads")
def _(generator: Generator) -> bool:
    every = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
    effect = generator.normal(size=(N_LAYERS, N_HEADS))
    found = knobs.matched_heads(SimpleNamespace(heads=lambda: every), (12, 3), 20, set(), generator)
    return effect[12, 3] > max(effect[head] for head in found)


def ordinal(name: str, n: int) -> OrdinalClass:
    at = torch.arange(n)
    pairs = torch.stack([at[:-1], at[1:]], 1)
    return OrdinalClass(name, tuple(map(str, range(n))), at, at + 1, pairs)


@positive("shuffled_null, the best of 270 heads > q95", "classes of 7, 12 and 26", runs=1000)
def _(generator: Generator) -> bool:
    classes = {str(n): ordinal(str(n), n) for n in (7, 12, 26)}
    said = {
        name: torch.from_numpy(generator.integers(len(c), size=(N_LAYERS * N_HEADS, len(c))))
        for name, c in classes.items()
    }
    null = su.shuffled_null(said, classes, generator, 100)
    return above(float(su.macro(su.hits(said, classes)).max()), null.best())


@positive("period_null, value > q95", "the best of 64 neurons, 100 numbers", runs=1000)
def _(generator: Generator) -> bool:
    activation = torch.from_numpy(generator.normal(size=(64, 100)))
    null = ft.period_null(activation, generator, 100)
    return above(float(ft.period_power(activation).max()), null)


@positive(
    "modal_coverage against permuted residues, value > q95",
    "5 dictionaries, 100 numbers",
    runs=1000,
)
def _(generator: Generator) -> bool:
    feature, residue = generator.integers(8, size=(5, 100)), np.arange(100) % 10
    draws = [ft.modal_coverage(feature, generator.permutation(residue)).mean() for _ in range(100)]
    return above(ft.modal_coverage(feature, residue).mean(), draws)


@positive("cosines with permuted features, value > q95", "10 residues (claim 2.9)")
def _(generator: Generator) -> bool:
    cosine, row = generator.normal(size=(10, 10)), np.arange(10)
    draws = [cosine[row, generator.permutation(10)].mean() for _ in range(200)]
    return above(cosine.diagonal().mean(), draws)


positive("binomial test against 0.1 (claim 2.10)", "120 tokens")(
    lambda g: stats.binomtest(g.binomial(120, 0.1), 120, 0.1, alternative="greater").pvalue < 0.05
)


@positive("atlas.overlap_null, p < 0.05", "roles of 6 and 18 heads, of 9 a layer")
def _(generator: Generator) -> bool:
    a = random_heads(generator, STAGES[0])
    b = random_heads(generator, [24, 24, 24, 25, 25, 25, *STAGES[0], *STAGES[1]])
    null = atlas.overlap_null(frozenset(a), frozenset(b), N_HEADS)
    return null[len(a & b) :].sum() < 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="methods that begin with it")
    parser.add_argument("--less", type=int, default=1, metavar="N", help="1/N of the simulations")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows, faults, began = [], 0, time.monotonic()
    for case in (case for case in CASES if case.method.startswith(given.only)):
        runs = case.runs // given.less
        share = case.share(runs)
        word, (low, high) = verdict(case.level, share, runs), region(case.level, runs)
        faults += (word == "no") != bool(case.known)
        said = f"{word}: {case.known}" if case.known else word
        counts = f"{low:.3f} to {high:.3f}"
        rows.append([case.method, case.simulated, case.level, round(share, 4), counts, runs, said])
        print(*rows[-1], sep="  ", flush=True)
    print(show(COLUMNS, rows))
    print(f"{len(rows)} cases, {faults} not as they are said to be")
    if given.less == 1 and not given.only:
        what = "Coverage of every 95% interval and false positives of every null at 5%, simulated."
        write_table(TRUST / "calibration.json", what, COLUMNS, rows, time.monotonic() - began)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
