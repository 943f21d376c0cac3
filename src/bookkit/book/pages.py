"""A chapter's pages: one for each model, and the landing page."""

import base64
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from bookkit.book import failed as failed_runs
from bookkit.book import run_statistics
from bookkit.book.cells import (
    defaults,
    drop_claims,
    fold_parameters,
    lift_alt_text,
    localise_labels,
    shorten_outputs,
    source_of,
)
from bookkit.book.markup import as_myst, raw_html
from bookkit.book.runs import RECORDS, Run, kinds
from bookkit.book.tables import (
    duration,
    outcome_table,
    scope,
    scope_words,
    stale_mark,
    tables,
    tally,
)
from bookkit.project import words
from replib.claims.measure import Claims
from replib.claims.tables import verdict_table
from replib.errors import UsageError
from replib.markup import as_html as _h

NOT_KEPT = "This figure was not kept with the record; the command above draws it."


# --- parts of pages -------------------------------------------------------------------------------


def model_switch(
    shown: str, siblings: Sequence[Run], failed: Sequence[failed_runs.FailedRun] = ()
) -> str:
    """Links between the pages of one chapter; the `shown` one is marked, with no script needed."""
    parts = []
    for label, runs in kinds(siblings):
        items = []
        for run in runs:
            mark = ' aria-current="page"' if run.key == shown else ""
            link = f'<a href="{_h(run.model)}.html"{mark}>{_h(run.model)}</a>'
            items.append(f"<li>{link}{stale_mark(run)}</li>")
        parts.append(f'<span class="model-switch-label">{label}</span><ul>{"".join(items)}</ul>')
    return (
        '<nav class="model-switch" aria-label="Model shown on this page">\n'
        f"{''.join(f'<div>{part}</div>' for part in parts)}"
        f"{failed_runs.switch_items(failed, shown)}\n</nav>"
    )


def stale_note(run: Run, again: str) -> str:
    """What the reader of a stale page must know; nothing for any other page."""
    if not run.stale:
        return ""
    return (
        f'<aside class="stale-note"><strong>Stale.</strong> Since this was computed, '
        f"{_h(words(run.stale))} changed. To compute it again: <code>{_h(again)}</code></aside>"
    )


def command(record: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """The command that gives this run again; `chosen` holds the values that need no flag."""
    words = ["replib", "run", record["paper"], "--model", record["model"]["name"]]
    words += ["--profile", record["profile"]]
    for name, value in record["parameters"].items():
        if name in ("model_name", "device", "profile"):
            continue
        if name not in chosen or chosen[name] != value:
            text = json.dumps(value) if isinstance(value, bool | list) else str(value)
            words += ["-p", f"{name}={text}"]
    return shlex.join(words)


def run_box(run: Run, paper_model: str, again: str) -> str:
    """How the page was computed: one line that is always seen, the rest folded; from the record."""
    record, model = run.record, run.record["model"]
    rows = [
        ("Model", f"<strong>{_h(model['name'])}</strong>"),
        ("Source", _h(model.get("source") or "–")),
        ("Weights", _h(model.get("note") or "–")),
    ]
    if model.get("revision"):
        rows.append(("Revision", f"<code>{_h(model['revision'])}</code>"))
    if model.get("sha256"):
        rows.append(("sha256", f"<code>{_h(model['sha256'])}</code>"))
    if isinstance(model.get("n_params"), int):
        size = f"{model['n_params']:,} parameters"
        rows.append(("Size", _h(size + f", {model['dtype']}" if model.get("dtype") else size)))
    parameters = {
        k: v for k, v in record["parameters"].items() if k not in ("model_name", "profile")
    }
    listed = ", ".join(f"<code>{_h(k)} = {_h(json.dumps(v))}</code>" for k, v in parameters.items())
    versions = ", ".join(f"{_h(k)} {_h(v)}" for k, v in record["versions"].items())
    if not run.is_method:
        rows.append(("Scope", _h(scope_words(record, paper_model))))
    rows += [
        ("Profile", _h(record["profile"])),
        ("Parameters", listed or "–"),
        ("Seed", _h(record["seed"])),
        ("Device", f"{_h(record['device'])}, threads: {_h(record['threads'])}"),
        ("Wall time", f"{_h(duration(record['wall_time_s']))}"),
        ("Peak memory", f"{_h(round(record['peak_memory_mb']))} MB"),
        ("Versions", versions or "–"),
        ("Started", _h(record["started"].replace("T", " ").replace("Z", " UTC"))),
        ("Last verified", _h(run_statistics.last_verified(run))),
        ("Run it again", f"<code>{_h(again)}</code>"),
        ("Everything", f'<a href="../../_{RECORDS}/{_h(run.key)}.json">the record of this run</a>'),
    ]
    listing = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in rows)
    about = "" if run.is_method else f"{scope(record)}, "
    line = (
        f"Computed on <strong>{_h(model['name'])}</strong>: {about}profile "
        f"{_h(record['profile'])}, seed {_h(record['seed'])}, {_h(duration(record['wall_time_s']))}"
        f"; last verified: {_h(run_statistics.last_verified(run))}"
    )
    return (
        f'<aside class="run-box" data-record="{_h(run.key)}" data-sha256="{run.sha256}">\n'
        f'<details><summary><span>{line}.</span> <span class="run-box-more">How this page was '
        f"computed</span></summary>\n<dl>{listing}</dl>\n</details>\n</aside>"
    )


