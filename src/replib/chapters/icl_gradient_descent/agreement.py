"""Does the trained layer do what one step of gradient descent does (claims 10.2 to 10.7)? Each
function gives what its claim is measured by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from replib import metrics
from replib.chapters.icl_gradient_descent import descent, weights
from replib.chapters.icl_gradient_descent.bench import (
    Bench,
    Losses,
    envelope,
    fresh,
    n_outside,
    over_tasks,
    ratio,
)
from replib.chapters.icl_gradient_descent.network import Form, Layers, attend, sensitivities
from replib.chapters.icl_gradient_descent.tasks import Tasks
from replib.chapters.icl_gradient_descent.watching import cosines
from replib.metrics import Estimate, Null

DAMPING = 0.75
REPEATS = 10  # over which repeated layers are compared
SCALES = tuple(round(0.5 + 0.15 * i, 2) for i in range(11))  # of the inputs
TARGETS = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
OTHER_SCALES = (0.5, 1.0, 2.0, 5.0)  # of inputs of another law


# --- 10.2 -----------------------------------------------------------------------------------------


def excess(bench: Bench, layers: Sequence[nn.Module]) -> dict[str, Any]:
    """10.2: what the layers cost beyond one step of gradient descent."""
    found = [bench.loss(layer) for layer in layers]
    return {
        "value": bench.shares([one - bench.one for one in found]),
        "improved": bench.improved(found),
        "loss": torch.stack(found).mean(),
        "step": bench.one.mean(),
        "zero": bench.zero.mean(),
    }


# --- 10.3 -----------------------------------------------------------------------------------------


def matching(layers: Sequence[Layers], improved: float, n_draws: int = 200) -> dict[str, Any]:
    """10.3: how far M is from the construction's, on each seed and on draws of first weights."""
    rate = descent.best_one_step().rate
    seeds = [
        weights.deviation(weights.combined(layer), rate, layer.products(0)[1]) for layer in layers
    ]
    draws = [Layers(Form(), 10_000 + i) for i in range(n_draws)]
    random = [weights.deviation(weights.combined(layer), rate).largest for layer in draws]
    mixed = [a.products(0)[0] * b.products(0)[1][-1, -1] for a, b in pairwise(layers)]
    parts = ("diagonal", "off", "row", "column", "reads")
    return {
        "value": metrics.seeds_mean([one.largest for one in seeds]),
        "worst": max(one.largest for one in seeds),
        "null": Null(np.array(random)),
        "improved": improved,
        "mixed": max(weights.deviation(m, rate).off for m in mixed),
        **{part: max(getattr(one, part) for one in seeds) for part in parts},
    }


# --- 10.4 -----------------------------------------------------------------------------------------


