"""Heads scaled: outcomes under many heads and factors, the best factor, random heads to compare.

What a head does when it is scaled at every position is read at END by the first token, which takes
one forward pass from the head's layer on; greedy continuations are for the few settings that are
reported (`interventions.generation`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from replib.chapters.factual_recall.facts import OUTCOMES
from replib.errors import UsageError
from replib.interventions.generation import text_loss
from replib.interventions.head_edits import HeadEdit, read, scale_head
from replib.interventions.network import Head, Network
from replib.metrics import Null, bootstrap, head_label, rng
from replib.prompts.pairs import PromptPairs


@dataclass(frozen=True)
class Outcomes:
    """What the next token says: which candidate it is, if any, and how probable each one is. The
    candidates are those of `facts.conflict_pairs`: the memorised answer's, the in-context one's."""

    top: Bool[Tensor, "edit prompt candidate"]  # is it the most probable of all tokens?
    probability: Float[Tensor, "edit prompt candidate"]

    def share(self, wanted: str) -> Float[Tensor, " edit"]:
        """Share of prompts with the outcome `wanted`: memorised, in-context or other."""
        if wanted == "other":
            return (~self.top.any(-1)).double().mean(-1)
        return self.top[..., _column(wanted)].double().mean(-1)

    def both(self, edit: int = 0) -> tuple[float, float]:
        """The shares of memorised and of in-context outcomes."""
        return float(self.share("memorised")[edit]), float(self.share("in-context")[edit])

    def score(self, wanted: str) -> list[tuple[float, float]]:
        """(share, mean probability) of the wanted outcome for each edit: alpha is tuned on the
        share, and on the probability where shares are equal."""
        probability = self.probability[..., _column(wanted)].double().mean(-1)
        return list(zip(self.share(wanted).tolist(), probability.tolist(), strict=True))

    def labels(self, edit: int = 0) -> list[str]:
        """The outcome of each prompt as a word."""
        return [
            "memorised" if memorised else "in-context" if in_context else "other"
            for memorised, in_context in self.top[edit].tolist()
        ]


def _column(wanted: str) -> int:
    if wanted not in ("memorised", "in-context"):
        raise UsageError(f"outcome {wanted!r}: choose memorised or in-context")
    return ("memorised", "in-context").index(wanted)


def first_token_outcomes(
    net: Network, pairs: PromptPairs, edits: Sequence[HeadEdit] = (HeadEdit(),)
) -> Outcomes:
    """Outcomes at END by the first token; the edits act at every position."""
    seen = read(net, pairs, edits, everywhere=True, full_vocabulary=True)
    return Outcomes(
        top=seen.top1[..., None] == seen.tokens,
        probability=(seen.logits - seen.logsumexp[..., None]).exp(),
    )


def scale_heads(alphas: Mapping[Head, float]) -> HeadEdit:
    """Several heads scaled at once, each by its own factor."""
    factors = dict(alphas)
    return HeadEdit(tuple(factors), "z", lambda old, site: factors[site.head] * old)


def best_alpha(score: Sequence[tuple[float, float]], alphas: Sequence[float]) -> int:
    """Index of the factor with the largest score; of equals, the nearest to 1 (no change)."""
    return max(range(len(alphas)), key=lambda i: (*score[i], -abs(alphas[i] - 1)))


@dataclass(frozen=True)
class Setting:
    """A head and the factor that was tuned for it."""

    head: Head
    alpha: float
    score: tuple[float, float]  # on the prompts it was chosen on: see `Outcomes.score`

    @property
    def edit(self) -> tuple[Head, float]:
        return self.head, self.alpha

    def __str__(self) -> str:
        return f"{head_label(self.head)}, α = {self.alpha:g}"


def described(edits: Iterable[tuple[Head, float]]) -> str:
    """Heads and their factors in words."""
    return ", ".join(f"{head_label(head)} α = {alpha:g}" for head, alpha in edits)


def halfway_too(memory: Setting, in_context: Setting) -> list[dict[Head, float]]:
    """Factors for two heads at once: each its own factor, or halfway from there to 1."""
    return [
        {memory.head: a, in_context.head: b}
        for a in (memory.alpha, (1 + memory.alpha) / 2)
        for b in (in_context.alpha, (1 + in_context.alpha) / 2)
    ]


@dataclass(frozen=True)
class Curve:
    """What one head's factor does to the outcomes: the "edit" axis is that of the factors."""

    head: Head
    alphas: tuple[float, ...]  # at 1 the model is unchanged
    outcomes: Outcomes

    def shares(self) -> dict[str, list[float]]:
        """Share of each outcome under each factor."""
        return {name: self.outcomes.share(name).tolist() for name in OUTCOMES}

    def tuned(self, wanted: str) -> Setting:
        """The factor that makes the wanted first token win most often (`best_alpha`)."""
        score = self.outcomes.score(wanted)
        best = best_alpha(score, self.alphas)
        return Setting(self.head, self.alphas[best], score[best])


def scaling_curves(
    net: Network,
    pairs: PromptPairs,
    heads: Sequence[Head],
    alphas: Sequence[float],
    plain: Outcomes,
) -> dict[Head, Curve]:
    """For each head, the outcomes with its output times each of `alphas` at every position (Yu et
    al., Sec. 6). `plain` are those of the unchanged model, which each curve has at 1."""
    curves: dict[Head, Curve] = {}
    for layer in sorted({layer for layer, _ in heads}):  # together: what is below runs once
        some = [head for head in heads if head[0] == layer]
        scaled = [(head, alpha) for head in some for alpha in alphas if alpha != 1]
        found = first_token_outcomes(net, pairs, [scale_head(*edit) for edit in scaled])
        top = torch.cat([found.top, plain.top])
        probability = torch.cat([found.probability, plain.probability])
        row = {edit: i for i, edit in enumerate(scaled)} | {(h, 1.0): len(scaled) for h in some}
        for head in some:
            rows = [row[head, alpha] for alpha in alphas]
            outcomes = Outcomes(top[rows], probability[rows])
            curves[head] = Curve(head, tuple(alphas), outcomes)
    return curves


