"""Where to set the coordinate along a direction, and what is said then (Minder et al., 2411.07404,
Sec. 6; the published values were set by hand). The edit itself is handed in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from replib.chapters.context_knob import asking, choosing, last_token, steering
from replib.chapters.context_knob.asking import Answers, Unstated
from replib.chapters.context_knob.choosing import Choices
from replib.chapters.context_knob.intents import INTENTS, Case
from replib.interventions.generation import NEUTRAL_TEXT
from replib.metrics import Estimate, Null, proportion, rng, spearman

Change = Callable[[Tensor, Tensor, Tensor], Tensor]  # of h, a direction, and c
SIGNS: Mapping[str, int] = {"context": 1, "prior": -1}
ANSWERS = ("context's answer", "memory's answer", "anything else")  # of `answer_shares`
KS = [sign * k / 4 for sign in SIGNS.values() for k in (1, 2, 3, 4)]
N_NEUTRAL = 64  # tokens of the neutral text
MOST_COST = 0.1  # nats a token; what costs more is no knob


@dataclass(frozen=True)
class Dial:
    """A direction at a layer, and how far its coordinate may be turned."""

    layer: int
    direction: Float[Tensor, " d_model"]  # of length 1
    middle: float  # mean coordinate in the fine-tuned model's own runs
    low: float  # and its ends there
    high: float

    def at(self, k: float) -> float:
        """c for k from -1 (the lowest that occurs) over 0 (the middle) to 1 (the highest)."""
        end = self.high if k > 0 else self.low
        return self.middle + abs(k) * (end - self.middle)

    def note(self, ks: Mapping[str, Choices | None]) -> str:
        """Where it is set, in words."""
        said = [
            f"{name} {'none' if ks[i] is None else format(self.at(ks[i].first), '.3g')}"
            for i, name in zip(INTENTS, ("context", "memory"), strict=True)
        ]
        ends = f"{self.low:.3g} to {self.high:.3g}"
        return f"layer {self.layer}; c: {', '.join(said)}; in the model's own runs {ends}"


def dial_along(v: Float[Tensor, " d_model"], layer: int, h: Float[Tensor, "row d_model"]) -> Dial:
    """A dial along v, its range read from the model's own runs h."""
    u = v / v.norm()
    own = h.float() @ u
    return Dial(layer, u, float(own.mean()), float(own.min()), float(own.max()))


def costs(model: TransformerBridge, dial: Dial, change: Change) -> dict[float, float]:
    """For each k, by how many nats a token the loss on the first tokens of a neutral text rises
    when the coordinate is set at all its positions but the first: the knob never edits the first
    token of a text, whose residual is of another kind."""
    network = model.original_model
    ids = torch.tensor([model.tokenizer(NEUTRAL_TEXT).input_ids[:N_NEUTRAL]])
    ids, seen = ids.to(next(network.parameters()).device), []
    name, watch = steering.resid_name(dial.layer), lambda h, hook: seen.append(h.detach())

    def loss(ids: Tensor) -> Float[Tensor, " row"]:
        out = network(ids).logits[:, :-1].float().transpose(1, 2)
        return torch.nn.functional.cross_entropy(out, ids[:, 1:], reduction="none").mean(-1).cpu()

    with torch.no_grad():
        with model.hooks(fwd_hooks=[(name, watch)]):
            usual = loss(ids)
        h = seen[0].repeat(len(KS), 1, 1)
        c = torch.tensor([dial.at(k) for k in KS], device=h.device)[:, None]
        h[:, 1:] = change(h[:, 1:].float(), dial.direction.to(h.device), c).to(h)
        with last_token.starting_at(model, (dial.layer, h)):
            risen = loss(ids.expand(len(KS), -1)) - usual
    return dict(zip(KS, risen.tolist(), strict=True))


def settings(
    asked: Unstated,
    dial: Dial,
    change: Change,
    seed: int,
    cost: Mapping[float, float] | None = None,
    either_sign: bool = False,
) -> dict[str, Choices | None]:
    """For each intent the k of `KS` at which that intent's answer leads the other in most prompts,
    of equals the smallest |k|; asked again of resampled prompts. Only k above 0 for the context and
    below 0 for memory, unless `either_sign`; and none that costs more than `MOST_COST`. None where
    no setting is left."""
    ks = sorted(KS, key=abs)
    both = leads(asked, dial, change, [dial.at(k) for k in ks])  # value case
    best: dict[str, Choices | None] = {}
    for intent, sign in SIGNS.items():
        allowed = [
            i
            for i, k in enumerate(ks)
            if (either_sign or k * sign > 0) and (cost is None or cost[k] <= MOST_COST)
        ]
        score = (both[allowed] * sign > 0).double()
        names, generator = [ks[i] for i in allowed], rng(seed, "k", intent)
        best[intent] = choosing.resampled_best(score, names, generator) if allowed else None
    return best


