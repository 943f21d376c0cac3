"""What chapters keep stored, trained again: `replib train PAPER ...`."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from bookkit.run.plan import absolute_model
from replib.chapters.context_knob.cards import INTENT_FORMATS
from replib.chapters.copying_mamba import training_grid as grid
from replib.errors import UsageError, one_line
from replib.files import find_root
from replib.models.sources import EMBEDDED, MADE_IN_MEMORY

app = typer.Typer(rich_markup_mode=None, add_completion=False)
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where to compute.")]


def train(root: Path, paper: str, options: list[str]) -> int:
    """Train what a chapter keeps stored; the exit code. `options` are the words after the paper."""
    group = typer.main.get_command(app)
    if paper not in group.commands:
        known = ", ".join(sorted(group.commands))
        raise UsageError(f"argument PAPER: invalid choice: {paper!r} (choose from {known})")
    with group.make_context("replib train", [paper, *options]) as context:
        return context.command.invoke(context)


@app.command(grid.PAPER)
def _cells(
    cell: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this one, such as copy/rope-0.003-1.")
    ] = None,
    cores: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Cells at a time; default: all.")
    ] = None,
    device: Device = "cpu",
) -> int:
    """Train the cells of the grid that are missing, altered or older than the code; or one cell."""
    root = find_root()
    if cell is not None:
        one = grid.cell_of(cell)
        from replib.chapters.copying_mamba.training import train_cell

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = train_cell(root, one, device, lambda text: _say(f"{one.name}: {text}"))
        print(f"{grid.PAPER}, {one.name}: {path}", flush=True)
        return 0
    while cells := grid.needed(root):
        _say(f"{grid.PAPER}: {len(cells)} cells to train")
        marks = [f"build/grid/{cell.name}.done" for cell in cells]
        command = [sys.executable, "-m", "snakemake", "--snakefile", f"{root}/workflow/grid.smk"]
        command += ["--directory", str(root), "--cores", str(cores or os.cpu_count() or 1)]
        command += ["--keep-going", "--config", f"device={device}", "--quiet", "rules", "--force"]
        if subprocess.run([*command, *marks], cwd=root, check=False).returncode:
            _say(f"{grid.PAPER}: some cells failed; to go on: replib train {grid.PAPER}")
            return 1
    print(f"{grid.PAPER}: all cells are there: {grid.folder(root)}", flush=True)
    return 0


@app.command("context-knob")
def _adapters(
    model: Annotated[
        str, typer.Option(metavar="NAME", help=f"{', '.join(EMBEDDED)}, a folder, a hub id.")
    ],
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="0, 1, 2, ...")],
    format: Annotated[
        Literal[INTENT_FORMATS] | None,
        typer.Option(help="How the intent is written; default: each in turn."),
    ] = None,
    device: Device = "cpu",
) -> int:
    """Train the adapters of one model and seed."""
    if model in MADE_IN_MEMORY:
        raise UsageError(f"model {model!r} is made in memory and needs no adapter")
    path = absolute_model(model)
    from replib.chapters.context_knob.training import train_adapter

    root, paper = find_root(), "context-knob"
    for intent_format in [format] if format else INTENT_FORMATS:
        name = f"{paper}, {model}, {intent_format}-{seed}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' advice to themselves
            say = lambda line, name=name: _say(f"{name}: {line}")  # noqa: E731
            folder = train_adapter(root, paper, path, intent_format, seed, device, say)
        print(f"{name}: {folder}", flush=True)
    return 0


def _say(text: str) -> None:
    print(f"replib: {one_line(text, 2000)}", file=sys.stderr, flush=True)
