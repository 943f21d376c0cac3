"""What is measured of a network while it is trained: a point of its curve."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replib.chapters.icl_gradient_descent.descent import best_one_step, gd, losses
from replib.chapters.icl_gradient_descent.network import Layers, predictions, sensitivities
from replib.chapters.icl_gradient_descent.tasks import Tasks, draw

DIVERGED = 99.0
N_WATCHED = 2000  # tasks of a curve, the same for all networks
_N_COPYING = 256  # of them, for the derivatives of `copying`
_SEED = 10**6  # no training has it


def watched() -> Tasks:
    """The tasks of every curve."""
    return draw(N_WATCHED, torch.Generator().manual_seed(_SEED))


def point(network: nn.Module, tasks: Tasks) -> dict[str, float]:
    """`loss`; of one linear layer also the `cosine` of its sensitivities with those of the best
    step of gradient descent, and where x and y are separate tokens the norms of `copying`."""
    found = {"loss": losses(tasks, predictions(network, tasks)).mean().item()}
    if is_one_layer(network):
        step = gd(tasks, [best_one_step().rate])
        found["cosine"] = cosines(sensitivities(network, tasks), step).mean().item()
    elif isinstance(network, Layers) and network.form.separate:
        some = Tasks(*(part[:_N_COPYING] for part in vars(tasks).values()))
        found |= copying(network, some)
    return {
        key: round(value, 6) if math.isfinite(value) else DIVERGED for key, value in found.items()
    }


def is_one_layer(network: nn.Module) -> bool:
    """Is it the network of the paper's main part, one linear head in one layer?"""
    if not isinstance(network, Layers):
        return False
    form = network.form
    return (form.layers, form.heads, form.softmax, form.separate) == (1, 1, 0, False)


def cosines(a: Float[Tensor, "task d"], b: Float[Tensor, "task d"]) -> Float[Tensor, " task"]:
    """Between two vectors of each task, in double precision; 0 where one of them is 0."""
    return torch.cosine_similarity(a.double(), b.double(), dim=1, eps=1e-30)


def copying(network: Layers, tasks: Tasks) -> Mapping[str, float]:
    """How much token j of the first layer's output depends on the input tokens: norms of the
    derivative of the sum of its entries, averaged over tasks; mean over all j of the context but
    the last. `own`: on token j itself, `next`: on token j + 1, `other`: mean over the other tokens
    (in the released code, train.py, analyse_copy, these include the next one)."""
    tokens = network.read(tasks).requires_grad_()
    out = network.layer(network.embed(tokens), 0)
    sums = out.sum((0, 2)) / len(tasks)  # [token]
    n = out.shape[1] - 2
    norms = torch.stack(
        [
            torch.autograd.grad(sums[j], tokens, retain_graph=True)[0].sum(0).norm(dim=-1)
            for j in range(n)
        ]
    )  # [j token]
    own, following = norms.diagonal().mean(), norms.diagonal(1)[:n].mean()
    others = (norms.sum() / n - own - following) / (norms.shape[1] - 2)
    return {"own": own.item(), "next": following.item(), "other": others.item()}


def half_way(steps: list[int], values: list[float]) -> int:
    """The first step at which a curve has made half of its way from its first to its last value;
    for a curve that goes nowhere the last step."""
    middle = (values[0] + values[-1]) / 2
    up = values[-1] > values[0]
    there = (s for s, v in zip(steps, values, strict=True) if (v >= middle if up else v <= middle))
    return steps[-1] if values[0] == values[-1] else next(there)
