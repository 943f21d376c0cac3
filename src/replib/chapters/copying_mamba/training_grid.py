"""The grid of trainings behind the copying chapter: what is trained, how settings are chosen.
Nothing here imports torch.

A *cell* is one training: an architecture, a learning rate, a start and a seed in one of the
`STUDIES`. Each architecture of a study is first trained for `SELECTION_STEPS` at several rates and
starts with the `SELECTION_SEEDS`; the setting with the lowest validation loss at the end, mean over
these seeds, is used with the study's own seeds, which are the ones reported. For every start the
grid of rates goes on until its best lies at no edge. Studies of other tasks begin where copying
ended (`like`). The rules are the same for all architectures; budgets stand in `Study`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from replib.errors import UsageError

SELECTION_SEEDS = (101, 102)
SELECTION_STEPS = 1000
RATES = (0.0032, 0.0056, 0.01)  # quarter decades; the grid goes on from here
LOWEST, HIGHEST = 1e-4, 0.1  # where it ends
BATCH = 32
WARMUP = 100  # steps; then the rate is constant until the last DECAY steps
DECAY = 300  # steps in which the rate falls to 0; at most a fifth of all
EVERY = 50  # steps between two points of a curve
SOLVED = 0.95  # of the validation strings right at two points in a row: the decay begins
CURRICULUM = 0.4  # share of the steps in which Mamba's longest strings grow to full length
# The starts that are tried (see `networks.STARTS`); the paper's other side has no mimetic one.
STARTS: Mapping[str, tuple[str, ...]] = {
    "mamba": ("m02", "m10"),
    "mamba2": ("s02", "s10", "m02", "m10"),
}
USUAL = ("s02", "s10")
SEEDS = (21, 22, 23, 24, 25)  # the earlier grid had 1 to 5

Setting = tuple[float, str]  # rate, start


@dataclass(frozen=True)
class Study:
    """Trainings on one task that differ in architecture, rate, start and seed only."""

    task: str
    lengths: tuple[int, int]  # of strings (letters) or phone books (entries), both ends included
    architectures: tuple[str, ...]
    steps: int  # at most, for each reported seed
    seeds: tuple[int, ...] = SEEDS
    longer: Mapping[str, int] = field(default_factory=dict)  # other budgets, by architecture
    like: str = ""  # the study whose settings are taken over
    refined: bool = False  # with the rates beside the one taken over

    def budget(self, architecture: str) -> int:
        return self.longer.get(architecture, self.steps)


_TRANSFORMERS = ("hard-alibi", "rope", "nope", "alibi")
# A state-space model may see four times the examples that the Transformers need, and more.
_LONGER = {"mamba2": 6000, "mamba": 4000, "lstm": 6000}
STUDIES: Mapping[str, Study] = {
    "copy": Study(
        "copy", (5, 20), (*_TRANSFORMERS, "mamba", "mamba2", "lstm"), 3000, longer=_LONGER
    ),
    "copy-10": Study("copy", (5, 10), ("hard-alibi", "mamba2"), 3000, like="copy"),
    "copy-40": Study("copy", (5, 40), ("hard-alibi", "mamba2"), 4000, like="copy"),
    "states": Study("copy", (5, 20), ("mamba2-16", "mamba2-4"), 3000, SEEDS[:3], like="copy"),
    "prefix": Study(
        "prefix_ngram", (6, 30), ("hard-alibi", "nope", "mamba2"), 3000, like="copy", refined=True
    ),
    "suffix": Study(
        "suffix_ngram", (6, 30), ("hard-alibi", "mamba2"), 3000, like="copy", refined=True
    ),
    "phone": Study(
        "phone_book", (2, 8), ("hard-alibi", "mamba2", "hybrid"), 2000, like="copy", refined=True
    ),
}


@dataclass(frozen=True)
class Cell:
    """One training."""

    study: str
    architecture: str
    rate: float  # the learning rate after the warm-up
    start: str
    seed: int

    @property
    def name(self) -> str:
        """`study/architecture-rate-start-seed`."""
        return f"{self.study}/{self.architecture}-{self.rate:g}-{self.start}-{self.seed}"

    @property
    def is_reported(self) -> bool:
        return self.seed not in SELECTION_SEEDS

    @property
    def steps(self) -> int:
        """How many, at most."""
        budget = STUDIES[self.study].budget(self.architecture)
        return budget if self.is_reported else min(budget, SELECTION_STEPS)


def cell_of(name: str) -> Cell:
    """The cell with this name; raises UsageError if it cannot be one of the grid."""
    study, _, rest = name.partition("/")
    parts = rest.rsplit("-", 3)
    if study not in STUDIES:
        raise UsageError(f"cell {name!r}: {study!r} is none of the studies {', '.join(STUDIES)}")
    try:
        architecture, rate, start, seed = parts[0], float(parts[1]), parts[2], int(parts[3])
    except (IndexError, ValueError):
        raise UsageError(
            f"cell {name!r}: write study/architecture-rate-start-seed, such as "
            "copy/rope-0.0056-s10-21"
        ) from None
    if architecture not in STUDIES[study].architectures:
        some = ", ".join(STUDIES[study].architectures)
        raise UsageError(f"cell {name!r}: study {study} has the architectures {some}")
    if start not in starts(architecture):
        some = ", ".join(starts(architecture))
        raise UsageError(f"cell {name!r}: {architecture} has the starts {some}")
    if not 0 < rate < 1 or seed < 0:
        raise UsageError(f"cell {name!r}: the rate is between 0 and 1, the seed 0 or more")
    return Cell(study, architecture, rate, start, seed)


def kind(architecture: str) -> str:
    """The architecture whose settings it takes over: of Mamba-2 with fewer states, Mamba-2."""
    return "mamba2" if architecture.startswith("mamba2") else architecture


def starts(architecture: str) -> tuple[str, ...]:
    return STARTS.get(kind(architecture), USUAL)


def settings(cell: Cell) -> dict[str, Any]:
    """All that a training depends on besides the cell and the code, as in a card."""
    study = asdict(STUDIES[cell.study])
    some: dict[str, Any] = {key: study[key] for key in ("task", "lengths")}
    some |= {"batch": BATCH, "warmup": WARMUP, "decay": DECAY, "every": EVERY, "solved": SOLVED}
    some |= {"curriculum": CURRICULUM, "steps": cell.steps}
    return json.loads(json.dumps(some))


def next_rate(rate: float, up: bool) -> float:
    """The rate a quarter of a decade above or below, to two digits."""
    return float(f"{10 ** ((round(4 * math.log10(rate)) + (1 if up else -1)) / 4):.1e}")


def first_settings(study: str, architecture: str, copied: Setting | None) -> list[Setting]:
    """The settings that a search begins with: all rates at every start, or the one that was taken
    over with its neighbours. Empty where there is no search."""
    if copied is None:
        return [(rate, start) for start in starts(architecture) for rate in RATES]
    if not STUDIES[study].refined:
        return []
    rate, start = copied
    return [(r, start) for r in (next_rate(rate, up=False), rate, next_rate(rate, up=True))]


def beyond(losses: Mapping[Setting, float]) -> list[Setting]:
    """The settings to be tried next: for every start whose best rate lies at an edge of those
    tried, the rate beyond it. Empty where the grid is complete."""
    found = []
    for start in dict.fromkeys(start for _, start in losses):
        rates = {rate: loss for (rate, s), loss in losses.items() if s == start}
        best = min(sorted(rates), key=rates.__getitem__)
        if best in (min(rates), max(rates)):
            rate = next_rate(best, up=best == max(rates))
            if LOWEST <= rate <= HIGHEST:
                found.append((rate, start))
    return found


def chosen(losses: Mapping[Setting, float]) -> Setting | None:
    """The setting with the lowest loss, None while the grid has to go on."""
    return None if not losses or beyond(losses) else min(sorted(losses), key=losses.__getitem__)


def mean_losses(losses: Mapping[Setting, Mapping[int, float]]) -> dict[Setting, float]:
    """Mean over the selection seeds, of the settings that have all of them."""
    whole = {s: of for s, of in losses.items() if set(of) == set(SELECTION_SEEDS)}
    return {setting: fmean(of.values()) for setting, of in sorted(whole.items())}
