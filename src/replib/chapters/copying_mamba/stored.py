"""The chapter's stored trainings, which are the cells of its grid: where they are, whether they are
whole, and which are to be trained next.

A cell is stored as `NAME.json`, a card (settings, curve, hashes), and for reported seeds
`NAME.safetensors`. `training` writes them.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replib.chapters.copying_mamba import training_grid as grid
from replib.chapters.copying_mamba.training_grid import Cell, Setting
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
        whole = card["cell"] == asdict(cell) and isinstance(card["code_sha256"], str) and ends
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
    """Have the code that trains, or the settings, changed since?"""
    same = card["settings"] == grid.settings(Cell(**card["cell"]))
    return card["code_sha256"] != code_sha256() or not same


def selection(root: Path, study: str, architecture: str) -> dict[Setting, dict[int, float]]:
    """(rate, start) -> seed -> validation loss at the end (nats), of the trainings with selection
    seeds that are stored."""
    found: dict[Setting, dict[int, float]] = {}
    for path in sorted((folder(root) / study).glob(f"{architecture}-*-[sm]??-*.json")):
        cell = grid.cell_of(f"{study}/{path.stem}")
        if cell.architecture == architecture and not cell.is_reported:
            loss = read_card(root, cell)["curve"]["loss"][-1]
            found.setdefault((cell.rate, cell.start), {})[cell.seed] = loss
    return found


def _copied(root: Path, study: str, architecture: str) -> Setting | None:
    """The setting that a study takes over; None: it has to search from the beginning. Raises
    NotStored while the other study has none."""
    like, kind = grid.STUDIES[study].like, grid.kind(architecture)
    if not like or kind not in grid.STUDIES[like].architectures:
        return None
    return chosen(root, like, kind)


def chosen(root: Path, study: str, architecture: str) -> Setting:
    """Rate and start of the reported trainings; raises NotStored while they cannot be chosen."""
    copied = _copied(root, study, architecture)
    first = grid.first_settings(study, architecture, copied)
    if copied is not None and not first:
        return copied
    losses = grid.mean_losses(selection(root, study, architecture))
    found = grid.chosen(losses) if set(first) <= set(losses) else None
    if found is None:
        raise NotStored(
            f"{PAPER}, {study}, {architecture}: the grid of learning rates and starts is not "
            f"complete; {make_with(PAPER)}"
        )
    return found


def reported(root: Path, study: str, architecture: str) -> list[Cell]:
    """The cells that are reported; raises NotStored if no setting can be chosen yet."""
    rate, start = chosen(root, study, architecture)
    seeds = grid.STUDIES[study].seeds
    return [Cell(study, architecture, rate, start, seed) for seed in seeds]


def _to_train(root: Path, study: str) -> Iterator[Cell]:
    for architecture in grid.STUDIES[study].architectures:
        try:
            copied = _copied(root, study, architecture)
        except NotStored:
            continue  # it comes in a later call
        settings = grid.first_settings(study, architecture, copied)
        settings += [s for s in selection(root, study, architecture) if s not in settings]
        missing = _missing(root, study, architecture, settings, grid.SELECTION_SEEDS)
        if not missing and settings:
            further = grid.beyond(grid.mean_losses(selection(root, study, architecture)))
            missing = _missing(root, study, architecture, further, grid.SELECTION_SEEDS)
        if not missing:
            setting = chosen(root, study, architecture)
            seeds = grid.STUDIES[study].seeds
            missing = _missing(root, study, architecture, [setting], seeds)
        yield from missing


def _missing(
    root: Path, study: str, name: str, settings: Sequence[Setting], seeds: Sequence[int]
) -> list[Cell]:
    cells = [Cell(study, name, rate, start, seed) for rate, start in settings for seed in seeds]
    return [cell for cell in cells if not _is_current(root, cell)]


def _is_current(root: Path, cell: Cell) -> bool:
    try:
        return not is_stale(root, read_card(root, cell))
    except NotStored:
        return False


# --- What the workshop asks -----------------------------------------------------------------------


def needed(root: Path, parameters: Mapping[str, Any], model: str) -> dict[str, str]:
    """All reported cells, with the sha256 of their weights; nothing for planted and untrained
    networks. Raises NotStored where one cannot be used."""
    if not model.startswith("trained-"):
        return {}
    return {
        f"training {cell.name}": read_card(root, cell)["sha256"]
        for study, planned in grid.STUDIES.items()
        for architecture in planned.architectures
        for cell in reported(root, study, architecture)
    }


def files(root: Path, model: str) -> list[Path]:
    return sorted(folder(root).glob("*/*")) if model.startswith("trained-") else []


def add_options(parser: ArgumentParser) -> None:
    parser.description = (
        "Train the cells of the grid that are missing, altered or older than the code; or one cell."
    )
    parser.add_argument(
        "--cell", metavar="NAME", help="only this one, such as copy/rope-0.0056-s10-21"
    )
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
