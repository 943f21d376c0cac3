"""The chapter's stored trainings, which are the cells of its grid: where they are, whether they are
whole, and which are to be trained next. Only the page of trained networks reads them.

A cell is stored as `STUDY/SEED.safetensors`, its weights, and `STUDY/SEED.json`, a card (settings,
curve, hashes). `training` writes them.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replib.chapters.icl_gradient_descent import training_grid as grid
from replib.chapters.icl_gradient_descent.training_grid import Cell
from replib.chapters.stored import NotStored, check_weights, make_with, reading
from replib.errors import UsageError
from replib.hashes import code_hash

PAPER = "icl-gradient-descent"
TRAINED = "trained-icl-gd"
# What decides the weights, given the study's settings, the pinned packages and the kind of machine.
CODE = "import replib.chapters.icl_gradient_descent.training as t; t.train, t.Course"


def folder(root: Path) -> Path:
    """Where the cells of a checkout are stored."""
    return root / "notebooks" / PAPER / "checkpoints"


def card_path(root: Path, cell: Cell) -> Path:
    return folder(root) / f"{cell.name}.json"


def weights_path(root: Path, cell: Cell) -> Path:
    return folder(root) / f"{cell.name}.safetensors"


def code_sha256() -> str:
    """One hash of the code that trains a network and measures its curve."""
    return code_hash(CODE, leave=["replib.chapters.icl_gradient_descent.training_grid.STUDIES"])


def read_card(root: Path, cell: Cell) -> dict[str, Any]:
    """The card of a stored cell, whose weights are those that it describes. Raises NotStored if the
    cell is missing, or altered."""
    again = make_with(PAPER, cell=cell.name)
    path, what = card_path(root, cell), f"training {cell.name}"
    weights = weights_path(root, cell)
    for one in (path, weights):
        if not one.is_file():
            raise NotStored(f"{what} of {PAPER} is missing ({one}); {again}")
    with reading(f"{what}: {path}", again):
        card = json.loads(path.read_text())
        points = [len(card["curve"][key]) for key in ("step", "loss")]
        is_whole = card["cell"] == asdict(cell) and isinstance(card["code_sha256"], str)
        stored, _, _ = card["sha256"], card["settings"]["steps"], float(card["cpu_s"])
    if not is_whole or points[0] != points[1] or points[0] < 2:
        raise NotStored(f"{what}: {path} is about another cell; {again}")
    check_weights(weights, stored, what, "its weights", again)
    return card


def is_stale(card: Mapping[str, Any]) -> bool:
    """Have the code that trains or the settings changed since?"""
    settings = grid.settings(card["cell"]["study"])
    return card["code_sha256"] != code_sha256() or card["settings"] != settings


# --- What the workshop asks -----------------------------------------------------------------------


def needed(root: Path, parameters: Mapping[str, Any], model: str) -> dict[str, str]:
    """All cells, with the sha256 of their weights, for the page of trained networks; others read
    none. Raises NotStored where one cannot be used."""
    some = grid.cells() if model == TRAINED else []
    return {f"training {cell.name}": read_card(root, cell)["sha256"] for cell in some}


def files(root: Path, model: str) -> list[Path]:
    return sorted(folder(root).glob("*/*")) if model == TRAINED else []


def add_options(parser: ArgumentParser) -> None:
    parser.description = (
        "Train the cells of the grid that are missing, altered or older than the code; or one cell."
    )
    parser.add_argument("--cell", metavar="NAME", help="only this one, such as linear/1")
    parser.add_argument("--cores", type=int, metavar="N", help="cells at a time; default: all")


def trainings(root: Path, options: Namespace) -> dict[str, Callable[[Callable], Path]]:
    """The one cell that was asked for: {its name: a function that trains it}, or nothing. They are
    so small that they are always trained on the processor."""
    if options.cores is not None and options.cores < 1:
        raise UsageError(f"--cores is {options.cores}; give a whole number, 1 or more")
    if options.cell is None:
        return {}
    cell = grid.cell_of(options.cell)

    def train(say: Callable[[str], None]) -> Path:
        from replib.chapters.icl_gradient_descent.training import train_cell

        return train_cell(root, cell, say)

    return {cell.name: train}


def missing(root: Path) -> list[str]:
    """The cells to train next: missing, altered, or older than the code. Long ones come first, so
    that several cores end at about the same time."""
    some = [cell for cell in grid.cells() if not _is_current(root, cell)]
    return [cell.name for cell in sorted(some, key=lambda c: -grid.STUDIES[c.study].steps)]


def _is_current(root: Path, cell: Cell) -> bool:
    try:
        return not is_stale(read_card(root, cell))
    except NotStored:
        return False
