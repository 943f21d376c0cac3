"""The trainings behind the chapter on the birth of an induction head. Nothing here imports torch.

A *cell* is one training: a study and a seed. Rate, batch and weight decay are the author's; the
budgets of steps are ours, 38,000 at most until the jump, where the author has 150,000 to 200,000.
A training that has jumped ends once IC has been 0.95 and `until` times t90 is reached.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from replib.chapters.abrupt_induction.law import Law
from replib.errors import UsageError

RATE, BATCH, DECAY = 0.01, 128, 1e-6  # each step multiplies all weights by 1 - DECAY
EVERY = 250  # steps between two points of a curve
N_TEST = 2000  # sequences of each test of a curve


@dataclass(frozen=True)
class Study:
    """Trainings that differ in their seed only."""

    law: Law
    seeds: tuple[int, ...]
    steps: int  # at most, until it jumps
    until: float = 0.0  # end at this times t90; 0: after all steps, whatever happens
    n_layers: int = 2
    keeps: tuple[str, ...] = field(default=())  # weights that are stored: before, at, end


_WHOLE = ("before", "at", "end")
STUDIES: Mapping[str, Study] = {
    "lasting": Study(Law(), (1,), 38_000, until=3.0, keeps=_WHOLE),
    "birth": Study(Law(), (2, 3, 4, 5, 6), 38_000, until=1.1, keeps=("before", "end")),
    "equal": Study(Law(n_labels=8), (1, 2, 3, 4, 5, 6), 38_000, until=1.1),
    "one-layer": Study(Law(), (1,), 8_000, n_layers=1),
    "few-bursty": Study(Law(n_classes=128, burst=4, fresh=0.0), (1,), 18_000, keeps=("end",)),
    "many-bursty": Study(Law(n_classes=2048, burst=4, fresh=0.0), (1,), 18_000, keeps=("end",)),
    "few-spread": Study(Law(n_classes=128, bursty=0.0, fresh=0.0), (1,), 18_000, keeps=("end",)),
    "mixed": Study(Law(burst=2, bursty=0.5, fresh=0.5), (1,), 22_000, keeps=("end",)),
}


@dataclass(frozen=True)
class Cell:
    """One training."""

    study: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.study}/{self.seed}"


def cells() -> list[Cell]:
    """All of them, those that the page needs first at the front."""
    return [Cell(name, seed) for name, study in STUDIES.items() for seed in study.seeds]


def cell_of(name: str) -> Cell:
    """The cell with this name; raises UsageError if it cannot be one of the grid."""
    study, _, seed = name.partition("/")
    if study not in STUDIES:
        raise UsageError(f"cell {name!r}: {study!r} is none of the studies {', '.join(STUDIES)}")
    if not seed.isdecimal() or int(seed) not in STUDIES[study].seeds:
        some = ", ".join(map(str, STUDIES[study].seeds))
        raise UsageError(f"cell {name!r}: study {study} has the seeds {some}")
    return Cell(study, int(seed))


def settings(study: str) -> dict[str, Any]:
    """All that a training of this study depends on besides its seed and the code, as in a card."""
    some = {"rate": RATE, "batch": BATCH, "decay": DECAY, "every": EVERY, "n_test": N_TEST}
    some |= asdict(STUDIES[study])
    del some["seeds"]
    return json.loads(json.dumps(some))
