"""How many of their top heads two tasks have in common (Merullo et al. 2310.08744, Sec. 4).

A task's stages are its path patches in order: 1 and 2 act at END, and every task has them; 3 and 4
act earlier in the prompt. Heads are compared stage by stage.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from replib import figures, metrics
from replib.chapters.ioi_circuit_reuse.circuit import halves, head_names
from replib.figures import Picture
from replib.interventions.network import Head
from replib.interventions.path_patching import PathPatch
from replib.metrics import Estimate, Null, rng

TopHeads = Sequence[set[Head]]  # of one task, a set a stage
Part = Callable[[Float[Tensor, "layer head prompt"]], Float[Tensor, "layer head some"]]


@dataclass(frozen=True)
class TaskHeads:
    """The top heads of a task, and what they would be on other prompts of the same kind."""

    tops: TopHeads  # [stage], on all prompts
    resampled: Sequence[TopHeads]  # [draw][stage], under each resampling of the prompts
    ceiling: float  # overlap of the task with itself, between the halves of its prompts


def tops(
    stages: Sequence[PathPatch], fraction: float = 0.02, part: Part | None = None
) -> list[set[Head]]:
    """The top heads of each stage by size of score: a `fraction` of all heads, rounded up.

    `part` picks the prompts whose effects [layer head prompt] count; without it all do.
    """
    effects = [patch.effect() for patch in stages]
    scores = [(effect if part is None else part(effect)).mean(-1) for effect in effects]
    return [
        set(metrics.top_heads(score, metrics.n_top(score.numel(), fraction))) for score in scores
    ]


def ceiling(stages: Sequence[PathPatch], fraction: float = 0.02) -> float:
    """The overlap of a task with itself: top heads of one half of its prompts and of the other."""
    one = tops(stages, fraction, lambda effect: halves(effect)[0])
    other = tops(stages, fraction, lambda effect: halves(effect)[1])
    return metrics.overlap(one, other)


def task_heads(
    stages: Sequence[PathPatch], groups: Sequence[str], seed: int, label: str, draws: int = 500
) -> TaskHeads:
    """The top 2% of each stage, and under each of `draws` resamplings of the prompts.

    `groups` names the template of each prompt: whole templates are drawn. A draw takes the same
    prompts in all stages that use as many; a stage of fewer prompts uses the first ones.
    """
    drawn = []
    for patch in stages:
        generator = rng(seed, "tops", label)
        weights = metrics.cluster_draws(groups[: len(patch.clean)], generator, draws)
        effect = patch.effect().double()
        scores = torch.einsum("lhp,dp->dlh", effect, torch.from_numpy(weights))
        k = metrics.n_top(scores[0].numel())
        drawn.append([set(metrics.top_heads(score, k)) for score in scores])
    return TaskHeads(tops(stages), list(zip(*drawn, strict=True)), ceiling(stages))


def between(a: TaskHeads, b: TaskHeads, n_stages: int) -> Estimate:
    """The share of the heads of `a` that are heads of `b` too, over the first stages, and its 95%
    percentile interval over resamplings of both tasks' prompts. n: heads compared."""
    value = metrics.overlap(a.tops[:n_stages], b.tops[:n_stages])
    return _estimate(value, _draws(a, b, n_stages), a, n_stages)


def beyond(a: TaskHeads, b: TaskHeads, others: Iterable[TaskHeads], n_stages: int) -> Estimate:
    """By how much the overlap of `a` with `b` is larger than the largest one of `a` with one of the
    `others` (0 without others), as `between` measures it."""
    others = list(others)
    most = max((between(a, other, n_stages).value for other in others), default=0.0)
    rest = [_draws(a, other, n_stages) for other in others]
    drawn = [
        mine - max((share[i] for share in rest), default=0.0)
        for i, mine in enumerate(_draws(a, b, n_stages))
    ]
    return _estimate(between(a, b, n_stages).value - most, drawn, a, n_stages)


def _draws(a: TaskHeads, b: TaskHeads, n_stages: int) -> list[float]:
    return [
        metrics.overlap(one[:n_stages], other[:n_stages])
        for one, other in zip(a.resampled, b.resampled, strict=True)
    ]


def _estimate(value: float, draws: Sequence[float], a: TaskHeads, n_stages: int) -> Estimate:
    low, high = torch.tensor(draws).quantile(torch.tensor([0.025, 0.975])).tolist()
    return Estimate(value, low, high, sum(map(len, a.tops[:n_stages])))


def layer_null(a: TaskHeads, b: TaskHeads, n_heads: int, seed: int) -> Null:
    """Overlaps of `a` with `b` when the heads of `b` are drawn anew within their own layers, which
    have `n_heads` heads each."""
    return Null(metrics.drawn_overlap_null(a.tops, b.tops, n_heads, rng(seed, "overlap")))


def by_threshold(
    a: Sequence[PathPatch], b: Sequence[PathPatch], percents: Sequence[int], seed: int
) -> tuple[dict[str, list[float]], tuple[list[float], list[float]]]:
    """The overlap of IOI's stages `a` with Colored Objects' `b` if other shares of the heads are
    kept, and the ceiling of `a`; and the 5th and 95th percentile of the null within layers."""
    shared, itself, low, high = [], [], [], []
    for percent in percents:
        fraction = percent / 100
        a_tops, b_tops = tops(a, fraction), tops(b, fraction)
        n_heads, generator = a[0].logit_diff.shape[1], rng(seed, "sweep", fraction)
        draws = metrics.drawn_overlap_null(a_tops, b_tops, n_heads, generator, 200)
        shared.append(metrics.overlap(a_tops, b_tops))
        itself.append(ceiling(a, fraction))
        low.append(float(np.quantile(draws, 0.05)))
        high.append(float(np.quantile(draws, 0.95)))
    return {"IOI and Colored Objects": shared, "IOI with itself (halves)": itself}, (low, high)


def bars(
    shared: Estimate,
    at_end: Estimate,
    controls: Mapping[str, Estimate],
    ceiling: float,
    null: Null,
) -> Picture:
    """The overlaps of IOI with the other tasks beside their null and IOI's ceiling."""
    shown = {
        "IOI and\nColored\nObjects,\n4 stages": shared,
        "IOI and\nColored\nObjects,\nstages 1–2": at_end,
        **{f"IOI and\n{name},\nstages 1–2": share for name, share in controls.items()},
        "IOI with\nitself\n(halves)": Estimate(ceiling, ceiling, ceiling, shared.n),
    }
    return figures.bars(shown, "share of heads in common", null=null)


def table(a: TaskHeads, b: TaskHeads) -> pd.DataFrame:
    """Which heads IOI, `a`, and Colored Objects, `b`, have in common, stage by stage."""
    rows = [
        {"both tasks": one & other, "IOI only": one - other, "Colored Objects only": other - one}
        for one, other in zip(a.tops, b.tops, strict=True)
    ]
    names = [f"stage {i}" for i, _ in enumerate(rows, 1)]
    return pd.DataFrame(rows, index=names).map(lambda heads: head_names(sorted(heads)))


def n_specific(a: TaskHeads, b: TaskHeads) -> int:
    """In how many stages there is a head that only one of the tasks uses."""
    return sum(one != other for one, other in zip(a.tops, b.tops, strict=True))