def leads(
    asked: Unstated, dial: Dial, change: Change, values: Sequence[float]
) -> Float[Tensor, "value case"]:
    """By how much the context's answer leads memory's, in logits of the first token."""
    h = _swept(asked, dial, change, values)
    both = last_token.between(asked.prompts, h, asked.tokens.T)
    return (both[..., 0] - both[..., 1]).T


def _swept(
    asked: Unstated, dial: Dial, change: Change, values: Sequence[float]
) -> Float[Tensor, "case value d_model"]:
    at = {"layer": dial.layer, "states": asked.states[dial.layer]}
    return steering.swept(asked.prompts, dial.direction, values, change=change, **at)


def steered(
    model: TransformerBridge,
    asked: Unstated,
    dial: Dial,
    change: Change,
    ks: Mapping[str, Choices | None],
) -> Float[Tensor, "intent case"]:
    """How often the answer is right with the coordinate set for each intent at every decoding step,
    averaged over settings in proportion to how often they were chosen. Where there is no setting
    nothing is set."""
    found = []
    for intent in INTENTS:
        if ks[intent] is None:
            found.append(asking.answered(asked, intent).double())
            continue
        total = torch.zeros(len(asked.cases), dtype=torch.double)
        for k, share in ks[intent].followed.items():
            with steering.edited(model, dial.layer, change, dial.direction, dial.at(k)):
                total += share * asking.answered(asked, intent).double()
        found.append(total)
    return torch.stack(found)


def pairs(
    asked: Unstated, dial: Dial, change: Change, ks: Mapping[str, Choices | None]
) -> Float[Tensor, " case"]:
    """How often each intent's answer leads the other with the coordinate set for it, both at once:
    PairAcc by the first token, between the two answers. Settings are averaged in proportion."""
    some = [{None: 1.0} if ks[i] is None else ks[i].followed for i in INTENTS]
    total = torch.zeros(len(asked.cases), dtype=torch.double)
    for (k_context, s), (k_prior, t) in product(some[0].items(), some[1].items()):
        c = [dial.at(0.0 if k is None else k) for k in (k_context, k_prior)]
        context, prior = leads(asked, dial, change, c)
        total += s * t * ((context > 0) & (prior < 0)).double()
    return total


@dataclass(frozen=True)
class Turned:
    """What one adapter's knob makes the plain model say, averaged over its layers."""

    dial: Dial  # at the layer chosen most often
    ks: Mapping[str, Choices | None]
    right: Float[Tensor, "intent case"]
    pair: Float[Tensor, " case"]  # right with either setting
    first: Float[Tensor, " case"]  # `pairs`
    cost: Mapping[str, float]  # nats a token, of each setting chosen most often

    @property
    def stability(self) -> float:
        """How often the less stable of the two settings was chosen; 0 where there is none."""
        return min(0.0 if some is None else some.stability for some in self.ks.values())


def turn(
    model: TransformerBridge,
    dials: Mapping[float, Dial],
    change: Change,
    tuning: Unstated,
    asked: Unstated,
    seed: int,
) -> Turned:
    """Choose settings on `tuning` and steer `asked` with them, along each dial, by its share; the
    dial of the largest share comes first."""
    found = []
    for share, dial in dials.items():
        cost = costs(model, dial, change)
        ks = settings(tuning, dial, change, seed, cost)
        right = steered(model, asked, dial, change, ks)
        first = pairs(asked, dial, change, ks)
        found.append((share, right, right.prod(0), first, dial, ks, cost))
    _, _, _, _, dial, ks, cost = found[0]
    at = {i: 0.0 if some is None else cost[some.first] for i, some in ks.items()}
    right, pair, first = (sum(one[0] * one[i] for one in found) for i in (1, 2, 3))
    return Turned(dial, ks, right, pair, first, at)


