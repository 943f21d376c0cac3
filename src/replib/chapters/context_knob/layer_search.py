"""Which attention layers carry the choice? Runs to patch between, and what is asked about a set of
layers (Minder et al., 2411.07404, Sec. 5 and Fig. 2). The search itself is
`steering.search_layers`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from replib.chapters.context_knob import steering
from replib.chapters.context_knob.asking import answer_tokens, prompts_of
from replib.chapters.context_knob.intents import Case
from replib.chapters.context_knob.steering import LayerSearch
from replib.chapters.factual_recall.facts import first_token
from replib.interventions.generation import Prefilled
from replib.metrics import Null

Layers = tuple[int, ...]
Score = Callable[..., Float[np.ndarray, "set layer answer"]]  # of sets of layers, and a start each
INTENT_RUNS = ("intent: to the context", "intent: to memory")
ENOUGH = 0.85  # of what patching all layers gives; the paper's 0.85 is a probability
FALL = 0.05  # a step down that is larger than this is counted


@dataclass(frozen=True)
class Runs:
    """Pairs of runs: attention outputs are taken from the source and put into the target."""

    prompts: Prefilled
    source: Int[Tensor, " row"]  # numbers of prompts
    target: Int[Tensor, " row"]
    answers: Int[Tensor, "row answer"]  # first token of the source's answer, of the target's


def runs_between(model: TransformerBridge, cases: Sequence[Case]) -> dict[str, Runs]:
    """The paper's four kinds of runs. Source and target are the same case under both intents, in
    either direction; or another case, the one before in the list, under the same intent."""
    tokenizer = model.tokenizer
    prompts, n = Prefilled(model, prompts_of(tokenizer, cases)), len(cases)
    context, prior = torch.arange(n), n + torch.arange(n)  # prompts by their intent
    to_context, to_prior = answer_tokens(tokenizer, cases)

    def runs(source: Tensor, target: Tensor, *answers: Tensor) -> Runs:
        return Runs(prompts, source, target, torch.stack(answers, -1))

    towards_context, towards_memory = INTENT_RUNS
    return {
        towards_context: runs(context, prior, to_context, to_prior),
        towards_memory: runs(prior, context, to_prior, to_context),
        "memory: another question": runs(prior.roll(1), prior, to_prior.roll(1), to_prior),
        "context: another question": runs(context.roll(1), context, to_context.roll(1), to_context),
    }


def without_common_answers(
    tokenizer: PreTrainedTokenizerBase, cases: Sequence[Case], n: int
) -> list[Case]:
    """Up to n cases of one relation of which no two have an answer in common ("another question"
    needs another answer), of the relation that has most."""
    chosen: dict[str, list[Case]] = {}
    taken: dict[str, set[int]] = {}
    for case in cases:
        some = chosen.setdefault(case.relation, [])
        used = taken.setdefault(case.relation, set())
        tokens = {first_token(tokenizer, answer) for answer in (case.prior, case.contextual)}
        if not tokens & used and len(some) < n:
            some.append(case)
            used |= tokens
    return max(chosen.values(), key=len)


def as_mask(sets: Sequence[Layers], n_layers: int) -> Bool[Tensor, "set layer"]:
    return torch.tensor([[layer in some for layer in range(n_layers)] for some in sets])


def read_answers(
    model: TransformerBridge,
    patched: Float[Tensor, "layer set row d_model"],
    answers: Int[Tensor, "row answer"],
    start: Sequence[int] | None = None,
) -> Float[np.ndarray, "set layer answer"]:
    """Mean probability of the answers, read from every layer's residual by the patchscope. For
    each set, layers before its `start` are not read and have 0."""
    _, n_sets, n_rows, _ = patched.shape
    first = torch.tensor(start or [0] * n_sets).repeat_interleave(n_rows)
    tokens = answers.repeat(n_sets, 1)
    p = steering.patchscope(model, patched.flatten(1, 2), tokens, first)
    return p.unflatten(1, (n_sets, n_rows)).mean(2).transpose(0, 1).numpy()


# --- Does the search's assumption hold? -----------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """The source's answer at its most probable layer, as a share of what all layers give."""

    uppers: list[int]  # U, about six of them
    step: int  # from one to the next
    upper: Float[np.ndarray, " U"]  # with layers 0 to U - 1 patched
    lower: Float[np.ndarray, " L"]  # with L to U - 1, U the search's own, L rising from 0

    @property
    def first_enough(self) -> int | None:
        """The first U of the sweep that is enough."""
        pairs = zip(self.uppers, self.upper, strict=True)
        return next((u for u, share in pairs if share > ENOUGH), None)

    @property
    def falls(self) -> int:
        """How often one more step of patched layers makes it worse. There should be none."""
        return sum(int((np.diff(ys) < -FALL).sum()) for ys in (self.upper, self.lower[::-1]))

    def agrees(self, found: LayerSearch | None) -> bool:
        """Is the search's U in the step that first suffices?"""
        if found is None or self.first_enough is None:
            return False
        return 0 <= self.first_enough - found.upper < self.step


