"""Which head is the successor head, and what its score is on successions that did not choose it.

Gould et al. (arXiv 2312.09230, Sec. 2) give every head the output of MLP0 and name the head with
the best score. We declare a second input (`DECLARED`), correct for both, and score crosswise: each
succession by the head that other successions chose.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replib.chapters.successor_heads.ordinals import OrdinalClass
from replib.chapters.successor_heads.ov_circuit import (
    ShuffledNull,
    half,
    macro,
    macro_interval,
    micro,
    one_head,
    shuffled_null,
)
from replib.interventions.network import Head
from replib.metrics import Estimate, Null, head_label, proportion, rng

DECLARED = ("MLP0", "own residual")  # the paper's input, and what the head's layer receives
COPYING = "writes, of the words of a class, most to the one it reads, in over half of cases"
SMALLEST = 0.2  # smallest effect of claim 2.1: a score so far above chance
SUCCESSOR = "claim 2.1 holds: best of all heads with the input that it keeps"


@dataclass(frozen=True)
class Scores:
    """What all heads favour when they are given one input, beside shuffled successors."""

    said: Mapping[str, Int[Tensor, "head item"]]
    hit: Mapping[str, Bool[Tensor, "head pair"]]
    null: ShuffledNull

    @property
    def macro(self) -> Float[Tensor, " head"]:
        """Macro score of each head."""
        return macro(self.hit)

    @property
    def best(self) -> int:
        """Row of the head with the best macro score, the first of several."""
        return int(self.macro.argmax())

    @property
    def top(self) -> float:
        """That score."""
        return float(self.macro.max())

    @property
    def above_half(self) -> int:
        """How many heads have a score above the paper's mark."""
        return int((self.macro > 0.5).sum())

    @property
    def p(self) -> float:
        """How often the best of all heads does as well when successors are shuffled."""
        return self.best_null().pvalue(self.top)

    def best_null(self, what: str = "macro") -> Null:
        """What the best of all heads reaches by chance; `what` is macro, micro or a class."""
        return Null(self.null.best(what))


def compare(scores: Mapping[str, Scores], heads: Sequence[Head]) -> pd.DataFrame:
    """The best head with each input, its scores and what shuffled successors give the best."""
    rows = {}
    for name, one in scores.items():
        rows[name] = {
            "best head": head_label(heads[one.best]),
            "macro": one.top,
            "null, 95th pct.": one.best_null().asdict()["q95"],
            "p": one.p,
            "best micro": float(micro(one.hit).max()),
            "its null": one.best_null("micro").asdict()["q95"],
        }
    return pd.DataFrame(rows).T


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for there being several (Holm 1979)."""
    order, corrected, worst = sorted(p, key=p.get), {}, 0.0
    for rank, name in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[name]))
        corrected[name] = worst
    return {name: corrected[name] for name in p}


def kept_input(scores: Mapping[str, Scores]) -> str:
    """The declared input with the smallest p, of equal ones the first, the paper's."""
    return min(DECLARED, key=lambda name: scores[name].p)


@dataclass(frozen=True)
class Crossed:
    """The best head and the runner-up on the successions that did not choose them: every other one
    of each class is scored by the two heads that the rest chose."""

    rows: tuple[int, int]  # the best head by the successions 1, 3, ...; by 0, 2, ...
    hit: Mapping[str, Bool[Tensor, " pair"]]  # of the best head
    score: Estimate  # its macro score
    gap: Estimate  # less that of the runner-up
    null: Null  # the score when successors are shuffled, the choice left as it was

    @property
    def chance(self) -> float:
        """Mean of the null."""
        return float(self.null.draws.mean())

    def compared(self, n_classes: int) -> dict[str, Estimate | float]:
        """What claim 2.2 compares between models: the score, and the bar that it should clear. Not
        a number where there are too few classes."""
        few = Estimate(math.nan, math.nan, math.nan, self.score.n)
        score = self.score if n_classes >= 3 else few
        return {"successor_score": score, "successor_bar": self.chance + SMALLEST}

    @property
    def gate(self) -> dict[str, float]:
        """Is the head above its null where it was not chosen?"""
        return {"heldout": self.score.value, "heldout_q95": self.null.asdict()["q95"]}


def crossed(
    scores: Scores, classes: Mapping[str, OrdinalClass], seed: int, draws: int = 1000
) -> Crossed:
    """Choose two heads on each half of the successions, score them on the other half."""
    rows = []
    first = {name: hit[0].clone() for name, hit in scores.hit.items()}
    second = {name: hit[0].clone() for name, hit in scores.hit.items()}
    null = {name: np.zeros(draws) for name in classes}
    for which in (0, 1):
        order = macro(half(scores.hit, 1 - which)).argsort(descending=True, stable=True)
        best, runner_up = order[:2].tolist()
        said = one_head(scores.said, [best])
        shuffled = shuffled_null(said, classes, rng(seed, "crossed", which), draws, which)
        for name, hit in scores.hit.items():
            first[name][which::2] = hit[best, which::2]
            second[name][which::2] = hit[runner_up, which::2]
            share = len(range(which, hit.shape[1], 2)) / hit.shape[1]
            null[name] += share * shuffled.per_class[name][:, 0]
        rows.append(best)
    gap = {name: first[name].double() - second[name].double() for name in first}
    return Crossed(
        rows=tuple(rows),
        hit=first,
        score=macro_interval(first, rng(seed, "2.1")),
        gap=macro_interval(gap, rng(seed, "2.3")),
        null=Null(np.mean([*null.values()], axis=0)),
    )


