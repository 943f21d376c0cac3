"""The chapter's stored trainings: where they are, whether they are whole, which are to be trained.

A cell is stored as `STUDY/SEED.json`, a card (settings, curve, hashes), and where its study keeps
weights `STUDY/SEED.safetensors`. `training` writes them.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replib.chapters.abrupt_induction import training_grid as grid
from replib.chapters.abrupt_induction.training_grid import Cell
from replib.chapters.stored import NotStored, check_weights, make_with, reading
from replib.errors import UsageError
from replib.files import sha256_file
from replib.hashes import code_hash

PAPER = "abrupt-induction"
TRAINED = "trained-induction-birth"  # the one model that reads what is stored
# What decides the weights, given a study's settings, the pinned packages and the kind of machine.
CODE = "import replib.chapters.abrupt_induction.training as t; t.train"


def folder(root: Path) -> Path:
    """Where the cells of a checkout are stored."""
    return root / "notebooks" / PAPER / "checkpoints"


def card_path(root: Path, cell: Cell) -> Path:
    return folder(root) / f"{cell.name}.json"


def weights_path(root: Path, cell: Cell) -> Path:
    return folder(root) / f"{cell.name}.safetensors"


def code_sha256() -> str:
    """One hash of the code that trains a network."""
    return code_hash(CODE, leave=["replib.chapters.abrupt_induction.training_grid.STUDIES"])


def read_card(root: Path, cell: Cell) -> dict[str, Any]:
    """The card of a stored cell, whose weights, if it has any, are those that it describes. Raises
    NotStored if the cell is missing, or altered."""
    again = make_with(PAPER, cell=cell.name)
    path, what = card_path(root, cell), f"training {cell.name}"
    if not path.is_file():
        raise NotStored(f"{what} of {PAPER} is missing ({path}); {again}")
    with reading(f"{what}: {path}", again):
        card = json.loads(path.read_text())
        points = [[float(x) for x in card["curve"][key]] for key in ("step", "ic", "loss")]
        texts = [card[key] for key in ("code_sha256", "sha256")]
        whole = card["cell"] == asdict(cell) and all(isinstance(t, str) for t in texts)
        whole = whole and len({len(some) for some in points}) == 1 and bool(points[0])
        float(card["cpu_s"]), card["settings"]["steps"]
    if not whole:
        raise NotStored(f"{what}: {path} is about another cell; {again}")
    if grid.STUDIES[cell.study].keeps:
        weights = weights_path(root, cell)
        if not weights.is_file():
            raise NotStored(f"{what} of {PAPER} is missing ({weights}); {again}")
        check_weights(weights, card["sha256"], what, "its weights", again)
    return card


def is_stale(card: Mapping[str, Any]) -> bool:
    """Have the code that trains, or the settings, changed since?"""
    settings = grid.settings(card["cell"]["study"])
    return card["code_sha256"] != code_sha256() or card["settings"] != settings


def _is_current(root: Path, cell: Cell) -> bool:
    try:
        return not is_stale(read_card(root, cell))
    except NotStored:
        return False


# --- What the workshop asks -----------------------------------------------------------------------


def needed(root: Path, parameters: Mapping[str, Any], model: str) -> dict[str, str]:
    """All cells, with the sha256 of their weights, or of the card of a cell without; nothing
    where the networks are planted or untrained. Raises NotStored where one cannot be used."""
    if model != TRAINED:
        return {}
    found = {}
    for cell in grid.cells():
        card = read_card(root, cell)
        found[f"training {cell.name}"] = card["sha256"] or sha256_file(card_path(root, cell))
    return found


def files(root: Path, model: str) -> list[Path]:
    return sorted(folder(root).glob("*/*")) if model == TRAINED else []


def add_options(parser: ArgumentParser) -> None:
    parser.description = (
        "Train the cells of the grid that are missing, altered or older than the code; or one cell."
    )
    parser.add_argument("--cell", metavar="NAME", help="only this one, such as birth/2")
    parser.add_argument("--cores", type=int, metavar="N", help="cells at a time; default: all")


def trainings(root: Path, options: Namespace) -> dict[str, Callable[[Callable], Path]]:
    """The one cell that was asked for: {its name: a function that trains it}, or nothing."""
    if options.cores is not None and options.cores < 1:
        raise UsageError(f"--cores is {options.cores}; give a whole number, 1 or more")
    if options.device not in ("cpu", "auto"):
        raise UsageError(f"{PAPER} trains on the cpu, so that one seed gives one result")
    if options.cell is None:
        return {}
    cell = grid.cell_of(options.cell)

    def train(say: Callable[[str], None]) -> Path:
        from replib.chapters.abrupt_induction.training import train_cell

        return train_cell(root, cell, say)

    return {cell.name: train}


def missing(root: Path) -> list[str]:
    """The cells to train: missing, altered, or older than the code."""
    return [cell.name for cell in grid.cells() if not _is_current(root, cell)]
