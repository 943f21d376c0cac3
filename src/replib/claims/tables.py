"""Claims, changes and verdicts as tables that a notebook shows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replib.markup import as_html as _cell

Row = tuple[str, ...]


@dataclass(frozen=True, repr=False)
class HtmlTable:
    """A table that a notebook shows; cells are HTML already, made by the functions below."""

    head: Row
    rows: list[Row]
    kind: str  # claims, history or verdicts, a class name for the book's style sheet

    def __repr__(self) -> str:
        return f"{self.kind}: a table of {len(self.rows)} rows"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{_cell(title)}</th>" for title in self.head)
        rows = ("".join(f"<td>{cell}</td>" for cell in row) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>\n" for row in rows)
        return (
            '<div class="table-scroll" style="overflow-x: auto">\n'
            f'<table class="{self.kind}-table">'
            f"\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>"
        )


def small_print(label: str, text: str | None) -> str:
    if not text:
        return ""
    return f"<br><small>{_cell(f'{label}: {text}' if label else text)}</small>"


def paper_number(reported: str | None, mark: str, where: str | None) -> str:
    shown = "–" if reported is None else _cell(reported)
    places = [text for text in (mark, where) if text and text != "none"]
    return shown + (f' <small class="source">{_cell(", ".join(places))}</small>')


def claims_table(head: Sequence[str], rows: list[Row], is_method: bool, kind: str) -> HtmlTable:
    """A table of claims: id, statement, the paper's number, and what `head` says. Of a method no
    paper says anything, so the column for its number goes."""
    if is_method:
        return HtmlTable(("claim", "what must hold", *head), [(*r[:2], *r[3:]) for r in rows], kind)
    return HtmlTable(("claim", "the paper says", "its number", *head), rows, kind)


def verdict_table(claims: Iterable[Mapping[str, Any]], is_method: bool = False) -> HtmlTable:
    """What became of every claim, from the entries of a record."""
    rows = []
    for claim in claims:
        outcome, number = claim["outcome"], paper_number(claim["reported"], **claim["source"])
        word = f'<span class="outcome outcome-{outcome}">{outcome.replace("_", " ")}</span>'
        word += small_print("", claim["reason"])
        id, statement = _cell(claim["id"]), _cell(claim["statement"])
        rule = _cell(claim["decision_rule"]["text"])
        rows.append((id, statement, number, _measured(claim), rule, word))
    return claims_table(("measured here", "rule", "outcome"), rows, is_method, "verdicts")


def _measured(claim: Mapping[str, Any]) -> str:
    measured = claim["measured"]
    if measured is None:
        return "–"
    text = show_number(measured["value"], measured["unit"])
    if claim["interval"] is not None:
        text += f" [{show_number(claim['interval'][0])}, {show_number(claim['interval'][1])}]"
    if claim["n"] is not None:
        text += f", n = {claim['n']}"
    numbers = {k: x for k, x in (claim["null"] or {}).items() if k != "description"}
    null = ", ".join(f"{key} {show_number(number)}" for key, number in numbers.items())
    return _cell(text) + small_print("null", null) + small_print("", measured["note"])


def show_number(number: Any, unit: str = "") -> str:
    if number is None:
        return "not finite"
    return f"{number:{number_format(number)}} {unit}".strip()


def number_format(number: Any) -> str:
    """How tables show a number: three digits of what was measured, all of what was counted."""
    return ".3g" if isinstance(number, float) else ""
