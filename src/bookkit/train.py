"""`replib train PAPER ...`: train again what a chapter keeps stored. What can be asked of it, and
how it is trained, stands in the chapter's own module `stored` (see `replib.chapters.stored`)."""

import argparse
import os
import pkgutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from bookkit.project import stored_module
from replib import chapters
from replib.errors import UsageError, one_line


def train(root: Path, paper: str, words: Sequence[str], say: Callable[[str], None]) -> int:
    """Train what `words`, the options on the command line, ask for; without any, all that is
    missing, as jobs of Snakemake. Returns the exit code. UsageError for a paper without stored
    trainings, and for an option that its chapter does not have."""
    names = sorted(one.name for one in pkgutil.iter_modules(chapters.__path__) if one.ispkg)
    having = {stored.PAPER: stored for name in names if (stored := stored_module(name))}
    if paper not in having:
        raise UsageError(
            f"argument PAPER: invalid choice: {one_line(paper)!r} (choose from {', '.join(having)})"
        )
    stored = having[paper]
    usage = f"replib train {paper}"
    parser = argparse.ArgumentParser(prog=usage, allow_abbrev=False, exit_on_error=False)
    stored.add_options(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="cpu")
    try:
        options, foreign = parser.parse_known_args(words)
    except SystemExit:  # --help
        return 0
    except argparse.ArgumentError as error:
        raise UsageError(f"{error} (see {usage} --help)") from None
    if foreign:
        raise UsageError(f"{foreign[0]} does not belong to {paper}; see {usage} --help")
    if asked := stored.trainings(root, options):
        for name, make in asked.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the libraries' advice to themselves
                path = make(lambda line, name=name: say(f"{paper}, {name}: {line}"))
            print(f"{paper}, {name}: {path}", flush=True)
        return 0
    while names := stored.missing(root):
        say(f"{paper}: {len(names)} cells to train")
        command = [sys.executable, "-m", "snakemake", "--snakefile", root / "workflow/grid.smk"]
        command += ["--cores", str(options.cores or os.cpu_count() or 1), "--keep-going"]
        command += ["--config", f"device={options.device}", "--quiet", "rules"]
        command += ["--force", *(f"build/grid/{paper}/{name}.done" for name in names)]
        if subprocess.run(command, cwd=root, check=False).returncode:
            say(f"{paper}: some cells failed; to go on: replib train {paper}")
            return 1
    print(f"{paper}: all cells are there: {stored.folder(root)}", flush=True)
    return 0
