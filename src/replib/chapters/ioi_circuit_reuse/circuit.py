"""Which heads form the circuit: chosen on one half of the prompts, tested on the other.

The procedure of Merullo et al. (2310.08744, Sec. 3): four stages of path patching, each of which
receives at the heads that the stage before has found. The paper picks heads by looking; here they
are picked on the *selection half* of the prompts and tested on the *report half* (`halves`).
Stages 3 and 4 cost most: they choose on the first prompts of the selection half.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replib import figures, metrics
from replib.figures import Picture
from replib.interventions.head_edits import Readout, attention_from
from replib.interventions.network import Head, Network
from replib.interventions.path_patching import PathPatch, path_patch
from replib.metrics import Estimate, Null, head_label, rng
from replib.prompts.pairs import PromptPairs

N_CANDIDATES = 8  # heads that a stage may name; the paper's 2% of 384
MIN_SCORE = 0.02  # a head that moves less than 2% of the gap is not called part of a circuit


@dataclass(frozen=True)
class Role:
    """A kind of heads of the IOI circuit."""

    name: str  # in the record's list of heads
    count: str  # the name of how many there are, in the record of claim 1.1
    rule: str  # that decides whether a head is one


GATHERER_RULE = "Colored Objects, stage 2: attend to the question; pass the tests of claim 1.1"
ROLES = {  # as the chapter names them
    "movers": Role(
        "mover", "movers", "stage 1, attends to the indirect object; passes the tests of claim 1.1"
    ),
    "inhibition heads": Role(
        "inhibition",
        "inhibition",
        "stage 2, attends to the repeated name; passes the tests of claim 1.1",
    ),
    "duplicate-token heads": Role(
        "duplicate-token",
        "duplicate_token",
        "stage 3, attends to where the repeated name stood first; passes the tests of claim 1.1",
    ),
    "induction heads": Role(
        "induction",
        "induction",
        "stage 3, attends behind where the repeated name stood first; passes the tests of claim "
        "1.1",
    ),
    "negative movers": Role(
        "negative mover",
        "",
        "stage 1, lowers the name that it attends to, S2 more than IO; passes three tests",
    ),
    "previous-token heads (by attention)": Role(
        "previous-token",
        "",
        "attends from the word behind the repeated name's first place to that place, more than ½",
    ),
}


def head_names(heads: Iterable[Head], none: str = "none") -> str:
    """The heads as a page names them, `L9H6, L10H0`, in the order given; `none` without any."""
    return ", ".join(map(head_label, heads)) or none


def halves(
    values: Float[Tensor, "*rest prompt"],
) -> tuple[Float[Tensor, "*rest one"], Float[Tensor, "*rest other"]]:
    """The first half of the prompts, to choose heads by, and the second half, to report them by."""
    middle = values.shape[-1] // 2
    return values[..., :middle], values[..., middle:]


def attention_on(
    rows: Float[Tensor, "prompt layer head src"],
    at: Int[Tensor, " prompt"] | Int[Tensor, "prompt k"],
) -> Float[Tensor, "layer head prompt"]:
    """Attention that `rows` give to the positions `at`, as a mean over the k positions of each
    prompt. -1 pads and counts as no position."""
    at = at if at.ndim == 2 else at[:, None]
    taken = rows.gather(-1, at.clamp_min(0)[:, None, None].expand(*rows.shape[:3], -1))
    real = (at >= 0)[:, None, None].to(rows)
    return ((taken * real).sum(-1) / real.sum(-1)).permute(1, 2, 0)


@dataclass(frozen=True)
class RepeatAttention:
    """Attention from S2 to where the repeated name stood first, above what it is compared with:
    [layer head prompt]."""

    either: Float[Tensor, "layer head prompt"]  # the larger of S1 and S1+1, above uniform
    nearer_s1: Float[Tensor, "layer head prompt"]  # S1, above uniform and S1+1
    nearer_next: Float[Tensor, "layer head prompt"]  # S1+1, above uniform and S1


def attention_from_s2(net: Network, ioi: PromptPairs) -> RepeatAttention:
    """How each head attends from S2 back to S1 and the token behind it; uniform attention gives
    every token up to S2 the same."""
    rows = attention_from(net, ioi, "S2")
    s1, behind = (attention_on(rows, ioi.positions[name]) for name in ("S1", "S1+1"))
    uniform = 1 / (ioi.positions["S2"] + 1)
    return RepeatAttention(
        either=torch.maximum(s1, behind) - uniform,
        nearer_s1=s1 - torch.maximum(uniform, behind),
        nearer_next=behind - torch.maximum(uniform, s1),
    )


def mean_over(
    heads: Sequence[Head], values: Float[Tensor, "layer head prompt"]
) -> Float[Tensor, " prompt"]:
    """Each prompt's mean over some heads; NaN without heads."""
    if not heads:
        return torch.full_like(values[0, 0], torch.nan)
    return torch.stack([values[head] for head in heads]).mean(0)


