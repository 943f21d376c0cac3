"""The nested logits in three numbers, and gradient descent on them (Reddy 2312.03002, Sec. 3). The
closed form is this project's, made to say what the paper says in words.

b: how strongly a label looks one place back. Then its share p1 of attention is on its own item, the
rest even over the other N places. a: how strongly the query looks for its class in what labels took
up. Then the matching label gets the share p2. xi: how well the classifier knows the labels.

    p1 = e^b / (e^b + N)
    p2 = e^(a p1) / (e^(a p1) + (N - 1) e^(a (1 - p1) / N))
    loss = log(1 + (N - 1) e^(xi (q - p2)) + (L - N) e^(-xi p2)),  q = (1 - p2) / (N - 1)

The three are nested: b acts through a, and a through xi. Of labels outside the context nothing is
seen, so their logit is 0: there are L - N of them.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

REACHED = 0.1  # nats
# How fast each number learns. b and a stand for the means of 65 and of 63 entries of a matrix, and
# gradient descent on entries moves their mean 1/65 and 1/63 as fast; xi is the size of a
# classifier.
RATES = (1 / 65, 1 / 63, 1.0)


def nested_loss(x: Float[Tensor, "*start 3"], L: int, N: int) -> Float[Tensor, "*start"]:
    """The loss at x = (b, a, xi)."""
    b, a, xi = x.unbind(-1)
    p1 = b.exp() / (b.exp() + N)
    match, other = (a * p1).exp(), (a * (1 - p1) / N).exp()
    p2 = match / (match + (N - 1) * other)
    q = (1 - p2) / (N - 1)
    return (1 + (N - 1) * (xi * (q - p2)).exp() + (L - N) * (-xi * p2).exp()).log()


def added_loss(x: Float[Tensor, "*start 3"], L: int, N: int) -> Float[Tensor, "*start"]:
    """The control: all three numbers raise the right label at once, none through another; xi alone
    tells the labels of the context from the rest."""
    b, a, xi = x.unbind(-1)
    return (1 + (N - 1) * (-(a + b + xi)).exp() + (L - N) * (-xi - a - b).exp()).log()


def starts(n: int, generator: torch.Generator, scale: float = 0.01) -> Float[Tensor, "start 3"]:
    """Small random numbers, above 0 and below `scale`."""
    return scale * torch.rand(n, 3, generator=generator, dtype=torch.float64)


def descend(
    loss_of: Callable[[Tensor, int, int], Tensor],
    x: Float[Tensor, "start 3"],
    L: int,
    N: int,
    steps: int,
    rates: Sequence[float] = RATES,
) -> tuple[Float[Tensor, "step start"], Float[Tensor, "step start 3"]]:
    """Gradient descent from each start: loss and numbers before each step, and after the last."""
    rate = torch.tensor(rates, dtype=x.dtype)
    x = x.clone().requires_grad_(True)
    losses, path = [], []
    for n in range(steps + 1):
        loss = loss_of(x, L, N)
        losses.append(loss.detach())
        path.append(x.detach().clone())
        if n < steps:
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            with torch.no_grad():
                x -= rate * gradient
    return torch.stack(losses), torch.stack(path)


def planted_descent(n: int, L: int, N: int) -> tuple[Tensor, Tensor]:
    """What stands for `descend` on the page of planted networks: a history set by hand. xi rises,
    the loss waits, then b and a rise; the same of the control without the wait."""
    t = torch.linspace(0, 1, 401, dtype=torch.float64)[:, None].expand(-1, n)
    xi, late = 40 * (t / 0.2).clamp(0, 1), 30 * ((t - 0.8) / 0.15).clamp(0, 1)
    nested = torch.stack([late, late, xi], -1)
    added = torch.stack([2 * t, 2 * t, 2 * t], -1) * 2
    return nested, added


def descents(
    way: str, n: int, L: int, N: int, steps: int, seed: int
) -> tuple[Tensor, Tensor, Float[Tensor, "step start 3"]]:
    """Losses [step start] of the nested and of the added logits, and the path of the nested ones,
    from `n` random starts; set by hand where `way` is planted, and only the start of it where it is
    untrained."""
    x = starts(n, torch.Generator().manual_seed(seed))
    if way == "planted":
        nested, added = planted_descent(n, L, N)
        return nested_loss(nested, L, N), added_loss(added, L, N), nested
    steps = 0 if way == "untrained" else steps
    losses, path = descend(nested_loss, x, L, N, steps)
    return losses, descend(added_loss, x, L, N, steps)[0], path


def gradient_at_origin(L: int, N: int) -> float:
    """The length of the gradient of the nested loss at (0, 0, 0); by hand (L - N) / (N L)."""
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(nested_loss(x, L, N), x)
    return gradient.norm().item()


def plateau_share(
    losses: Float[Tensor, "step start"], level: float
) -> tuple[Float[Tensor, " start"], Bool[Tensor, " start"]]:
    """Of each start, the share of its steps up to a loss of 0.1 at which the loss lies within 10%
    of `level`, and whether it got there (of one that did not: the share of all steps)."""
    there = losses <= REACHED
    reached = there.any(0)
    n = torch.where(reached, there.double().argmax(0), len(losses)).clamp_min(1)
    inside = (losses - level).abs() <= 0.1 * level
    before = torch.arange(len(losses))[:, None] < n
    return (inside & before).double().sum(0) / n, reached
