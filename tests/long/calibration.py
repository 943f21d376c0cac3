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

KNOWN = {
    ("wilson", "20 prompts, true share 0.95"): "near 0 and 1 few counts are possible",
    ("wilson", "20 prompts, true share 0.992"): "near 0 and 1 few counts are possible",
    ("seeds_mean", "5 seeds, shares near 1 (beta, mean 0.9)"): "a t interval of few skewed values",
    (
        "seeds_mean",
        "5 seeds, all or nothing, 9 in 10 learn",
    ): "seeds that agree give no width, though another one may not",
    (
        "bootstrap",
        "100 prompts right or wrong, true share 0.9",
    ): "Wilson's interval, which covers 0.936 here; what is missing to that is chance",
    ("bootstrap", "20 prompts, skewed (exponential)"): "few skewed values",
    (
        "bootstrap",
        "5 templates of 5 prompts that correlate by 0.5, normal",
    ): "five templates say too little about how far templates differ",
    (
        "macro_interval",
        "classes of 7, 12, 26 and 100 successions, share right 0.9",
    ): "near 1 it is missed from one side only, by an upper end that is too low",
    (
        "logistic",
        "20 countries × 2 prompts, 20 cities, both clustered",
    ): "of few clusters the robust variance is too small, and t makes up for part of it",
    (
        "overlap of two tasks' top heads (claim 1.3)",
        "50 prompts, heads that hardly stand out",
    ): "top heads of few prompts are partly chance and overlap less than the true ones",
    (
        "max_statistic_pvalues",
        "9 heads, 12 prompts, skewed with mean 0 (exponential)",
    ): "flipped signs suppose that effects are as often above as below, not only in the mean",
}


@dataclass(frozen=True)
class Case:
    """One simulation. `trial`: did the interval cover (level 0.95), was the test positive though
    nothing was there (level 0.05)?"""

    method: str
    simulated: str
    level: float
    trial: Callable[[Generator], bool]
    runs: int = RUNS

    @property
    def known(self) -> str:
        return KNOWN.get((self.method, self.simulated), "")

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


# --- Intervals ------------------------------------------------------------------------------------

CASES: list[Case] = []


def covers(method: str, simulated: str, truth: float, runs: int = RUNS) -> Callable:
    """Enter a function from a generator to (low, high) as a case."""

    def enter(interval: Callable[[Generator], tuple[float, float]]) -> Callable:
        def trial(generator: Generator) -> bool:
            low, high = interval(generator)
            return low - 1e-12 <= truth <= high + 1e-12

        CASES.append(Case(method, simulated, 0.95, trial, runs))
        return interval

    return enter


def positive(method: str, simulated: str, runs: int = RUNS) -> Callable:
    """Enter a test of something that is not there as a case."""

    def enter(trial: Callable[[Generator], bool]) -> Callable:
        CASES.append(Case(method, simulated, 0.05, trial, runs))
        return trial

    return enter


def each(n: int) -> list[str]:
    """Every prompt a group of its own."""
    return [str(i) for i in range(n)]


def beta(mean: float, correlation: float) -> tuple[float, float]:
    """Parameters of the distribution of the shares of groups, whose members correlate so."""
    size = 1 / correlation - 1
    return mean * size, (1 - mean) * size


for n, p in itertools.product((20, 100), (0.5, 0.9, 0.95, 0.98, 0.992)):

    @covers("wilson", f"{n} prompts, true share {p}", p)
    def _(generator: Generator, n: int = n, p: float = p) -> m.Interval:
        return m.wilson(torch.from_numpy(generator.random(n) < p))[1]


def templates(generator: Generator, n: int, each: int, mean: float, correlation: float) -> tuple:
    """Right answers to prompts of n templates, the template of each, its share of right answers."""
    shares = generator.beta(*beta(mean, correlation), size=n).repeat(each)
    right = torch.from_numpy(generator.random(n * each) < shares)
    return right, np.arange(n).repeat(each).tolist(), shares


for n, size in ((5, 10), (10, 10), (20, 5)):
    grouped = f"{n * size} prompts of {n} templates that correlate by 0.1, true share 0.8"

    @covers("wilson, with groups", grouped, 0.8)
    def _(generator: Generator, n: int = n, size: int = size) -> m.Interval:
        return m.wilson(*templates(generator, n, size, 0.8, 0.1)[:2])[1]


