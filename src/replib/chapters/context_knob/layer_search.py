"""Which attention layers carry the choice? Runs to patch between, what is asked about a set of
layers, and the sweep over all runs of layers beside the paper's search (Minder et al., 2411.07404,
Sec. 5 and Fig. 2). The search itself is `steering.search_layers`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from replib.chapters.context_knob import choosing, last_token, steering
from replib.chapters.context_knob.choosing import Choices
from replib.chapters.context_knob.directions import Opposites
from replib.interventions.generation import Prefilled
from replib.metrics import Estimate, Null, rng

Layers = tuple[int, ...]
Read = Callable[[Layers], Float[np.ndarray, "case layer answer"]]
INTENT_RUNS = ("intent: to memory", "intent: to the context")  # as the directions of `Opposites`
ENOUGH = 0.85  # of what patching all layers gives; the paper's 0.85 is a probability
N_OTHERS = 4  # other runs of layers that the best one is held against
DRAWS = 20  # resamples of the cases that are searched again


@dataclass(frozen=True)
class Runs:
    """Pairs of runs: attention outputs are taken from the source and put into the target."""

    prompts: Prefilled
    source: Int[Tensor, " row"]  # numbers of prompts
    target: Int[Tensor, " row"]
    answers: Int[Tensor, "row answer"]  # first token of the source's answer, of the target's

    @cached_property
    def outputs(self) -> Float[Tensor, "layer row d_model"]:
        """The source's attention outputs at the last token."""
        return steering.attention_outputs(self.prompts, self.source)


def runs_between(rows: Opposites, ring: Sequence[int]) -> dict[str, Runs]:
    """The paper's four kinds of runs, of the cases with these numbers. Source and target are the
    same case under both intents, in either direction; or another case, the one before in the ring,
    under the same intent."""
    context = torch.tensor(ring)  # prompts by their intent
    prior, own = context + len(rows.cases), rows.own_token

    def runs(source: Tensor, target: Tensor) -> Runs:
        return Runs(rows.prompts, source, target, torch.stack([own[source], own[target]], -1))

    towards_memory, towards_context = INTENT_RUNS
    return {
        towards_memory: runs(prior, context),
        towards_context: runs(context, prior),
        "memory: another question": runs(prior.roll(1), prior),
        "context: another question": runs(context.roll(1), context),
    }


def ring_of(rows: Opposites, n: int) -> list[int]:
    """Numbers of up to n cases that are used, of which none shares an answer with the one before
    it, nor the first with the last: "another question" needs another answer. The longest of the
    rings that begin with one case or another."""
    tokens = [set(pair) for pair in rows.answers[: len(rows.cases)].tolist()]
    used = rows.used.nonzero()[:, 0].tolist()

    def beginning(ring: list[int]) -> list[int]:
        left = [i for i in used if i not in ring]
        while len(ring) < n and (fit := [i for i in left if not tokens[i] & tokens[ring[-1]]]):
            ring.append(fit[0])
            left.remove(fit[0])
        while len(ring) > 1 and tokens[ring[0]] & tokens[ring[-1]]:
            ring.pop()
        return ring

    return max((beginning([i]) for i in used), key=len)


def as_mask(sets: Sequence[Layers], n_layers: int) -> Bool[Tensor, "set layer"]:
    return torch.tensor([[layer in some for layer in range(n_layers)] for some in sets])


