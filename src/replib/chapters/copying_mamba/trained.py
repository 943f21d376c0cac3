"""The networks of a study: trained and stored, planted, or untrained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from replib.chapters.copying_mamba import stored
from replib.chapters.copying_mamba import training_grid as grid
from replib.chapters.copying_mamba.networks import build
from replib.chapters.copying_mamba.planted import planted_curve, planted_network
from replib.chapters.copying_mamba.training import load_network
from replib.chapters.copying_mamba.training_grid import BATCH, EVERY, RATES, STUDIES, Cell


@dataclass(frozen=True)
class Trained:
    """One network with one seed, and how it came about."""

    cell: Cell  # study, architecture, rate, start, seed
    curve: Mapping[str, list]  # a point every 50 steps: `examples` seen, `string` accuracy, ...
    network: nn.Module
    cpu_s: float = 0.0  # of a stored training: how long it took on one core
    is_stale: bool = False  # of a stored training: has the code that trains changed since?


def load_study(root: Path, study: str, model_name: str) -> dict[str, list[Trained]]:
    """By architecture, the networks of all reported seeds. `model_name`: trained-copying (at the
    rate and start chosen on other seeds; raises NotStored where one is missing or altered),
    planted-copying (networks by rule, with the curves that belong to them), or untrained-copying
    (as they are before the first step; their curves stay at 0)."""
    some = STUDIES[study]
    if model_name == "trained-copying":
        return {
            name: [_stored(root, cell) for cell in stored.reported(root, study, name)]
            for name in some.architectures
        }
    of = _planted if model_name == "planted-copying" else _untrained
    return {
        name: [of(Cell(study, name, RATES[0], grid.starts(name)[-1], seed)) for seed in some.seeds]
        for name in some.architectures
    }


def _stored(root: Path, cell: Cell) -> Trained:
    card = stored.read_card(root, cell)
    network, stale = load_network(root, cell), stored.is_stale(root, card)
    return Trained(cell, card["curve"], network, card["cpu_s"], stale)


def _planted(cell: Cell) -> Trained:
    network = planted_network(cell.study, STUDIES[cell.study].task, cell.architecture, cell.seed)
    return Trained(cell, planted_curve(cell.architecture, cell.seed, cell.steps), network)


def _untrained(cell: Cell) -> Trained:
    examples = [EVERY * BATCH, cell.steps * BATCH]
    curve = {"examples": examples, "string": [0.0, 0.0], "loss": [3.4, 3.4]}
    return Trained(cell, curve, build(cell.architecture, cell.seed, cell.start).eval())


def better(root: Path, model_name: str, names: tuple[str, ...]) -> str:
    """Of several architectures, the one that copies with the lowest loss on the selection seeds, so
    that the reported ones have no part in the choice; the first where nothing was selected."""
    if model_name != "trained-copying":
        return names[0]
    losses = {
        name: min(grid.mean_losses(stored.selection(root, "copy", name)).values()) for name in names
    }
    return min(names, key=losses.__getitem__)