def _same_templates(generator: Generator) -> bool:
    right, _, shares = templates(generator, 10, 10, 0.8, 0.1)
    low, high = m.wilson(right)[1]
    return low <= shares.mean() <= high


CASES.append(
    Case("wilson", "100 prompts of 10 templates, and others of the same ten", 0.95, _same_templates)
)


for n in (3, 5):

    @covers("seeds_mean", f"{n} seeds, normal", 1.0)
    def _(generator: Generator, n: int = n) -> m.Interval:
        return m.seeds_mean(generator.normal(1.0, 0.3, size=n))[1]


@covers("seeds_mean", "5 seeds, shares near 1 (beta, mean 0.9)", 0.9)
def _(generator: Generator) -> m.Interval:
    return m.seeds_mean(generator.beta(9, 1, size=5))[1]


@covers("seeds_mean", "5 seeds, all or nothing, 9 in 10 learn", 0.9)
def _(generator: Generator) -> m.Interval:
    return m.seeds_mean((generator.random(5) < 0.9).astype(float))[1]


for n, spread in (((5, 5), (1, 1)), ((5, 5), (1, 4)), ((5, 3), (1, 4))):

    @covers("seeds_difference", f"{n[0]} and {n[1]} seeds, normal, spreads 1 and {spread[1]}", -1.0)
    def _(generator: Generator, n: tuple = n, spread: tuple = spread) -> m.Interval:
        a, b = (generator.normal(i, spread[i], size=n[i]) for i in (0, 1))
        return m.seeds_difference(a, b)[1]


@covers("seeds_difference", "5 and 5 seeds, all or nothing, 9 and 5 in 10 learn", 0.4)
def _(generator: Generator) -> m.Interval:
    a, b = ((generator.random(5) < p).astype(float) for p in (0.9, 0.5))
    return m.seeds_difference(a, b)[1]


for n in (12, 20, 100):

    @covers("bootstrap", f"{n} prompts, normal", 1.0)
    def _(generator: Generator, n: int = n) -> m.Interval:
        values = torch.from_numpy(generator.normal(1.0, 2.0, size=n))
        return m.bootstrap(values, each(n), generator)[1]


for n, p in itertools.product((20, 100), (0.5, 0.9, 0.98)):

    @covers("bootstrap", f"{n} prompts right or wrong, true share {p}", p)
    def _(generator: Generator, n: int = n, p: float = p) -> m.Interval:
        values = torch.from_numpy(generator.random(n) < p)
        return m.bootstrap(values, each(n), generator)[1]


for n, (more, less) in itertools.product((20, 100), ((0.3, 0.1), (0.1, 0.02), (0.03, 0.0))):
    paired = f"{n} prompts answered twice, {more:.0%} gained, {less:.0%} lost"

    @covers("bootstrap", paired, more - less)
    def _(generator: Generator, n: int = n, more: float = more, less: float = less) -> m.Interval:
        u = generator.random(n)
        gained = (u < more).astype(float) - ((u >= more) & (u < more + less))
        return m.bootstrap(torch.from_numpy(gained), each(n), generator)[1]


for n in (20, 100):

    @covers("bootstrap", f"{n} prompts, skewed (exponential)", 1.0)
    def _(generator: Generator, n: int = n) -> m.Interval:
        return m.bootstrap(torch.from_numpy(generator.exponential(size=n)), each(n), generator)[1]


for n in (5, 9, 18, 40):

    @covers("bootstrap", f"{n} templates of 5 prompts that correlate by 0.5, normal", 1.0)
    def _(generator: Generator, n: int = n) -> m.Interval:
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


for p in (0.5, 0.9):

    @covers("macro_interval", f"classes of 7, 12, 26 and 100 successions, share right {p}", p)
    def _(generator: Generator, p: float = p) -> m.Interval:
        right = {str(n): torch.from_numpy(generator.random(n) < p) for n in (7, 12, 26, 100)}
        return su.macro_interval(right, generator)


for n in (20, 60):

    @covers("logistic", f"{n} countries × 2 prompts, {n} cities, both clustered", 1.0)
    def _(generator: Generator, n: int = n) -> m.Interval:
        country, city = np.arange(n).repeat(2), generator.permutation(np.arange(n).repeat(2))
        x = np.column_stack([generator.normal(size=n)[country], generator.normal(size=n)[city]])
        y = generator.random(2 * n) < 1 / (1 + np.exp(-x @ [1.0, -0.5]))
        if y.all() or not y.any():
            return -np.inf, np.inf
        low, high = logistic(x, y, [list(map(str, country)), list(map(str, city))]).interval(0)
        return (low, high) if np.isfinite(low) else (-np.inf, np.inf)


