"""Claims of a paper: fixed in a file before anything runs, measured in a notebook, judged by rule.

In a chapter:

    claims = Claims.load("ioi-circuit-reuse.claims.yaml")
    claims.table()                                    # what the paper says, how we shall decide

    claims.measure("1.8", gain, interval=(low, high), n=len(prompts), null=null_summary)
    claims.not_testable("1.6", "the model is at chance before any edit")
    claims.report("ioi_accuracy", accuracy, interval=wilson, n=len(prompts))

    claims.verdicts(model_info(model))                # last code cell, tag `claims`

`verdicts` shows a table and stores everything in the cell's output, from which the runner makes
`record.json`; see `replib.records`.
"""

import ast
import difflib
import hashlib
import json
import keyword
import math
import operator
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import simpleeval
import yaml

from replib.errors import UsageError, find_control, printable
from replib.markup import as_html as _cell
from replib.markup import visible

OUTCOMES = ("holds", "fails", "unclear", "not_testable", "not_attempted")
# What an attention head can be, in the words of the papers.
ROLES = (
    *("mover", "negative mover", "inhibition", "induction", "duplicate-token", "previous-token"),
    *("content gatherer", "in-context", "memory", "successor", "copy"),
)
MIME = "application/vnd.replib.claims+json"

_FUNCTIONS = {"min": min, "max": max, "abs": abs}
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_SYNTAX = (ast.Expression, ast.BoolOp, ast.boolop, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call)
_SYNTAX = (*_SYNTAX, ast.Name, ast.Load, ast.Constant, *_OPERATORS)
_TRUTH = {"true": True, "false": False}
# What `claims.<id>.<name>` means in a record besides the named numbers.
_FIELDS = ("value", "low", "high", "n", "unit", "note", "outcome", "reason", "scope", "reported")
_RESERVED = {*_FIELDS, "null", "id", "statement", "measured", "interval", "source", "decision_rule"}
_RESERVED |= {*OUTCOMES, *_FUNCTIONS, *_TRUTH}


# --- the claims file ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One statement of the paper, with the rule that decides it; all texts are as in the file.

    `gate`, `holds_if` and `fails_if` are expressions over the numbers measured for the claim:
    value, low, high, n, null_<name> and every named number; comparison, and/or/not, + - * /,
    min, max, abs. A false gate means that the model cannot test the claim.
    """

    id: str
    statement: str
    reported: str | None
    mark: str
    where: str | None
    null: str | None
    gate: str | None
    gate_text: str | None
    holds_if: str
    fails_if: str
    decision: str

    def __post_init__(self) -> None:
        if self.mark == "none" and self.reported is not None:
            raise UsageError(
                f"claim {self.id}: source mark none, but reported is {self.reported!r}; a number "
                "of the paper needs its source, or is null"
            )
        if (self.gate is None) != (self.gate_text is None):
            raise UsageError(f"claim {self.id}: gate and gate_text go together, or are both null")
        for rule in ("gate", "holds_if", "fails_if"):
            if (expression := getattr(self, rule)) is not None:
                _parse(f"claim {self.id}: {rule}", expression)


@dataclass(frozen=True)
class Result:
    """What was measured for one claim. None in a number's place: it was not finite."""

    outcome: str = "not_attempted"
    reason: str = ""
    measured: Mapping[str, Any] | None = None  # value, unit, note, and the named numbers
    interval: tuple[int | float | None, int | float | None] | None = None
    n: int | None = None
    null: Mapping[str, Any] | None = None  # numbers that describe the null distribution