def numbers(turned: Sequence[Turned], asked: Unstated) -> dict[str, float]:
    """For the record: medians over adapters, their lowest and highest PairAcc, the largest cost and
    how stable the settings are."""
    each = torch.stack([one.pair.mean() for one in turned])
    right = torch.stack([one.right.mean(1) for one in turned]).median(0).values  # intent
    return {
        "steered": float(each.median()),
        "lowest_adapter": float(each.min()),
        "highest_adapter": float(each.max()),
        **{f"{i}_accuracy": float(x) for i, x in zip(INTENTS, right, strict=True)},
        "cost": max(max(one.cost.values()) for one in turned),
        "settings_stability": float(np.median([one.stability for one in turned])),
        "without_setting": float(np.mean([one.stability == 0 for one in turned])),
        **unsteered(asked),
    }


def first_token(turned: Sequence[Turned], groups: Sequence[str], seed: int) -> Estimate:
    """`pairs` of the median adapter."""
    first = torch.stack([one.first for one in turned])
    nothing = torch.zeros_like(first[:1])
    return choosing.gain_over_best(first, nothing, groups, seed, "4.7 first")


def random_pairs(
    directions: Float[Tensor, "draw d_model"],
    h: Float[Tensor, "row d_model"],
    layer: int,
    change: Change,
    tuning: Unstated,
    asked: Unstated,
    seed: int,
) -> Float[np.ndarray, " draw"]:
    """`pairs` of other directions. Each gets its own range, from the same runs h, and its own
    settings, of either sign and at any cost."""
    found = []
    for v in directions:
        dial = dial_along(v, layer, h)
        ks = settings(tuning, dial, change, seed, either_sign=True)
        found.append(float(pairs(asked, dial, change, ks).mean()))
    return np.array(found)


def unsteered(asked: Unstated) -> dict[str, float]:
    """For the record: how often the model's first token is that of either answer when nothing is
    set."""
    with torch.no_grad():
        said = asked.prompts.step().argmax(-1).cpu()
    shares = (said == asked.tokens).double().mean(1)
    return {f"unsteered_{i}": float(x) for i, x in zip(INTENTS, shares, strict=True)}


def answer_shares(
    asked: Unstated, dial: Dial, change: Change, values: Sequence[float]
) -> Float[np.ndarray, "value case answer"]:
    """Probabilities of the context's answer, of memory's, and of anything else, by first token."""
    found = []
    for some in np.array_split(values, 3):
        h = _swept(asked, dial, change, some.tolist()).transpose(0, 1)  # value case d_model
        p = last_token.logits(asked.prompts, h).softmax(-1).cpu()
        both = p.gather(-1, asked.tokens.T.expand(len(some), -1, -1))
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


def separation(
    ways: Sequence[Sequence[Answers]], v: Float[Tensor, " d_model"], layer: int
) -> Float[Tensor, " way"]:
    """Mean coordinate along v under the context intent less that under memory's, of each way to
    ask; its models (the seeds) together."""
    found = []
    for some in ways:
        h = torch.cat([one.residual[layer].float() for one in some], 1)  # intent case d_model
        context, prior = (h @ v).mean(-1)
        found.append(context - prior)
    return torch.stack(found)


def correlations(
    apart: Float[Tensor, "direction item"], b: Float[Tensor, " item"]
) -> Float[np.ndarray, " direction"]:
    """Spearman's rank correlation with b of each row; NaN where one of them is constant."""
    return np.array([spearman(row, b, rng(0), draws=1)[0] for row in apart])


def of_separation(
    apart: Float[Tensor, "adapter item"],
    by_chance: Float[Tensor, "draw item"],
    pairs: Float[Tensor, " item"],
    seed: int,
) -> tuple[Estimate, dict[str, Any]]:
    """For 4.8: the rank correlation of separation and PairAcc, that of the median adapter, with the
    interval of Fisher's z of the ranks; and for the record p (configurations permuted), and the
    share of random directions that correlate as well, either way round."""
    found = [spearman(one, pairs, rng(seed, "4.8")) for one in apart]  # the same permutations
    rho = np.array([one[0] for one in found])
    middle = int(np.argsort(rho)[(len(rho) - 1) // 2])
    value = float(rho[middle])
    null = np.median([one[1] for one in found], 0)
    ends = stats.pearsonr(*(stats.rankdata(x) for x in (apart[middle], pairs)))
    low, high = ends.confidence_interval(0.95)
    as_good = np.abs(correlations(by_chance, pairs)) >= abs(value) - 1e-9
    return Estimate(value, float(low), min(float(high), 1.0), len(pairs)), {
        "null": Null(null),
        "p": Null(null).pvalue(value),
        "random_as_good": proportion(torch.from_numpy(as_good)),
        "spread": float(pairs.max() - pairs.min()),
        "lowest_adapter": float(rho.min()),
    }
