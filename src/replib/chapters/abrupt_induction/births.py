"""The networks that the page is about: trained here and stored, planted by hand, or untrained.

All three come as the same `Run`s by study, so that every measure and every rule treats them alike.
Planted runs have a history that is set by hand (`planted.history`), untrained ones stay at their
random start, another one at each point of their curve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from replib.chapters.abrupt_induction import stored
from replib.chapters.abrupt_induction.curves import Curve, Jump, Points, jump
from replib.chapters.abrupt_induction.law import Law
from replib.chapters.abrupt_induction.measures import measured, tests_of
from replib.chapters.abrupt_induction.network import TwoLayers
from replib.chapters.abrupt_induction.planted import history, planted_network
from replib.chapters.abrupt_induction.sequences import Directions, draw, draw_directions
from replib.chapters.abrupt_induction.training import go_on, load_networks, start
from replib.chapters.abrupt_induction.training_grid import BATCH, N_TEST, STUDIES, Cell, Study
from replib.errors import UsageError

NAMES = ("trained-induction-birth", "planted-induction-birth", "untrained-induction-birth")
JUMPING = ("lasting", "birth")  # the two studies of the paper's own setting


@dataclass(frozen=True)
class Run:
    """One training, or what stands for it."""

    cell: Cell
    law: Law
    directions: Directions
    curve: Curve
    networks: Mapping[str, TwoLayers]  # start, before, at, end, as far as they are there
    cpu_s: float = 0.0  # of a stored training
    is_stale: bool = False  # of a stored training: has the code that trains changed since?

    @property
    def jump(self) -> Jump:
        return jump(self.curve, self.law.n_pairs)


def way_of(name: str) -> str:
    """trained, planted or untrained; UsageError for any other model."""
    if name not in NAMES:
        raise UsageError(f"model {name!r}: this chapter has its own networks: {', '.join(NAMES)}")
    return name.partition("-")[0]


def births(name: str, root: Path) -> dict[str, list[Run]]:
    """Study -> its runs, one for each seed. Raises NotStored where a trained one is missing."""
    make = {"trained": _trained, "planted": _planted, "untrained": _untrained}[way_of(name)]
    return {
        study: [make(root, Cell(study, seed), STUDIES[study]) for seed in STUDIES[study].seeds]
        for study in STUDIES
    }


def through_the_jump(way: str, run: Run, steps: int) -> Curve:
    """The curve of a network that goes on from before its jump, for this many steps at the author's
    rate, on sequences that the stored training did not see. Of planted and untrained runs, which
    are not trained, what their own curve has there."""
    if way == "trained" and "before" in run.networks:
        return go_on(run.networks["before"], STUDIES[run.cell.study], run.directions, steps, 1)
    low, high = run.jump.window if run.jump.jumped else (0.0, 1e9)
    inside = [i for i, at in enumerate(run.curve["step"]) if low <= at <= high]
    first = run.curve["step"][inside[0]]
    some = {key: [values[i] for i in inside] for key, values in run.curve.items()}
    return some | {"step": [at - first for at in some["step"]]}


def _trained(root: Path, cell: Cell, study: Study) -> Run:
    card = stored.read_card(root, cell)
    _, directions, _ = start(study, cell.seed)
    networks, age = load_networks(root, cell), stored.is_stale(card)
    return Run(cell, study.law, directions, card["curve"], networks, card["cpu_s"], age)


def _curve(
    law: Law, directions: Directions, steps: Sequence[float], networks: Sequence[TwoLayers]
) -> dict[str, Points]:
    """What `training.train` writes down, of networks at given steps."""
    tests, curve = tests_of(law, directions, N_TEST), {"step": list(steps)}
    batch = draw(law, directions, BATCH, torch.Generator().manual_seed(1))
    point: dict[str, float] = {}
    for i, network in enumerate(networks):
        if i == 0 or network is not networks[i - 1]:
            with torch.no_grad():
                loss = nn.functional.cross_entropy(network(batch.tokens), batch.answer)
            point = {"loss": loss.item()} | measured(network, tests)
        for key, value in point.items():
            curve.setdefault(key, []).append(value)
    return curve


def _untrained(root: Path, cell: Cell, study: Study) -> Run:
    networks = [start(study, 1000 * i + cell.seed)[0].eval() for i in range(1, 4)]
    directions = start(study, cell.seed)[1]
    curve = _curve(study.law, directions, [0.0, 20_000.0, 40_000.0], networks)
    return Run(cell, study.law, directions, curve, {"start": networks[0], "end": networks[-1]})


# --- Planted --------------------------------------------------------------------------------------

# What each network of one point is made of, where nothing is born.
_SETTLED = {
    "few-bursty": {"formed": 0.0, "known": 1.0},
    "few-spread": {"formed": 0.0, "known": 1.0},
    "many-bursty": {"formed": 1.0},
    "mixed": {"formed": 1.0, "known": 1.0},
}


def _planted(root: Path, cell: Cell, study: Study) -> Run:
    law = study.law
    if "known" in _SETTLED.get(cell.study, {}):
        law = replace(law, n_labels=8, n_classes=8)  # what a linear memory can hold beside a head
    directions = draw_directions(law, torch.Generator().manual_seed(cell.seed))
    if cell.study in JUMPING:
        born = 18_000.0 + 1000 * cell.seed
        steps = _steps(born, study.until)
        made = _at_each(directions, history(steps, born))
    elif cell.study in _SETTLED:
        steps = [0.0, float(study.steps)]
        made = [planted_network(directions, 0.0, 0.0)]
        made.append(planted_network(directions, **_SETTLED[cell.study]))
    else:  # equal, one-layer: labels are picked at most, and no head forms
        steps = [0.0, study.steps / 2, float(study.steps)]
        made = [planted_network(directions, picked, 0.0) for picked in (0.0, 0.5, 1.0)]
    curve = _curve(law, directions, steps, made)
    found = jump(curve, law.n_pairs)
    networks = {"start": made[0], "end": made[-1]}
    if found.jumped:
        networks["before"] = made[max(i for i, s in enumerate(steps) if s <= 0.9 * found.t10)]
        networks["at"] = made[next(i for i, ic in enumerate(curve["ic"]) if ic >= 0.5625)]
    return Run(cell, law, directions, curve, networks)


def _at_each(directions: Directions, points: Sequence[Mapping[str, float]]) -> list[TwoLayers]:
    """The planted network of each point; where nothing has changed, the same one."""
    made: list[TwoLayers] = []
    for i, at in enumerate(points):
        same = i > 0 and at == points[i - 1]
        made.append(made[-1] if same else planted_network(directions, **at))
    return made


def _steps(born: float, until: float) -> list[float]:
    """Points of a planted curve: close together around the birth."""
    slow = [born * x / 10 for x in range(9)]
    close = [born * (0.85 + x / 100) for x in range(30)]
    after = [born * (1.2 + (until - 1.1) * x / 12) for x in range(13)] if until > 1.2 else []
    return slow + close + after