@dataclass
class Claims:
    """The claims of one paper and, as a notebook goes on, what was measured for each."""

    paper: str
    title: str
    arxiv: str | None  # None: a page of the method, whose claims are facts of the method
    model: str  # the paper's own model
    claims: tuple[Claim, ...]
    changes: tuple[Mapping[str, str], ...]
    sha256: str  # of the claims file
    results: dict[str, Result] = field(default_factory=dict)
    measurements: dict[str, dict[str, Any]] = field(default_factory=dict)
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)  # by role

    @classmethod
    def load(cls, path: str | Path) -> "Claims":
        """Read a claims file. UsageError, in one line, for anything that the schema does not know,
        an id that comes twice, an expression that does not parse, or an unverified number."""
        text = read_text(path, "claims file")
        content = read_yaml(text, f"claims file {path}", texts_only=True)
        check_schema(content, "claims", f"claims file {path}")
        if "[MEM]" in text:
            raise UsageError(f"claims file {path}: a number marked [MEM] is unverified; leave it")
        try:
            claims = tuple(
                Claim(**{k: v for k, v in entry.items() if k != "source"}, **entry["source"])
                for entry in content["claims"]
            )
        except UsageError as error:
            raise UsageError(f"claims file {path}: {error}") from None
        ids = [claim.id for claim in claims]
        if twice := [i for i in ids if ids.count(i) > 1]:
            raise UsageError(f"claims file {path}: claim {twice[0]} is there twice")
        changes = tuple(content.get("changes") or ())
        for change in changes:
            for named in change["claim"].split(", "):
                if named not in ids:
                    raise UsageError(
                        f"claims file {path}: a change names claim {named}, which is not there"
                        f"{did_you_mean(named, ids)}"
                    )
        head = {key: content[key] for key in ("paper", "title", "arxiv", "model")}
        return cls(**head, claims=claims, changes=changes, sha256=sha256_text(text))

    @property
    def is_method(self) -> bool:
        """Is it a page of the method, and no paper's chapter?"""
        return self.arxiv is None

    # --- measuring --------------------------------------------------------------------------------

    def measure(
        self,
        claim: str,
        value: Any,
        *,
        interval: Any = None,
        n: Any = None,
        null: Mapping[str, Any] | None = None,
        unit: str = "",
        note: str = "",
        **named: Any,
    ) -> str:
        """Give a claim its numbers and decide it; returns the outcome.

        Numbers are Python, numpy or torch scalars: `value` in `unit`, `interval` = (low, high)
        around it, `n` items it was measured on, `null` = summary of the null distribution such as
        {"mean": ..., "q95": ..., "draws": ...}, and any other number the rule or the page needs, by
        name. The rule sees them as value, low, high, n, null_mean, ... and by their names.

        Outcome: not_testable if a number is not finite or the gate is false, else holds, fails or
        unclear. UsageError: unknown claim, one measured before, a rule that uses a number which
        was not given, a rule that both holds and fails.
        """
        entry = self._unmeasured(claim)
        where = f"claim {claim}"
        for name in named:
            if name.startswith("null_"):
                raise UsageError(f"{where}: {name!r} is a number of the null; give it in `null`")
            if name in _RESERVED or keyword.iskeyword(name):
                raise UsageError(f"{where}: {name!r} cannot name a number, it has a meaning here")
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise UsageError(f"{where}: {name!r} cannot name a number; use letters, digits, _")
        if null is not None and entry.null is None:
            raise UsageError(f"{where}: measured against a null that the claims file does not name")
        value = _number(f"{where}: value", value)
        low, high = _interval(where, interval)
        count = _count(where, n)
        numbers = {key: _number(f"{where}: {key}", number) for key, number in named.items()}
        nulls = {key: _number(f"{where}: null {key}", x) for key, x in (null or {}).items()}
        if bad := [key for key in nulls if not re.fullmatch(r"[a-z][a-z0-9_]*", key)]:
            raise UsageError(f"{where}: null has a number named {bad[0]!r}; use letters, digits, _")
        if "description" in nulls:
            raise UsageError(f"{where}: 'description' cannot name a number of the null")
        seen = {"value": value, **numbers, **{f"null_{key}": x for key, x in nulls.items()}}
        if interval is not None:
            seen |= {"low": low, "high": high}
        if count is not None:
            seen["n"] = count
        outcome, reason = _decide(entry, seen)
        result = Result(
            outcome=outcome,
            reason=reason,
            measured={"value": _finite(value), "unit": visible(unit), "note": visible(note)}
            | {key: _finite(number) for key, number in numbers.items()},
            interval=None if interval is None else (_finite(low), _finite(high)),
            n=count,
            null={key: _finite(x) for key, x in nulls.items()} if null is not None else None,
        )
        self.results[claim] = result
        return outcome

    def not_testable(self, claim: str, reason: str) -> str:
        """Say why this model cannot test a claim; nothing is measured for it."""
        self._unmeasured(claim)
        if not reason.strip():
            raise UsageError(f"claim {claim}: not_testable needs a reason")
        self.results[claim] = Result(outcome="not_testable", reason=visible(reason))
        return "not_testable"

    def report(
        self, key: str, value: Any, *, interval: Any = None, n: Any = None, unit: str = ""
    ) -> None:
        """Store a number that the page shows and that is not a claim's own, under `key`."""
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", key):
            raise UsageError(f"measurement {key!r}: a key is letters, digits and _")
        if key in self.measurements:
            raise UsageError(f"measurement {key} is reported twice")
        number = _number(f"measurement {key}", value)
        low, high = _interval(f"measurement {key}", interval)
        self.measurements[key] = {
            "value": _finite(number),
            "interval": None if interval is None else [_finite(low), _finite(high)],
            "n": _count(f"measurement {key}", n),
            "unit": visible(unit),
        }

    def role(self, role: str, heads: Iterable[tuple[int, int]], rule: str) -> None:
        """Store which heads, (layer, head), play one of ROLES, and by which rule that was decided.

        No head is a result too. UsageError for another role, one given twice, or no rule.
        """
        if role not in ROLES:
            raise UsageError(
                f"role {role!r}{did_you_mean(role, ROLES)} (roles: {', '.join(ROLES)})"
            )
        if role in self.heads:
            raise UsageError(f"role {role} is given twice")
        if not rule.strip():
            raise UsageError(f"role {role} needs the rule that decided")
        pairs = sorted({(int(layer), int(head)) for layer, head in heads})
        self.heads[role] = {"heads": [list(pair) for pair in pairs], "rule": visible(rule)}

    def outcome(self, claim: str) -> str:
        """One of OUTCOMES; not_attempted until the claim is measured."""
        self._claim(claim)
        return self.results.get(claim, Result()).outcome

    def _claim(self, claim: str) -> Claim:
        known = {entry.id: entry for entry in self.claims}
        if claim not in known:
            near = did_you_mean(str(claim), known)
            raise UsageError(f"no claim {claim!r} for {self.paper}{near}")
        return known[claim]

    def _unmeasured(self, claim: str) -> Claim:
        entry = self._claim(claim)
        if claim in self.results:
            raise UsageError(f"claim {claim} is measured twice; run the notebook from its start")
        return entry

    # --- showing ----------------------------------------------------------------------------------

    def table(self) -> "HtmlTable":
        """The claims before anything is measured: statement, the paper's number, our rule."""
        rows = [
            (
                _cell(claim.id),
                _cell(claim.statement),
                _paper(claim.reported, claim.mark, claim.where),
                _cell(claim.decision)
                + _small("Null", claim.null)
                + _small("Testable if", claim.gate_text),
            )
            for claim in self.claims
        ]
        head = ("claim", "the paper says", "its number", "we decide")
        return HtmlTable(*_columns(head, rows, self.is_method), "claims")

    def history(self) -> "HtmlTable":
        """What was changed after the claims were first written, with date and reason."""
        rows = [
            tuple(_cell(" ".join(str(change[key]).split())) for key in ("date", "claim", "reason"))
            for change in self.changes
        ]
        head = ("date", "claim", "what was changed, and why")
        return HtmlTable(head, rows or [("–", "–", "nothing")], "history")

    def verdicts(self, model: Any) -> None:
        """Show what became of every claim, and store it in the cell's output for the record.

        `model` is what `replib.models.model_info(model)` returns, or a mapping of the same fields.
        """
        from IPython.display import display

        display(self.bundle(model), raw=True)

    def bundle(self, model: Any) -> dict[str, Any]:
        """The output of `verdicts`: an HTML table, a plain one, and under MIME all the numbers."""
        info = dict(model if isinstance(model, Mapping) else model.asdict())
        if missing := [key for key in ("name", "sha256") if key not in info]:
            raise UsageError(f"verdicts: the model's information lacks {missing[0]!r}")
        content = {
            "paper": self.paper,
            "title": self.title,
            "arxiv": self.arxiv,
            "paper_model": self.model,
            "model": info,
            "claims": [self._entry(claim) for claim in self.claims],
            "measurements": self.measurements,
            "heads": self.heads,
            "changes": [dict(change) for change in self.changes],
            "claims_sha256": self.sha256,
        }
        json.dumps(content, allow_nan=False)  # raises here, in the cell, not later in the runner
        plain = "\n".join(f"{claim.id}  {self.outcome(claim.id)}" for claim in self.claims)
        table = verdict_table(content["claims"], self.is_method)._repr_html_()
        return {"text/plain": plain, "text/html": table, MIME: content}

    def _entry(self, claim: Claim) -> dict[str, Any]:
        result = self.results.get(claim.id, Result())
        null = None
        if claim.null is not None or result.null is not None:
            null = {"description": claim.null} | dict(result.null or {})
        return {
            "id": claim.id,
            "statement": claim.statement,
            "reported": claim.reported,
            "source": {"mark": claim.mark, "where": claim.where},
            "measured": None if result.measured is None else dict(result.measured),
            "interval": None if result.interval is None else list(result.interval),
            "n": result.n,
            "null": null,
            "decision_rule": {
                "text": claim.decision,
                "gate": claim.gate,
                "gate_text": claim.gate_text,
                "holds_if": claim.holds_if,
                "fails_if": claim.fails_if,
            },
            "outcome": result.outcome,
            "reason": result.reason,
        }


