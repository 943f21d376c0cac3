"""How many of their top heads two tasks have in common (Merullo et al. 2310.08744, Sec. 4).

A task's stages are its path patches in order: 1 and 2 act at END, and every task has them; 3 and 4
act earlier in the prompt. Heads are compared stage by stage. An overlap of two lists of top heads
has no interval: its error is a bias, since a ranking from fewer prompts, or resampled ones, is
noisier and agrees with any other less. It stands beside the overlap of a task with itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from replib import figures, metrics
from replib.chapters.ioi_circuit_reuse.circuit import (
    MIN_SCORE,
    end_stages,
    halves,
    head_names,
    mean_over,
    on_what_differs,
    select,
)
from replib.figures import Picture
from replib.interventions.head_edits import read
from replib.interventions.network import Head, Network
from replib.interventions.path_patching import PathPatch
from replib.metrics import Estimate, Null, head_label, rng
from replib.prompts.pairs import PromptPairs

TopHeads = Sequence[set[Head]]  # of one task, a set a stage
Part = Callable[[Float[Tensor, "layer head prompt"]], Float[Tensor, "layer head some"]]


@dataclass(frozen=True)
class TaskHeads:
    """The top heads of a task."""

    tops: TopHeads  # [stage], on all prompts of the stage
    chosen: TopHeads  # [stage], of stages 1 and 2, on the selection half
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


def task_heads(stages: Sequence[PathPatch]) -> TaskHeads:
    """The top 2% of each stage, on all prompts and on the selection half."""
    chosen = tops(stages[:2], part=lambda effect: halves(effect)[0])
    return TaskHeads(tops(stages), chosen, ceiling(stages))


def control_heads(net: Network, pairs: PromptPairs) -> TaskHeads:
    """The top heads of an unrelated task: stages 1 and 2, whose receivers support the answer and
    attend to the tokens that it depends on."""
    depends = on_what_differs(read(net, pairs, capture=True).pattern[0], pairs)
    return task_heads(end_stages(net, pairs, depends))


def shared_heads(a: TopHeads, b: TopHeads) -> Estimate:
    """The share of the heads of `a` that are heads of `b` too. Its interval takes the heads as
    independent trials: what the share would be in other heads, not on other prompts."""
    pairs = [(head, other) for one, other in zip(a, b, strict=True) for head in sorted(one)]
    return metrics.proportion(torch.tensor([head in other for head, other in pairs]))


def overlap_numbers(
    ioi: TaskHeads, cobj: TaskHeads, controls: Mapping[str, TaskHeads], n_heads: int, seed: int
) -> dict[str, object]:
    """What decides claim 1.3, by name: the overlap over four stages, the upper end of its interval
    over heads, its null when the heads of Colored Objects are drawn anew within their own layers
    (of `n_heads` heads each), the ceilings, and the overlaps over stages 1 and 2."""
    shared, (one, other) = shared_heads(ioi.tops, cobj.tops), (ioi.tops, cobj.tops)
    with_controls = [metrics.overlap(one[:2], task.tops[:2]) for task in controls.values()]
    return {
        "value": shared.value,
        "n": shared.n,
        "upper": shared.high,
        "null": Null(metrics.drawn_overlap_null(one, other, n_heads, rng(seed, "overlap"))),
        "ceiling_ioi": ioi.ceiling,
        "ceiling_cobj": cobj.ceiling,
        "end_overlap": metrics.overlap(one[:2], other[:2]),
        "control_overlap": min(with_controls, default=0.0),
        "controls": len(controls),
    }


def effect_beyond(
    stages: Sequence[PathPatch],
    ioi: TaskHeads,
    cobj: TaskHeads,
    controls: Mapping[str, TaskHeads],
    groups: Sequence[str],
    seed: int,
) -> Estimate:
    """How much more of IOI's circuit is that of Colored Objects than that of the unrelated task
    that shares most (claim 1.4).

    Of the effect that IOI's top heads have in IOI's `stages` 1 and 2, the share of those heads that
    are top heads of Colored Objects too, less the share of those that are of the other task. All
    heads are chosen on selection halves, effects measured on the report half of IOI, each with the
    sign that it had on the selection half; `groups` names the templates of IOI's prompts. If all
    heads are shared, or none, no prompt differs: then the interval leaves room for as large a
    share of other prompts as none of so many can rule out.
    """
    n = len(stages[0].clean) // 2

    def of(other: TopHeads) -> Float[Tensor, " prompt"]:
        """The report effect of IOI's top heads that are in `other`, each prompt's sum."""
        total = torch.zeros(len(stages[0].clean) - n)
        for patch, mine, theirs in zip(stages[:2], ioi.chosen, other, strict=True):
            chosen, report = halves(patch.effect())
            for head in mine & theirs:
                total += report[head] * chosen[head].mean().sign()
        return total

    others = [of(task.chosen) for task in controls.values()] or [of([set(), set()])]
    most = max(others, key=lambda effect: float(effect.mean()))
    every = torch.stack([of(ioi.chosen), of(cobj.chosen), most], dim=-1)
    found = metrics.bootstrap(
        every,
        groups[n:],
        rng(seed, "beyond"),
        lambda mean: (mean[..., 1] - mean[..., 2]) / mean[..., 0],
    )
    if found.high - found.low > 1e-6:
        return found
    room = metrics.proportion(torch.zeros(found.n, dtype=torch.bool)).high
    ends = max(-1.0, found.value - room), min(1.0, found.value + room)
    return Estimate(found.value, *ends, found.n)


def movers_again(
    movers: Sequence[Head], ioi: PathPatch, cobj: PathPatch, groups: Sequence[str], seed: int
) -> Estimate:
    """The mean score of IOI's movers in stage 1 of Colored Objects, as a share of that in IOI, on
    both report halves (claim 1.5). The i-th prompts of both go together; `groups` names the
    templates of the Colored Objects prompts."""
    parts = [mean_over(movers, halves(patch.effect())[1]) for patch in (cobj, ioi)]
    n = min(map(len, parts))
    values = torch.stack([part[:n] for part in parts], dim=-1)
    draws = rng(seed, "movers again")
    return metrics.bootstrap(values, groups[-n:], draws, lambda mean: mean[..., 0] / mean[..., 1])


def specific(
    ioi: Sequence[PathPatch], cobj: Sequence[PathPatch], seed: int
) -> list[tuple[str, int, float]]:
    """Heads that only one task uses: of the candidates of stages 1 and 2 in either task, name,
    stage, and score in IOI less that in Colored Objects, on the report halves (claim 1.5).

    A head's score in one task is at least 2% of its gap, and above that in the other by as much;
    and chance would not make the stage's best candidate look as different (differences between the
    i-th prompts of both tasks, p < 0.05 for the largest |t|).
    """
    found = []
    for stage, patches in enumerate(zip(ioi[:2], cobj[:2], strict=True), 1):
        one, other = (halves(patch.effect())[1].nan_to_num(0.0) for patch in patches)
        n = min(one.shape[-1], other.shape[-1])
        candidates = dict.fromkeys(head for patch in patches for head in select(patch))
        difference = torch.full_like(one[..., :n], torch.nan)
        for head in candidates:
            difference[head] = one[head][:n] - other[head][:n]
        p = metrics.max_statistic_pvalues(difference, rng(seed, "specific", stage))
        for head in candidates:
            by = float(difference[head].mean())
            larger = float((one if by > 0 else other)[head].mean())
            if min(larger, abs(by)) >= MIN_SCORE and p[head] < 0.05:
                found.append((head_label(head), stage, by))
    return found


def top_ten(ioi: PathPatch, cobj: PathPatch, has_gaps: bool) -> Estimate:
    """The share of the ten strongest heads of stage 1 that two tasks have in common (2310.08744,
    App. I, where larger models share fewer); NaN if not both tasks have a gap to measure by."""
    if not has_gaps:
        return Estimate(np.nan, np.nan, np.nan, 10)
    one, other = (set(metrics.top_heads(patch.score(), 10)) for patch in (ioi, cobj))
    return shared_heads([one], [other])


def by_threshold(a: Sequence[PathPatch], b: Sequence[PathPatch], seed: int) -> Picture:
    """The overlap of IOI's stages `a` with Colored Objects' `b` if other shares of the heads are
    kept, beside the ceiling of `a` and the null within layers."""
    percents, shared, itself, low, high = (1, 2, 5, 10), [], [], [], []
    for percent in percents:
        fraction = percent / 100
        a_tops, b_tops = tops(a, fraction), tops(b, fraction)
        n_heads, generator = a[0].logit_diff.shape[1], rng(seed, "sweep", fraction)
        draws = metrics.drawn_overlap_null(a_tops, b_tops, n_heads, generator, 200)
        shared.append(metrics.overlap(a_tops, b_tops))
        itself.append(ceiling(a, fraction))
        low.append(float(np.quantile(draws, 0.05)))
        high.append(float(np.quantile(draws, 0.95)))
    curves = {"IOI and Colored Objects": shared, "IOI with itself (halves)": itself}
    axes = ("heads kept per stage (%)", "share in common")
    return figures.lines(percents, curves, *axes, (low, high))


def bars(
    numbers: Mapping[str, object], ioi: TaskHeads, controls: Mapping[str, TaskHeads]
) -> Picture:
    """The overlaps of IOI with the other tasks beside their null and IOI's ceiling; `numbers` are
    those of claim 1.3 (`overlap_numbers`)."""
    shares = {name: metrics.overlap(ioi.tops[:2], task.tops[:2]) for name, task in controls.items()}
    shown = {
        "IOI and\nColored\nObjects,\n4 stages": numbers["value"],
        "IOI and\nColored\nObjects,\nstages 1–2": numbers["end_overlap"],
        **{f"IOI and\n{name},\nstages 1–2": share for name, share in shares.items()},
        "IOI with\nitself\n(halves)": numbers["ceiling_ioi"],
    }
    bare = {name: Estimate(share, np.nan, np.nan, numbers["n"]) for name, share in shown.items()}
    return figures.bars(bare, "share of heads in common", null=numbers["null"])


def table(a: TaskHeads, b: TaskHeads) -> pd.DataFrame:
    """Which heads IOI, `a`, and Colored Objects, `b`, have in common, stage by stage."""
    rows = [
        {"both tasks": one & other, "IOI only": one - other, "Colored Objects only": other - one}
        for one, other in zip(a.tops, b.tops, strict=True)
    ]
    names = [f"stage {i}" for i, _ in enumerate(rows, 1)]
    return pd.DataFrame(rows, index=names).map(lambda heads: head_names(sorted(heads)))