def sweep(score: Score, n_layers: int, found: LayerSearch | None) -> Sweep:
    """Patch [0, U) for U over the whole range, then [L, U) for the U that the search found."""
    step, everything = max(1, round(n_layers / 6)), tuple(range(n_layers))
    uppers = [n_layers - i for i in range(0, n_layers, step)][::-1]
    full = score([everything])[0, :, 0]  # layer
    # Layers below U are the same whether [0, U) or all layers are patched, so they are read once.
    above = score([everything[:u] for u in uppers], uppers)[:, :, 0].max(-1)
    upper = np.maximum(above, np.maximum.accumulate(full)[np.array(uppers) - 1])
    # Layers below L are as in the target when [L, U) is patched, and need no reading.
    end = found.upper if found else n_layers
    lowers = list(range(0, end, step))
    lower = score([everything[low:end] for low in lowers], lowers)[:, :, 0].max(-1)
    return Sweep(uppers, step, upper / full.max(), lower / full.max())


# --- Do the layers found carry the answer in other cases? -----------------------------------------


@dataclass(frozen=True)
class Recovery:
    """Probability of the source's answer at the last layer, by the layers that are patched."""

    everything: float
    found: float
    others: Float[np.ndarray, " run"]  # every other run of as many consecutive layers
    none: float
    share: float  # of all layers that were found

    @property
    def recovered(self) -> float:
        """With the layers found, as a share of what all layers give."""
        return self.found / self.everything

    @property
    def null(self) -> Null:
        """The same of the other runs of layers."""
        return Null(self.others / self.everything)

    @property
    def as_good(self) -> float:
        """Share of the other runs that do as well as the layers found."""
        return float((self.others >= self.found).mean())


def recoveries(
    score: Callable[[Runs, Sequence[Layers], Sequence[int]], Float[np.ndarray, "set layer answer"]],
    kinds: Mapping[str, Runs],
    found: Mapping[str, LayerSearch | None],
    n_layers: int,
) -> dict[str, Recovery]:
    """For both directions of the intent: patch all layers, those found (all, if none were), every
    other run of as many consecutive layers, and none."""
    everything, recovered = tuple(range(n_layers)), {}
    for name in INTENT_RUNS:
        layers = found[name].layers if found[name] else everything
        sets = [everything, layers, *other_windows(layers, n_layers), ()]
        p = score(kinds[name], sets, [n_layers - 1] * len(sets))[:, -1, 0].astype(float)
        recovered[name] = Recovery(p[0], p[1], p[2:-1], p[-1], len(layers) / n_layers)
    return recovered


def other_windows(layers: Layers, n_layers: int) -> list[Layers]:
    """All other runs of as many consecutive layers; all layers together, if there is no other."""
    n = len(layers)
    windows = [tuple(range(i, i + n)) for i in range(n_layers - n + 1)]
    return [some for some in windows if some != layers] or [tuple(range(n_layers))]


def weaker(
    recovered: Mapping[str, Recovery], found: Mapping[str, LayerSearch | None], n_layers: int
) -> tuple[float, dict[str, Any]]:
    """What the layers found recover in the weaker of the two directions; and for the record its
    null, of both directions the number that speaks more against the layers, and where layers of
    the intent and of the answers begin (`n_layers` where none was found)."""
    both = recovered.values()
    worst = min(both, key=lambda one: one.recovered)
    starts: dict[bool, list[int]] = {True: [], False: []}
    for name, some in found.items():
        starts[name in INTENT_RUNS].append(min(some.layers) if some else n_layers)
    return worst.recovered, {
        "null": worst.null,
        "unpatched": max(one.none for one in both),
        "all_layers": min(one.everything for one in both),
        "as_good": max(one.as_good for one in both),
        "share": max(one.share for one in both),
        "intent_start": min(starts[True]),
        "answer_start": min(starts[False]),
        "note": list_layers(found),
    }


def as_rows(found: Mapping[str, LayerSearch | None]) -> dict[str, dict[str, Layers]]:
    """The layers found, as `figures.strips` draws them."""
    return {name: {"layers found": some.layers if some else ()} for name, some in found.items()}


def list_layers(found: Mapping[str, LayerSearch | None]) -> str:
    """The layers found, in words."""
    return "; ".join(
        f"{name}: layers {', '.join(map(str, some.layers)) if some else 'none'}"
        for name, some in found.items()
    )