# --- pages ----------------------------------------------------------------------------------------


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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig = plt.figure(figsize=(6, 0.8))
    fig.text(0.5, 0.5, NOT_KEPT, ha="center", va="center", fontsize=9, style="italic")
    buffer = BytesIO()
    fig.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(fig)
    return base64.b64encode(buffer.getvalue()).decode()


def chapter_page(
    root: Path,
    run: Run,
    switch: str,
    paper_model: str,
    profiles: Mapping[str, Any],
    first: bool = False,
) -> dict[str, Any]:
    """The run's notebook as a page: switcher and box under the title, labels made unique.

    On the `first` page of a method stands the label that other pages link to, its name.
    """
    path = run.folder / "notebook.ipynb"
    notebook = (
        json.loads(path.read_text(encoding="utf-8")) if run.executed else unexecuted(run, root)
    )
    cells = notebook["cells"]
    lift_alt_text(cells, str(path))
    drop_claims(cells)
    shorten_outputs(cells)
    profile = (profiles.get(run.record["profile"]) or {}).get("parameters") or {}
    again = command(run.record, defaults(cells) | profile)
    fold_parameters(cells)
    localise_labels(cells, f"{run.paper}-{run.model}")
    text = source_of(cells[0]) if cells and cells[0]["cell_type"] == "markdown" else ""
    title, _, rest = text.partition("\n")
    if not re.match(r"# \S", title):
        raise UsageError(f"{path}: the first cell must be text that starts with '# Title'")
    above = (switch, stale_note(run, again), run_box(run, paper_model, again))
    head = raw_html("\n".join(part for part in above if part))
    label = f"({run.paper})=\n" if first else ""
    model = f" ({run.model})" if switch else ""
    cells[0]["source"] = f"{label}{title.rstrip()}{model}\n\n{head}\n{rest.lstrip()}"
    return notebook


def landing_page(
    runs: Sequence[Run],
    claims: Claims,
    prose: str,
    failed: Sequence[failed_runs.FailedRun] = (),
) -> str:
    """A chapter's first page: citation, the way to each model, outcomes from the records."""
    link = f"[arXiv:{claims.arxiv}](https://arxiv.org/abs/{claims.arxiv})"
    models = "\n".join(f"- [{run.model}]({run.model}.ipynb): {tally(run)}" for run in runs)
    return (
        f"# {as_myst(claims.title)}\n\nA replication of *{as_myst(claims.title)}*, {link}. "
        f"The paper's own model is {as_myst(claims.model)}.\n\n{prose}\n\n"
        f"## Read it on a model\n\n{models}\n{failed_runs.links(failed)}\n"
        f"## Every claim, on every model\n\n{raw_html(tables(runs, '', outcome_table))}\n"
        "The numbers behind these words are in [the scorecard](../../scorecard.md).\n"
    )
