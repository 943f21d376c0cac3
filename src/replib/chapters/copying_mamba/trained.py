"""The networks of a study, stored or trained now, and how many examples each needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from replib import metrics
from replib.chapters.copying_mamba import stored
from replib.chapters.copying_mamba.training import load_network, train_here
from replib.chapters.copying_mamba.training_grid import EVERY, STUDIES, Cell
from replib.errors import UsageError
from replib.metrics import Estimate


@dataclass(frozen=True)
class Trained:
    """One training: a network with one seed, and how it came about."""

    cell: Cell  # study, architecture, rate, seed
    curve: Mapping[str, list]  # a point every 100 steps: `examples` seen, `string` accuracy, ...
    network: nn.Module
    cpu_s: float = 0.0  # of a stored training: how long it took on one core
    is_stale: bool = False  # of a stored training: has the code that trains changed since?


def load_study(root: Path, study: str) -> dict[str, list[Trained]]:
    """By architecture, the trainings that are reported, one for each seed, at the rate chosen on
    another seed. Raises NotStored where one is missing or altered."""
    found: dict[str, list[Trained]] = {}
    for name in STUDIES[study].architectures:
        cells = stored.reported(root, study, name)
        cards = [stored.read_card(root, cell) for cell in cells]
        found[name] = [
            Trained(
                cell,
                card["curve"],
                load_network(root, cell),
                card["cpu_s"],
                stored.is_stale(root, card),
            )
            for cell, card in zip(cells, cards, strict=True)
        ]
    return found


def train_now(
    like: Mapping[str, Sequence[Trained]], names: Sequence[str], seeds: Sequence[int], steps: int
) -> dict[str, list[Trained]]:
    """By architecture, trainings with other seeds, at the rates of those that are stored (`like`);
    one on each core. Raises UsageError for fewer steps than a curve's first point is at."""
    if steps < EVERY:
        raise UsageError(
            f"live_steps is {steps}; give at least {EVERY}, the first point of a curve"
        )
    chosen = {name: like[name][0].cell for name in names}
    cells = [Cell(c.study, n, c.rate, seed) for n, c in chosen.items() for seed in seeds]
    made = zip(cells, train_here(cells, steps), strict=True)
    some = [Trained(cell, curve, network) for cell, (network, curve) in made]
    return {name: [one for one in some if one.cell.architecture == name] for name in names}


def examples_ratio(a: Sequence[int], b: Sequence[int]) -> Estimate:
    """Geometric mean of `a` as a multiple of that of `b`: examples that separate seeds needed. The
    interval is Welch's, on logarithms; n is the number of seeds of `b`."""
    logs = metrics.seeds_difference(np.log(a), np.log(b))
    value, low, high = (float(np.exp(x)) for x in (logs.value, *logs.interval))
    return Estimate(value, low, high, len(b))
