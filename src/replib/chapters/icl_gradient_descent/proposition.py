"""The construction in general, with several outputs and any weights to start from (2212.07677,
Prop. 1): one layer of linear self-attention beside one step of gradient descent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Regression:
    """One task with several outputs, and the weights that gradient descent starts from."""

    x: Float[Tensor, "pair d"]
    y: Float[Tensor, "pair out"]
    query: Float[Tensor, " d"]
    w: Float[Tensor, "out d"]

    def tokens(self) -> Float[Tensor, "token d_token"]:
        """Pairs [x, y], then the query with minus the prediction of the starting weights."""
        query = torch.cat([self.query, -self.w @ self.query])
        return torch.cat([torch.cat([self.x, self.y], 1), query[None]])


def regression(
    seed: int, dtype: torch.dtype = torch.float32, d: int = 12, out: int = 8, pairs: int = 45
) -> Regression:
    """A random one, all numbers normal; sizes are those of the released demonstration."""
    draw = torch.Generator().manual_seed(seed)
    shapes = (pairs, d), (out, d), (d,), (out, d)
    x, true, query, w = (torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes)
    parts = (part.to(dtype) for part in (x, x @ true.T, query, w))
    return Regression(*parts)


def layers(
    task: Regression, matrices: Sequence[Float[Tensor, "d_token d_token"]], times: int
) -> Float[Tensor, " out"]:
    """The prediction of the same linear layer, applied so many times; `matrices` are W_Q, W_K, W_V
    and P. The query is not among the keys and values, and its entry is minus the prediction."""
    h = task.tokens()
    w_q, w_k, w_v, p = matrices
    for _ in range(times):
        context = h[:-1]
        h = h + (h @ w_q) @ (context @ w_k).T @ (context @ w_v) @ p
    return -h[-1, len(task.query) :]


def descend(task: Regression, rate: float, times: int) -> Float[Tensor, " out"]:
    """The prediction after so many steps down the gradient of half the mean squared error."""
    w = task.w
    for _ in range(times):
        residual = task.y - task.x @ w.T
        w = w + rate / len(task.x) * residual.T @ task.x
    return w @ task.query
