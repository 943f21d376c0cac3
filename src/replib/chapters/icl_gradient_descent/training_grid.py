"""The trainings behind the chapter: what is trained, with the settings of the released code.
Nothing here imports torch.

A *cell* is one training: a study and a seed. No setting is chosen by us, so there is nothing to
select. Only `five-layers` has another budget than the authors': 7,500 steps, not 50,000.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from replib.errors import UsageError

BATCH = 2048
_FIVE, _THREE = (1, 2, 3, 4, 5), (1, 2, 3)


@dataclass(frozen=True)
class Study:
    """Trainings that differ in their seed only."""

    seeds: tuple[int, ...]
    form: Mapping[str, Any] = field(default_factory=dict)  # what `network.Form` is given
    steps: int = 5000
    rate: float = 1e-3  # of Adam
    clip: float = 1e-3  # of the norm of the whole gradient
    every: int = 100  # steps between two points of a curve
    shuffled: bool = False  # a control: are a context's labels in random order?
    frozen: bool = False  # a control: does the first layer keep its random weights?
    perceptron: bool = False  # a control: another network altogether


_SEPARATE = {"layers": 2, "shared": False, "softmax": 1, "separate": True, "init": 0.01}
_LONG = {"steps": 10_000, "clip": 10.0}
STUDIES: Mapping[str, Study] = {
    "linear": Study(_FIVE),
    "shuffled": Study((1,), shuffled=True),
    "perceptron": Study((1,), perceptron=True, clip=10.0),
    "two-layers": Study(_THREE, {"layers": 2, "init": 0.001}),
    "five-layers": Study(
        _THREE,
        {"layers": 5, "shared": False, "bound": 10.0, "init": 0.0004},
        steps=7500,
        rate=5e-4,
        clip=10.0,
        every=250,
    ),
    "softmax-1": Study(_THREE, {"softmax": 1}),
    "softmax-2": Study(_THREE, {"softmax": 1, "heads": 2}),
    "separate": Study(_THREE, _SEPARATE, every=250, **_LONG),
    "no-positions": Study((1,), _SEPARATE | {"positions": False}, every=250, **_LONG),
    "frozen": Study((1,), _SEPARATE, steps=5000, clip=10.0, every=250, frozen=True),
}


@dataclass(frozen=True)
class Cell:
    """One training."""

    study: str
    seed: int

    @property
    def name(self) -> str:
        """`study/seed`."""
        return f"{self.study}/{self.seed}"


def cell_of(name: str) -> Cell:
    """The cell with this name; raises UsageError if it cannot be one of the grid."""
    study, _, seed = name.partition("/")
    if study not in STUDIES:
        raise UsageError(f"cell {name!r}: {study!r} is none of the studies {', '.join(STUDIES)}")
    if not seed.isascii() or not seed.isdigit():
        raise UsageError(f"cell {name!r}: write study/seed, such as linear/1")
    return Cell(study, int(seed))


def cells() -> list[Cell]:
    """All that are stored with the book."""
    return [Cell(name, seed) for name, study in STUDIES.items() for seed in study.seeds]


def settings(study: str) -> dict[str, Any]:
    """All that a training of this study depends on besides its seed and the code, as in a card."""
    some = {"batch": BATCH} | asdict(STUDIES[study])
    del some["seeds"]
    return json.loads(json.dumps(some))
