"""The book: from finished runs to a Jupyter Book source folder, and the parts that Sphinx needs.

    python -m replib.book stage --runs build/runs --out build/book   # for jupyter-book to build
    python -m replib.book gate --html _build/html --runs build/runs  # is the built book right?

`stage` copies the prose pages, turns every run's executed notebook into a page and writes the
table of contents. Sphinx loads this module as an extension for the role {record} and the directive
{scorecard}. Every number on a page comes from a record, so this module computes none.
"""

import argparse
import base64
import hashlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from docutils import nodes

from replib import (
    atlas,
    citations,
    classroom,
    crate,
    failed_runs,
    jobs,
    page_names,
    page_policy,
    pdf,
    performance,
    reruns,
    run_statistics,
    trust,
)
from replib import certified as certified_records
from replib.claims import OUTCOMES, Claims, read_yaml, verdict_table
from replib.errors import UsageError
from replib.markup import as_html as _h
from replib.markup import as_myst, raw_html, scrolling, visible
from replib.page_cells import (
    defaults,
    drop_claims,
    fold_parameters,
    lift_alt_text,
    localise_labels,
    shorten_outputs,
    source_of,
)
from replib.project import list_chapters, words
from replib.records import read_record, record_value, record_values
from replib.runner import changed_since, find_chapter
from replib.sources import MADE_IN_MEMORY

CONTROLS = (
    "<p><strong>Controls.</strong> The same notebook on models made to check the procedure: it "
    "must find the planted circuit and must claim nothing on random weights.</p>"
)
NOT_KEPT = "This figure was not kept with the record; the command above draws it."
METHOD_EXERCISES = classroom.page_of(classroom.METHOD)
STALE = "static/stale.json"  # the keys of stale runs, with what has changed
RECORDS = "static/records"  # in the staged book; `_static/records` in the built one


# --- runs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One finished run: `runs/<paper>/<model>/` with its record, already checked."""

    paper: str
    model: str  # the folder's name; `record["model"]["name"]` is the model's own
    record: Mapping[str, Any]
    sha256: str  # of record.json as it is on disk
    folder: Path
    stale: tuple[str, ...] = ()  # what has changed since

    @classmethod
    def read(cls, runs: Path, paper: str, model: str) -> "Run":
        """UsageError when there is no finished, valid record for this pair."""
        folder = runs / paper / model
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.@-]*", model) or model == "index":
            raise UsageError(
                f"a run's folder cannot be called {visible(model)!r}; letters, digits, . _ - and @ "
                "name a page, but not index, which is the chapter's first"
            )
        if not (folder / "record.json").is_file():
            raise UsageError(f"no finished run of {paper} on {model}: {folder}/record.json")
        record = read_record(folder / "record.json")
        if record["paper"] != paper:
            raise UsageError(f"{folder}/record.json is of paper {record['paper']}, not {paper}")
        sha256 = hashlib.sha256((folder / "record.json").read_bytes()).hexdigest()
        return cls(paper, model, record, sha256, folder)

    @property
    def key(self) -> str:
        return f"{self.paper}/{self.model}"

    @property
    def executed(self) -> bool:
        """Is its notebook there too, or, as in a checkout's results, the record alone?"""
        return (self.folder / "notebook.ipynb").is_file()

    @property
    def control(self) -> bool:
        """Is it a model made to check the procedure: the planted or the random one?"""
        return self.model in MADE_IN_MEMORY

    @property
    def is_method(self) -> bool:
        """Is it of a page of the method, and of no paper?"""
        return self.record["arxiv"] is None

    def claim(self, id: str) -> Mapping[str, Any] | None:
        return next((claim for claim in self.record["claims"] if claim["id"] == id), None)


def finished(runs: Path) -> list[str]:
    """Every finished run in a folder of runs, as `paper/model`."""
    folders = [path.parent.relative_to(runs) for path in runs.glob("*/*/record.json")]
    # Names with a dot in front are the runner's own, of runs that go on or were replaced.
    return sorted(f.as_posix() for f in folders if not f.name.startswith("."))


