"""The weights of one linear layer, and the construction (2212.07677, Prop. 1).

Only the products W_Q W_K' and W_V P are determined by what a layer computes, and of them only up to
a number that one of them is multiplied and the other divided by. So raw matrices are never
compared; `combined` is free of that choice.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from replib.chapters.icl_gradient_descent.network import Form, Layers, Products, from_products
from replib.chapters.icl_gradient_descent.tasks import PAIRS, D

Matrix = Float[Tensor, "d_token d_token"]


def construction(rate: float) -> Products:
    """(W_Q W_K', W_V P) of the layer that takes one step of gradient descent of this size."""
    qk, vp = torch.zeros(D + 1, D + 1), torch.zeros(D + 1, D + 1)
    qk[:D, :D] = torch.eye(D)
    vp[-1, -1] = -rate / PAIRS
    return qk, vp


def constructed(rate: float) -> Layers:
    """The layer itself."""
    return from_products(Form(), [construction(rate)])


@torch.no_grad()
def combined(layer: Layers | Products) -> Matrix:
    """M, the product of W_Q W_K' and the last entry of W_V P: the prediction is minus the sum over
    pairs of y_i x_q' M x_i, if the other entries of W_V P's last column are 0."""
    qk, vp = layer.products(0) if isinstance(layer, Layers) else layer
    return qk * vp[-1, -1]


@dataclass(frozen=True)
class Deviation:
    """How far M is from -(rate / 10) times the identity, with 0 in the last row and column; each a
    share of rate / 10."""

    diagonal: float  # of the mean of the first ten entries of the diagonal
    off: float  # root mean square of the other entries of the ten by ten block
    row: float  # the same of the last row
    column: float  # the same of the last column
    reads: float = 0.0  # of the rest of W_V P's last column, as a share of its last entry

    @property
    def largest(self) -> float:
        return max(self.diagonal, self.off, self.row, self.column)


def deviation(m: Matrix, rate: float, vp: Matrix | None = None) -> Deviation:
    """Of M from the construction's. M does not show whether W_V P reads the inputs, so with `vp`
    that is said too."""
    m, size = m.detach().double(), rate / PAIRS
    read = 0.0 if vp is None else (vp[:D, -1].square().mean().sqrt() / vp[-1, -1].abs()).item()
    block = m[:D, :D]
    off = block - block.diagonal().diag()
    return Deviation(
        abs(block.diagonal().mean().item() + size) / size,
        (off.square().sum() / (D * D - D)).sqrt().item() / size,
        m[-1].square().mean().sqrt().item() / size,
        m[:, -1].square().mean().sqrt().item() / size,
        read,
    )


@torch.no_grad()
def fixed(layer: Layers) -> Products:
    """The two products, scaled so that the mean of the first ten entries of W_Q W_K's diagonal is 1
    (released code, interpolate_weights)."""
    qk, vp = layer.products(0)
    mean = qk.diagonal()[:D].mean()
    return qk / mean, vp * mean


def half_way(layer: Layers, rate: float) -> Layers:
    """The layer between a trained one and the construction."""
    pairs = zip(fixed(layer), construction(rate), strict=True)
    return from_products(Form(), [tuple((a + b) / 2 for a, b in pairs)])


@torch.no_grad()
def half_way_raw(layer: Layers, other: Layers) -> Layers:
    """The same for the four raw matrices, whose scales and rotations are arbitrary."""
    between = Layers(Form(), 0)
    for mine, a, b in zip(
        between.parameters(), layer.parameters(), other.parameters(), strict=True
    ):
        mine.copy_((a + b) / 2)
    return between.eval()
