"""The minimal model: the attention of both layers in three numbers, and a linear classifier (Reddy
2312.03002, Sec. 3; the form is this project's, as the paper's equations were not seen).

beta_1: the score, in layer 1, of a label looking at the item just before it; all other scores are
0. What a token takes up goes into a buffer of its own. In layer 2 the query gives to token j the
score alpha <x_q, buffer_j>, and beta_2 more if j is a label. The classifier reads the mean content
found.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from replib.chapters.abrupt_induction.curves import Curve, Points, crossing, half_rise
from replib.chapters.abrupt_induction.law import CONTENT, N_PLACES, Law
from replib.chapters.abrupt_induction.network import causal_softmax
from replib.chapters.abrupt_induction.sequences import Sequences, draw, draw_directions

RATE, BATCH, EVERY = 10.0, 128, 20
SLOWER = 1 / CONTENT  # a number stands for the mean of 63 entries of a matrix (see three_logits)
N_POOL, N_TEST = 8192, 512  # sequences to train on, drawn once; to test on
ORDER = ("cla", "alpha", "beta_1")  # in which the paper has them learnt


class Minimal(nn.Module):
    """beta_1, beta_2, alpha and W [label 63], all small at the start; `W` may be given."""

    def __init__(self, n_labels: int, generator: torch.Generator, W: Tensor | None = None) -> None:
        super().__init__()
        numbers = 0.01 * torch.rand(3, generator=generator)
        self.numbers = nn.Parameter(numbers)  # beta_1, beta_2, alpha
        start = 0.01 * torch.randn(n_labels, CONTENT, generator=generator)
        self.W = nn.Parameter(start if W is None else W.clone())

    def forward(self, content: Float[Tensor, "row token 63"]) -> Float[Tensor, "row label"]:
        beta_1, beta_2, alpha = self.numbers
        n = content.shape[1]
        label = torch.arange(1, n, 2)
        scores = torch.zeros(n, n).index_put((label, label - 1), beta_1)
        first = causal_softmax(scores)  # token token; the same in every sequence
        like_query = (content @ content[:, -1, :, None])[..., 0]
        is_label = torch.zeros(n).index_fill(0, label, 1.0)
        second = (alpha * like_query @ first.T + beta_2 * is_label).softmax(-1)
        return (second[:, None] @ content)[:, 0] @ self.W.T


def content_of(sequences: Sequences) -> Float[Tensor, "row token 63"]:
    return sequences.tokens[..., N_PLACES:]


def learn(
    law: Law, seed: int, steps: int, given: bool = False
) -> tuple[Minimal, dict[str, Points]]:
    """Gradient descent on the minimal model, from a small random start; `given`: with the
    classifier at its end from the start, W = 20 times the labels. Its curve: step, loss, ic, cla,
    alpha, beta_1 and beta_2. Batches are taken from a pool of sequences that is drawn once."""
    generator = torch.Generator().manual_seed(seed)
    directions = draw_directions(law, generator)
    model = Minimal(law.n_labels, generator, 20 * directions.labels if given else None)
    pool = draw(law, directions, N_POOL, generator)
    content, answer = content_of(pool), pool.answer
    test = draw(law, directions, N_TEST, generator)
    curve: dict[str, Points] = {}
    for n in range(steps + 1):
        rows = torch.randint(N_POOL, (BATCH,), generator=generator)
        loss = nn.functional.cross_entropy(model(content[rows]), answer[rows])
        if n % EVERY == 0:
            _add_point(curve, n, loss.item(), model, test)
        gradients = torch.autograd.grad(loss, [model.numbers, model.W])
        with torch.no_grad():
            model.numbers -= RATE * SLOWER * gradients[0]
            model.W -= RATE * gradients[1]
    return model, curve


@torch.no_grad()
def _add_point(
    curve: dict[str, Points], n: int, loss: float, model: Minimal, test: Sequences
) -> None:
    said = model(content_of(test)).argmax(-1)
    beta_1, beta_2, alpha = model.numbers.tolist()
    point = {"step": n, "loss": loss, "ic": (said == test.answer).double().mean().item()}
    point["cla"] = (said[:, None] == test.labels).any(1).double().mean().item()
    point |= {"alpha": alpha, "beta_1": beta_1, "beta_2": beta_2}
    for key, value in point.items():
        curve.setdefault(key, []).append(value)


def planted_curve(n_pairs: int, steps: int, given: bool = False) -> dict[str, Points]:
    """What stands for `learn` on the page of planted networks: a curve set by hand, in which labels
    are learnt first, then alpha, then beta_1, and IC with it."""
    x = torch.linspace(0, 1, 201, dtype=torch.float64)

    def rise(start: float, end: float) -> Tensor:
        return ((x - start) / (end - start)).clamp(0, 1)

    begin = 0.02 if given else 0.68
    ic = 1 / n_pairs * rise(0.0, 0.4) + (1 - 1 / n_pairs) * rise(begin, begin + 0.02)
    cla = 0.25 + 0.7 * rise(0.0, 0.4)
    curve = {"ic": ic, "cla": cla, "alpha": 8 * rise(begin - 0.03, begin), "beta_1": None}
    curve["beta_1"] = 6 * rise(begin, begin + 0.02)
    return {"step": (x * steps).tolist()} | {key: y.tolist() for key, y in curve.items()}


def curves(
    way: str, law: Law, seeds: Sequence[int], steps: int, given: bool = False
) -> list[dict[str, Points]]:
    """The curve of each seed; set by hand where `way` is planted, its start alone if untrained."""
    if way == "planted":
        return [planted_curve(law.n_pairs, steps, given) for _ in seeds]
    return [learn(law, seed, 0 if way == "untrained" else steps, given)[1] for seed in seeds]


def in_order(curve: Curve) -> bool:
    """Do CLA, alpha and beta_1 have their half rises in this order?"""
    rises = [half_rise(curve["step"], curve[name]) for name in ORDER]
    return rises[0] < rises[1] < rises[2]


def slow_phase(curve: Curve, n_pairs: int) -> float:
    """Steps until IC has gone 10% of the way from 1/N to 1; NaN if it never does."""
    return crossing(curve["step"], curve["ic"], 1 / n_pairs + 0.1 * (1 - 1 / n_pairs))


def likeness(a: Sequence[Curve], b: Sequence[Curve]) -> float:
    """The median correlation, over pairs of a curve of each kind, of IC on an axis of steps in
    units of the own half rise, from 0 to 1.2. NaN where a curve has no rise."""
    x = np.linspace(0, 1.2, 121)
    found = [[_rescaled(one, x) for one in some] for some in (a, b)]
    pairs = [torch.corrcoef(torch.stack([p, q]))[0, 1] for p in found[0] for q in found[1]]
    return torch.stack(pairs).median().item()


def _rescaled(curve: Curve, x: Float[np.ndarray, " point"]) -> Tensor:
    half = half_rise(curve["step"], curve["ic"])
    return torch.from_numpy(np.interp(x * half, curve["step"], curve["ic"]))
