"""`replib train PAPER ...`: train again what a chapter keeps stored.

What can be asked of a chapter, and how it is trained, stands in its own module `stored`
(see `replib.chapters.stored`).
"""

import argparse
import os
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from bookkit.project import stored_module
from replib import chapters
from replib.errors import UsageError, one_line


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors as one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def train(root: Path, paper: str, words: Sequence[str]) -> int:
    """Train what `words`, the options on the command line, ask for; returns the exit code.

    Raises:
        UsageError: a paper without stored trainings, an option that its chapter does not have.
    """
    stored = _all_stored()
    if paper not in stored:
        raise UsageError(
            f"argument PAPER: invalid choice: {one_line(paper)!r} (choose from {', '.join(stored)})"
        )
    try:
        options = _read(stored[paper], words)
    except SystemExit:  # --help
        return 0
    asked = stored[paper].trainings(root, options)
    for name, make in asked.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' advice to themselves
            path = make(lambda line, name=name: _say(f"{paper}, {name}: {line}"))
        print(f"{paper}, {name}: {path}", flush=True)
    return 0 if asked else _train_missing(root, stored[paper], options)


def _all_stored() -> dict[str, ModuleType]:
    """The papers whose chapters keep trainings, with what they say of them."""
    names = sorted(one.name for one in pkgutil.iter_modules(chapters.__path__) if one.ispkg)
    return {stored.PAPER: stored for name in names if (stored := stored_module(name))}


def _read(stored: ModuleType, words: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog=f"replib train {stored.PAPER}", allow_abbrev=False)
    stored.add_options(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="cpu")
    options, foreign = parser.parse_known_args(words)
    if foreign:
        raise UsageError(
            f"{foreign[0]} does not belong to {stored.PAPER}; see {parser.prog} --help"
        )
    return options


def _train_missing(root: Path, stored: ModuleType, options: argparse.Namespace) -> int:
    """What is missing, as jobs of Snakemake, until nothing is."""
    paper = stored.PAPER
    while names := stored.missing(root):
        _say(f"{paper}: {len(names)} cells to train")
        command = [sys.executable, "-m", "snakemake", "--snakefile", root / "workflow/grid.smk"]
        command += ["--cores", str(options.cores or os.cpu_count() or 1), "--keep-going"]
        command += ["--config", f"device={options.device}", "--quiet", "rules"]
        command += ["--force", *(f"build/grid/{paper}/{name}.done" for name in names)]
        if subprocess.run(command, cwd=root, check=False).returncode:
            _say(f"{paper}: some cells failed; to go on: replib train {paper}")
            return 1
    print(f"{paper}: all cells are there: {stored.folder(root)}", flush=True)
    return 0


def _say(text: str) -> None:
    print(f"replib: {one_line(text, 2000)}", file=sys.stderr, flush=True)
