"""More than one layer, a softmax, separate tokens (claims 10.8 to 10.10)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from replib.chapters.icl_gradient_descent.bench import Bench, envelope, over_tasks, ratio
from replib.chapters.icl_gradient_descent.descent import gd
from replib.chapters.icl_gradient_descent.network import Layers, from_products, sensitivities
from replib.chapters.icl_gradient_descent.tasks import D, Tasks
from replib.chapters.icl_gradient_descent.training import Trained
from replib.chapters.icl_gradient_descent.watching import copying, cosines, half_way

FACTOR = 1.2  # times the loss of one step: what counts as having learnt the task


def without_correction(network: Layers) -> Layers:
    """The network with 0 where W_V P writes inputs from inputs: gamma = 0."""
    own = 1 if network.form.shared else network.form.layers
    products = [network.products(at) for at in range(own)]
    for _, vp in products:
        vp.detach_()[:D, :D] = 0.0
    return from_products(network.form, products)


def correcting(bench: Bench, networks: Sequence[Layers]) -> dict[str, Any]:
    """10.8: how near networks come to as many steps of GD++ as they have layers, and whether by the
    same means."""
    steps, tasks = networks[0].form.layers, bench.tasks
    plain_s, plus_s = bench.references.gd(tasks, steps), bench.references.gd_pp(tasks, steps)
    plain, plus = bench.of(plain_s), bench.of(plus_s)
    best = plain
    if steps == 2:
        each = bench.of(gd(tasks, bench.references.two))
        best = min(plain, each, key=lambda losses: losses.mean())
    found = [bench.loss(network) for network in networks]
    closer, cost = [], []
    for network, losses in zip(networks, found, strict=True):
        s = sensitivities(network, tasks)
        closer.append(over_tasks(cosines(s, plus_s) - cosines(s, plain_s)))
        cost.append(bench.loss(without_correction(network)) - losses)
    return {
        "value": envelope([ratio(plain - one, plain - plus) for one in found]),
        "gain": bench.shares([best - one for one in found]),
        "closer": envelope(closer),
        "without": bench.shares(cost),
        "room": bench.shares([plain - plus]),
        "improved": min((bench.one - one).mean().item() for one in found) / bench.gap,
        "loss": torch.stack(found).mean(),
        "plain": plain.mean(),
        "plus": plus.mean(),
    }


def two_heads(
    bench: Bench, one: Sequence[nn.Module], two: Sequence[nn.Module], linear: Sequence[nn.Module]
) -> dict[str, Any]:
    """10.9: networks with one softmax head, with two, and with one linear head, seed by seed."""
    losses = [[bench.loss(n) for n in some] for some in (one, two, linear)]
    seeds = list(zip(*losses, strict=False))  # more seeds of the linear layer are left out
    return {
        "value": envelope([ratio(a - b, a - c) for a, b, c in seeds]),
        "room": bench.shares([a - c for a, _, c in seeds]),
        "improved": bench.improved([c for _, _, c in seeds]),
        "softmax_one": sum(a.mean() for a, _, _ in seeds) / len(seeds),
        "softmax_two": sum(b.mean() for _, b, _ in seeds) / len(seeds),
    }


def effective(network: Layers) -> torch.Tensor:
    """What a softmax layer's heads add up to, to first order in their scores: the sum of their M,
    divided by the number of pairs and the root of the key size, as a linear layer's M is read."""
    pairs = [network.products(0, head) for head in range(network.form.heads)]
    total = sum((qk * vp[-1, -1]).detach() for qk, vp in pairs)
    return total / D / network.form.width**0.5


def copies_first(
    bench: Bench, networks: Sequence[Trained], no_positions: Trained, frozen: Trained
) -> dict[str, Any]:
    """10.10: how much the first layer copies from the next token, in the networks that learnt the
    task, and whether that came before the fall of the loss (from what predicting 0 costs on; an
    earlier fall, of a constant that the positions bring, does not count)."""
    step = bench.one.mean().item()
    multiples = [bench.loss(one.network).mean().item() / step for one in networks]
    learnt = [one for one, m in zip(networks, multiples, strict=True) if m <= FACTOR]
    some = Tasks(*(part[:1000] for part in vars(bench.tasks).values()))
    norms = [copying(one.network, some) for one in learnt or networks]
    factors = [one["next"] / max(one["other"], 1e-9) for one in norms]
    whens = [crossings(one, bench.zero.mean().item()) for one in learnt or networks]
    return {
        "value": min(factors),
        "n": len(learnt),
        "largest": max(factors),
        "learnt": len(learnt),
        "first": sum(copy <= fall for copy, fall in whens),
        "copied_at": max(copy for copy, _ in whens),
        "fell_at": min(fall for _, fall in whens),
        "multiple": min(multiples),
        "no_positions": bench.loss(no_positions.network).mean().item() / step,
        "frozen": bench.loss(frozen.network).mean().item() / step,
    }


def crossings(one: Trained, zero: float) -> tuple[int, int]:
    """(Step at which copying from the next token has made half of its way, the same of the loss's
    way down from what predicting 0 costs)."""
    curve = one.curve
    loss = [min(value, zero) for value in curve["loss"]]
    return half_way(curve["step"], curve["next"]), half_way(curve["step"], loss)
