"""Where to set the coordinate along a direction, and what is said then (Minder et al., 2411.07404,
Sec. 6; the published values were set by hand). The edit itself is handed in."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from replib.chapters.context_knob.asking import Unstated
from replib.chapters.context_knob.intents import INTENTS, Case
from replib.interventions.generation import Prefilled
from replib.metrics import Null, rng, spearman

# `steering.swept` with its layer and edit: logits with the coordinate along a direction at values.
Swept = Callable[[Prefilled, Tensor, Sequence[float]], Tensor]
SIGNS: Mapping[str, int] = {"context": 1, "prior": -1}
ANSWERS = ("context's answer", "memory's answer", "anything else")  # of `answer_shares`
KS = [sign * k for sign in SIGNS.values() for k in (0.5, 1.0, 2.0, 4.0)]


@dataclass(frozen=True)
class Dial:
    """A direction, and the numbers that its coordinate is set to: c = middle + k · half."""

    direction: Float[Tensor, " d_model"]
    middle: float  # between the mean coordinates under the two intents
    half: float  # half of the distance between them

    def at(self, k: float) -> float:
        return self.middle + k * self.half

    def note(self, layer: int, ks: Mapping[str, float]) -> str:
        """Where it is set, in words."""
        c = self.all_at(ks)
        return f"layer {layer}; c = {c['context']:.3g} (context), {c['prior']:.3g} (memory)"

    def all_at(self, ks: Mapping[str, float]) -> dict[str, float]:
        """c for each intent."""
        return {intent: self.at(k) for intent, k in ks.items()}


@dataclass(frozen=True)
class Steered:
    """A model with its coordinate set, asked without being told."""

    ks: Mapping[str, float]  # for each intent
    right: Bool[Tensor, "intent case"]
    told: Float[Tensor, " case"]  # right under both intents, not steered but told

    @property
    def pair(self) -> Float[Tensor, " case"]:
        """1 for a case that is right with either setting, else 0."""
        return self.right.all(0).double()


def numbers(steered: Mapping[str, Steered], plain: str) -> dict[str, float]:
    """For the record: of the plain model PairAcc, steered and told, and k and accuracy under each
    intent; PairAcc of the fine-tuned model, and of the last one (without chat turns, if any)."""
    one, last = steered[plain], list(steered.values())[-1]
    found = {
        "steered": float(one.pair.mean()),
        "instructed": float(one.told.mean()),
        "fine_tuned": float(steered["fine-tuned"].pair.mean()),
        "no_chat": float(last.pair.mean()),
        "no_chat_instructed": float(last.told.mean()),
    }
    for intent, right in zip(INTENTS, one.right.double(), strict=True):
        found |= {f"k_{intent}": one.ks[intent], f"{intent}_accuracy": float(right.mean())}
    return found


def choose_k(
    swept: Swept, asked: Unstated, dial: Dial, either_sign: bool = False
) -> dict[str, float]:
    """For each intent the k of `KS` that makes most prompts say its token first; of equals the
    smallest |k|. Without `either_sign` only k above 0 for the context, below 0 for memory."""
    values = [dial.at(k) for k in KS]
    said = swept(asked.prompts, dial.direction, values).argmax(-1)  # k case
    best = {}
    for intent, token in zip(INTENTS, asked.tokens, strict=True):
        score = (said == token).double().mean(-1)
        allowed = [i for i, k in enumerate(KS) if either_sign or k * SIGNS[intent] > 0]
        best[intent] = KS[max(allowed, key=lambda i: (float(score[i]), -abs(KS[i])))]
    return best


def first_token_pair(swept: Swept, asked: Unstated, dial: Dial, ks: Mapping[str, float]) -> float:
    """Share of prompts that say the right token first with the coordinate set to either value."""
    values = [dial.at(ks[intent]) for intent in INTENTS]
    said = swept(asked.prompts, dial.direction, values).argmax(-1)  # intent case
    return float((said == asked.tokens).all(0).double().mean())


def unsteered(asked: Unstated) -> dict[str, float]:
    """For the record: how often the model's first token is that of either answer when nothing is
    set."""
    said = asked.prompts.step().argmax(-1).cpu()
    shares = (said == asked.tokens).double().mean(1)
    return {f"unsteered_{i}": float(x) for i, x in zip(INTENTS, shares, strict=True)}


def random_pairs(
    swept: Swept,
    directions: Float[Tensor, "draw d_model"],
    h: Float[Tensor, "row d_model"],
    half: float,
    tuning: Unstated,
    asked: Unstated,
) -> Float[np.ndarray, " draw"]:
    """`first_token_pair` of other directions. Each gets its own middle, the mean coordinate of h,
    and its own k, of either sign, chosen on `tuning`."""
    found = []
    for v in directions:
        u = v / v.norm()
        dial = Dial(u, float(h.mean(0) @ u), half)
        ks = choose_k(swept, tuning, dial, either_sign=True)
        found.append(first_token_pair(swept, asked, dial, ks))
    return np.array(found)


def answer_shares(
    swept: Swept, asked: Unstated, dial: Dial, values: Sequence[float]
) -> Float[np.ndarray, "value case answer"]:
    """Probabilities of the context's answer, of memory's, and of anything else, by first token."""
    found, case = [], torch.arange(len(asked.cases))
    for some in np.array_split(values, 11):
        p = swept(asked.prompts, dial.direction, some.tolist()).softmax(-1)
        both = torch.stack([p[:, case, token] for token in asked.tokens], -1)
        found.append(torch.cat([both, 1 - both.sum(-1, keepdim=True)], -1))
    return torch.cat(found).numpy()


def questions(
    cases: Sequence[Case], shares: Float[np.ndarray, "value case answer"], n: int = 5
) -> dict[str, dict[str, list[float]]]:
    """What `figures.slider` shows: of n cases, spread over all, each answer's probability by
    value."""
    found = {}
    for i in np.linspace(0, len(cases) - 1, min(n, len(cases))).astype(int):
        case = cases[i]
        names = (f"{case.contextual} (context)", f"{case.prior} (memory)", "anything else")
        curves = dict(zip(names, shares[:, i].T.tolist(), strict=True))
        found[f"{case.context} {case.question}"] = curves
    return found


# --- Separation and performance -------------------------------------------------------------------


def rank_test(
    a: Float[Tensor, " item"], b: Float[Tensor, " item"], generator: np.random.Generator
) -> tuple[float, Null, float]:
    """Spearman's rank correlation, its null (the items of b permuted), and its one-sided p."""
    rho, permuted = spearman(a, b, generator)
    null = Null(permuted)
    return rho, null, null.pvalue(rho) if math.isfinite(rho) else math.nan


def rank_correlation(a: Float[Tensor, " item"], b: Float[Tensor, " item"]) -> float:
    """Spearman's rank correlation, without its null; NaN where one of them is constant."""
    return spearman(a, b, rng(0), draws=1)[0]


def random_correlations(
    apart: Callable[[Tensor], Float[Tensor, " item"]],
    directions: Float[Tensor, "draw d_model"],
    b: Float[Tensor, " item"],
) -> Float[np.ndarray, " draw"]:
    """|Rank correlation| with b of the separation along each random direction at length 1."""
    unit = directions / directions.norm(dim=1, keepdim=True)
    return np.abs([rank_correlation(apart(v), b) for v in unit])
