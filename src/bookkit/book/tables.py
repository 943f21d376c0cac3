"""Numbers of records as words, cells and tables of HTML."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bookkit.book.markup import scrolling
from bookkit.book.runs import Run, by_paper, kinds, of_papers
from bookkit.project import words
from bookkit.records import record_value
from replib.claims.rules import OUTCOMES
from replib.markup import as_html as _h
from replib.markup import visible

CONTROLS = (
    "<p><strong>Controls.</strong> The same notebook on models made to check the procedure: it "
    "must find the planted circuit and must claim nothing on random weights.</p>"
)


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


def stale_mark(run: Run) -> str:
    return ' <span class="stale">stale</span>' if run.stale else ""


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