def in_notebook(paper: str, name: str, known: dict[str, Any]) -> Callable:
    """A function that a notebook defines, with what it uses from there."""
    cells = json.loads((ROOT / "notebooks" / f"{paper}/{paper}.ipynb").read_text("utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code" and f"def {name}(" in (code := "".join(cell["source"])):
            body = [x for x in ast.parse(code).body if getattr(x, "name", "") == name]
            exec(compile(ast.Module(body, []), paper, "exec"), known)
            return known[name]
    raise LookupError(f"{paper} defines no {name}")


K, N_LAYERS, N_HEADS = 6, 30, 9
resampled = in_notebook(
    "ioi-circuit-reuse", "resampled", {"metrics": m, "rng": m.rng, "torch": torch, "k": K}
)


def two_tasks(far: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """True effects of all heads on two tasks of one stage, and the share of top heads in common:
    four of six, `far` stronger than all others."""
    effects = 0.1 * torch.randn(2, N_LAYERS, N_HEADS, generator=torch.Generator().manual_seed(1))
    effects = effects.clamp(-0.2, 0.2)
    effects[:, 10, :4] += far
    effects[0, 20, :2] += far
    effects[1, 25, :2] += far
    a, b = ([set(m.top_heads(e, K))] for e in effects)
    return effects[0], effects[1], m.overlap(a, b)


for name, far in (("stand out", 1.0), ("hardly stand out", 0.3)):
    first, second, common = two_tasks(far)

    @covers(
        "overlap of two tasks' top heads (claim 1.3)",
        f"50 prompts, heads that {name}",
        common,
        runs=500,
    )
    def _(
        generator: Generator, first: torch.Tensor = first, second: torch.Tensor = second
    ) -> tuple[float, float]:
        resampled.__globals__["seed"] = int(generator.integers(2**31))
        tops = []
        for effect in (first, second):
            noise = torch.from_numpy(generator.normal(size=(N_LAYERS, N_HEADS, 50)))
            values = effect[..., None] + noise
            patch = SimpleNamespace(clean=range(50), effect=lambda values=values: values)
            tops.append(resampled([patch], each(50), "task", 200))
        drawn = [m.overlap(a, b) for a, b in zip(*tops, strict=True)]
        return tuple(np.quantile(drawn, [0.025, 0.975]))


@covers("spread of 20 SAE seeds (claim 2.8)", "their mean", 0.6)
def _(generator: Generator) -> tuple[float, float]:
    return tuple(np.quantile(generator.normal(0.6, 0.05, size=20), [0.025, 0.975]))


# --- Nulls ----------------------------------------------------------------------------------------

for n in (20, 40, 100, 200, 1000):

    @positive("Null, value > q95", f"{n} draws")
    def _(generator: Generator, n: int = n) -> bool:
        value, *draws = generator.normal(size=n + 1)
        return value > m.Null(np.array(draws)).asdict()["q95"]


@positive("Null, value < q05", "20 draws")
def _(generator: Generator) -> bool:
    value, *draws = generator.normal(size=21)
    return value < m.Null(np.array(draws)).asdict()["q05"]


for n in (20, 1000):

    @positive("Null.pvalue", f"{n} draws")
    def _(generator: Generator, n: int = n) -> bool:
        value, *draws = generator.normal(size=n + 1)
        return m.Null(np.array(draws)).pvalue(value) < 0.05


@positive("Null.pvalue", "200 draws of shares of 12, many of them equal")
def _(generator: Generator) -> bool:
    value, *draws = generator.binomial(12, 0.5, size=201) / 12
    return m.Null(np.array(draws)).pvalue(value) < 0.05


def best_of_all(generator: Generator, effect: np.ndarray, draws: int = 1000) -> bool:
    p = m.max_statistic_pvalues(torch.from_numpy(effect), generator, draws)
    return bool((p < 0.05).any())


for n_layers, n, what in ((30, 12, "270 heads"), (1, 12, "9 heads"), (30, 100, "270 heads")):

    @positive("max_statistic_pvalues", f"{what}, {n} prompts", runs=1000)
    def _(generator: Generator, n_layers: int = n_layers, n: int = n) -> bool:
        return best_of_all(generator, generator.normal(size=(n_layers, N_HEADS, n)))


@positive("max_statistic_pvalues", "270 heads that correlate by 0.9, 12 prompts", runs=1000)
def _(generator: Generator) -> bool:
    common = 3 * generator.normal(size=12)
    return best_of_all(generator, common + generator.normal(size=(N_LAYERS, N_HEADS, 12)))


@positive("max_statistic_pvalues", "9 heads, 12 prompts, skewed with mean 0 (exponential)")
def _(generator: Generator) -> bool:
    return best_of_all(generator, generator.exponential(size=(1, N_HEADS, 12)) - 1)


def random_heads(generator: Generator, layers: list[int], n_heads: int = 9) -> set[m.Head]:
    """As many different heads of each layer as it is named."""
    return {
        (layer, int(head))
        for layer in set(layers)
        for head in generator.choice(n_heads, layers.count(layer), replace=False)
    }


STAGES = ([24, 25, 25, 26, 28, 29], [18, 20, 20, 21, 21, 23], [5, 5, 6, 8, 9, 9])


@positive("overlap_null, value > q95", "3 stages of 6 heads each, of 9 a layer")
def _(generator: Generator) -> bool:
    a, b = ([random_heads(generator, stage) for stage in STAGES] for _ in range(2))
    null = m.Null(m.drawn_overlap_null(a, b, N_HEADS, generator))
    return m.overlap(a, b) > null.asdict()["q95"]


for n in (8, 14, 100):

    @positive("spearman, Null.pvalue", f"{n} items, half of them tied")
    def _(generator: Generator, n: int = n) -> bool:
        a, b = generator.normal(size=n), generator.normal(size=n).round()
        value, null = m.spearman(*map(torch.from_numpy, (a, b)), generator)
        return m.Null(null).pvalue(value) < 0.05


for layers, n_heads, what in (
    ([20], 9, "1 head"),
    ([20, 22], 9, "2 heads of 2 layers"),
    ([20, 22, 22], 9, "3 heads of 2 layers"),
    ([20, 21, 22, 24], 9, "4 heads of 4 layers"),
    ([10, 11, 12], 4, "3 heads of 3 layers"),
):

    @positive("layer_matched, value > q95", f"{what}, of {n_heads} a layer")
    def _(generator: Generator, layers: list[int] = layers, n_heads: int = n_heads) -> bool:
        effect = generator.normal(size=(N_LAYERS, n_heads))

        def mean(heads: set[m.Head]) -> float:
            return float(np.mean([effect[head] for head in sorted(heads)]))

        heads = random_heads(generator, layers, n_heads)
        draws = [mean(m.layer_matched(heads, n_heads, generator)) for _ in range(200)]
        return mean(heads) > m.Null(np.array(draws)).asdict()["q95"]


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
    return float(su.macro(su.hits(said, classes)).max()) > m.Null(null.best()).asdict()["q95"]


@positive("period_null, value > q95", "the best of 64 neurons, 100 numbers", runs=1000)
def _(generator: Generator) -> bool:
    activation = torch.from_numpy(generator.normal(size=(64, 100)))
    null = m.Null(ft.period_null(activation, generator, 100))
    return float(ft.period_power(activation).max()) > null.asdict()["q95"]


@positive(
    "modal_coverage against permuted residues, value > q95",
    "5 dictionaries, 100 numbers",
    runs=1000,
)
def _(generator: Generator) -> bool:
    feature, residue = generator.integers(8, size=(5, 100)), np.arange(100) % 10
    draws = [ft.modal_coverage(feature, generator.permutation(residue)).mean() for _ in range(100)]
    return ft.modal_coverage(feature, residue).mean() > m.Null(np.array(draws)).asdict()["q95"]


@positive("cosines with permuted features, value > q95", "10 residues (claim 2.9)")
def _(generator: Generator) -> bool:
    cosine, row = generator.normal(size=(10, 10)), np.arange(10)
    draws = [cosine[row, generator.permutation(10)].mean() for _ in range(200)]
    return cosine.diagonal().mean() > m.Null(np.array(draws)).asdict()["q95"]


@positive("binomial test against 0.1 (claim 2.10)", "120 tokens")
def _(generator: Generator) -> bool:
    k = int(generator.binomial(120, 0.1))
    return stats.binomtest(k, 120, 0.1, alternative="greater").pvalue < 0.05


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