def best_of(net: Network, pairs: PromptPairs, settings: Sequence[Setting], wanted: str) -> Setting:
    """The setting that does most for the wanted outcome, all compared on the same prompts, which
    are more than a factor is tuned on: the choice of a head should not hang on a prompt or two."""
    edits = [scale_head(*setting.edit) for setting in settings]
    score = first_token_outcomes(net, pairs, edits).score(wanted)
    best = max(range(len(settings)), key=lambda i: score[i])
    return replace(settings[best], score=score[best])


def loss_change(
    model: TransformerBridge, usual: Float[Tensor, " pos"], head: Head, alpha: float
) -> float:
    """Mean loss on a neutral text (`generation.text_loss`, in nats a token) with the head's output
    times the factor, less `usual`, that of the unchanged model."""
    return float((text_loss(model, scales={head: alpha}) - usual).mean())


def loss_curves(
    model: TransformerBridge,
    usual: Float[Tensor, " pos"],
    settings: Mapping[str, Setting],
    alphas: Sequence[float],
) -> dict[str, list[float]]:
    """`loss_change` of the head of each kind under each factor."""
    return {
        f"{kind} head {head_label(setting.head)}": [
            loss_change(model, usual, setting.head, alpha) for alpha in alphas
        ]
        for kind, setting in settings.items()
    }


@dataclass(frozen=True)
class Gains:
    """Wanted first tokens gained on each prompt: 1 gained, -1 lost, 0 as without the edit."""

    edit: tuple[Head, float]  # the chosen head and its factor
    chosen: Float[Tensor, " prompt"]
    random: Float[Tensor, "head prompt"]  # of random heads, scaled by the same factor
    candidates: tuple[bool, ...]  # which of the random heads had been candidates themselves

    def shown(self) -> dict[str, Sequence[float]]:
        """As rows of points."""
        random = {"random heads, same α": self.random.mean(-1).tolist()}
        return random | {"the chosen head": [float(self.chosen.mean())]}

    def numbers(self, groups: Sequence[str], seed: int) -> dict[str, Any]:
        """By the names under which the claims file has them: what the chosen head gains, and how
        much more than random heads do on average, prompt by prompt."""
        more = self.chosen - self.random.mean(0)
        over = bootstrap(more, groups, rng(seed, "over random", *self.edit[0]))
        numbers = {"alpha": self.edit[1], "first_token_gain": float(self.chosen.mean())}
        return numbers | {"over_random": over}

    def null(self) -> dict[str, float | int]:
        """What the random heads gain; also without those that had been candidates themselves."""
        gains = self.random.mean(-1).numpy(force=True)
        others = gains[~np.array(self.candidates)]
        ends = Null(gains).asdict() | {"drawn_candidates": sum(self.candidates)}
        return ends | ({"q95_others": Null(others).asdict()["q95"]} if len(others) else {})


def gains_over_random(
    net: Network,
    pairs: PromptPairs,
    chosen: Setting,
    candidates: Collection[Head],
    wanted: str,
    n: int,
    seed: int,
) -> Gains:
    """What a chosen head and its factor gain on each prompt, and `n` random heads (`window_heads`)
    with that factor. A factor of 1 gains 0."""
    random = window_heads(net, chosen.head, n, rng(seed, "random", wanted))
    edits = [HeadEdit(), *(scale_head(head, chosen.alpha) for head in (chosen.head, *random))]
    top = first_token_outcomes(net, pairs, edits).top[..., _column(wanted)].double()
    gained = top[1:] - top[0]
    return Gains(chosen.edit, gained[0], gained[1:], tuple(h in candidates for h in random))


def tuning_rows(labels: Sequence[str], groups: Sequence[str], n: int) -> list[int]:
    """Up to `n` prompts, one a group, memorised and in-context in turn as long as there are both.
    Yu et al. tune on as many prompts of either outcome (generate_heads.py of the released code);
    where one is lacking, the other fills up, and "other" comes last."""
    taken: list[int] = []

    def take(wanted: str) -> bool:
        seen = {groups[i] for i in taken}
        free = (i for i, group in enumerate(groups) if labels[i] == wanted and group not in seen)
        if (i := next(free, None)) is not None:
            taken.append(i)
        return i is not None

    while len(taken) < n:
        got = [take(name) for name in ("memorised", "in-context") if len(taken) < n]
        if not any(got) and not take("other"):
            break
    return taken


def window_heads(net: Network, like: Head, n: int, generator: np.random.Generator) -> list[Head]:
    """`n` random heads of a window of layers around that of `like`, which is about a fifth of the
    depth, or of the nearest layers once it has no more: fewer if the model has no more heads. Not
    `like` itself; but heads that had been candidates with it may be drawn."""
    reach = max(1, round(net.n_layers / 10))
    others = [head for head in net.heads() if head != like]
    shuffled = [others[i] for i in generator.permutation(len(others))]
    return sorted(shuffled, key=lambda head: max(reach, abs(head[0] - like[0])))[:n]
