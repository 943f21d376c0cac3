"""The repair of Colored Objects, and its comparisons (Merullo et al. 2310.08744, Sec. 5)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from replib import figures, metrics
from replib.chapters.ioi_circuit_reuse.circuit import (
    attention_on,
    head_names,
    mean_over,
)
from replib.chapters.ioi_circuit_reuse.single_heads import rank_correlation
from replib.figures import Picture
from replib.interventions.head_edits import (
    HeadEdit,
    Readout,
    Site,
    read,
)
from replib.interventions.network import Head, Network
from replib.metrics import Estimate, Null, rng
from replib.prompts.pairs import PromptPairs
from replib.prompts.words import COLORS


@dataclass(frozen=True)
class TaskAttention:
    """Attention from END in Colored Objects, a mean per token: [layer head prompt]."""

    right: Float[Tensor, "layer head prompt"]  # to the right colour of the question
    wrong: Float[Tensor, "layer head prompt"]  # to its wrong colours
    colors: Float[Tensor, "layer head prompt"]  # to all of them, less the uniform share
    question: Float[Tensor, "layer head prompt"]  # to "What color is the ...?", likewise


def task_attention(said: Readout, prompts: PromptPairs) -> TaskAttention:
    """Where the heads look under the first edit of a readout with `capture`."""
    rows, colors = said.pattern[0], prompts.positions["colors"]  # column 0: the right one
    uniform = 1 / prompts.length
    return TaskAttention(
        right=attention_on(rows, colors[:, :1]),
        wrong=attention_on(rows, colors[:, 1:]),
        colors=attention_on(rows, colors) - uniform,
        question=attention_on(rows, prompts.positions["question"]) - uniform,
    )


def focus(
    heads: Sequence[Head], looks: TaskAttention, prompts: PromptPairs, seed: int
) -> tuple[Estimate, Estimate]:
    """Are heads active on the colours, and do they prefer some (claim 1.7)? Means over heads: their
    attention to a colour token over the uniform share, less 1; and attention to a wrong colour less
    that to the right one, over the sum of the two: 0 if they do not care, 1 if all is on the wrong.
    """
    active = mean_over(heads, looks.colors) * prompts.length
    sides = torch.stack([mean_over(heads, some) for some in (looks.wrong, looks.right)], dim=-1)
    lean = metrics.bootstrap(
        sides,
        prompts.group,
        rng(seed, "lean"),
        lambda mean: (mean[..., 0] - mean[..., 1]) / (mean[..., 0] + mean[..., 1]),
    )
    return metrics.bootstrap(active, prompts.group, rng(seed, "focus")), lean


def gap_lost(
    clean: Readout, corrupted: Readout, groups: Sequence[str], seed: int
) -> tuple[Estimate, Null]:
    """The share of the gap in logit difference that an edit takes away (claim 1.6), and of random
    edits. Readouts of clean and corrupted prompts under no edit, the edit of the chosen heads, and
    those of random ones."""
    gap = clean.logit_diff - corrupted.logit_diff  # edit prompt
    lost = metrics.bootstrap(
        gap[:2].T, groups, rng(seed, "gap lost"), lambda mean: 1 - mean[..., 1] / mean[..., 0]
    )
    mean = gap.double().mean(-1).numpy(force=True)
    return lost, Null(1 - mean[2:] / mean[0])


def gained(
    after: Bool[Tensor, " prompt"],
    before: Bool[Tensor, " prompt"],
    groups: Sequence[str],
    seed: int,
) -> Estimate:
    """How many more prompts are right than before, as a share of all (paired)."""
    return metrics.bootstrap(after.double() - before.double(), groups, rng(seed, "gain"))


def readings(
    names: Iterable[str], said: Readout, prompts: PromptPairs
) -> dict[str, dict[str, Estimate]]:
    """Under each edit of a readout, by name, how often the right colour is said, in both readings
    of an answer."""
    of_all, among = said.top1 == prompts.answer, said.logits.argmax(-1) == 0
    return {
        name: {
            "of all tokens": metrics.proportion(all_),
            "among the listed": metrics.proportion(some),
        }
        for name, all_, some in zip(names, of_all, among, strict=True)
    }


def move_attention(share: Mapping[Head, float], row: Float[Tensor, "prompt src"]) -> HeadEdit:
    """Of each head's own attention, a `share` is moved to where `row` says (whose rows sum to 1);
    the rest of it stays as it is. A share of 1 is `attention_row`."""

    def apply(old: Float[Tensor, "prompt dest src"], site: Site) -> Float[Tensor, "..."]:
        moved = share[site.head]
        there = row[site.prompts, None, : old.shape[-1]].to(old)
        return (1 - moved) * old + moved * there

    return HeadEdit(tuple(share), "pattern", apply)


def random_tokens(
    pairs: PromptPairs, seed: int, label: str, leave: Int[Tensor, "prompt k"] | None = None
) -> Int[Tensor, "prompt 2"]:
    """Two random positions of each prompt before END, and none of those in `leave`."""
    drawn = []
    for i, length in enumerate(pairs.length.tolist()):
        left = set() if leave is None else set(leave[i].tolist())
        free = [position for position in range(length - 1) if position not in left]
        drawn.append(rng(seed, label, i).choice(free, size=2, replace=False).tolist())
    return torch.tensor(drawn)


def other_places(prompts: PromptPairs, seed: int) -> dict[str, Int[Tensor, "prompt k"]]:
    """Where the edited heads are sent instead of to the wrong colours, by name: the right colour,
    all colours of the question, two random tokens that are no colour, the colours of the solved
    examples, if there are as many in each prompt."""
    colors, shot = prompts.positions["colors"], prompts.positions["shot_colors"]
    leave = torch.cat([colors, shot], dim=1)
    places = {
        "on the\nright\ncolour": colors[:, :1],
        "on all\ncolours": colors,
        "on two\nother\ntokens": random_tokens(prompts, seed, "elsewhere", leave),
    }
    if shot.numel() and (shot >= 0).all():  # as many in each prompt
        places["on the\nshots'\ncolours"] = shot
    return places


def added_loss(net: Network, pairs: PromptPairs, edit: HeadEdit, seed: int) -> Estimate:
    """By how much an edit raises the loss on the answer, in nats: the mean over prompts. 0 for an
    edit of no heads."""
    if not edit.heads:
        return Estimate(0.0, 0.0, 0.0, len(pairs))
    said = read(net, pairs, [HeadEdit(), edit], full_vocabulary=True)
    loss = said.logsumexp - said.logits[..., 0]
    return metrics.bootstrap(loss[1] - loss[0], pairs.group, rng(seed, "side"))


@dataclass(frozen=True)
class Downstream:
    """The heads that can feel an edit."""

    heads: list[Head]  # above the lowest edited head, the edited ones left out
    movers: list[Head]  # of these, movers
    others: list[Head]  # of these, the others in the movers' layers


def downstream(net: Network, edited: Sequence[Head], movers: Sequence[Head]) -> Downstream:
    """The heads above the lowest edited one; without edited heads there are none."""
    lowest = min((layer for layer, _ in edited), default=net.n_layers)
    heads = [head for head in net.heads() if head[0] > lowest and head not in edited]
    above = [head for head in movers if head in heads]
    layers = {layer for layer, _ in above}
    others = [head for head in heads if head[0] in layers and head not in above]
    return Downstream(heads, above, others)


@dataclass(frozen=True)
class Response:
    """What an edit changes in the heads downstream. Estimates are means over heads and prompts
    of the attention from END per token, after less before; None without movers and others."""

    turned: Estimate | None  # the movers' attention to the right colour less that to a wrong one
    wrong: Estimate | None  # to a wrong colour
    right: Estimate | None  # to the right one
    contrast: Estimate | None  # right less wrong, in the movers more than in the others
    attribution_ratio: float  # movers' direct effect on the right colour, after over before
    bars: Mapping[str, Mapping[str, Estimate]]  # for a figure; zeros without movers and others
    # Change of each head's direct effect on the logit of the right colour, all heads.
    direct: Float[Tensor, "layer head prompt"]


def response(
    heads: Downstream, prompts: PromptPairs, before: Readout, after: Readout, seed: int
) -> Response:
    """How movers and other heads respond to an edit (2310.08744, Sec. 5). Both readouts are of
    `prompts` with `capture`, each under one edit."""
    was, now = task_attention(before, prompts), task_attention(after, prompts)
    wrong, right = now.wrong - was.wrong, now.right - was.right
    kinds = {"wrong colours": (wrong, "w"), "right colour": (right, "r")}
    effects = [said.attribution[0, ..., 0].permute(1, 2, 0) for said in (before, after)]
    direct = effects[1] - effects[0]
    if not (heads.movers and heads.others):
        bars = {"movers (none found)": dict.fromkeys(kinds, Estimate(0.0, 0.0, 0.0, 0))}
        return Response(None, None, None, None, float("nan"), bars, direct)

    def mean(values: Tensor, label: str) -> Estimate:
        return metrics.bootstrap(values, prompts.group, rng(seed, label))

    def bar(some: Sequence[Head], label: str) -> dict[str, Estimate]:
        return {
            name: mean(mean_over(some, change), label + which)
            for name, (change, which) in kinds.items()
        }

    bars = {"movers": bar(heads.movers, ""), "other heads,\nsame layers": bar(heads.others, "o")}
    of_movers, of_others = (mean_over(some, right - wrong) for some in (heads.movers, heads.others))
    small, large = (mean_over(heads.movers, effect).mean() for effect in effects)
    return Response(
        mean(of_movers, "t"),
        *bars["movers"].values(),
        contrast=mean(of_movers - of_others, "c"),
        attribution_ratio=float(large / small),
        bars=bars,
        direct=direct,
    )


def tracks(
    heads: Sequence[Head], score: Float[Tensor, "layer head"], some: Response, seed: int
) -> tuple[Estimate, float, Null]:
    """Rank correlation over heads of their stage-1 `score` with the change of their direct effect
    on the right colour (claim 1.12), its p (one-sided), and its null."""
    x, y = _importance(heads, score, some)
    rho, null = rank_correlation(x, y, rng(seed, "spearman"))
    return rho, null.pvalue(rho.value), null


def _importance(
    heads: Sequence[Head], score: Float[Tensor, "layer head"], some: Response
) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:
    at = tuple(torch.tensor(list(heads) or [(0, 0)]).T)
    return score[at], some.direct.mean(-1)[at]


def response_picture(
    heads: Sequence[Head], score: Float[Tensor, "layer head"], some: Response
) -> Picture:
    """A point a head: its score in stage 1, and the change of its direct effect."""
    names = [head_names([head]) for head in heads or [(0, 0)]]
    axes = (
        "stage-1 score in Colored Objects",
        "change in direct effect\non the right colour (logits)",
    )
    return figures.scatter(*_importance(heads, score, some), names, *axes)


def shares_said(
    tokenizer: PreTrainedTokenizerBase, prompts: PromptPairs, said: Int[Tensor, " prompt"]
) -> dict[str, float]:
    """The share of prompts by the kind of word that was the most probable of all tokens
    (`kinds_of_answer`)."""
    kinds = kinds_of_answer(tokenizer, prompts, said)
    return {kind: float(is_it.double().mean()) for kind, is_it in kinds.items()}


def kinds_of_answer(
    tokenizer: PreTrainedTokenizerBase, pairs: PromptPairs, said: Int[Tensor, " prompt"]
) -> Mapping[str, Bool[Tensor, " prompt"]]:
    """What kind of word the model said to each Colored Objects prompt: each token is of one. The
    solved example names its colours in small letters; said is the answer, with a capital."""

    def answers(colors: Iterable[str]) -> list[int]:
        words = [f" {color.strip().title()}" for color in colors]
        return [tokenizer(word, add_special_tokens=False).input_ids[0] for word in words]

    shot = pairs.clean.gather(1, pairs.positions["shot_colors"].clamp_min(0)).tolist()
    of_shot = [answers(tokenizer.batch_decode([[i] for i in row])) for row in shot]
    solved = [int(one) in some for one, some in zip(said, of_shot, strict=True)]
    right = said == pairs.answer
    listed = (said[:, None] == pairs.candidates[:, 1:]).any(-1)
    of_example = torch.tensor(solved, device=said.device) & ~listed & ~right
    known = [*answers(COLORS), *pairs.candidates.flatten().tolist()]
    color = torch.isin(said, torch.tensor(known, device=said.device))
    rest = ~listed & ~right & ~of_example
    return {
        "right colour": right,
        "wrong listed colour": listed,
        "colour of the solved example": of_example,
        "another colour": color & rest,
        "anything else": ~color & rest,
    }