def find_runs(
    runs: Path, expected: Sequence[str] | None, certified: Path | None = None
) -> list[Run]:
    """The runs named `paper/model` in `expected`, in that order; without it all that finished.

    One that is not in `runs` may be among the `certified` records of a checkout.
    """
    if expected is None:
        expected = finished(runs)
    if not expected:
        raise UsageError(f"no finished run in {runs}; make one with: replib run PAPER --model M")
    pairs = [pair.split("/", 1) for pair in expected]
    if bad := [pair for pair in pairs if len(pair) != 2 or not all(map(_is_name, pair))]:
        raise UsageError(f"a run is named paper/model, not {'/'.join(bad[0])!r}")
    found = []
    for paper, model in pairs:
        here = (runs / paper / model / "record.json").is_file()
        there = certified and (certified / paper / model / "record.json").is_file()
        found.append(Run.read(certified if there and not here else runs, paper, model))
    return found


def _is_name(part: str) -> bool:
    """Can it be the name of a folder, and of no other place?"""
    return bool(part) and not part.startswith(".") and "/" not in part and len(part) <= 200


def named_in_prose(book: Path) -> list[str]:
    """The runs, `paper/model`, whose numbers the pages that are no chapters show."""
    text = "".join(path.read_text() for path in sorted(book.rglob("*.md")))
    return sorted(set(re.findall(r"\{record\}`([^\s`]+/[^\s`]+) ", text)))


def by_paper(runs: Iterable[Run]) -> dict[str, list[Run]]:
    papers: dict[str, list[Run]] = {}
    for run in runs:
        papers.setdefault(run.paper, []).append(run)
    return papers


def of_papers(runs: Iterable[Run]) -> list[Run]:
    """Without the pages of the method, about which no table of results says anything."""
    return [run for run in runs if not run.is_method]


# --- words and numbers ----------------------------------------------------------------------------


def show_value(value: Any, spec: str = "") -> str:
    """A record's value as a page shows it. ValueError when the format does not fit the value."""
    if value is None:
        return "not measured"
    if isinstance(value, bool):
        value, spec = ("yes" if value else "no"), ""
    if value in OUTCOMES:
        return outcome_word(value)
    return visible(format(value, spec))


def outcome_word(outcome: str) -> str:
    return outcome.replace("_", " ")


def record_span(run: Run, key: str, spec: str = "") -> str:
    """The HTML that the role {record} also makes; the gate reads it again from the built page."""
    text = show_value(record_value(run.record, key), spec)
    return (
        f'<span class="record" data-record="{_h(run.key)}" data-key="{_h(key)}" '
        f'data-format="{_h(spec)}">{_h(text)}</span>'
    )


def badge(run: Run, claim: Mapping[str, Any]) -> str:
    """The outcome as a word; the style sheet adds a symbol and a colour to it."""
    outcome = claim["outcome"]
    return (
        f'<span class="outcome outcome-{outcome}" data-record="{_h(run.key)}" '
        f'data-claim="{_h(claim["id"])}">{outcome_word(outcome)}</span>'
    )


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def scope(record: Mapping[str, Any]) -> str:
    return " and ".join(sorted({claim["scope"] for claim in record["claims"]}))


def scope_words(record: Mapping[str, Any], paper_model: str) -> str:
    own = record["claims"][0]["scope"] == "replication"
    return (
        f"{scope(record)} ({'the paper’s own model' if own else f'the paper used {paper_model}'})"
    )


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


def stale_mark(run: Run) -> str:
    return ' <span class="stale">stale</span>' if run.stale else ""


def stale_note(run: Run, again: str) -> str:
    """What the reader of a stale page must know; nothing for any other page."""
    if not run.stale:
        return ""
    return (
        f'<aside class="stale-note"><strong>Stale.</strong> Since this was computed, '
        f"{_h(words(run.stale))} changed. To compute it again: <code>{_h(again)}</code></aside>"
    )


