"""Runs that failed: what is known of them, and a page that says why and where each one stopped.

A failed run leaves `<paper>/<model>.failed/{notebook.ipynb, run.log}`. Its page has that name too,
so an earlier good run of the model keeps its own. Nothing in a failed run is a result.
"""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from bookkit.book.cells import cut, source_of
from bookkit.book.html import as_myst, raw_html, render
from bookkit.project import words
from replib.errors import UsageError

SUFFIX = ".failed"
LOG_PART = 65536  # bytes of the log's begin and end that are read
SHOWN = 40  # lines of the log on the page
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # of a traceback in a terminal


@dataclass(frozen=True)
class FailedRun:
    """One run that stopped before its end."""

    paper: str
    model: str  # the folder's name, without its ending
    folder: Path
    reason: str  # one line, from the end of the log
    started: str  # as the log says; may be empty
    begin: str  # of the log
    end: str

    @property
    def page(self) -> str:
        return self.model + SUFFIX

    @property
    def key(self) -> str:
        return f"{self.paper}/{self.page}"


def find_failed(runs: Path) -> list[FailedRun]:
    """Every failed run in a folder of runs; UsageError for one of which the end is not known."""
    found = []
    for folder in sorted(runs.glob(f"*/*{SUFFIX}")):
        model = folder.name.removesuffix(SUFFIX)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]*", model):
            continue  # hidden: one that is being replaced
        log = folder / "run.log"
        try:
            with log.open("rb") as file:
                begin = file.read(LOG_PART).decode(errors="replace")
                file.seek(max(0, log.stat().st_size - LOG_PART))
                end = file.read().decode(errors="replace")
        except OSError as error:
            raise UsageError(f"failed run {folder}: run.log: {error.strerror}") from None
        reasons = re.findall(r"(?m)^failed: (.+)$", end)
        if not reasons:
            raise UsageError(f"failed run {folder}: run.log does not say why; remove the folder")
        started = re.search(r"\A.*, (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)\n", begin)
        time = started[1] if started else ""
        found.append(FailedRun(folder.parent.name, model, folder, reasons[-1], time, begin, end))
    return found


def page(run: FailedRun, title: str, switch: str) -> str:
    """The run's page, as MyST: why, where, the cell with its error, and the end of the log.

    `title` is the paper's, `switch` the way to the chapter's other pages.
    """
    places = re.findall(r"in cell \[\d+\]|before its first cell", run.reason)
    source, error = _stopped_in(run)
    said = re.match(r".*? on (.+), profile (\S+), .*\n(?:parameters: (.*)\n)?", run.begin)
    model, *profile = (said[1], "--profile", said[2]) if said else (run.model,)
    again = ["replib", "run", run.paper, "--model", model, *profile]
    shown = [_COLOUR.sub("", line) for line in run.end.strip().splitlines()[-SHOWN:]]
    place = places[-1] if places else "after its last cell"
    told = {"place": place, "parameters": (said and said[3]) or "", "source": source}
    told |= {"error": cut(_COLOUR.sub("", error)), "log": cut("\n".join(shown))}
    about = render("failed.html", run=run, again=shlex.join(again), **told)
    return f"# {as_myst(title)} ({run.model}, failed)\n\n" + raw_html(f"{switch}\n{about}")


def _stopped_in(run: FailedRun) -> tuple[str | None, str]:
    """The source and the error of the cell that failed; None and nothing if none did, or if the
    notebook is broken, as it may be after a full disk."""
    try:
        cells = json.loads((run.folder / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            errors = [o for o in cell.get("outputs", ()) if o["output_type"] == "error"]
            stopped = cell["metadata"].get("papermill", {}).get("status") == "failed"
            if errors or stopped:
                lines: list[str] = []
                for error in errors:
                    lines += error.get("traceback") or [f"{error['ename']}: {error['evalue']}"]
                return source_of(cell), "\n".join(lines)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None, ""


def last_line(runs: Path, since: Path) -> str:
    """What `make book` says in the end of the runs that failed after the file `since` was made;
    empty if none did."""
    begun = since.stat().st_mtime
    failed = [run for run in find_failed(runs) if run.folder.stat().st_mtime >= begun]
    if not failed:
        return ""
    names = words([f"{run.paper} on {run.model}" for run in failed])
    return (
        f"{names} failed, so there is no new book; for one with a page that shows where it "
        "stopped: make book RECORDS=build/runs"
    )
