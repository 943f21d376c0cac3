"""Does a head raise what comes later? The greater-than bias of Gould et al. (arXiv 2312.09230),
Sec. 3.4 and 3.5, in the effective OV circuit and in a head's errors."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from replib.chapters.successor_heads.ordinals import OrdinalClass, all_tokens
from replib.chapters.successor_heads.ov_circuit import macro_interval
from replib.metrics import Estimate, Null, rng

AXIS = "mean logit above less below (sd)"


def upward_bias(
    logits: Float[Tensor, "head item item"], ordinal: OrdinalClass
) -> Float[Tensor, "head item"]:
    """Mean logit of the items above the input less that of the items below, in standard deviations
    of the row; the item itself and its successor left out (Gould et al., Sec. 3.5). NaN at ends."""
    n = len(ordinal)
    order = torch.arange(n)
    z = (logits - logits.mean(-1, keepdim=True)) / logits.std(-1, keepdim=True).clamp_min(1e-12)
    above = (order[None] > order[:, None] + 1).to(z)
    below = (order[None] < order[:, None]).to(z)
    return (z * above).sum(-1) / above.sum(-1) - (z * below).sum(-1) / below.sum(-1)


def class_biases(
    logits: Float[Tensor, "head token token"], classes: Mapping[str, OrdinalClass]
) -> dict[str, Float[Tensor, "head item"]]:
    """`upward_bias` within each class, in the processor's memory."""
    every = all_tokens(classes)
    spans = {name: every.span(name) for name in classes}
    return {n: upward_bias(logits[:, own, own].cpu(), classes[n]) for n, own in spans.items()}


def mean_bias(bias: Mapping[str, Float[Tensor, "head item"]]) -> Float[Tensor, " head"]:
    """Upward bias of each head, mean over tokens and then over classes."""
    return torch.stack([b.nanmean(-1) for b in bias.values()]).mean(0).double()


def bias_interval(bias: Mapping[str, Float[Tensor, "head item"]], row: int, seed: int) -> Estimate:
    """`mean_bias` of one head and its interval (`macro_interval`)."""
    mine = {name: b[row][~b[row].isnan()] for name, b in bias.items()}
    interval = macro_interval(mine, rng(seed, "2.13"))
    return replace(interval, value=float(mean_bias(bias)[row]))


def other_heads(bias: Mapping[str, Float[Tensor, "head item"]], row: int) -> Null:
    """`mean_bias` of all heads but one."""
    each = mean_bias(bias)
    return Null(torch.cat([each[:row], each[row + 1 :]]).numpy(force=True))


def errors(
    said: Mapping[str, Int[Tensor, " item"]], classes: Mapping[str, OrdinalClass]
) -> dict[str, int | float]:
    """How many wrong answers a head gives, and the share of them above the right one (one half if
    there is none). `by_chance`: what that share would be if every wrong token of the class were as
    likely; `errors_p` and `fewer_p`: how often so many, or so few, would then be above (binomial,
    with the mean of these chances, which is a little too cautious as they differ). The step that
    wraps around (Sunday to Monday) has nothing above it and is left out."""
    steps: list[int] = []
    above: list[float] = []
    for name, ordinal in classes.items():
        source, right = ordinal.pairs[: len(ordinal) - 1].T
        far = said[name][source] - right
        steps += far[far != 0].tolist()
        above += ((len(ordinal) - 1 - right[far != 0]) / (len(ordinal) - 1)).tolist()
    if not steps:
        return {"errors": 0, "upward": 0.5, "by_chance": 0.5, "errors_p": 1.0, "fewer_p": 1.0}
    n, up, chance = len(steps), sum(step > 0 for step in steps), float(np.mean(above))
    more, fewer = (
        float(stats.binomtest(up, n, chance, alternative=side).pvalue)
        for side in ("greater", "less")
    )
    share = {"errors": n, "upward": up / n, "by_chance": chance}
    return {**share, "errors_p": more, "fewer_p": fewer}


def biased(
    bias: Mapping[str, Float[Tensor, "head item"]],
    row: int,
    said: Mapping[str, Int[Tensor, " item"]],
    classes: Mapping[str, OrdinalClass],
    seed: int,
) -> dict[str, object]:
    """What claim 2.13 is decided by, of one head, by its row: its bias, that of all other heads,
    and its errors."""
    value = {"value": bias_interval(bias, row, seed), "null": other_heads(bias, row)}
    return {**value, **errors(said, classes)}
