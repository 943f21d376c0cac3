"""The numbers by which the chapter's claims are decided, from curves and counts. What a function
returns is what `Claims.measure` is given. Nothing is tuned here: levels are those of `curves`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from scipy import stats
from torch import Tensor

from replib import metrics
from replib.chapters.abrupt_induction import three_logits
from replib.chapters.abrupt_induction.curves import LEARNT, Curve, Jump, at, half_rise, jump
from replib.chapters.abrupt_induction.minimal import in_order, likeness, slow_phase
from replib.metrics import Estimate, Null

Numbers = dict[str, Any]
_ENDS = 0.5  # ILA1 and TILA2 of an induction head, at the end
_RANKS = 0.8  # rank correlation of a head's measures with IC, within the window


def _share(values: Sequence[bool]) -> Estimate:
    """The share of seeds, of none: nothing is known."""
    if not values:
        return Estimate(0.0, 0.0, 1.0, 0)
    return metrics.proportion(torch.tensor(values, dtype=torch.bool))


def _mean(values: Sequence[float], share: bool = False) -> Estimate:
    """The mean over seeds; of fewer than two nothing is known."""
    if len(values) < 2:
        return Estimate(values[0] if values else 0.0, 0.0, 1.0, len(values))
    return metrics.seeds_mean(values, share=share)


def _jumping(curves: Sequence[Curve], n_pairs: int) -> list[tuple[Curve, Jump]]:
    every = [(curve, jump(curve, n_pairs)) for curve in curves]
    return [(curve, found) for curve, found in every if found.jumped]


def of_abruptness(curves: Sequence[Curve], n_pairs: int) -> Numbers:
    """11.1: the share of all seeds whose IC rises abruptly from the plateau of label picking."""
    found = [jump(curve, n_pairs) for curve in curves]
    numbers = {"value": _share([one.abrupt for one in found])}
    numbers["jumped"] = sum(one.jumped for one in found)
    ratios = [one.ratio for one in found if one.jumped]
    return numbers | {"longest": max(ratios, default=1.0), "null": {"ratio": 0.8 / 0.9}}


def of_picking(curves: Sequence[Curve], n_pairs: int, n_labels: int) -> Numbers:
    """11.2: CLA at t10, of the seeds that jump, and of how many it rises before IC."""
    some = _jumping(curves, n_pairs)
    cla = [at(curve, "cla", one.t10) for curve, one in some]
    other = [at(curve, "shuffled", one.t10) for curve, one in some]
    rises = [[half_rise(curve["step"], curve[m]) for m in ("cla", "ic")] for curve, _ in some]
    return {
        "value": _mean(cla, share=True),
        "jumped": len(some),
        "earlier": sum(a < b for a, b in rises),
        "chance": n_pairs / n_labels,
        "ic": float(np.mean([at(curve, "ic", one.t10) for curve, one in some] or [0.0])),
        "null": Null(np.array(other or [0.0])).asdict(),
    }


def head_forms(curve: Curve, found: Jump) -> bool:
    """Is the jump of this seed the formation of an induction head (see claim 11.3)?"""
    steps = np.asarray(curve["step"])
    low, high = found.window
    inside = (steps >= low) & (steps <= high)
    ic = np.asarray(curve["ic"])[inside]
    for name in ("ila1", "tila2"):
        values = np.asarray(curve[name])
        ranks = stats.spearmanr(values[inside], ic).statistic
        in_time = low <= half_rise(curve["step"], curve[name]) <= high
        if not (in_time and values[-1] >= _ENDS and ranks >= _RANKS):
            return False
    other = np.asarray(curve["tla2"]) - np.asarray(curve["tila2"])
    early, late = inside & (steps <= found.t10), inside & (steps >= found.t90)
    return bool(other[late].mean() <= other[early].mean())


def of_formation(curves: Sequence[Curve], n_pairs: int) -> Numbers:
    """11.3: the share of the seeds that jump in which the head forms with the jump."""
    some = _jumping(curves, n_pairs)
    numbers = {"value": _share([head_forms(*one) for one in some]), "jumped": len(some)}
    for name in ("ila1", "tila2"):
        numbers[name] = float(np.mean([curve[name][-1] for curve, _ in some] or [0.0]))
    rise = [curve["tla2"][-1] - curve["tila2"][-1] for curve, _ in some]
    return numbers | {"null": {"others": float(np.mean(rise or [0.0]))}}


def of_causes(
    edited: Sequence[Mapping[str, float]],
    planted: Curve,
    wrong: Curve,
    curves: Sequence[Curve],
    n_pairs: int,
) -> Numbers:
    """11.4: what is lost without the head (`edited`: IC `whole`, and with the earlier attention of
    `labels` and of `items`, of each seed that jumps), and what the planted head alone gives."""
    chance, some = 1 / n_pairs, _jumping(curves, n_pairs)

    def lost(one: Mapping[str, float], tokens: str) -> float:
        return (one["whole"] - one[tokens]) / (one["whole"] - chance)

    t10 = float(np.median([one.t10 for _, one in some])) if some else math.inf
    slow = slow_phase(planted, n_pairs)
    right = torch.arange(512) < round(512 * planted["ic"][-1])
    items = np.array([lost(one, "items") for one in edited] or [0.0])
    return {
        "value": _mean([lost(one, "labels") for one in edited]),
        "jumped": len(some),
        "planted": metrics.proportion(right),
        "slow_share": slow / t10 if slow < math.inf else 1.0,
        "planted_wrong": wrong["ic"][-1],
        "null": Null(items).asdict(),
    }


def of_minimal(
    curves: Sequence[Curve], given: Sequence[Curve], full: Sequence[Curve], n_pairs: int
) -> Numbers:
    """11.5: the share of seeds of the minimal model that learn in the paper's order."""
    learnt = [max(curve["ic"]) >= LEARNT for curve in curves]
    order = [ok and in_order(curve) for ok, curve in zip(learnt, curves, strict=True)]
    some = [curve for curve, _ in _jumping(full, n_pairs)]
    like = [curve for curve, ok in zip(curves, learnt, strict=True) if ok]
    slow = [np.median([slow_phase(curve, n_pairs) for curve in two]) for two in (given, curves)]
    share = float(slow[0] / slow[1]) if np.isfinite(slow).all() and slow[1] else 1.0
    return {
        "value": _share(order),
        "learnt": sum(learnt),
        "correlation": likeness(like, some) if like and some else 0.0,
        "jumped": len(some),
        "null": {"slow": share},
    }


