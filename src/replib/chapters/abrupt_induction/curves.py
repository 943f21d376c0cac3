"""When a measure rises: the steps t10 and t90 of in-context accuracy, and half rises. Without
torch.

A curve is {measure: its values, one at each point}, among them `step` and `ic`. The axis of steps
is linear: on a logarithmic one anything late looks abrupt.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Points = list[float | int]
Curve = Mapping[str, Sequence[float | int]]
LEARNT = 0.95  # IC of a network that has learnt
ABRUPT = 0.2  # (t90 - t10) / t90 of a jump, at most
PLATEAU = (0.8, 1.6)  # IC at 0.9 t10, times N, of a network that picks labels


def crossing(steps: Sequence[float | int], values: Sequence[float | int], level: float) -> float:
    """The step at which a curve first reaches `level`, on a straight line between its points; NaN
    if it never does."""
    there = np.flatnonzero(np.asarray(values) >= level)
    if not len(there):
        return math.nan
    i = int(there[0])
    if i == 0:
        return float(steps[0])
    share = (level - values[i - 1]) / (values[i] - values[i - 1])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def half_rise(steps: Sequence[float | int], values: Sequence[float | int]) -> float:
    """The step at which a measure has gone half the way from its first value to its largest."""
    return crossing(steps, values, (values[0] + max(values)) / 2)


@dataclass(frozen=True)
class Jump:
    """How one network learnt in context. t10 and t90 are NaN where a level is never reached."""

    t10: float
    t90: float
    jumped: bool  # starts below the 10% level and reaches 0.95
    plateau: float  # IC at 0.9 t10, times N: 1 if labels of the context are picked blindly

    @property
    def ratio(self) -> float:
        """The length of the rise, as a share of all steps up to its end."""
        return (self.t90 - self.t10) / self.t90

    @property
    def abrupt(self) -> bool:
        low, high = PLATEAU
        return self.jumped and self.ratio <= ABRUPT and low <= self.plateau <= high

    @property
    def window(self) -> tuple[float, float]:
        """The steps between which an induction head must form to be what the jump is."""
        return self.t10 - 0.1 * self.t90, self.t90 + 0.1 * self.t90


def jump(curve: Curve, n_pairs: int) -> Jump:
    """t10 and t90: IC has gone 10% and 90% of the way from 1/N to 1."""
    steps, ic = curve["step"], curve["ic"]
    levels = [1 / n_pairs + share * (1 - 1 / n_pairs) for share in (0.1, 0.9)]
    t10, t90 = (crossing(steps, ic, level) for level in levels)
    jumped = bool(ic[0] < levels[0] and max(ic) >= LEARNT)
    plateau = float(np.interp(0.9 * t10, steps, ic)) * n_pairs if t10 > 0 else math.nan
    return Jump(t10, t90, jumped, plateau)


def at(curve: Curve, name: str, step: float) -> float:
    """A measure at a step, on a straight line between points."""
    return float(np.interp(step, curve["step"], curve[name]))
