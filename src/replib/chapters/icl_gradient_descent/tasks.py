"""Tasks of linear regression as a Transformer reads them (2212.07677; released code, data.py).

A task is ten pairs (x, y = w.x) and a query x_q. Following the released code, inputs are uniform in
[-1/2, 1/2], although its docstring says [-1, 1]; every loss goes with the square of that range.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from replib.errors import UsageError

D, PAIRS = 10, 10  # inputs of a task, pairs in its context
LAWS = ("uniform", "normal", "exponential", "laplace")


@dataclass(frozen=True)
class Tasks:
    """Some tasks. The target is what the query's y would be; no network reads it."""

    x: Float[Tensor, "task pair d"]
    y: Float[Tensor, "task pair"]
    query: Float[Tensor, "task d"]
    target: Float[Tensor, " task"]

    def __len__(self) -> int:
        return len(self.y)

    def tokens(self) -> Float[Tensor, "task token d_token"]:
        """The pairs as tokens [x, y], then the query as [x_q, 0]."""
        pairs = torch.cat([self.x, self.y[..., None]], -1)
        query = torch.cat([self.query, torch.zeros_like(self.query[:, :1])], -1)
        return torch.cat([pairs, query[:, None]], 1)

    def separate_tokens(self) -> Float[Tensor, "task token d"]:
        """x_1, (0, ..., 0, y_1), x_2, ..., and the query: two tokens a pair."""
        labels = torch.zeros_like(self.x)
        labels[..., -1] = self.y
        pairs = torch.stack([self.x, labels], 2).flatten(1, 2)
        return torch.cat([pairs, self.query[:, None]], 1)

    def shuffled(self, generator: torch.Generator) -> "Tasks":
        """The same with the labels of each context in random order."""
        order = torch.rand(self.y.shape, generator=generator).argsort(1)
        return replace(self, y=self.y.gather(1, order))

    def to(self, kind: torch.dtype | torch.device | str) -> "Tasks":
        """The same in another number type, or on another device."""
        return Tasks(*(part.to(kind) for part in (self.x, self.y, self.query, self.target)))


def draw(
    n: int,
    generator: torch.Generator,
    *,
    input_scale: float = 1.0,
    target_scale: float = 1.0,
    law: str = "uniform",
    d: int = D,
    pairs: int = PAIRS,
) -> Tasks:
    """`n` fresh tasks: w is normal with variance `target_scale` squared. Uniform inputs have the
    width `input_scale`. Those of another law are scaled so that the ten inputs of a context have
    the length `input_scale` all together, and the query by the same factor (released code,
    create_ood_data; there the law is drawn for each task). Raises UsageError for an unknown law."""
    if law not in LAWS:
        raise UsageError(f"inputs of the law {law!r}: choose one of {', '.join(LAWS)}")
    shape = (n, pairs + 1, d)
    w = torch.randn(n, d, generator=generator) * target_scale
    if law == "uniform":
        inputs = (torch.rand(shape, generator=generator) - 0.5) * input_scale
    else:
        inputs = _unscaled(law, shape, generator)
        inputs = inputs / inputs[:, :-1].flatten(1).norm(dim=1)[:, None, None] * input_scale
    y = torch.einsum("tpd,td->tp", inputs, w)
    return Tasks(inputs[:, :-1], y[:, :-1], inputs[:, -1], y[:, -1])


def _unscaled(law: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if law == "normal":
        return torch.randn(shape, generator=generator)
    sizes = -torch.log1p(-torch.rand(shape, generator=generator))  # exponential, of mean 1
    if law == "exponential":
        return sizes
    return sizes * (2 * torch.randint(0, 2, shape, generator=generator) - 1)