def select(
    patch: PathPatch,
    gap: Float[Tensor, "layer head prompt"] | None = None,
    whole: bool = False,
) -> list[Head]:
    """The candidates of a stage, chosen on the selection half: the 8 heads of largest score, either
    sign, strongest first.

    With a `gap`, only those that support the answer (score above 0) and attend as it says: `gap` is
    attention to where they should look less attention to where they should not, and its mean has
    to be above 0. It may have more prompts than the patch, which took the first ones. `whole`: all
    prompts of the patch are of the selection half, as in stages 3 and 4.
    """

    def chosen(values: Tensor) -> Tensor:
        return (values if whole else halves(values)[0]).mean(-1)

    score = chosen(patch.effect())
    top = metrics.top_heads(score, N_CANDIDATES)
    if gap is None:
        return top
    signature = chosen(gap[..., : len(patch.clean)])
    return [head for head in top if signature[head] > 0 and score[head] > 0]


def receivers(heads: Sequence[Head], stage1: PathPatch) -> list[Head]:
    """The heads at which the next stage receives: those that have heads below them. If there is
    none, the strongest of stage 1 that have (the top 2%, on the selection half)."""
    score = halves(stage1.effect())[0].mean(-1)
    strongest = metrics.top_heads(score[1:], metrics.n_top(score.numel()))
    return [head for head in heads if head[0] > 0] or [(a + 1, b) for a, b in strongest]


def end_stages(
    net: Network, pairs: PromptPairs, gap: Float[Tensor, "layer head prompt"]
) -> list[PathPatch]:
    """Stages 1 and 2 of any task, at END: into the logits, then into the queries of the candidates
    of stage 1 that support the answer and attend as `gap` says (see `select`)."""
    first = path_patch(net, pairs, "logits")
    return [first, path_patch(net, pairs, receivers(select(first, gap), first), "q")]


def on_what_differs(
    rows: Float[Tensor, "prompt layer head src"], pairs: PromptPairs
) -> Float[Tensor, "layer head prompt"]:
    """Attention that `rows`, from END, give to the tokens in which the corrupted prompts differ,
    on which the answer depends, less the uniform share: what movers of any task should look at."""
    differs = pairs.clean != pairs.corrupted
    n = int(differs.sum(-1).max())
    first = differs.int().argsort(dim=-1, descending=True, stable=True)[:, :n]
    at = torch.where(differs.gather(-1, first), first, -1)
    return attention_on(rows, at) - 1 / pairs.length