def crossed_each(
    scores: Mapping[str, Scores], classes: Mapping[str, OrdinalClass], seed: int, draws: int
) -> dict[str, Crossed]:
    """`crossed` with each of the declared inputs."""
    return {name: crossed(scores[name], classes, seed, draws) for name in DECLARED}


def found(trials: Mapping[str, Crossed], kept: str, p: Mapping[str, float]) -> dict[str, object]:
    """What claim 2.1 is decided by: the crossed score with the input that is kept, its null, p by
    Holm, and how high the score with the other input may be."""
    (other,) = (trial for name, trial in trials.items() if name != kept)
    mine = trials[kept]
    more = {"p": p[kept], "other_high": other.score.high, "other_chance": other.chance}
    return {"value": mine.score, "null": mine.null, **more}


@dataclass(frozen=True)
class Carried:
    """Scores in each class of the head that is best in all other classes."""

    above: list[str]  # the classes in which it beats its own null
    score: Estimate  # mean over classes
    chance: float  # the same when successors are shuffled

    @property
    def numbers(self) -> dict[str, object]:
        """What claim 2.4 is decided by."""
        return {"value": len(self.above), "carried": self.score, "chance": self.chance}


def carried(
    scores: Scores, classes: Mapping[str, OrdinalClass], seed: int, draws: int = 1000
) -> Carried:
    """Does a head chosen on all other classes increment in this one? Its null shuffles the
    successors of this class; no other head has a part in it."""
    above, hits, chance = [], {}, []
    for name, hit in scores.hit.items():
        others = {other: h for other, h in scores.hit.items() if other != name} or scores.hit
        row = int(macro(others).argmax())
        said, own = {name: scores.said[name][[row]]}, {name: classes[name]}
        null = Null(shuffled_null(said, own, rng(seed, "carried", name), draws).macro[:, 0])
        hits[name] = hit[row]
        chance.append(null.draws.mean())
        if float(hit[row].double().mean()) > null.asdict()["q95"]:
            above.append(name)
    return Carried(above, macro_interval(hits, rng(seed, "2.4")), float(np.mean(chance)))


def by_class(scores: Scores, row: int, label: str) -> dict[str, dict[str, Estimate]]:
    """A head's score in each class, and the 95th percentile of the best of all heads under the
    null, as bars."""
    bars = {}
    for name, hit in scores.hit.items():
        line = scores.best_null(name).asdict()["q95"]
        bars[name.replace(" ", "\n")] = {
            f"head {label}": proportion(hit[row]),
            "best head under the null (95th pct.)": Estimate(line, line, line, len(hit[row])),
        }
    return bars


def without_the_head(
    first: Bool[Tensor, " pair"],
    within: Mapping[str, Bool[Tensor, "1 _"]],
    trial: Crossed,
    seed: int,
) -> dict[str, Estimate]:
    """What claim 2.5 is decided by: share of tokens whose successor is the first of the vocabulary
    when the output of MLP0 is decoded directly (`first`); and how far the head's score is ahead of
    the share `within` the class."""
    ahead = {name: hit.double() - within[name][0].double() for name, hit in trial.hit.items()}
    return {"value": proportion(first), "ahead": macro_interval(ahead, rng(seed, "2.5"))}


def key_of(name: str) -> str:
    """A report's key for the best score with an input: best_embedding_MLP0_no_norms."""
    return "_".join(["best", *name.replace(",", "").replace("+", "").split()])


def reported(
    scores: Mapping[str, Scores], trials: Mapping[str, Crossed], p: Mapping[str, float]
) -> dict[str, float | Estimate]:
    """For the record: with each input the best score, its null and p; with the declared ones the
    crossed score and p by Holm too."""
    out: dict[str, float | Estimate] = {}
    for name, one in scores.items():
        key = key_of(name)
        out |= {key: one.top, f"{key}_null": one.best_null().asdict()["q95"], f"{key}_p": one.p}
        if name in trials:
            out |= {f"{key}_crossed": trials[name].score, f"{key}_holm": p[name]}
    return out


def copying(
    said: Mapping[str, Int[Tensor, "head item"]], heads: Sequence[Head]
) -> list[tuple[int, int]]:
    """The heads that favour the very word they read, as `COPYING` says (mean over classes)."""
    share = macro({name: x == torch.arange(x.shape[-1]) for name, x in said.items()})
    return [head for head, one in zip(heads, share, strict=True) if one > 0.5]