def alignment(bench: Bench, layers: Sequence[nn.Module], seed: int) -> dict[str, Any]:
    """10.4: cosines between the sensitivities of the layers and those of other estimates."""
    tasks, chosen = bench.tasks, bench.references
    one = chosen.gd(tasks)
    others = {
        "two": chosen.gd(tasks, 2),
        "ridge": descent.ridge(tasks, chosen.penalty),
        "squares": descent.ridge(tasks, 0.0),
    }
    own, specific = [], []
    cosine: dict[str, list[float]] = {name: [] for name in others}
    draw, chance = metrics.rng(seed, "other contexts"), []
    for layer in layers:
        s = sensitivities(layer, tasks)
        here = cosines(s, one)
        own.append(over_tasks(here))
        for name, other in others.items():
            there = cosines(s, other)
            cosine[name].append(there.mean().item())
            specific.append(over_tasks(here - there))
        for _ in range(200 // len(layers)):
            order = torch.from_numpy(draw.permutation(len(tasks)))
            chance.append(cosines(s, one[order]).mean().item())
    least = min(specific, key=lambda e: e.value)
    return {
        "value": envelope(own),
        "specific": least.value,
        "specific_low": min(e.low for e in specific),
        "specific_high": _for_all(specific, len(others)),
        "null": Null(np.array(chance)),
        **{name: sum(some) / len(some) for name, some in cosine.items()},
    }


def _for_all(specific: Sequence[Estimate], n_others: int) -> float:
    """Below 0 only if on every seed some estimate is closer than one step is."""
    seeds = [specific[i : i + n_others] for i in range(0, len(specific), n_others)]
    return max(min(e.high for e in one) for one in seeds)


# --- 10.5 -----------------------------------------------------------------------------------------


def between(bench: Bench, layers: Sequence[Layers]) -> dict[str, Any]:
    """10.5: what the layer half-way to the construction costs, with the scale fixed or not."""
    built = weights.constructed(bench.references.one)
    costs, raw = [], []
    for layer in layers:
        ends = bench.loss(layer), bench.loss(built)
        worse = max(ends, key=lambda losses: losses.mean())
        costs.append(bench.loss(weights.half_way(layer, bench.references.one)) - worse)
        raw.append((bench.loss(weights.half_way_raw(layer, built)) - worse).mean().item())
    return {"value": bench.shares(costs), "unfixed": min(raw) / bench.gap}


# --- 10.6 -----------------------------------------------------------------------------------------


def grid() -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """Shifts of the task: {kind: (scale, what `tasks.draw` is given)}."""
    others = ("normal", "exponential", "laplace")
    return {
        "input scale": [(x, {"input_scale": x}) for x in SCALES],
        "target scale": [(x, {"target_scale": x}) for x in TARGETS],
        **{law: [(x, {"law": law, "input_scale": x}) for x in OTHER_SCALES] for law in others},
    }


@dataclass(frozen=True)
class Shifted:
    """Losses away from the training distribution, by kind of shift and place on its scale."""

    scales: Mapping[str, Sequence[float]]
    step: Mapping[str, Sequence[float]]  # loss of one step of gradient descent
    layers: Mapping[str, Sequence[Sequence[Estimate]]]  # ratio to it: [place][seed]
    control: Mapping[str, Sequence[float]]  # ratio to it, of the control


def shifted(bench: Bench, layers: Sequence[nn.Module], control: nn.Module, seed: int) -> Shifted:
    """Losses at every point of the `grid`, on as many tasks as the bench has at each."""
    names = grid()
    step: dict[str, list[float]] = {name: [] for name in names}
    found: dict[str, list[list[Estimate]]] = {name: [] for name in names}
    other: dict[str, list[float]] = {name: [] for name in names}
    for name, places in names.items():
        for scale, law in places:
            here = Bench(fresh(len(bench.tasks), seed, name, scale, **law), bench.references)
            step[name].append(here.one.mean().item())
            found[name].append([ratio(here.loss(layer), here.one) for layer in layers])
            other[name].append(ratio(here.loss(control), here.one).value)
    scales = {name: [x for x, _ in places] for name, places in names.items()}
    return Shifted(scales, step, found, other)


def off_distribution(some: Shifted) -> dict[str, Any]:
    """10.6, from `shifted`. The control is taken relative to what it is where it was trained."""
    seeds = list(zip(*(place for kind in some.layers.values() for place in kind), strict=True))
    steps = [loss for kind in some.step.values() for loss in kind]
    home = some.control["target scale"][TARGETS.index(1.0)]
    away = [x / home for kind in some.control.values() for x in kind]
    whole = envelope([envelope(one) for one in seeds])
    return {
        "value": whole,
        "outside": n_outside(seeds, 0.9, 1.1),
        "span": max(steps) / min(steps),
        "control": max(abs(x - 1) for x in away),
        "places": len(steps),
    }


# --- 10.7 -----------------------------------------------------------------------------------------


@torch.no_grad()
def repeated(
    layer: Layers, tasks: Tasks, times: int, damping: float = DAMPING
) -> Float[Tensor, "time task"]:
    """Predictions after each of some applications of one linear layer, which update nothing but the
    last entry of each token."""
    qk, vp = layer.products(0)
    h, found = tasks.tokens(), []
    for _ in range(times):
        h[..., -1] += damping * attend(h, qk, vp)[..., -1]
        found.append(-h[:, -1, -1])
    return torch.stack(found)


@dataclass(frozen=True)
class Repeats:
    """Losses after 1, 2, ... applications."""

    layers: Sequence[Float[Tensor, "time task"]]  # one for each seed
    steps: Float[Tensor, "time task"]  # of damped gradient descent
    undamped: Sequence[float]  # of the first seed's layer without damping

    def ratios(self, seed: int) -> list[Estimate]:
        return [ratio(a, b) for a, b in zip(self.layers[seed], self.steps, strict=True)]


def repeat(bench: Bench, layers: Sequence[Layers], times: int = 50) -> Repeats:
    """Of layers and of damped gradient descent."""
    tasks, rate = bench.tasks, bench.references.one * DAMPING

    def losses(predicted: Tensor) -> Losses:
        return torch.stack([descent.losses(tasks, one) for one in predicted])

    w, steps = torch.zeros_like(tasks.query), []
    for _ in range(times):
        w = descent.gd_step(tasks, w, rate)
        steps.append(bench.of(w))
    found = [losses(repeated(layer, tasks, times)) for layer in layers]
    plain = losses(repeated(layers[0], tasks, REPEATS, 1.0)).mean(1).tolist()
    return Repeats(found, torch.stack(steps), plain)


def repeating(some: Repeats) -> dict[str, Any]:
    """10.7, from `repeat`. `parts` is the first repeat at which a seed is certainly outside 10%; 0:
    it never is."""
    seeds = [some.ratios(i) for i in range(len(some.layers))]
    first = [one[:REPEATS] for one in seeds]
    changes = [
        [over_tasks(losses[k + 1] - losses[k]) for k in range(REPEATS - 1)]
        for losses in some.layers
    ]
    away = [k + 1 for k in range(len(seeds[0])) if n_outside([[s[k]] for s in seeds], 0.9, 1.1)]
    return {
        "value": envelope([envelope(one) for one in first]),
        "outside": n_outside(first, 0.9, 1.1),
        "falling": sum(all(e.high < 0 for e in one) for one in changes),
        "rising": sum(any(e.low > 0 for e in one) for one in changes),
        "parts": away[0] if away else 0,
        "undamped": some.undamped[-1] / some.steps[REPEATS - 1].mean().item(),
    }
