"""Runs that failed: what is known of them, and the page that shows where each one stopped.

A failed run leaves `runs/<paper>/<model>.failed/{notebook.ipynb, run.log}`. Its page is
`chapters/<paper>/<model>.failed`: no model's folder is called like that, so the page of an earlier
good run stays its own. It holds the notebook up to the cell that failed, and no outcome: nothing
in a failed run is a result.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bookkit.book.cells import (
    LABEL,
    cut,
    fold_parameters,
    labels_in,
    lift_alt_text,
    localise_labels,
    shorten_outputs,
    source_of,
)
from bookkit.book.markup import as_myst, raw_html
from bookkit.project import words
from replib.claims.file import MIME
from replib.errors import UsageError
from replib.markup import as_html

SUFFIX = ".failed"
PLACE = "where-the-run-stopped"
NOT_REACHED = "(not reached)"
OF_PAPERMILL = "papermill-error-cell-tag"  # cells that it adds around the one that failed
RESULT = "execute_result"
LOG_END = 65536  # bytes; what a run printed may be long, what became of it stands at the end


@dataclass(frozen=True)
class FailedRun:
    """One run that stopped before its end."""

    paper: str
    model: str  # the folder's name, without its ending
    folder: Path
    reason: str  # one line, from the end of the log
    started: str  # as the log says; may be empty

    @property
    def key(self) -> str:
        """`paper/model.failed`, which also names its page."""
        return f"{self.paper}/{self.model}{SUFFIX}"


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
                first = file.readline(4096).decode(errors="replace")
                file.seek(max(0, log.stat().st_size - LOG_END))
                end = file.read().decode(errors="replace")
        except OSError as error:
            raise UsageError(f"failed run {folder}: run.log: {error.strerror}") from None
        reasons = re.findall(r"(?m)^failed: (.+)$", end)
        if not reasons:
            raise UsageError(f"failed run {folder}: run.log does not say why; remove the folder")
        started = re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", first.strip())
        found.append(
            FailedRun(folder.parent.name, model, folder, reasons[-1], started[0] if started else "")
        )
    return found


def links(failed: Iterable[FailedRun]) -> str:
    """A list for the chapter's first page, as MyST."""
    lines = [
        f"- [{run.model}]({run.model}{SUFFIX}.ipynb): the run **failed**: {as_myst(run.reason)}\n"
        for run in failed
    ]
    return "".join(lines)


def notice(run: FailedRun, cell_shown: bool) -> str:
    """What stands under the title: that this is no result, why, where and when."""
    places = re.findall(r"in cell \[\d+\]|before its first cell", run.reason)
    where = places[-1] if places else "after its last cell"
    rows = [
        ("Why", as_html(run.reason)),
        ("Stopped", f'<a href="#{PLACE}">{where}</a>' if cell_shown else where),
        ("Started", as_html(run.started.replace("T", " ").replace("Z", " UTC")) or "–"),
        ("Log", f"<code>{as_html(run.key)}/run.log</code>, among the runs"),
    ]
    listing = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in rows)
    return (
        f'<aside class="failed-note" data-run="{as_html(run.key)}"><p><strong>This run failed.'
        "</strong> The page shows how far it came; nothing on it is a result.</p>\n"
        f"<dl>{listing}</dl></aside>"
    )


def switch_items(failed: Iterable[FailedRun], shown: str) -> str:
    """The failed runs of a chapter in the list of its models; nothing if there are none."""
    items = []
    for run in failed:
        mark = ' aria-current="page"' if run.key == shown else ""
        link = f'<a href="{as_html(run.model + SUFFIX)}.html"{mark}>{as_html(run.model)}</a>'
        items.append(f"<li>{link}</li>")
    label = '<span class="model-switch-label">Failed</span>'
    return f"<div>{label}<ul>{''.join(items)}</ul></div>" if items else ""


