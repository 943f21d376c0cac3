"""A chapter's pages: one for each model, and the landing page."""

import base64
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bookkit.book import cells as parts
from bookkit.book.failed import FailedRun
from bookkit.book.html import macro, png, raw_html, render
from bookkit.book.runs import RECORDS, Run, kinds
from bookkit.book.tables import outcome_tables
from bookkit.certify import unstable
from bookkit.project import words
from bookkit.run.numerics import in_words
from replib.claims.file import MIME
from replib.claims.measure import Claims
from replib.claims.tables import verdict_table
from replib.errors import UsageError
from replib.models.sources import NETWORKS

NOT_KEPT = "This figure was not kept with the record; the command above draws it."


def model_switch(shown: str, siblings: Sequence[Run], failed: Sequence[FailedRun] = ()) -> str:
    """Links between the pages of one chapter; the `shown` one is marked, with no script needed."""
    return macro("chapter.html", "switch", shown, kinds(siblings), failed)


def command(record: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """The command that gives this run again; `chosen` holds the values that need no flag."""
    line = ["replib", "run", record["paper"], "--model", record["model"]["name"]]
    line += ["--profile", record["profile"]]
    for name, value in record["parameters"].items():
        if name in ("model_name", "device", "profile"):
            continue
        if name not in chosen or chosen[name] != value:
            text = json.dumps(value) if isinstance(value, bool | list) else str(value)
            line += ["-p", f"{name}={text}"]
    return shlex.join(line)


def _about(run: Run, paper_model: str, again: str) -> str:
    """Whether the page is stale, and how it was computed: from the record."""
    model, of_run = run.record["model"], ("model_name", "profile")
    size = f"{model['n_params']:,} parameters" if "n_params" in model else ""
    if size and model.get("dtype"):
        size += f", {model['dtype']}"
    given = {k: json.dumps(v) for k, v in run.record["parameters"].items() if k not in of_run}
    own = run.record["claims"][0]["scope"] == "replication"
    if model["name"] in NETWORKS:
        paper = "the paper trains its own networks" if own else "a control of the procedure"
    else:
        paper = "the paper’s own model" if own else f"the paper used {paper_model}"
    about = {"size": size, "parameters": given, "scope": f"{run.scope} ({paper})", "again": again}
    about |= {"numerics": in_words, "unstable": words(unstable(run.record) or [""])}
    changed = words(run.stale) if run.stale else ""
    return render("run_box.html", run=run, changed=changed, records=f"../../_{RECORDS}", **about)


def unexecuted(run: Run, root: Path) -> dict[str, Any]:
    """The project's notebook for a record that came without one: the numbers in the text are the
    record's, the verdicts too; a figure says that it was not kept."""
    path = root / "notebooks" / f"{run.paper}/{run.paper}.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        cell |= {"outputs": [], "execution_count": None}
        show = {"output_type": "display_data", "metadata": {}}
        if "claims" in cell["metadata"].get("tags", []):
            table = verdict_table(run.record["claims"], run.is_method)
            data = {"text/html": table._repr_html_(), "text/plain": repr(table)}
            cell["outputs"] = [show | {"data": data}]
        elif "figure" in cell["metadata"].get("mystnb", {}):
            data = {"image/png": _not_kept(), "text/plain": NOT_KEPT}
            cell["outputs"] = [show | {"data": data, "metadata": {"image/png": {"alt": NOT_KEPT}}}]
    return notebook


@cache
def _not_kept() -> str:
    """A picture in the place of a figure that was not kept, in base64."""
    fig = Figure(figsize=(6, 0.8))
    fig.text(0.5, 0.5, NOT_KEPT, ha="center", va="center", fontsize=9, style="italic")
    return base64.b64encode(png(fig, dpi=110)).decode()


def chapter_page(
    root: Path, run: Run, switch: str, paper_model: str, chosen: Mapping, first: bool = False
) -> dict[str, Any]:
    """The run's notebook as a page: switcher and box under the title, labels made unique.

    `chosen` are the parameters that its profile gives it by itself. On the `first` page of a method
    stands the label that other pages link to, its name.
    """
    path = run.folder / "notebook.ipynb"
    notebook = json.loads(path.read_bytes()) if run.executed else unexecuted(run, root)
    cells = notebook["cells"]
    table = verdict_table(run.record["claims"], run.is_method)._repr_html_()
    for output in (output for cell in cells for output in cell.get("outputs", ())):
        if MIME in output.get("data", {}):  # a certified record says more than its notebook
            output["data"]["text/html"] = table
    parts.lift_alt_text(cells, str(path))
    parts.shorten_outputs(cells)
    parts.fold_parameters(cells)
    parts.localise_labels(cells, f"{run.paper}-{run.model}")
    text = parts.source_of(cells[0]) if cells and cells[0]["cell_type"] == "markdown" else ""
    title, _, rest = text.partition("\n")
    if not re.match(r"# \S", title):
        raise UsageError(f"{path}: the first cell must be text that starts with '# Title'")
    about = _about(run, paper_model, command(run.record, chosen))
    head = raw_html(f"{switch}\n{about}".strip())
    label = f"({run.paper})=\n" if first else ""
    model = f" ({run.model})" if switch else ""
    cells[0]["source"] = f"{label}{title.rstrip()}{model}\n\n{head}\n{rest.lstrip()}"
    return notebook


def landing_page(
    runs: Sequence[Run], claims: Claims, prose: str, failed: Sequence[FailedRun] = ()
) -> str:
    """A chapter's first page: citation, the way to each model, outcomes from the records."""
    tables, trained = outcome_tables(runs, ""), claims.model in NETWORKS
    return macro("chapter.html", "landing", claims, prose, runs, failed, tables, trained)