# --- deciding -------------------------------------------------------------------------------------


def _parse(where: str, expression: str) -> ast.expr:
    """The expression's syntax tree; UsageError if it is more than a rule may be."""
    try:
        tree = ast.parse(" ".join(expression.split()), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(f"{where} does not parse: {one_line(expression)}") from None
    called = set()
    for node in ast.walk(tree):
        what = type(node).__name__
        if isinstance(node, ast.Call):
            simple = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
            if not simple or node.keywords or not node.args:
                raise UsageError(f"{where} may call min, max and abs only: {one_line(expression)}")
            if (len(node.args) == 1) != (node.func.id == "abs"):
                raise UsageError(
                    f"{where}: abs takes one number, min and max two or more: "
                    f"{one_line(expression)}"
                )
            called.add(node.func)
        elif not isinstance(node, _SYNTAX):
            raise UsageError(f"{where} may not contain {what}: {one_line(expression)}")
        elif isinstance(node, ast.Constant) and not isinstance(node.value, int | float):
            raise UsageError(f"{where} may not contain {node.value!r}: {one_line(expression)}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node not in called:
            if node.id in OUTCOMES:
                raise UsageError(f"{where} uses the outcome {node.id!r}; a rule uses numbers only")
            if node.id in _FUNCTIONS:
                raise UsageError(
                    f"{where} uses {node.id} without calling it: {one_line(expression)}"
                )
    return tree.body


def _names(expression: str) -> set[str]:
    tree = ast.parse(" ".join(expression.split()), mode="eval")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names - set(_FUNCTIONS) - set(_TRUTH)


def _decide(claim: Claim, numbers: Mapping[str, int | float | bool]) -> tuple[str, str]:
    """(outcome, reason) of a claim from its measured numbers."""
    rules = {"gate": claim.gate, "holds_if": claim.holds_if, "fails_if": claim.fails_if}
    rules = {rule: expression for rule, expression in rules.items() if expression is not None}
    for rule, expression in rules.items():
        if unknown := sorted(_names(expression) - set(numbers)):
            raise UsageError(
                f"claim {claim.id}: {rule} uses {unknown[0]!r}, which was not measured"
                f"{did_you_mean(unknown[0], numbers)} (measured: {', '.join(sorted(numbers))})"
            )
    infinite = sorted(name for name, number in numbers.items() if not math.isfinite(number))
    if claim.gate is not None and not _names(claim.gate) & set(infinite):
        try:
            if not _evaluate(claim, "gate", claim.gate, numbers):
                return "not_testable", f"gate not passed: {claim.gate_text}"
        except ZeroDivisionError:
            return "not_testable", "the gate divides by zero"
        except OverflowError:
            return "not_testable", "the gate's numbers are too large"
    if infinite:
        return "not_testable", f"not a finite number: {', '.join(infinite)}"
    try:
        holds = _evaluate(claim, "holds_if", claim.holds_if, numbers)
        fails = _evaluate(claim, "fails_if", claim.fails_if, numbers)
    except ZeroDivisionError:
        return "not_testable", "the rule divides by zero"
    except OverflowError:
        return "not_testable", "the rule's numbers are too large"
    if holds and fails:
        raise UsageError(
            f"claim {claim.id}: bad rule, holds_if ({one_line(claim.holds_if)}) and fails_if "
            f"({one_line(claim.fails_if)}) are both true"
        )
    return ("holds", "") if holds else ("fails", "") if fails else ("unclear", "")


def judge(entry: Mapping[str, Any]) -> str | None:
    """The outcome that the rule of a record's claim gives for its numbers; None: none measured."""
    if entry["measured"] is None:
        return None
    rule = {key: text for key, text in entry["decision_rule"].items() if key != "text"}
    claim = Claim(
        **{key: entry[key] for key in ("id", "statement", "reported")},
        **entry["source"],
        null=None,
        decision=entry["decision_rule"]["text"],
        **rule,
    )
    numbers = {k: x for k, x in entry["measured"].items() if k not in ("unit", "note")}
    nulls = {k: x for k, x in (entry["null"] or {}).items() if k != "description"}
    numbers |= {f"null_{key}": number for key, number in nulls.items()}
    if entry["interval"] is not None:
        numbers |= dict(zip(("low", "high"), entry["interval"], strict=True))
    if entry["n"] is not None:
        numbers["n"] = entry["n"]
    finite = {key: math.nan if number is None else number for key, number in numbers.items()}
    return _decide(claim, finite)[0]


def _evaluate(claim: Claim, rule: str, expression: str, numbers: Mapping[str, Any]) -> bool:
    names = {**_TRUTH, **numbers}
    evaluator = simpleeval.SimpleEval(operators=_OPERATORS, functions=_FUNCTIONS, names=names)
    try:
        answer = evaluator.eval(" ".join(expression.split()))
    except RecursionError:
        raise UsageError(f"claim {claim.id}: {rule} is nested too deeply") from None
    if not isinstance(answer, bool):
        raise UsageError(
            f"claim {claim.id}: {rule} gives {answer!r}, not true or false: {one_line(expression)}"
        )
    return answer


def _number(where: str, value: Any) -> int | float | bool:
    """A plain number from a Python, numpy or torch scalar; may be infinite or not a number, and is
    infinite where a whole number is larger than any float."""
    shape = tuple(getattr(value, "shape", ()))
    if math.prod(shape) != 1:
        raise UsageError(f"{where} is an array of shape {shape}; give one number")
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, int) and abs(plain) > sys.float_info.max:
        return math.inf if plain > 0 else -math.inf
    if isinstance(plain, bool | int | float):
        try:
            math.isfinite(plain)
        except OverflowError:
            return math.copysign(math.inf, plain > 0 or -1)
        return plain
    raise UsageError(
        f"{where} is {one_line(repr(value))}, a {type(value).__name__}; give one number"
    )


def _interval(where: str, interval: Any) -> tuple[Any, Any]:
    """(low, high) as floats; (None, None) for no interval."""
    if interval is None:
        return None, None
    try:
        low, high = interval
    except (TypeError, ValueError):
        raise UsageError(
            f"{where}: interval is {one_line(repr(interval))}; give (low, high)"
        ) from None
    low, high = float(_number(f"{where}: low", low)), float(_number(f"{where}: high", high))
    if low > high:
        raise UsageError(f"{where}: interval has low {low} above high {high}")
    return low, high


def _count(where: str, n: Any) -> int | None:
    if n is None:
        return None
    count = _number(f"{where}: n", n)
    if isinstance(count, bool) or not math.isfinite(count) or count < 0 or count != int(count):
        raise UsageError(f"{where}: n is {count}; give a count, 0 or more")
    return int(count)


def _finite(number: int | float | bool) -> int | float | bool | None:
    return number if math.isfinite(number) else None


# --- tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class HtmlTable:
    """A table that a notebook shows; cells are HTML already, made by the functions below."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    kind: str  # claims, history or verdicts, a class name for the book's style sheet

    def __repr__(self) -> str:
        return f"{self.kind}: a table of {len(self.rows)} rows"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{_cell(title)}</th>" for title in self.head)
        body = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in self.rows
        )
        return (
            '<div class="table-scroll" style="overflow-x: auto">\n'
            f'<table class="{self.kind}-table">'
            f"\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>"
        )


def _small(label: str, text: str | None) -> str:
    if not text:
        return ""
    return f"<br><small>{_cell(f'{label}: {text}' if label else text)}</small>"


def _paper(reported: str | None, mark: str, where: str | None) -> str:
    shown = "–" if reported is None else _cell(reported)
    places = [text for text in (mark, where) if text and text != "none"]
    return shown + (f'<br><small class="source">{_cell(", ".join(places))}</small>')


def _columns(
    head: tuple[str, ...], rows: list[tuple[str, ...]], is_method: bool
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows; of a method no paper says anything, so the column for its number goes."""
    if not is_method:
        return head, rows
    return (head[0], "what must hold", *head[3:]), [row[:2] + row[3:] for row in rows]


def verdict_table(claims: Iterable[Mapping[str, Any]], is_method: bool = False) -> HtmlTable:
    """What became of every claim, from the entries of a record."""
    rows = []
    for claim in claims:
        outcome = claim["outcome"]
        word = f'<span class="outcome outcome-{outcome}">{outcome.replace("_", " ")}</span>'
        rows.append(
            (
                _cell(claim["id"]),
                _cell(claim["statement"]),
                _paper(claim["reported"], **claim["source"]),
                _measured(claim),
                _cell(claim["decision_rule"]["text"]),
                word + _small("", claim["reason"]),
            )
        )
    head = ("claim", "the paper says", "its number", "measured here", "rule", "outcome")
    return HtmlTable(*_columns(head, rows, is_method), "verdicts")


def _measured(claim: Mapping[str, Any]) -> str:
    measured = claim["measured"]
    if measured is None:
        return "–"
    text = _show(measured["value"], measured["unit"])
    if claim["interval"] is not None:
        text += f" [{_show(claim['interval'][0])}, {_show(claim['interval'][1])}]"
    if claim["n"] is not None:
        text += f", n = {claim['n']}"
    numbers = {k: x for k, x in (claim["null"] or {}).items() if k != "description"}
    null = ", ".join(f"{key} {_show(number)}" for key, number in numbers.items())
    return _cell(text) + _small("null", null) + _small("", measured["note"])


def _show(number: Any, unit: str = "") -> str:
    if number is None:
        return "not finite"
    if isinstance(number, float):
        number = f"{number:.3g}"
    return f"{number} {unit}".strip()


# --- files and messages, used by the runner too ---------------------------------------------------


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` or nothing; made to be put at the end of a message."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ""


def one_line(text: str, limit: int = 160) -> str:
    """The text without line breaks, with escapes for what cannot be printed, cut at `limit`
    characters."""
    line = printable(" ".join(text.split())[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_text(path: str | Path, what: str) -> str:
    """A text file's content; UsageError if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{what} {path} is not text in UTF-8") from None
    except ValueError as error:  # of the path itself
        raise UsageError(f"{what} {path} cannot be read: {error}") from None


class _Loader(yaml.SafeLoader):
    """Safe YAML of plain parts: each key is a text and comes once, no text holds a control
    character, and there are no aliases, of which a few lines can stand for more than fits."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"*{event.anchor}: aliases are not read; write it out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            problem = None
            if key.tag != "tag:yaml.org,2002:str" or not isinstance(key, yaml.ScalarNode):
                problem = "a key is not text; put it in quotes"
            elif key.value in seen:
                problem = f"key {key.value!r} is there twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        if found := find_control(text, "\n\t"):
            problem = f"{found!r} cannot stand in a text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return text


class _TextLoader(_Loader):
    """Every scalar is text, or null: an id 1.10 stays 1.10, a date stays as it is written, and
    a key called null is the word."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        for key, _ in getattr(node, "value", []):
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str, *, texts_only: bool = False) -> Any:
    """Parsed YAML; `texts_only` keeps every scalar as text or null."""
    try:
        return yaml.load(text, Loader=_TextLoader if texts_only else _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{where}{line}: {one_line(problem)}") from None
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # 2001-99-99, !!int x
        problem = one_line(f"{type(error).__name__}: {error}")
        raise UsageError(f"{where}: a value is not what it should be ({problem})") from None


def read_json(text: str, where: str) -> Any:
    """Parsed JSON by the letter: numbers are finite, each key is a text that can be shown and comes
    once."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number")

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
        if bad := [key for key in content if find_control(key)]:
            raise ValueError(f"{bad[0]!r} cannot be a key")
        return content

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=mapping)
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{where} is not valid JSON: {error}") from None


def _is_finite(value: Any, kinds: Any = int | float) -> bool:
    """A number that a float can be near to; true and false are none."""
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def _fits_pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    """As the standard has it: `$` is the end, where Python's is before a last line break too."""
    if validator.is_type(value, "string") and not re.fullmatch(pattern, value):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")


# Numbers are finite, 1.0 is no integer, and no string holds a control character.
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    {"pattern": _fits_pattern},
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "number": lambda checker, value: _is_finite(value),
            "integer": lambda checker, value: _is_finite(value, int),
            "string": lambda checker, value: (
                isinstance(value, str) and not find_control(value, "\n\t")
            ),
        }
    ),
)


@cache
def _schema(name: str) -> Any:
    text = resources.files("replib").joinpath(f"{name}.schema.json").read_text(encoding="utf-8")
    return _Validator(json.loads(text))


def check_schema(content: Any, schema: str, where: str) -> None:
    """UsageError, in one line, unless `content` fits the package's `<schema>.schema.json`."""
    try:
        error = jsonschema.exceptions.best_match(_schema(schema).iter_errors(content))
    except (RecursionError, ValueError):  # raised by the library while it words its error
        raise UsageError(f"{where}: nested too deeply, or a number is too long") from None
    if error is None:
        return
    place = where
    node = content
    for step in error.absolute_path:
        node = node[step]
        name = node.get("id") if isinstance(node, Mapping) else None
        if isinstance(step, int):
            place += f", {f'claim {name}' if name else f'entry {step + 1}'}"
        elif step != "claims":
            place += f", {step}"
    message = error.message
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        known = error.schema.get("properties", {})
        unknown = next(key for key in error.instance if key not in known)
        message = f"unknown key {unknown!r}{did_you_mean(str(unknown), known)}"
    elif error.validator == "type":
        given = error.instance
        if isinstance(given, str) and (control := find_control(given, "\n\t")):
            message = f"{control!r} cannot stand in a text"
        elif type(given) in (int, float) and not _is_finite(given):
            message = f"a number is not finite: {given!r}; null stands for such a one"
    raise UsageError(f"{place}: {one_line(message)}")