def page(run: FailedRun, title: str, switch: str) -> dict[str, Any]:
    """The notebook as far as it ran, as a page: the notice under its title, the cell that failed
    last. `title` is the paper's, for a notebook that cannot be read; `switch` the way to the
    chapter's other pages."""
    notebook, cells = _read(run)
    known = labels_in(cells)
    ran = [i for i, cell in enumerate(cells) if cell.get("execution_count") is not None]
    stop = next((i for i in ran if _failed(cells[i])), None)
    cells = cells[: 1 + (max(ran, default=-1) if stop is None else stop)]
    for cell in cells:
        if cell["cell_type"] == "code":
            _keep_what_can_be_shown(cell)
    fold_parameters(cells)
    missing = known - labels_in(cells)
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = without_record(source_of(cell), missing)
        elif isinstance(figure := cell["metadata"].get("mystnb", {}).get("figure"), dict):
            figure["caption"] = without_record(figure.get("caption", ""), missing)
    localise_labels(cells, run.key.replace("/", "-"))
    top, rest = f"# {as_myst(title)}", ""
    if cells and cells[0]["cell_type"] == "markdown" and cells[0]["source"].startswith("# "):
        top, _, rest = cells.pop(0)["source"].partition("\n")
    if stop is not None:
        tags = cells[-1]["metadata"]["tags"]
        tags[:] = [tag for tag in tags if not tag.startswith(("hide-", "remove-"))]
        mark = f'<p class="failed-place" id="{PLACE}">The run stopped in this cell:</p>'
        cells.insert(-1, _text("place", raw_html(mark)))
    head = raw_html(f"{switch}\n{notice(run, stop is not None)}")
    text = f"{top.rstrip()} ({run.model}, failed)\n\n{head}\n{rest.lstrip()}"
    notebook["cells"] = [_text("head", text), *cells]
    return notebook


def _text(id: str, source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": f"failed-{id}", "metadata": {}, "source": source}


def _read(run: FailedRun) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The notebook, and its cells without papermill's additions; one without cells if the file is
    broken, as it may be after a full disk."""
    try:
        notebook = json.loads((run.folder / "notebook.ipynb").read_text(encoding="utf-8"))
        cells = [
            cell
            for cell in notebook["cells"]
            if OF_PAPERMILL not in cell["metadata"].get("tags", ())
        ]
        return notebook, cells
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        empty = {"metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        return empty, []


def _failed(cell: dict[str, Any]) -> bool:
    """Is it the cell in which the run stopped?"""
    about = cell["metadata"].get("papermill", {})
    errors = any(output["output_type"] == "error" for output in cell.get("outputs", ()))
    return errors or about.get("status") == "failed"


def _keep_what_can_be_shown(cell: dict[str, Any]) -> None:
    """Leave out verdicts, scripts, and pictures without a text in their place; cut long outputs."""
    tags = cell["metadata"].setdefault("tags", [])
    own = ("error", "stream") if "claims" in tags else ("error", "stream", "display_data", RESULT)
    outputs = [output for output in cell.get("outputs", ()) if output["output_type"] in own]
    outputs = [output for output in outputs if MIME not in output.get("data", {})]
    cell["outputs"] = outputs = [_plain(o) if o["output_type"] == "error" else o for o in outputs]
    for output in outputs:
        for mime in [m for m in output.get("data", {}) if "javascript" in m or "widget" in m]:
            del output["data"][mime]
    shorten_outputs([cell])
    try:
        lift_alt_text([cell], "")
    except UsageError:
        cell["outputs"] = [output for output in outputs if not _pictures(output)]
    if not any(map(_pictures, cell["outputs"])):
        cell["metadata"].get("mystnb", {}).pop("figure", None)


def _plain(error: dict[str, Any]) -> dict[str, Any]:
    """An error as printed text. As it is, it would be highlighted as a traceback of IPython, and a
    message that is none, such as the runner's, stops the build of the book."""
    text = "\n".join(error.get("traceback") or [f"{error['ename']}: {error['evalue']}"])
    return {"output_type": "stream", "name": "stdout", "text": f"{cut(text)}\n"}


def _pictures(output: dict[str, Any]) -> list[str]:
    return [mime for mime in output.get("data", {}) if mime.startswith("image/")]


def without_record(text: str, missing: set[str]) -> str:
    """MyST in which nothing asks for a record, which a failed run has not, or for a label that
    stands further down than the run came."""
    text = re.sub(r"\{record\}`[^`]*`", "not measured", text)
    text = re.sub(r"\[([^\]]*)\]\(#[^)\s]*\)", r"\1", text)

    def reference(match: re.Match[str]) -> str:
        return NOT_REACHED if match[1] in missing else match[0]

    return re.sub(rf"\{{(?:ref|numref|eq)\}}`(?:[^`<]*<)?({LABEL})>?`", reference, text)


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
