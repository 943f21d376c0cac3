"""`replib book ...`: the steps from finished runs to a checked book, for make and Snakemake. What
goes wrong here is a line that begins with the step's name, and exit code 1."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from replib.errors import UsageError
from replib.files import find_root
from replib.markup import visible

app = Typer(rich_markup_mode=None, help="Build and check the book, step by step.")

RUNS, BOOK, HTML = Path("build/runs"), Path("build/book"), Path("_build/html")
SHOWN = "The runs to show; default: every finished one."
REFUSED = "Of jobs; one that was refused is left out."
Runs = Annotated[Path, Option(metavar="DIR", help="Finished runs.")]
Stamps = Annotated[Path | None, Option(metavar="DIR", help=REFUSED)]
Pairs = Annotated[list[str] | None, Argument(metavar="PAPER/MODEL", help=SHOWN)]


@app.command()
def stage(
    pairs: Pairs = None,
    runs: Runs = RUNS,
    out: Annotated[Path, Option(metavar="DIR", help="The book's source folder.")] = BOOK,
    stamps: Stamps = None,
    root: Annotated[Path, Option(metavar="DIR", help="The project.")] = Path(),
) -> int:
    """Write the book's source folder from finished runs."""
    from bookkit.book.stage import stage

    return _report("book", lambda: stage(root, runs, out, _expected(pairs, stamps)) and ())


@app.command()
def gate(pairs: Pairs = None, runs: Runs = RUNS, stamps: Stamps = None) -> int:
    """Check a built book; one line for each fault."""
    from bookkit.book.gate import faults

    certified = Path("results")
    return _report("book", lambda: faults(HTML, runs, BOOK, _expected(pairs, stamps), certified))


@app.command()
def pdf() -> int:
    """Print book and chapters as PDF, if there is a Chromium."""
    from bookkit.book.pdf import write_all

    return _report("pdf", lambda: write_all(HTML, BOOK, Path("_build/pdf")))


@app.command()
def failed(
    runs: Annotated[Path, Argument(metavar="RUNS", help="A folder of runs.")],
    since: Annotated[Path, Argument(metavar="FILE", help="Made when they began.")],
) -> int:
    """Name the runs that failed since: the last line of `make book`."""
    from bookkit.book.failed import last_line

    _report("book", lambda: filter(None, [last_line(runs, since)]))
    return 0


@app.command()
def classroom() -> int:
    """Write the students' notebooks, as they are committed."""
    from bookkit.course.classroom import FOLDER, write_notebooks

    return _report("classroom", lambda: write_notebooks(find_root(), Path(FOLDER)) and ())


@app.command()
def readme() -> int:
    """Write the scorecard of the certified records into README.md."""
    from bookkit.book.reports import write_readme

    return _report("readme", lambda: write_readme(find_root()))


def _report(name: str, step: Callable[[], Sequence[str] | None]) -> int:
    """0, or 1 when the step finds faults or cannot be done, a line for each."""
    try:
        found = step() or ()
    except UsageError as error:
        found = [str(error)]
    for fault in found:
        print(f"{name}: {visible(fault)}", file=sys.stderr)
    return 1 if found else 0


def _expected(pairs: list[str] | None, stamps: Path | None) -> list[str] | None:
    """The runs to be shown, without those that were refused; None for every finished one."""
    from bookkit.sweep import refusal

    if not pairs or stamps is None:
        return pairs or None
    return [pair for pair in pairs if not refusal(stamps / f"{pair}.ok")]