def read_answers(
    model: TransformerBridge, states: Float[Tensor, "layer row d_model"], runs: Runs
) -> Float[np.ndarray, "row layer answer"]:
    """Probability of both answers, among all answers of these runs, as the patchscope reads it from
    the residuals of the upper half of the layers; 0 in the lower half, where no answer is yet."""
    n_layers = len(states)
    upper = range(n_layers // 2, n_layers)
    words = runs.answers.unique()
    p = steering.patchscope(model, states, upper, words)  # layer row word
    at = torch.searchsorted(words, runs.answers).expand(len(upper), -1, -1)
    found = torch.zeros(len(runs.answers), n_layers, 2)
    found[:, n_layers // 2 :] = p.gather(-1, at).transpose(0, 1)
    return found.numpy()


def searches(read: Read, n_layers: int, seed: int, draws: int = DRAWS) -> Choices:
    """The layers that the paper's search finds (none: patching all is not enough), and how often,
    when its cases are drawn again. `read` is asked once about a set of layers."""
    read = cache(read)
    everything = read(tuple(range(n_layers)))
    weights = choosing.case_weights(len(everything), rng(seed, "search"), draws)
    found = []
    for some in weights / weights.sum(1, keepdims=True):

        def score(sets: Sequence[Layers], some: np.ndarray = some) -> np.ndarray:
            return np.stack([np.tensordot(some, read(layers), 1) for layers in sets])

        threshold = ENOUGH * np.tensordot(some, everything, 1)[:, 0].max()
        search = steering.search_layers(score, n_layers, threshold)
        found.append(search.layers if search else ())
    return choosing.of_draws(found)


# --- Runs of consecutive layers, and other cases --------------------------------------------------


def windows(n_layers: int) -> list[Layers]:
    """All runs of a sixth of the layers."""
    n = max(1, round(n_layers / 6))
    return [tuple(range(i, i + n)) for i in range(n_layers - n + 1)]


def others(chosen: Sequence[Layers], n_layers: int) -> list[Layers]:
    """Up to `N_OTHERS` of the other runs, spread over the depth, that share no layer with the
    chosen ones; any other runs, where each shares one."""
    taken = {layer for some in chosen for layer in some}
    left = [some for some in windows(n_layers) if not taken & set(some)]
    left = left or [some for some in windows(n_layers) if some not in chosen]
    at = np.unique(np.linspace(0, len(left) - 1, N_OTHERS).round().astype(int))
    return [left[i] for i in at]


def source_probability(
    rows: Opposites, sets: Sequence[Layers], among_answers: bool = False
) -> Float[Tensor, "set direction case"]:
    """The model's own next-token probability of the source's answer with the attention outputs of
    each set of layers taken from the source; with `among_answers` among the answers of all rows."""
    words = rows.token.unique() if among_answers else None
    token = rows.token if words is None else torch.searchsorted(words, rows.token)
    given = steering.attention_outputs(rows.prompts, torch.arange(len(token)))
    given, n_layers = given.roll(len(rows.cases), 1), len(rows.states)
    first = np.array([min(layers, default=n_layers - 1) for layers in sets])
    found = torch.zeros(len(sets), len(token))
    for part in np.array_split(first.argsort(kind="stable"), min(4, len(sets))):
        mask, below = as_mask([sets[i] for i in part], n_layers), int(first[part].min()) - 1
        for some in last_token.chunks(torch.arange(len(token)), len(part)):
            h = rows.states[below, some, None].expand(-1, len(part), -1)
            start = None if below < 0 else (below, h)  # nothing differs up to there
            _, final = steering.patched(rows.prompts, some, given[:, some], mask, start)
            p = last_token.logits(rows.prompts, final, words).log_softmax(-1).cpu()
            p = p.gather(-1, token[some].expand(len(part), -1)[..., None])[..., 0].exp()
            found[torch.from_numpy(part)[:, None], some] = p
    return found.double().unflatten(1, (2, len(rows.cases)))


def best_windows(rows: Opposites, seed: int) -> tuple[Choices, Float[np.ndarray, " window"]]:
    """The run of layers whose patching makes the source's answer most probable, by the weaker
    direction; its stability; and the curve over all runs, as a share of all layers."""
    n_layers = len(rows.states)
    sets = windows(n_layers)
    p = source_probability(rows, [*sets, tuple(range(n_layers))], among_answers=True)
    p = p[..., rows.used]  # window direction case
    curve = (p[:-1].mean(-1) / p[-1].mean(-1)).min(1).values
    weights = torch.from_numpy(choosing.case_weights(p.shape[-1], rng(seed, "windows")))
    drawn = torch.einsum("wdc,nc->nwd", p[:-1], weights).min(-1).values.argmax(-1)
    return choosing.of_draws([sets[i] for i in drawn]), curve.numpy()


@dataclass(frozen=True)
class Carried:
    """What one adapter's model shows on test cases: [direction case], 0 for cases not right."""

    everything: Float[Tensor, "direction case"]
    window: Float[Tensor, "direction case"]  # averaged over the choices, in proportion
    found: Float[Tensor, "direction case"]  # by the search of each direction, likewise
    others: Float[Tensor, "other direction case"]
    nothing: Float[Tensor, "direction case"]


def carried(rows: Opposites, window: Choices, found: Mapping[str, Choices]) -> Carried:
    """Patch all layers, the chosen runs, what the searches found, other runs, and none. A search
    that found nothing counts as nothing patched."""
    n_layers = len(rows.states)
    chosen = list(window.followed)
    per_direction = [found[name].followed for name in INTENT_RUNS]
    named = [*chosen, *per_direction[0], *per_direction[1]]
    sets = list(dict.fromkeys([tuple(range(n_layers)), (), *named, *others(chosen, n_layers)]))
    p = source_probability(rows, sets) * rows.used
    at = {layers: p[i] for i, layers in enumerate(sets)}
    by_search = [
        sum(share * at[layers][i] for layers, share in some.items())
        for i, some in enumerate(per_direction)
    ]
    return Carried(
        everything=at[tuple(range(n_layers))],
        window=sum(share * at[layers] for layers, share in window.followed.items()),
        found=torch.stack(by_search),
        others=torch.stack([at[layers] for layers in others(chosen, n_layers)]),
        nothing=at[()],
    )


def recovered(
    carried: Sequence[Carried], groups: Sequence[str], seed: int
) -> tuple[Estimate, dict[str, Any]]:
    """For 4.5: what the best runs of layers recover on test cases, and for the record the same of
    the layers that the search finds, and of other runs (the null: each by itself, in the median
    adapter and the weaker direction)."""
    of = torch.stack([one.everything for one in carried])

    def share(name: str) -> Estimate:
        hits = torch.stack([getattr(one, name) for one in carried])
        return choosing.weaker_median(hits, of, groups, seed, f"4.5 {name}")

    n = min(len(one.others) for one in carried)
    chance = torch.stack(
        [choosing.each_share(torch.stack([one.others[i] for one in carried]), of) for i in range(n)]
    )
    window = torch.stack([one.window for one in carried])
    numbers = choosing.spread(choosing.each_share(window, of)) | {
        "search": share("found"),
        "null": Null(chance.median(1).values.min(-1).values.numpy()),
        "unpatched": share("nothing").value,
        "all_layers": float((of.sum(-1) / (of > 0).sum(-1)).min()),
    }
    return share("window"), numbers


def of_searches(
    found: Sequence[Mapping[str, Choices]], window: Sequence[Choices], n_layers: int
) -> dict[str, Any]:
    """For the record: how many layers the search names (share of all, the mean), how often its
    first intent layer is not behind the first answer layer, and how stable the choices are."""
    sizes, early = [], []
    for one in found:
        intent = [one[name] for name in INTENT_RUNS]
        answer = [some for name, some in one.items() if name not in INTENT_RUNS]
        sizes += [len(k) / n_layers * s for some in intent for k, s in some.shares.items()]
        first = min(min(some.first, default=n_layers) for some in answer)
        early += [
            s * (min(k, default=n_layers) <= first)
            for some in intent
            for k, s in some.shares.items()
        ]
    n = 2 * len(found)
    stable = [some.stability for one in found for name, some in one.items() if name in INTENT_RUNS]
    return {
        "search_share": float(sum(sizes) / n),
        "early": float(sum(early) / n),
        "search_stability": float(np.median(stable)),
        "window_stability": float(np.median([one.stability for one in window])),
        "window_share": len(windows(n_layers)[0]) / n_layers,
        "note": "; ".join(f"{name}: {list_layers(some.first)}" for name, some in found[0].items()),
    }


def as_rows(found: Mapping[str, Choices]) -> dict[str, dict[str, Layers]]:
    """The layers found most often, as `figures.strips` draws them."""
    return {name: {"layers found": some.first} for name, some in found.items()}


def list_layers(layers: Layers) -> str:
    return f"layers {', '.join(map(str, layers)) or 'none'}"
