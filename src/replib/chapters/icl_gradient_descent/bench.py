"""Fresh tasks on which networks and algorithms are compared, and intervals over tasks and seeds.

Intervals of one network are Student's over tasks, 10,000 of them; losses of two are compared task
by task. `envelope` joins the networks of all seeds, so that what is below its upper end is so for
every one of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from replib import metrics
from replib.chapters.icl_gradient_descent import descent
from replib.chapters.icl_gradient_descent.descent import References
from replib.chapters.icl_gradient_descent.network import predictions
from replib.chapters.icl_gradient_descent.tasks import Tasks, draw
from replib.metrics import Estimate

Losses = Float[Tensor, " task"]


def fresh(n: int, seed: int, *labels: object, **law: object) -> Tasks:
    """`n` tasks of their own for each purpose (see `tasks.draw`)."""
    start = int(metrics.rng(seed, *labels).integers(2**62))
    return draw(n, torch.Generator().manual_seed(start), **law)


@dataclass(frozen=True)
class Bench:
    """Tasks to report on, and the algorithms with their sizes chosen on others."""

    tasks: Tasks
    references: References

    @cached_property
    def one(self) -> Losses:
        """Of the best single step of gradient descent."""
        return self.of(self.references.gd(self.tasks))

    @cached_property
    def zero(self) -> Losses:
        """Of predicting 0."""
        return descent.losses(self.tasks, torch.zeros_like(self.tasks.target))

    @cached_property
    def gap(self) -> float:
        """What one step gains over predicting 0, the unit in which losses are compared."""
        return (self.zero - self.one).mean().item()

    def of(self, s: Float[Tensor, "task d"]) -> Losses:
        """Of an algorithm, from its sensitivities."""
        return descent.losses(self.tasks, descent.predict(self.tasks, s))

    def loss(self, network: nn.Module) -> Losses:
        return descent.losses(self.tasks, predictions(network, self.tasks))

    def shares(self, differences: Sequence[Losses]) -> Estimate:
        """Mean differences of losses, one sequence a seed, as shares of the gap."""
        return envelope([over_tasks(one / self.gap) for one in differences])

    def improved(self, losses: Sequence[Losses]) -> float:
        """The share of the gap that networks close, the least of all seeds."""
        return min((self.zero - one).mean().item() for one in losses) / self.gap


def make_bench(n_tasks: int, seed: int) -> Bench:
    """`n_tasks` fresh tasks to report on; sizes are chosen on as many others."""
    chosen = descent.choose(fresh(n_tasks, seed, "choose"))
    return Bench(fresh(n_tasks, seed, "report"), chosen)


def over_tasks(values: Float[Tensor, " task"]) -> Estimate:
    """The mean and its interval."""
    return metrics.seeds_mean(values.double().numpy(force=True))


def ratio(a: Losses, b: Losses) -> Estimate:
    """Mean of a as a multiple of the mean of b, of the same tasks; the error is that of a - r b.
    Of a mean of 0 there is no multiple: NaN."""
    below = b.mean().item()
    if below == 0:
        return Estimate(math.nan, math.nan, math.nan, len(a))
    value = a.mean().item() / below
    half = 1.96 * (a - value * b).std().item() / abs(below) / len(a) ** 0.5
    return Estimate(value, value - half, value + half, len(a))


def envelope(seeds: Sequence[Estimate]) -> Estimate:
    """Mean over seeds, from the lowest end of any seed's interval to the highest; n is their
    number."""
    value = sum(one.value for one in seeds) / len(seeds)
    return Estimate(value, min(s.low for s in seeds), max(s.high for s in seeds), len(seeds))


def n_outside(seeds: Sequence[Sequence[Estimate]], low: float, high: float) -> int:
    """How many seeds have an interval that lies wholly outside these bounds."""
    return sum(any(e.high < low or e.low > high for e in one) for one in seeds)
