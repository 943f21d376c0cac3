"""The book's page of run statistics, made from the records: what every page cost, on what, and when
it was last verified.

The page's prose holds `<!-- runs -->` for the table and `<!-- totals -->` for a line. A run is
verified when its record was computed with the code as it is; a stale one says what has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bookkit.book.markup import raw_html, scrolling
from bookkit.project import words
from replib.markup import as_html as _h

PAGE = "statistics.md"
Run = Any  # a `replib.book.Run`; that module imports this one
Tally = Callable[[Any], str]  # a run's outcomes, counted
Duration = Callable[[float], str]


def write(out: Path, runs: Sequence[Run], tally: Tally, duration: Duration) -> None:
    """Fill in the page in `out`; `tally` and `duration` give the words that other pages use."""
    path = out / PAGE
    text = path.read_text(encoding="utf-8")
    text = text.replace("<!-- runs -->", table(runs, tally, duration))
    path.write_text(text.replace("<!-- totals -->", totals(runs, duration)), encoding="utf-8")


def last_verified(run: Run) -> str:
    """The day on which the record was computed, if that was with the code as it is."""
    if run.stale:
        return f"not since {words(run.stale)} changed"
    return run.record["started"][:10]


def table(runs: Sequence[Run], tally: Tally, duration: Duration) -> str:
    """A row for every run, as a table of HTML in MyST."""
    head = ("Run", "Profile", "Time", "Memory", "Device", "Started", "Last verified", "Claims")
    rows = []
    for run in runs:
        record = run.record
        cells = (
            record["profile"],
            duration(record["wall_time_s"]),
            f"{record['peak_memory_mb']:.0f} MB",
            f"{record['device']}, threads: {record['threads']}",
            record["started"].replace("T", " ").replace("Z", " UTC"),
            last_verified(run),
            tally(run),
        )
        link = f'<a href="chapters/{_h(run.key)}.html">{_h(run.paper)} on {_h(run.model)}</a>'
        rows.append(
            f'<tr data-record="{_h(run.key)}"><th scope="row">{link}</th>'
            f"{''.join(f'<td>{_h(cell)}</td>' for cell in cells)}</tr>"
        )
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    body = "\n".join(rows)
    html = (
        f'<table class="statistics-table"><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody>'
    )
    return raw_html(scrolling("Every run behind this book", f"{html}</table>"))


def totals(runs: Sequence[Run], duration: Duration) -> str:
    """How many runs and claims, what they took together, and how many are verified."""
    if not runs:
        return "No run."
    records = [run.record for run in runs]
    claims = sum(len(record["claims"]) for record in records)
    verified = sum(not run.stale for run in runs)
    time = duration(sum(record["wall_time_s"] for record in records))
    memory = max(record["peak_memory_mb"] for record in records)
    return (
        f"**Together:** {len(runs)} runs decide {claims} claims in {time}; the largest needs "
        f"{memory:.0f} MB. {verified} of the {len(runs)} were computed with the code as it is."
    )