def deep_prompts(pairs: PromptPairs, n_deep: int) -> PromptPairs:
    """The first `n_deep` prompts of the selection half, on which stages 3 and 4 choose."""
    return pairs[: min(n_deep, len(pairs) // 2)]


def four_stages(
    net: Network,
    pairs: PromptPairs,
    position: str,
    n_deep: int,
    first_gap: Float[Tensor, "layer head prompt"],
    second_gap: Float[Tensor, "layer head prompt"],
) -> list[PathPatch]:
    """All stages: those at END, then two at `position` on the `deep_prompts`, into the values of
    the candidates of stage 2 and into the queries of those of stage 3, of which no attention is
    asked."""
    first, second = end_stages(net, pairs, first_gap)
    deep = deep_prompts(pairs, n_deep)
    third = path_patch(net, deep, receivers(select(second, second_gap), first), "v", position)
    at_third = receivers(select(third, whole=True), first)
    return [first, second, third, path_patch(net, deep, at_third, "q", position)]


def report_patch(
    net: Network, ioi: PromptPairs, candidates: Iterable[Head], at: Sequence[Head]
) -> Float[Tensor, "layer head prompt"]:
    """Effects in stage 3 of IOI, into the values of the heads `at` at S2, on the report half: of
    the candidates only, NaN elsewhere. The stage itself chose on fewer prompts (`deep_prompts`)."""
    report, senders = ioi[len(ioi) // 2 :], sorted(set(candidates))
    if not senders:
        return torch.full((net.n_layers, net.n_heads, len(report)), torch.nan)
    return path_patch(net, report, at, "v", "S2", senders).effect()


def maps(stages: Sequence[PathPatch]) -> Picture:
    """The scores of all heads in each stage, with the top 2% marked."""
    scores = {f"stage {i}": patch.score() for i, patch in enumerate(stages, 1)}
    marked = {
        name: metrics.top_heads(score, metrics.n_top(score.numel()))
        for name, score in scores.items()
    }
    return figures.head_maps(scores, marked)


@dataclass(frozen=True)
class Tested:
    """What became of the candidates for a role on the report half."""

    found: list[Head]  # pass the three tests
    open: list[Head]  # do not, but it is not ruled out that they have the role


def confirmed(
    heads: Sequence[Head],
    effect: Float[Tensor, "layer head prompt"],
    attends: Float[Tensor, "layer head prompt"],
    groups: Sequence[str],
    seed: int,
    label: str,
) -> Tested:
    """Puts candidates to three tests on the report half, which did not choose them:

    1. their score is at least 2% of the gap between clean and corrupted;
    2. chance would not make the best candidate look as strong (`metrics.max_statistic_pvalues`, p <
       0.05 for the largest |t| over the candidates);
    3. they attend as their role says: the 95% interval of `attends`, over `groups` of prompts,
       lies above 0.

    A head that fails is ruled out if the upper end of its score is below 2%, or that of its
    attention is not above 0. `groups` names the templates of all prompts of the task; `effect` and
    `attends` are of all of them, of which the report half counts, or of that alone. `seed` and
    `label` make the random draws.
    """
    n_report = len(groups) - len(groups) // 2
    effect, attends = effect[..., -n_report:], attends[..., -n_report:]
    groups = groups[-n_report:]
    only = torch.full_like(effect, torch.nan)
    for head in heads:
        only[head] = effect[head]
    p = metrics.max_statistic_pvalues(only, rng(seed, "roles", label))
    found, left = [], []
    for head in heads:
        looks = metrics.bootstrap(attends[head], groups, rng(seed, "signature", label, head))
        score = metrics.bootstrap(effect[head], groups, rng(seed, "score", label, head))
        if score.value >= MIN_SCORE and p[head] < 0.05 and looks.low > 0:
            found.append(head)
        elif score.high >= MIN_SCORE and looks.high > 0:
            left.append(head)
    return Tested(found, left)


def count_roles(tested: Mapping[str, Tested]) -> dict[str, int]:
    """Of claim 1.1: how many heads each role has, how many roles have any (`value`), and how many
    may have one (`possible`)."""
    counts = {ROLES[name].count: len(test.found) for name, test in tested.items()}
    found = sum(bool(test.found) for test in tested.values())
    return counts | {
        "value": found,
        "possible": sum(bool(test.found or test.open) for test in tested.values()),
    }


def effect_on_attended(
    before: Readout, io_over_s2: Float[Tensor, "layer head prompt"]
) -> Float[Tensor, "layer head prompt"]:
    """Each head's direct effect, in logits, on the name that it attends to more on the selection
    half: IO or S. `before` is the readout of IOI's clean prompts with `capture`, whose direct
    effects are on the logits of (IO, S); `io_over_s2` is attention from END to IO less that to
    S2."""
    direct = before.attribution[0].permute(1, 2, 0, 3)  # layer head prompt (IO, S)
    attends_io = halves(io_over_s2)[0].mean(-1) > 0  # layer head
    return torch.where(attends_io[..., None], direct[..., 0], direct[..., 1])


@dataclass(frozen=True)
class NegativeMovers:
    """The candidates of stage 1 that lower the name they attend to, on IOI's report half."""

    heads: list[Head]  # the one that lowers it most first (on the selection half)
    found: list[Head]  # of these, those that attend to S2 and pass the tests of `confirmed`
    s2_over_io: Estimate | None  # attention to S2 less that to IO, of the first; None without heads
    effect: float  # of the first on the logit of the name it attends to; NaN without heads


def negative_movers(
    stage1: PathPatch,
    io_over_s2: Float[Tensor, "layer head prompt"],
    before: Readout,
    groups: Sequence[str],
    seed: int,
) -> NegativeMovers:
    """Heads among the 8 strongest of stage 1 whose direct effect on the logit of the name that they
    attend to more, IO or S, is negative (2310.08744, Sec. 3.1); see `effect_on_attended`. One is
    found if it lowers that name by at least 2% of the gap, p < 0.05, and attends to S2 more than to
    IO. `groups` names the templates of all prompts."""
    toward = effect_on_attended(before, io_over_s2)
    effect, report = halves(toward)[0].mean(-1), halves(toward)[1]
    heads = sorted(
        (head for head in select(stage1) if effect[head] < 0), key=lambda head: float(effect[head])
    )
    if not heads:
        return NegativeMovers(heads, [], None, float("nan"))
    on_s2 = [head for head in heads if halves(io_over_s2)[0][head].mean() < 0]
    gap = stage1.clean.mean() - stage1.corrupted.mean()
    found = confirmed(on_s2, -toward / gap, -io_over_s2, groups, seed, "negative").found
    attends = -halves(io_over_s2)[1][heads[0]]
    s2_over_io = metrics.bootstrap(attends, groups[-len(attends) :], rng(seed, "negative"))
    return NegativeMovers(heads, found, s2_over_io, float(report[heads[0]].mean()))


def previous_token_heads(net: Network, ioi: PromptPairs, induction: Sequence[Head]) -> list[Head]:
    """Of the heads that attend most from S1+1 to S1 on the selection half (the top 2%), those that
    give it more than half of their attention on the report half, and lie below the highest of the
    `induction` heads, if there are any."""
    attention = attention_on(attention_from(net, ioi, "S1+1"), ioi.positions["S1"])
    choice, report = (half.mean(-1) for half in halves(attention))
    below = max((layer for layer, _ in induction), default=net.n_layers)
    top = metrics.top_heads(choice, metrics.n_top(choice.numel()))
    return [head for head in top if head[0] < below and report[head] > 0.5]


def random_sets(
    heads: Sequence[Head], net: Network, n_draws: int, generator: np.random.Generator
) -> list[list[Head]]:
    """For a null: `n_draws` sets of as many random heads of neighbouring layers
    (`metrics.layer_matched`). They may hold the chosen heads: those are one draw of many. Without
    heads, one empty set."""
    if not heads:
        return [[]]
    size = net.n_layers, net.n_heads
    return [sorted(metrics.layer_matched(heads, *size, generator)) for _ in range(n_draws)]


def null_numbers(
    null: Null, sets: Sequence[Sequence[Head]], heads: Sequence[Head]
) -> dict[str, float | int]:
    """What a record says of a null of random sets: its summary, the share of draws that hold one of
    the chosen `heads`, and mean, 95th percentile and number of those that do not. In a model so
    small that all draws do, these are the null's own, and the number is 0."""
    holds = metrics.holding(sets, heads)
    without = Null(null.draws if holds.all() else null.draws[~holds]).asdict()
    numbers = {f"without_{key}": without[key] for key in ("mean", "q95")}
    numbers |= {"holding": float(holds.mean()), "without_draws": int((~holds).sum())}
    return {**null.asdict(), **numbers}


def null_of(values: Bool[Tensor, "draw prompt"] | Float[Tensor, "draw prompt"]) -> Null:
    """The mean over prompts of each draw, as a null distribution."""
    return Null(values.double().mean(-1).numpy(force=True))
