"""The chapter's stored trainings, which are the cells of its grid: where they are, whether they are
whole, and which are to be trained next.

A cell is stored as `NAME.json`, a card (settings, curve, hashes), and for reported seeds
`NAME.safetensors`. `training` writes them.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replib.chapters.copying_mamba import training_grid as grid
from replib.chapters.copying_mamba.training_grid import RATES, SELECTION_SEED, Cell
from replib.chapters.stored import NotStored, check_weights, make_with, reading
from replib.errors import UsageError
from replib.hashes import code_hash

PAPER = "copying-mamba"
# What decides the weights, given the study's settings, the pinned packages and the kind of machine.
# Settings are in each card, so a change of one study leaves the others.
CODE = "import replib.chapters.copying_mamba.training as t; t.train, t._state, t._network"


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
    """The card of a stored cell, whose weights, if it has any, are those that it describes. Raises
    NotStored if the cell is missing, or altered."""
    again = make_with(PAPER, cell=cell.name)
    path, what = card_path(root, cell), f"training {cell.name}"
    if not path.is_file():
        raise NotStored(f"{what} of {PAPER} is missing ({path}); {again}")
    with reading(f"{what}: {path}", again):
        card = json.loads(path.read_text())
        curve, stored = card["curve"], card["sha256"]
        ends = [float(curve[key][-1]) for key in ("examples", "loss", "string")]
        texts = [card[key] for key in ("code_sha256", "start", "start_sha256")]
        whole = card["cell"] == asdict(cell) and all(isinstance(t, str) for t in texts) and ends
        card["settings"]["steps"]
    if not whole:
        raise NotStored(f"{what}: {path} is about another cell; {again}")
    if cell.is_reported:
        weights = weights_path(root, cell)
        if not weights.is_file():
            raise NotStored(f"{what} of {PAPER} is missing ({weights}); {again}")
        check_weights(weights, stored, what, "its weights", again)
    return card


def is_stale(root: Path, card: Mapping[str, Any]) -> bool:
    """Have the code that trains, the settings, or the weights to start with changed since?"""
    settings = grid.settings(card["cell"]["study"])
    if card["code_sha256"] != code_sha256() or card["settings"] != settings:
        return True
    if not card["start"]:
        return False
    try:
        return card["start_sha256"] != read_card(root, grid.cell_of(card["start"]))["sha256"]
    except NotStored:
        return True


def selection(root: Path, study: str, architecture: str) -> dict[float, float]:
    """rate -> validation loss at the end (nats), of the trainings with the selection seed that are
    stored, sorted by rate."""
    found = {}
    for path in (folder(root) / study).glob(f"{architecture}-*-{SELECTION_SEED}.json"):
        cell = grid.cell_of(f"{study}/{path.stem}")
        if cell.architecture == architecture:
            found[cell.rate] = read_card(root, cell)["curve"]["loss"][-1]
    return dict(sorted(found.items()))


def reported(root: Path, study: str, architecture: str) -> list[Cell]:
    """The cells that are reported; raises NotStored if no rate can be chosen yet."""
    losses = selection(root, study, architecture)
    rate = grid.chosen_rate(losses) if set(RATES) <= set(losses) else None
    if rate is None:
        raise NotStored(
            f"{PAPER}, {study}, {architecture}: the grid of learning rates is not complete; "
            f"{make_with(PAPER)}"
        )
    return [Cell(study, architecture, rate, seed) for seed in grid.STUDIES[study].seeds]


def _to_train(root: Path, study: str) -> Iterator[Cell]:
    start = grid.STUDIES[study].start
    if start and any(True for _ in _to_train(root, start)):
        return
    for architecture in grid.STUDIES[study].architectures:
        cells = [Cell(study, architecture, rate, SELECTION_SEED) for rate in RATES]
        missing = [cell for cell in cells if not _is_current(root, cell)]
        if not missing:
            losses = selection(root, study, architecture)
            if grid.chosen_rate(losses) is None:
                best = min(losses, key=losses.__getitem__)
                rate = grid.next_rate(best, up=best == max(losses))
                missing = [Cell(study, architecture, rate, SELECTION_SEED)]
            else:
                cells = reported(root, study, architecture)
                missing = [cell for cell in cells if not _is_current(root, cell)]
        yield from missing


def _is_current(root: Path, cell: Cell) -> bool:
    try:
        return not is_stale(root, read_card(root, cell))
    except NotStored:
        return False


# --- What the workshop asks -----------------------------------------------------------------------


def needed(root: Path, parameters: Mapping[str, Any], model: str) -> dict[str, str]:
    """All reported cells, with the sha256 of their weights: a run reads them whatever its model.
    Raises NotStored where one cannot be used."""
    return {
        f"training {cell.name}": read_card(root, cell)["sha256"]
        for study, planned in grid.STUDIES.items()
        for architecture in planned.architectures
        for cell in reported(root, study, architecture)
    }


def files(root: Path, model: str) -> list[Path]:
    return sorted(folder(root).glob("*/*"))


def add_options(parser: ArgumentParser) -> None:
    parser.description = (
        "Train the cells of the grid that are missing, altered or older than the code; or one cell."
    )
    parser.add_argument("--cell", metavar="NAME", help="only this one, such as copy/rope-0.003-1")
    parser.add_argument("--cores", type=int, metavar="N", help="cells at a time; default: all")


def trainings(root: Path, options: Namespace) -> dict[str, Callable[[Callable], Path]]:
    """The one cell that was asked for: {its name: a function that trains it}, or nothing."""
    if options.cores is not None and options.cores < 1:
        raise UsageError(f"--cores is {options.cores}; give a whole number, 1 or more")
    if options.cell is None:
        return {}
    cell = grid.cell_of(options.cell)

    def train(say: Callable[[str], None]) -> Path:
        from replib.chapters.copying_mamba.training import train_cell

        return train_cell(root, cell, options.device, say)

    return {cell.name: train}


def missing(root: Path) -> list[str]:
    """The cells to train next: missing, altered, or older than the code. What depends on others
    (seeds on the choice of a rate, a study on another) comes in a later call, once those are there.
    """
    return [cell.name for study in grid.STUDIES for cell in _to_train(root, study)]
