"""The algorithms that the network is compared with: gradient descent, GD++, ridge regression.

All of them are linear in the query, so each is given by its *sensitivity*: the vector s of a task
with prediction s.x_q, which is also the gradient of the prediction with respect to x_q.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor

from replib.chapters.icl_gradient_descent.tasks import PAIRS, D, Tasks

Sensitivity = Float[Tensor, "task d"]
SCAN = np.arange(0.001, 25, 0.1)  # step sizes (released code, scan_lrs)
PENALTIES = np.logspace(-3, 1, 9)  # of ridge regression


def gd_step(tasks: Tasks, w: Sensitivity, rate: float) -> Sensitivity:
    """One step down the gradient of the context's mean squared error, from the weights `w`."""
    residual = tasks.y - torch.einsum("tpd,td->tp", tasks.x, w)
    return w + rate / tasks.y.shape[1] * torch.einsum("tp,tpd->td", residual, tasks.x)


def gd(tasks: Tasks, rates: Sequence[float]) -> Sensitivity:
    """Gradient descent from 0, a step for each rate."""
    w = torch.zeros_like(tasks.query)
    for rate in rates:
        w = gd_step(tasks, w, rate)
    return w


def gd_pp(tasks: Tasks, rates: Sequence[float], gammas: Sequence[float]) -> Sensitivity:
    """GD++ (Sec. 4): with every step of gradient descent all inputs, the query too, are replaced by
    x - gamma X'X x, which makes the next step's problem better conditioned."""
    x, y = tasks.x, tasks.y
    moved = torch.eye(x.shape[-1], dtype=x.dtype).expand(len(x), -1, -1)  # the query's, so far
    s = torch.zeros_like(tasks.query)
    for rate, gamma in zip(rates, gammas, strict=True):
        step = rate / y.shape[1] * torch.einsum("tp,tpd->td", y, x)
        s = s + torch.einsum("td,tde->te", step, moved)
        y = y - torch.einsum("td,tpd->tp", step, x)
        gram = torch.einsum("tpd,tpe->tde", x, x)
        x = x - gamma * x @ gram
        moved = moved - gamma * gram @ moved
    return s


def ridge(tasks: Tasks, penalty: float) -> Sensitivity:
    """Ridge regression, in double precision; with a penalty of 0 least squares, which ten pairs of
    ten inputs make ill-conditioned."""
    x, y = tasks.x.double(), tasks.y.double()
    gram = x.mT @ x + penalty * torch.eye(x.shape[-1], dtype=x.dtype)
    moment = torch.einsum("tp,tpd->td", y, x)
    return torch.linalg.solve(gram, moment).to(tasks.y.dtype)


def predict(tasks: Tasks, s: Sensitivity) -> Float[Tensor, " task"]:
    return torch.einsum("td,td->t", tasks.query, s)


def losses(tasks: Tasks, predicted: Float[Tensor, " task"]) -> Float[Tensor, " task"]:
    """Half the squared error at the query, one value a task, in double precision."""
    return 0.5 * (predicted - tasks.target).double() ** 2


@dataclass(frozen=True)
class OneStep:
    """What theory says of one step on the tasks that networks are trained on."""

    rate: float  # the best step size, eta*
    loss: float  # with it
    zero: float  # of predicting 0


def best_one_step(d: int = D, pairs: int = PAIRS) -> OneStep:
    """The best single step for uniform inputs in [-1/2, 1/2], in closed form. With A = X'X / N and
    s2, m4 the second and fourth moments of an input, the loss of a step of size eta is
    (s2 / 2) (d - 2 eta E tr A + eta^2 E tr A^2)."""
    s2, m4 = 1 / 12, 1 / 80
    trace = d * s2
    square = d * (s2**2 + (m4 - s2**2) / pairs) + d * (d - 1) * s2**2 / pairs
    return OneStep(trace / square, s2 / 2 * (d - trace**2 / square), s2 / 2 * d)


@dataclass(frozen=True)
class References:
    """Step sizes and penalty that were best on tasks of their own."""

    one: float  # the size of a single step
    plain: dict[int, float]  # steps -> their one size
    two: tuple[float, float]  # two steps with sizes of their own
    plus: dict[int, tuple[float, float]]  # steps of GD++ -> their one size, their one gamma
    penalty: float  # of ridge regression

    def gd(self, tasks: Tasks, steps: int = 1) -> Sensitivity:
        return gd(tasks, [self.one if steps == 1 else self.plain[steps]] * steps)

    def gd_pp(self, tasks: Tasks, steps: int) -> Sensitivity:
        rate, gamma = self.plus[steps]
        return gd_pp(tasks, [rate] * steps, [gamma] * steps)


def choose(tasks: Tasks, depths: Sequence[int] = (2, 5)) -> References:
    """Choose all of them on `tasks`: the size of one step by the scan of the released code, those
    of several by a search in its range, and GD++'s, which the released code trains with Adam, by
    Nelder and Mead's search; what needs a search uses the first 4,000. Labels have no noise, so the
    best penalty is the smallest."""

    def loss(s: Sensitivity) -> float:
        some = Tasks(*(part[: len(s)] for part in vars(tasks).values()))
        found = losses(some, predict(some, s)).mean().item()
        return found if np.isfinite(found) else 1e9

    def search(of: Callable[[np.ndarray], Sensitivity], start: Sequence[float]) -> list[float]:
        options = {"xatol": 1e-3, "fatol": 1e-6, "maxfev": 80}
        found = minimize(lambda v: loss(of(v)), start, method="Nelder-Mead", options=options)
        return found.x.tolist()

    slope = predict(tasks, gd(tasks, [1.0]))  # a single step's prediction is its size times this
    one = min(SCAN, key=lambda rate: losses(tasks, rate * slope).mean().item()).item()
    few, plain, plus = Tasks(*(part[:4000] for part in vars(tasks).values())), {}, {}
    for k in depths:
        found = minimize_scalar(
            lambda rate, k=k: loss(gd(few, [rate] * k)), bounds=(0.1, 12), options={"xatol": 0.01}
        )
        plain[k] = float(found.x)
        plus[k] = tuple(search(lambda v, k=k: gd_pp(few, [v[0]] * k, [v[1]] * k), [plain[k], 0.1]))
    two = tuple(search(lambda v: gd(few, v), [plain[2]] * 2)) if 2 in depths else (one, one)
    penalty = min(PENALTIES, key=lambda p: loss(ridge(few, p))).item()
    return References(one, plain, two, plus, penalty)
