"""What the repair of Colored Objects is compared with (Merullo et al. 2310.08744, Sec. 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from replib import figures, metrics
from replib.chapters.ioi_circuit_reuse.circuit import attention_on, head_names, mean_over
from replib.figures import Picture
from replib.interventions.head_edits import HeadEdit, Readout, read
from replib.interventions.network import Head, Network
from replib.metrics import Estimate, rng
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
    examples."""
    colors, shot = prompts.positions["colors"], prompts.positions["shot_colors"]
    return {
        "on the\nright\ncolour": colors[:, :1],
        "on all\ncolours": colors,
        "on two\nother\ntokens": random_tokens(
            prompts, seed, "elsewhere", leave=torch.cat([colors, shot], dim=1)
        ),
        "on the\nshots'\ncolours": shot,
    }


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
    """What the repair changes in the heads downstream. Estimates are means over heads and prompts
    of the attention from END per token, after less before; None without movers and others."""

    wrong: Estimate | None  # the movers' attention to the wrong colours
    right: Estimate | None  # and to the right one
    contrast: Estimate | None  # right less wrong, in the movers more than in the others
    attribution_ratio: float  # movers' direct effect on the right colour, after over before
    bars: Mapping[str, Mapping[str, Estimate]]  # for a figure; zeros without movers and others
    # Change of each head's direct effect on the logit of the right colour, all heads.
    direct: Float[Tensor, "layer head prompt"]


def response(
    heads: Downstream, prompts: PromptPairs, before: Readout, after: Readout, seed: int
) -> Response:
    """How movers and other heads respond to the repair (2310.08744, Sec. 5). Both readouts are of
    `prompts` with `capture`, each under one edit."""
    was, now = task_attention(before, prompts), task_attention(after, prompts)
    wrong, right = now.wrong - was.wrong, now.right - was.right
    kinds = {"wrong colours": (wrong, "w"), "right colour": (right, "r")}
    effects = [said.attribution[0, ..., 0].permute(1, 2, 0) for said in (before, after)]
    direct = effects[1] - effects[0]
    if not (heads.movers and heads.others):
        bars = {"movers (none found)": dict.fromkeys(kinds, Estimate(0.0, 0.0, 0.0, 0))}
        return Response(None, None, None, float("nan"), bars, direct)

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
        *bars["movers"].values(),
        contrast=mean(of_movers - of_others, "c"),
        attribution_ratio=float(large / small),
        bars=bars,
        direct=direct,
    )


def response_picture(
    heads: Sequence[Head], importance: Float[Tensor, " head"], change: Float[Tensor, " head"]
) -> Picture:
    """A point a head: its score in stage 1, and the change of its direct effect."""
    names = [head_names([head]) for head in heads]
    axes = (
        "stage-1 score in Colored Objects",
        "change in direct effect\non the right colour (logits)",
    )
    return figures.scatter(importance, change, names, *axes)


def shares_said(
    net: Network,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptPairs,
    edits: Sequence[HeadEdit],
) -> list[dict[str, float]]:
    """Under each edit, the share of prompts by the kind of word that is the most probable of all
    tokens (`kinds_of_answer`)."""
    said = read(net, prompts, edits, full_vocabulary=True).top1
    kinds = [kinds_of_answer(tokenizer, prompts, one) for one in said]
    return [{kind: float(is_it.double().mean()) for kind, is_it in one.items()} for one in kinds]


def kinds_of_answer(
    tokenizer: PreTrainedTokenizerBase, pairs: PromptPairs, said: Int[Tensor, " prompt"]
) -> Mapping[str, Bool[Tensor, " prompt"]]:
    """What kind of word the model said to each Colored Objects prompt: each token is of one."""
    colors = [f" {color.title()}" for color in COLORS]
    first = [tokenizer(color, add_special_tokens=False).input_ids[0] for color in colors]
    right = said == pairs.answer
    listed = (said[:, None] == pairs.candidates[:, 1:]).any(-1)
    color = torch.isin(said, torch.tensor(first, device=said.device))
    return {
        "right colour": right,
        "wrong listed colour": listed,
        "another colour": color & ~listed & ~right,
        "anything else": ~color & ~listed & ~right,
    }