def of_nesting(nested: Tensor, added: Tensor, n_labels: int, n_pairs: int) -> Numbers:
    """11.6, from the losses [step start] of the nested and of the added logits."""
    level = math.log(n_pairs)
    shares, reached = three_logits.plateau_share(nested, level)
    others, _ = three_logits.plateau_share(added, level)
    return {
        "value": _mean(shares.tolist(), share=True),
        "reached": reached.double().mean().item(),
        "start_loss": nested[0].mean().item(),
        "plateau_loss": level,
        "null": Null(others.numpy()).asdict(),
    }


def of_critical_start(
    more: Sequence[Curve], equal: Sequence[Curve], origins: tuple[float, float], n_pairs: int
) -> Numbers:
    """11.7: the share of seeds that learn with more labels than pairs, less that with as many.
    `origins`: the gradients at the origin of the three-logit loss, for more and for as many."""
    learnt = [[max(curve["ic"]) >= LEARNT for curve in some] for some in (more, equal)]
    table = [[sum(some), len(some) - sum(some)] for some in learnt]
    return {
        "value": metrics.seeds_difference(*(np.array(x, float) for x in learnt), share=True),
        "more": float(np.mean(learnt[0])),
        "equal": float(np.mean(learnt[1])),
        "fisher": float(stats.fisher_exact(table).pvalue),
        "origin_more": origins[0],
        "origin_equal": origins[1],
    }


def of_data(
    right: Mapping[str, Mapping[str, Bool[Tensor, " row"]]], losses: Mapping[str, float]
) -> Numbers:
    """11.8, from the right answers of three networks, `many` and `few` bursty classes and `spread`,
    on the tests `ic2` and `iw`, and the training losses at their end."""

    def lead(a: str, b: str, test: str) -> Estimate:
        pair = (right[name][test].double().numpy() for name in (a, b))
        return metrics.seeds_difference(*pair, share=True)

    return {
        "value": lead("many", "few", "ic2"),
        "iw": lead("few", "many", "iw"),
        "iw_spread": right["spread"]["iw"].double().mean().item(),
        "ic2_spread": right["spread"]["ic2"].double().mean().item(),
        "loss": max(losses.values()),
    }


def of_both(ic: Bool[Tensor, " row"], iw: Bool[Tensor, " row"]) -> Numbers:
    """11.9: the smaller of IC and IW."""
    both = [metrics.proportion(right) for right in (ic, iw)]
    weaker = min(both, key=lambda one: one.value)
    return {"value": weaker, "best": max(one.value for one in both)}


def of_lasting(curve: Curve, n_pairs: int, n_test: int) -> Numbers:
    """11.10: how far IC falls from its best tenth of the points of the curve to its last tenth."""
    ic, found = np.asarray(curve["ic"]), jump(curve, n_pairs)
    n = max(1, len(ic) // 10)
    means = np.convolve(ic, np.ones(n) / n, "valid")
    counts = [np.arange(n_test) < round(n_test * x) for x in (means.max(), means[-1])]
    drop = metrics.seeds_difference(*(x.astype(float) for x in counts), share=True)
    length = curve["step"][-1] / found.t90 if found.t90 > 0 else 0.0
    return {"value": drop, "best": float(means.max()), "length": length}