def kinds(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """The runs on models, then those on controls, each with a word for them; neither if empty."""
    models = ("Models", [run for run in runs if not run.control])
    controls = ("Controls", [run for run in runs if run.control])
    return [(label, members) for label, members in (models, controls) if members]


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


def claim_ids(runs: Iterable[Run]) -> list[str]:
    """Every id once, in the order in which the records name them."""
    return list(dict.fromkeys(claim["id"] for run in runs for claim in run.record["claims"]))


def _about(runs: Sequence[Run]) -> str:
    """The runs of one paper in a table's name, which no other table on a page may have."""
    return f"{runs[0].record['title']} on {words([run.model for run in runs])}"


def outcome_table(runs: Sequence[Run], prefix: str) -> str:
    """Claims x models of one paper: a word in each cell, linked to the model's page."""
    head = "".join(
        f'<th scope="col"><a href="{_h(prefix + run.model)}.html">{_h(run.model)}</a><br>'
        f"<small>{scope(run.record)}</small>{stale_mark(run)}</th>"
        for run in runs
    )
    rows = []
    for id in claim_ids(runs):
        claims = [run.claim(id) for run in runs]
        statement = next(claim["statement"] for claim in claims if claim)
        cells = "".join(
            f"<td>{badge(run, claim) if claim else '–'}</td>"
            for run, claim in zip(runs, claims, strict=True)
        )
        head_cell = f'<th scope="row">{_h(id)}</th><td class="statement">{_h(statement)}</td>'
        rows.append(f"<tr>{head_cell}{cells}</tr>")
    table = (
        f'<table class="outcomes-table"><thead><tr><th scope="col">Claim</th>'
        f'<th scope="col">The paper says</th>{head}</tr></thead>\n'
        f"<tbody>{chr(10).join(rows)}</tbody></table>"
    )
    return scrolling(f"Outcomes of {_about(runs)}", table)


def tally(run: Run) -> str:
    """`3 holds, 1 fails, …` in the order of OUTCOMES, without the outcomes that do not occur."""
    outcomes = [claim["outcome"] for claim in run.record["claims"]]
    counts = [(outcomes.count(outcome), outcome) for outcome in OUTCOMES]
    return ", ".join(f"{count} {outcome_word(outcome)}" for count, outcome in counts if count)


def _measured_cell(run: Run, claim: Mapping[str, Any]) -> str:
    if claim["measured"] is None:
        return "–"
    key, unit = f"claims.{claim['id']}", claim["measured"]["unit"]
    text = _number_span(run, f"{key}.value") + (f" {_h(unit)}" if unit else "")
    if claim["interval"] is not None:
        low, high = _number_span(run, f"{key}.low"), _number_span(run, f"{key}.high")
        text += f" <small>[{low}, {high}]</small>"
    if claim["n"] is not None:
        text += f" <small>n = {record_span(run, f'{key}.n')}</small>"
    return text


def _null_cell(run: Run, claim: Mapping[str, Any]) -> str:
    if claim["null"] is None:
        return "–"
    key = f"claims.{claim['id']}.null"
    numbers = [name for name in claim["null"] if name != "description"]
    parts = [f"{_h(name)} {_number_span(run, f'{key}.{name}')}" for name in numbers]
    text = _h(claim["null"]["description"] or "")
    return text + (f"<br><small>{', '.join(parts)}</small>" if parts else "")


def _number_span(run: Run, key: str) -> str:
    value = record_value(run.record, key)
    return record_span(run, key, ".3g" if isinstance(value, float) else "")


def evidence_table(runs: Sequence[Run], prefix: str) -> str:
    """A row for every claim on every model: the paper's number, ours, the null, the outcome.

    What the claims say stands in the table of outcomes above it.
    """
    rows = []
    for id in claim_ids(runs):
        having = [(run, claim) for run in runs if (claim := run.claim(id))]
        for place, (run, claim) in enumerate(having):
            first = ""
            if place == 0:
                source = claim["source"]
                mark = source["mark"] + (f", {source['where']}" if source["where"] else "")
                reported = (
                    f"{_h(claim['reported'])}<br><small>{_h(mark)}</small>"
                    if claim["reported"]
                    else "<em>no number known</em>"
                )
                span = f' rowspan="{len(having)}"'
                first = f'<th scope="rowgroup"{span}>{_h(id)}</th><td{span}>{reported}</td>'
            reason = f"<br><small>{_h(claim['reason'])}</small>" if claim["reason"] else ""
            rows.append(
                f'<tr>{first}<td><a href="{_h(prefix + run.model)}.html">{_h(run.model)}</a><br>'
                f"<small>{_h(claim['scope'])}</small></td><td>{badge(run, claim)}{reason}</td>"
                f"<td>{_measured_cell(run, claim)}</td><td>{_null_cell(run, claim)}</td></tr>"
            )
    titles = ("Claim", "The paper’s number", "Model", "Outcome", "Measured here", "Null")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    table = (
        f'<table class="evidence-table"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{chr(10).join(rows)}</tbody></table>"
    )
    return scrolling(f"Numbers of {_about(runs)}", table)


def tables(runs: Sequence[Run], prefix: str, table: Callable[[Sequence[Run], str], str]) -> str:
    """The models' table and, under a line that says what they are for, that of the controls."""
    parts = []
    for label, members in kinds(runs):
        if label == "Controls":
            parts.append(CONTROLS)
        parts.append(table(members, prefix))
    return "\n".join(parts)


def number_of(run: Run, claim: Mapping[str, Any]) -> str:
    """A claim's number with interval and size, as text; from the record."""
    if claim["measured"] is None:
        return visible(claim["reason"] or "not measured")

    def shown(number: Any) -> str:
        return show_value(number, ".3g" if isinstance(number, float) else "")

    text = f"{shown(claim['measured']['value'])} {claim['measured']['unit']}".strip()
    if claim["interval"] is not None:
        text += f" [{', '.join(map(shown, claim['interval']))}]"
    return visible(text + (f", n = {claim['n']}" if claim["n"] is not None else ""))


def transfer_table(runs: Sequence[Run]) -> str:
    """Claims of all papers × models, for runs that are no replications; controls left out.

    A cell's number stands in its title, and where a script runs there is a filter above the table.
    """
    models = list(dict.fromkeys(run.model for run in runs))
    head = "".join(f'<th scope="col">{_h(model)}</th>' for model in models)
    rows = []
    for paper, members in by_paper(runs).items():
        by_model = {run.model: run for run in members}
        for id in claim_ids(members):
            statement = next(claim["statement"] for run in members if (claim := run.claim(id)))
            cells, outcomes = [], []
            for model in models:
                run = by_model.get(model)
                claim = run and run.claim(id)
                if not run or not claim:
                    cells.append("<td>–</td>")
                    continue
                outcomes.append(claim["outcome"])
                link = f'<a href="chapters/{_h(run.key)}.html">{badge(run, claim)}</a>'
                note = _h(number_of(run, claim))
                cells.append(
                    f'<td title="{note}">{link}<span class="number">{note}</span>'
                    f"{stale_mark(run)}</td>"
                )
            rows.append(
                f'<tr data-paper="{_h(paper)}" data-outcomes="{_h(" ".join(outcomes))}">'
                f'<th scope="row">{_h(id)}</th><td class="statement">{_h(statement)}</td>'
                f"{''.join(cells)}</tr>"
            )
    table = (
        '<table class="transfer-table"><thead><tr><th scope="col">Claim</th>'
        f'<th scope="col">The paper says</th>{head}</tr></thead>\n'
        f"<tbody>{chr(10).join(rows)}</tbody></table>"
    )
    options = "".join(
        f'<option value="{_h(paper)}">{_h(members[0].record["title"])}</option>'
        for paper, members in by_paper(runs).items()
    )
    words_ = "".join(f'<option value="{o}">{outcome_word(o)}</option>' for o in OUTCOMES)
    return (
        '<form class="transfer-filter" hidden><label>Paper <select name="paper">'
        f'<option value="">all</option>{options}</select></label> <label>Outcome somewhere '
        f'<select name="outcome"><option value="">any</option>{words_}</select></label> <label>'
        '<input type="checkbox" name="differ"> models differ</label> <label><input type="checkbox" '
        'name="numbers"> numbers</label> <span class="transfer-count" aria-live="polite"></span>'
        f"</form>\n{scrolling('Every claim on every model', table)}"
    )


def transfer(runs: Sequence[Run]) -> str:
    """The transfer table, and apart from it the replications, if there are any."""
    tested = [run for run in of_papers(runs) if not run.control]
    own = [run for run in tested if scope(run.record) == "replication"]
    others = [run for run in tested if scope(run.record) != "replication"]
    parts = []
    if own:
        parts.append("<h3>Replications: the papers’ own models</h3>\n" + transfer_table(own))
        parts.append("<h3>Transfer: other models</h3>")
    if not others:
        parts.append("<p>No run on another model.</p>")
        return "\n".join(parts)
    return "\n".join([*parts, transfer_table(others)])


def scorecard(runs: Sequence[Run]) -> str:
    """Outcomes and numbers of every paper, for a page at the root of the book."""
    parts = []
    for paper, members in by_paper(of_papers(runs)).items():
        prefix = f"chapters/{paper}/"
        lines = "".join(
            f'<li><a href="{_h(prefix + run.model)}.html">{_h(run.model)}</a>: {tally(run)}</li>'
            for run in members
        )
        title = members[0].record["title"]
        first = kinds(members)[0][1]
        parts.append(
            f'<section class="scorecard" data-paper="{_h(paper)}">\n<p class="scorecard-title">'
            f'<a href="{_h(prefix)}index.html">{_h(title)}</a></p>\n<ul>{lines}</ul>\n'
            f"{tables(members, prefix, outcome_table)}\n"
            f'<p class="scorecard-title">The numbers behind these words</p>\n'
            f"{evidence_table(first, prefix)}\n</section>"
        )
    return "\n".join(parts)


# --- pages ----------------------------------------------------------------------------------------


def unexecuted(run: Run, root: Path) -> dict[str, Any]:
    """The project's notebook for a record that came without one: the numbers in the text are the
    record's, the verdicts too; a figure says that it was not kept."""
    path = root / "notebooks" / f"{run.paper}.ipynb"
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


def table_of_contents(
    toc: dict[str, Any],
    runs: Sequence[Run],
    atlases: Sequence[str] = (),
    not_run: Sequence[str] = (),
    failed: Sequence[failed_runs.FailedRun] = (),
    lessons: Sequence[str] = (),
) -> dict[str, Any]:
    """The root's `_toc.yml` with a page a model under each `chapters/<paper>/index`, and those of
    the heads under `atlas/index`, which is left out without them.

    Runs that failed come after those that finished, a chapter's exercises (one of the `lessons`)
    last. A method has no first page of its own: that of
    its first run stands there. A paper without runs keeps its first page if it
    is among `not_run`, so that links to it lead somewhere; else it is left out. UsageError when a
    paper that has runs is not in it.
    """
    papers = by_paper(runs)
    placed = set()

    def place(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = []
        for entry in entries:
            match = re.fullmatch(r"chapters/([^/]+)/index", entry.get("file", ""))
            if match and match[1] not in {*papers, *not_run}:
                continue
            if entry.get("file") == METHOD_EXERCISES and METHOD_EXERCISES not in lessons:
                continue
            if entry.get("file") == "atlas/index":
                if atlases:
                    pages = [{"file": page, "title": page.split("/")[1]} for page in atlases]
                    kept.append(entry | {"sections": pages})
                continue
            if match:
                placed.add(match[1])
                pages = [
                    {"file": f"chapters/{run.key}", "title": run.model}
                    for run in papers.get(match[1], ())
                ]
                pages += [
                    {"file": f"chapters/{run.key}", "title": f"{run.model} (failed)"}
                    for run in failed
                    if run.paper == match[1]
                ]
                if (lesson := classroom.page_of(match[1])) in lessons:
                    pages.append({"file": lesson, "title": "Exercises"})
                if papers.get(match[1]) and papers[match[1]][0].is_method:
                    entry = {"file": f"chapters/{first_run(papers[match[1]]).key}"}
                    pages = [page for page in pages if page["file"] != entry["file"]]
                if pages:
                    entry = entry | {"sections": [*entry.get("sections", []), *pages]}
            elif "sections" in entry:
                entry = entry | {"sections": place(entry["sections"])}
            kept.append(entry)
        return kept

    result = dict(toc)
    if "parts" in toc:
        parts = [part | {"chapters": place(part["chapters"])} for part in toc["parts"]]
        result["parts"] = [part for part in parts if part["chapters"]]
    if "chapters" in toc:
        result["chapters"] = place(toc["chapters"])
    shown = dict.fromkeys([*papers, *(run.paper for run in failed)])
    if missing := [paper for paper in shown if paper not in placed]:
        raise UsageError(f"_toc.yml has no entry chapters/{missing[0]}/index")
    return result


def first_run(members: Sequence[Run]) -> Run:
    """The run whose page stands for a method: on a model, if there is one, not on a control."""
    return kinds(members)[0][1][0]


def pages_in(toc: Mapping[str, Any]) -> list[str]:
    """Every page of a table of contents, without suffix, root first."""
    found = [toc["root"]]

    def walk(node: Any) -> None:
        if isinstance(node, Mapping):
            if "file" in node:
                found.append(str(PurePosixPath(re.sub(r"\.(md|ipynb)$", "", node["file"]))))
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(toc.get("parts", []))
    walk(toc.get("chapters", []))
    return found


def find_changes(root: Path, run: Run) -> tuple[str, ...]:
    """What has changed since a run, by hash; nothing is loaded."""
    return tuple(changed_since(run.record, find_chapter(root, run.paper)))


def atlas_pages(part: Path, runs: Sequence[Run]) -> list[str]:
    """Write a page of heads for each model that has any; their names in the table of contents."""
    names = []
    for model in dict.fromkeys(run.model for run in runs if run.record["heads"]):
        records = [run.record for run in runs if run.model == model and run.record["heads"]]
        (part / "atlas").mkdir(exist_ok=True)
        (part / "atlas" / f"{model}.md").write_text(atlas.page(model, records), encoding="utf-8")
        (part / "atlas" / f"{model}.png").write_bytes(atlas.figure(records))
        names.append(f"atlas/{model}")
    return names


def stage(root: Path, runs: Path, out: Path, expected: Sequence[str] | None = None) -> list[Run]:
    """Write the Jupyter Book source folder `out` anew; returns the runs that it shows.

    `root` holds `_config.yml`, `_toc.yml`, `book/` and `notebooks/`. UsageError, and `out` as it
    was, when a run is missing, unfinished or cannot be shown.
    """
    certified = root / certified_records.FOLDER
    failed: list[failed_runs.FailedRun] = []
    if expected is None:
        failed = failed_runs.find_failed(runs)
        own = finished(runs)
        if not own and not failed:
            find_runs(runs, None)  # says that there is none
        more = [pair for pair in named_in_prose(root / "book") if pair not in own]
        expected = [*own, *(p for p in more if (certified / p / "record.json").is_file())]
    found = [
        replace(run, stale=find_changes(root, run))
        for run in (find_runs(runs, expected, certified) if expected else [])
    ]
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(
        root / "book",
        part,
        ignore=lambda folder, names: (
            {"_static", "chapters"} if Path(folder) == root / "book" else set()
        ),
    )
    shutil.copytree(root / "book" / "_static", part / "static")
    about = citations.about(root)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    config |= {"title": about.title, "author": words(about.authors)}
    (part / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    stale = {run.key: list(run.stale) for run in found if run.stale}
    (part / RECORDS).mkdir(parents=True)
    (part / STALE).write_text(json.dumps(stale))
    lessons = classroom.write(root, part, found)
    toc = table_of_contents(
        yaml.safe_load((root / "_toc.yml").read_text()),
        found,
        atlas_pages(part, found),
        not_run := [paper for paper in list_chapters(root) if paper not in by_paper(found)],
        failed,
        lessons,
    )
    for paper in not_run:
        claims = Claims.load(root / "notebooks" / f"{paper}.claims.yaml")
        (part / "chapters" / paper).mkdir(parents=True, exist_ok=True)
        links = failed_runs.links([run for run in failed if run.paper == paper])
        label = f"({paper})=\n" if claims.is_method else ""
        what = "page" if claims.is_method else "chapter"
        cited = f"[arXiv:{claims.arxiv}](https://arxiv.org/abs/{claims.arxiv}). "
        said = f"No run of this {what} finished" if links else f"This {what} was not run"
        (part / "chapters" / paper / "index.md").write_text(
            f"{label}# {as_myst(claims.title)}\n\n{'' if claims.is_method else cited}"
            f"{said} for this book: `replib run {paper}`.\n\n{links}"
        )
    (part / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False))
    for paper, members in by_paper(found).items():
        claims = Claims.load(root / "notebooks" / f"{paper}.claims.yaml")
        profiles_file = root / "notebooks" / f"{paper}.profiles.yaml"
        profiles = read_yaml(profiles_file.read_text(), str(profiles_file))
        folder = part / "chapters" / paper
        folder.mkdir(parents=True, exist_ok=True)
        stopped = [run for run in failed if run.paper == paper]
        alone = claims.is_method and len(members) + len(stopped) == 1
        for run in members:
            switch = "" if alone else model_switch(run.key, members, stopped)
            first = claims.is_method and run is first_run(members)
            page = chapter_page(root, run, switch, claims.model, profiles, first)
            (folder / f"{run.model}.ipynb").write_text(json.dumps(page, ensure_ascii=False))
            record = part / RECORDS / f"{run.key}.json"
            record.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(run.folder / "record.json", record)
        if claims.is_method:
            continue
        prose = root / "book" / "chapters" / f"{paper}.md"
        text = prose.read_text() if prose.is_file() else ""
        page = landing_page(members, claims, text, stopped)
        page += raw_html(pdf.place(paper)) + citations.line(paper, "../../")
        (folder / "index.md").write_text(page)
    for run in failed:
        members = [other for other in found if other.paper == run.paper]
        switch = model_switch(run.key, members, [r for r in failed if r.paper == run.paper])
        claims = Claims.load(root / "notebooks" / f"{run.paper}.claims.yaml")
        page = failed_runs.page(run, claims.title, switch)
        path = part / "chapters" / f"{run.key}.ipynb"
        path.write_text(json.dumps(page, ensure_ascii=False))
    papers = {
        paper: Claims.load(root / "notebooks" / f"{paper}.claims.yaml")
        for paper in by_paper(of_papers(found))
    }
    started = [run.record["started"] for run in found]
    citations.write(root, part, papers, max(started, default=date.today().isoformat())[:4])
    if (part / performance.PAGE).is_file():
        performance.write(root, part)
    if (part / reruns.PAGE).is_file():
        reruns.write(root, part)
    if (part / trust.PAGE).is_file():
        trust.write(root, part)
    if (part / run_statistics.PAGE).is_file():
        run_statistics.write(part, found, tally, duration)
    for page in pages_in(toc):
        if not any((part / f"{page}{suffix}").is_file() for suffix in (".md", ".ipynb")):
            raise UsageError(f"_toc.yml names {page}, which is not in book/")
    crate.write(root, part, RECORDS, pages_in(toc), failed)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)
    return found


# --- the Sphinx extension -------------------------------------------------------------------------


class record_number(nodes.inline):
    """A value out of a record; a class of its own so that its data attributes reach the page."""


def _visit_record(translator: Any, node: record_number) -> None:
    data = {f"data-{name}": node[name] for name in ("record", "key", "format")}
    translator.body.append(translator.starttag(node, "span", "", CLASS="record", **data))


def _depart_record(translator: Any, node: record_number) -> None:
    translator.body.append("</span>")


def _staged_run(app: Any, pair: str) -> Run:
    """A run from the staged records; the page that asks is built again when the record changes."""
    path = Path(app.srcdir) / RECORDS / f"{pair}.json"
    if not path.is_file():
        raise UsageError(f"no record of {pair} in the book")
    app.env.note_dependency(str(path))
    paper, model = pair.split("/", 1)
    stale = json.loads((Path(app.srcdir) / STALE).read_text())
    return Run(paper, model, read_record(path), "", path.parent, tuple(stale.get(pair, ())))


def record_role(
    name: str,
    rawtext: str,
    text: str,
    lineno: int,
    inliner: Any,
    options: Any = None,
    content: Any = (),
) -> tuple[list[nodes.Node], list[nodes.Node]]:
    """{record}`KEY:FORMAT` on a chapter's page, {record}`PAPER/MODEL KEY:FORMAT` on any other.

    An unknown key, record or a format that does not fit stops the build.
    """
    from sphinx.errors import ExtensionError

    app = inliner.document.settings.env.app
    page = app.env.docname
    match = re.fullmatch(r"\s*(?:(\S+/\S+)\s+)?([^\s:]+)(?::(.*))?", text)
    try:
        if match is None:
            raise UsageError("write KEY:FORMAT or PAPER/MODEL KEY:FORMAT")
        pair, key, spec = match[1], match[2], match[3] or ""
        if pair is None:
            if not (own := re.fullmatch(r"chapters/([^/]+/.+)", page)) or page.endswith("/index"):
                raise UsageError("this page shows no single run; name it: PAPER/MODEL KEY:FORMAT")
            pair = own[1]
        run = _staged_run(app, pair)
        if run.stale and key not in record_values(run.record):
            shown = show_value(None)  # the text has changed since the record was made
        else:
            shown = show_value(record_value(run.record, key), spec)
    except (UsageError, ValueError) as error:
        raise ExtensionError(f"{page}, line {lineno}: {{record}}`{text}`: {error}") from None
    node = record_number(rawtext, shown, classes=[])
    node["record"], node["key"], node["format"] = pair, key, spec
    node["support_smartquotes"] = False  # a text is shown as the record has it
    return [node], []


def number_by_page(app: Any, env: Any) -> list[str]:
    """Number figures and equations from 1 on every page, as each model's page stands alone."""
    for page in env.toc_fignumbers.values():
        for kind, numbers in page.items():
            ordered = sorted(numbers, key=numbers.__getitem__)
            page[kind] = {label: (place,) for place, label in enumerate(ordered, 1)}
    return []


def setup(app: Any) -> dict[str, Any]:
    """Register {record}, {scorecard} and {transfer} with Sphinx."""
    from sphinx.util.docutils import SphinxDirective

    def table(make: Callable[[Sequence[Run]], str], about: str) -> type[SphinxDirective]:
        """A directive without content: what `make` makes of all records in the book."""

        class Table(SphinxDirective):
            def run(self) -> list[nodes.Node]:
                source = Path(self.env.srcdir)
                toc = yaml.safe_load((source / "_toc.yml").read_text())
                pairs = [page.removeprefix("chapters/") for page in pages_in(toc)]
                found = [pair for pair in pairs if (source / RECORDS / f"{pair}.json").is_file()]
                runs = [_staged_run(self.env.app, pair) for pair in found]
                return [nodes.raw("", make(runs), format="html")]

        Table.__doc__ = about
        return Table

    app.add_directive("scorecard", table(scorecard, "claims × models of each paper"))
    app.add_directive("transfer", table(transfer, "claims of all papers × models"))
    app.add_node(record_number, override=True, html=(_visit_record, _depart_record))
    app.add_role("record", record_role)
    app.connect("env-get-updated", number_by_page, priority=900)  # after Sphinx numbered them
    app.connect("build-finished", page_names.name_all)
    app.connect("build-finished", page_policy.protect_all)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


# --- command line ---------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done; 1: a run is missing, or the gate found faults, one line each."""
    parser = argparse.ArgumentParser(
        prog="python -m replib.book", description=__doc__.split("\n")[0]
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for name, text in (("stage", "write the book's source folder"), ("gate", "check a built book")):
        action = actions.add_parser(name, help=text)
        action.add_argument("--runs", type=Path, default=Path("build/runs"))
        action.add_argument(
            "--expect", nargs="+", metavar="PAPER/MODEL", help="default: every finished run"
        )
        action.add_argument("--stamps", type=Path, help="of jobs; one that was refused is left out")
        if name == "stage":
            action.add_argument("--out", type=Path, default=Path("build/book"))
            action.add_argument("--root", type=Path, default=Path())
        else:
            action.add_argument("--html", type=Path, default=Path("_build/html"))
            action.add_argument("--book", type=Path, default=Path("build/book"))
            action.add_argument("--certified", type=Path, default=Path("results"))
    given = parser.parse_args(arguments)
    if given.expect and given.stamps:
        given.expect = [
            pair for pair in given.expect if not jobs.refusal(given.stamps / f"{pair}.ok")
        ]
    try:
        if given.action == "stage":
            stage(given.root, given.runs, given.out, given.expect)
            return 0
        from replib.book_gate import faults

        found = faults(given.html, given.runs, given.book, given.expect, given.certified)
    except UsageError as error:
        found = [str(error)]
    for fault in found:
        print(f"book: {visible(fault)}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
