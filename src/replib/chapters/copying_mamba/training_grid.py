"""The grid of trainings behind the copying chapter: what is trained, how a rate is chosen, what is
stored. Nothing here imports torch.

A *cell* is one training: an architecture, a learning rate and a seed in one of the `STUDIES`. Each
architecture of a study is trained at all `RATES` with `SELECTION_SEED`; the rate with the lowest
validation loss at the end is used with the study's seeds, which are the ones reported. If it lies
at an edge of the grid, the grid is extended there first. Steps, examples and schedule are equal.

A cell is stored as `NAME.json`, a card (settings, curve, hashes), and for reported seeds
`NAME.safetensors`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from replib.errors import UsageError
from replib.files import sha256_file
from replib.hashes import code_hash

PAPER = "copying-mamba"
SELECTION_SEED = 0
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
_STEP = 10**0.5  # between rates
# What decides the weights, given the study's settings, the pinned packages and the kind of machine.
# Settings are in each card, so a change of one study leaves the others.
CODE = "import replib.chapters.copying_mamba.training as t; t.train, t._state, t._network"
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
_LOOKUP = ("rope", "alibi", "mamba2")  # those that learnt to copy, with the selection seed
STUDIES: Mapping[str, Study] = {
    "copy": Study(
        "copy",
        (5, 20),
        (
            *("rope", "nope", "alibi", "hard-alibi"),
            *("mamba", "mamba2", "mamba2-no-conv", "lstm", "hybrid"),
        ),
        _SEEDS,
    ),
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


class NoCell(UsageError):
    """A stored training cannot be used; the line says how to make it."""


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


def folder(root: Path) -> Path:
    """Where the cells of a checkout are stored."""
    return root / "notebooks" / PAPER / "checkpoints"


def card_path(root: Path, cell: Cell) -> Path:
    return folder(root) / f"{cell.name}.json"


def weights_path(root: Path, cell: Cell) -> Path:
    return folder(root) / f"{cell.name}.safetensors"


def code_sha256() -> str:
    """One hash of the code that trains a network and writes its weights."""
    return code_hash(CODE, leave=["replib.chapters.copying_mamba.training_grid.STUDIES"])


def read_card(root: Path, cell: Cell) -> dict[str, Any]:
    """The card of a stored cell, whose weights, if it has any, are those that it describes.

    Raises:
        NoCell: the cell is missing, or altered.
    """
    again = f"make it with: replib train {PAPER} --cell {cell.name}"
    path = card_path(root, cell)
    if not path.is_file():
        raise NoCell(f"training {cell.name} of {PAPER} is missing ({path}); {again}")
    try:
        card = json.loads(path.read_text())
        curve, stored = card["curve"], card["sha256"]
        ends = [float(curve[key][-1]) for key in ("examples", "loss", "string")]
        texts = [card[key] for key in ("code_sha256", "start", "start_sha256")]
        whole = card["cell"] == asdict(cell) and all(isinstance(t, str) for t in texts) and ends
        card["settings"]["steps"]
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise NoCell(f"training {cell.name}: {path} cannot be read ({reason}); {again}") from None
    if not whole:
        raise NoCell(f"training {cell.name}: {path} is about another cell; {again}")
    if cell.is_reported:
        weights = weights_path(root, cell)
        if not weights.is_file():
            raise NoCell(f"training {cell.name} of {PAPER} is missing ({weights}); {again}")
        if (found := sha256_file(weights)) != stored:
            raise NoCell(
                f"training {cell.name} was altered: the sha256 of its weights is {found[:12]}…, "
                f"not {str(stored)[:12]}… as its card says; {again}"
            )
    return card


def settings(study: str) -> dict[str, Any]:
    """All that a training of this study depends on besides the cell and the code, as in a card."""
    some = {"batch": BATCH, "warmup": WARMUP, "every": EVERY} | asdict(STUDIES[study])
    some = {key: some[key] for key in some if key not in ("architectures", "seeds")}
    return json.loads(json.dumps(some))


def is_stale(root: Path, card: Mapping[str, Any]) -> bool:
    """Have the code that trains, the settings, or the weights to start with changed since?"""
    if card["code_sha256"] != code_sha256():
        return True
    if card["settings"] != settings(card["cell"]["study"]):
        return True
    if not card["start"]:
        return False
    try:
        return card["start_sha256"] != read_card(root, cell_of(card["start"]))["sha256"]
    except NoCell:
        return True


def next_rate(rate: float, up: bool) -> float:
    """The rate half a decade above or below, to one digit."""
    digits = f"{rate * (_STEP if up else 1 / _STEP):.0e}"
    return float(digits)


def selection(root: Path, study: str, architecture: str) -> dict[float, float]:
    """rate -> validation loss at the end (nats), of the trainings with the selection seed that are
    stored, sorted by rate."""
    found = {}
    for path in (folder(root) / study).glob(f"{architecture}-*-{SELECTION_SEED}.json"):
        cell = cell_of(f"{study}/{path.stem}")
        if cell.architecture == architecture:
            found[cell.rate] = read_card(root, cell)["curve"]["loss"][-1]
    return dict(sorted(found.items()))


def chosen_rate(losses: Mapping[float, float]) -> float | None:
    """The rate with the lowest loss, None while it lies at an edge of those tried."""
    rates = sorted(losses)
    best = min(rates, key=lambda rate: losses[rate])
    return None if best in (rates[0], rates[-1]) else best


def reported(root: Path, study: str, architecture: str) -> list[Cell]:
    """The cells that are reported; raises NoCell if no rate can be chosen yet."""
    losses = selection(root, study, architecture)
    rate = chosen_rate(losses) if set(RATES) <= set(losses) else None
    if rate is None:
        raise NoCell(
            f"{PAPER}, {study}, {architecture}: the grid of learning rates is not complete; "
            f"make it with: replib train {PAPER}"
        )
    return [Cell(study, architecture, rate, seed) for seed in STUDIES[study].seeds]


def needed(root: Path) -> list[Cell]:
    """The cells to train next: missing, altered, or older than the code. Empty when all is there.

    What depends on others (the seeds on the choice of a rate, one study on another) comes in a
    later call, once those are there.
    """
    return [cell for study in STUDIES for cell in _needed(root, study)]


def _needed(root: Path, study: str) -> Iterator[Cell]:
    start = STUDIES[study].start
    if start and any(True for _ in _needed(root, start)):
        return
    for architecture in STUDIES[study].architectures:
        cells = [Cell(study, architecture, rate, SELECTION_SEED) for rate in RATES]
        missing = [cell for cell in cells if not _is_current(root, cell)]
        if not missing:
            losses = selection(root, study, architecture)
            best = min(losses, key=lambda rate: losses[rate])
            if chosen_rate(losses) is None:
                rate = next_rate(best, up=best == max(losses))
                missing = [Cell(study, architecture, rate, SELECTION_SEED)]
            else:
                cells = reported(root, study, architecture)
                missing = [cell for cell in cells if not _is_current(root, cell)]
        yield from missing


def _is_current(root: Path, cell: Cell) -> bool:
    try:
        return not is_stale(root, read_card(root, cell))
    except NoCell:
        return False
