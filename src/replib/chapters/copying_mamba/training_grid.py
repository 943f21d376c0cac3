"""The grid of trainings behind the copying chapter: what is trained, and how a rate is chosen.
Nothing here imports torch.

A *cell* is one training: an architecture, a learning rate and a seed in one of the `STUDIES`. Each
architecture of a study is trained at all `RATES` with `SELECTION_SEED`; the rate with the lowest
validation loss at the end is used with the study's seeds, which are the ones reported. If it lies
at an edge of the grid, the grid is extended there first. Steps, examples and schedule are equal.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from replib.errors import UsageError

SELECTION_SEED = 0
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
_STEP = 10**0.5  # between rates
BATCH = 32
WARMUP = 100  # steps; then the rate falls to 0 in a straight line
EVERY = 100  # steps between two points of a curve


@dataclass(frozen=True)
class Study:
    """Trainings on one task that differ in architecture, rate and seed only."""

    task: str
    lengths: tuple[int, int]  # of strings (letters) or phone books (entries), both ends included
    architectures: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int = 1500
    start: str = ""  # the study whose weights, of the same seed, training starts with


_SEEDS = (1, 2, 3, 4, 5)
_ALL = ("rope", "nope", "alibi", "hard-alibi")
_ALL += ("mamba", "mamba2", "mamba2-no-conv", "lstm", "hybrid")
_LOOKUP = ("rope", "alibi", "mamba2")  # those that learnt to copy, with the selection seed
STUDIES: Mapping[str, Study] = {
    "copy": Study("copy", (5, 20), _ALL, _SEEDS),
    "prefix": Study("prefix_ngram", (6, 30), _LOOKUP, _SEEDS, 3000, start="copy"),
    "suffix": Study("suffix_ngram", (6, 30), _LOOKUP, _SEEDS, 3000, start="copy"),
    "phone": Study("phone_book", (2, 8), ("rope", "mamba2"), _SEEDS, 1000),
    "phone-copied": Study("phone_book", (2, 8), ("rope", "mamba2"), _SEEDS, 1000, start="copy"),
    "long": Study("copy", (5, 64), ("rope", "mamba2", "mamba2-4"), _SEEDS, 1000),
}


@dataclass(frozen=True)
class Cell:
    """One training."""

    study: str
    architecture: str
    rate: float  # the largest learning rate of the schedule
    seed: int

    @property
    def name(self) -> str:
        """`study/architecture-rate-seed`."""
        return f"{self.study}/{self.architecture}-{self.rate:g}-{self.seed}"

    @property
    def is_reported(self) -> bool:
        return self.seed != SELECTION_SEED


def cell_of(name: str) -> Cell:
    """The cell with this name; raises UsageError if it cannot be one of the grid."""
    study, _, rest = name.partition("/")
    parts = rest.rsplit("-", 2)
    if study not in STUDIES:
        raise UsageError(f"cell {name!r}: {study!r} is none of the studies {', '.join(STUDIES)}")
    try:
        architecture, rate, seed = parts[0], float(parts[1]), int(parts[2])
    except (IndexError, ValueError):
        raise UsageError(
            f"cell {name!r}: write study/architecture-rate-seed, such as copy/rope-0.003-1"
        ) from None
    if architecture not in STUDIES[study].architectures:
        some = ", ".join(STUDIES[study].architectures)
        raise UsageError(f"cell {name!r}: study {study} has the architectures {some}")
    if not 0 < rate < 1 or seed < 0:
        raise UsageError(f"cell {name!r}: the rate is between 0 and 1, the seed 0 or more")
    return Cell(study, architecture, rate, seed)


def settings(study: str) -> dict[str, Any]:
    """All that a training of this study depends on besides the cell and the code, as in a card."""
    some = {"batch": BATCH, "warmup": WARMUP, "every": EVERY} | asdict(STUDIES[study])
    some = {key: some[key] for key in some if key not in ("architectures", "seeds")}
    return json.loads(json.dumps(some))


def next_rate(rate: float, up: bool) -> float:
    """The rate half a decade above or below, to one digit."""
    return float(f"{rate * (_STEP if up else 1 / _STEP):.0e}")


def chosen_rate(losses: Mapping[float, float]) -> float | None:
    """The rate with the lowest loss, None while it lies at an edge of those tried."""
    rates = sorted(losses)
    best = min(rates, key=losses.__getitem__)
    return None if best in (rates[0], rates[-1]) else best
