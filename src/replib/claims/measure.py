"""Claims of a paper: fixed in a file before anything runs, measured in a notebook, judged by rule.

    claims = Claims.load("ioi-circuit-reuse/claims.yaml")
    claims.table()                                    # what the paper says, how we shall decide

    claims.measure("1.8", gain, null=null, before=accuracy)   # metrics.Estimate and Null, numbers
    claims.measure("1.6", None, otherwise="no head was confirmed")        # not testable
    claims.report("ioi_accuracy", accuracy)

    claims.verdicts(model_info(model))                # last code cell, tag `claims`

`verdicts` shows a table and stores everything in the cell's output, from which the runner makes
`record.json`.
"""

import json
import keyword
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from replib.claims.file import MIME, ROLES, Claim, read_claims
from replib.claims.judge import decide_claim
from replib.claims.rules import RESERVED
from replib.claims.tables import HtmlTable, claims_table, paper_number, small_print, verdict_table
from replib.errors import UsageError, did_you_mean, one_line
from replib.markup import as_html as _cell
from replib.markup import visible


@dataclass(frozen=True)
class Result:
    """What was measured for one claim. None in a number's place: it was not finite."""

    outcome: str = "not_attempted"
    reason: str = ""
    measured: Mapping[str, Any] | None = None  # value, unit, note, and the named numbers
    interval: tuple[float | None, float | None] | None = None
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
        """Read a claims file. UsageError, in one line, for whatever is wrong in it."""
        file, sha256 = read_claims(path)
        changes = tuple(change.model_dump() for change in file.changes)
        head = (file.paper, file.title, file.arxiv, file.model)
        return cls(*head, claims=tuple(file.claims), changes=changes, sha256=sha256)

    @property
    def is_method(self) -> bool:
        """Is it a page of the method, and no paper's chapter?"""
        return self.arxiv is None

    def measure(
        self,
        claim: str,
        value: Any,
        *,
        otherwise: str = "",
        interval: Any = None,
        n: Any = None,
        null: Any = None,
        note: str = "",
        **named: Any,
    ) -> str:
        """Give a claim its numbers and decide it; returns the outcome.

        `value` is a `metrics.Estimate`, which brings its interval and n, or a number: Python's, or
        a numpy or torch scalar; then `interval` = (low, high) and `n` may be given besides.
        `null` is a `metrics.Null`, or a summary of one such as {"mean": ..., "q95": ..., "draws":
        ...}. Any other number that the rule or the page needs is given by
        name; an Estimate NAME becomes NAME, NAME_low and NAME_high. The rule sees them as value,
        low, high, n, null_mean, ... and by their names.

        Outcome: not_testable, for the reason `otherwise`, if `value` is None; not_testable if a
        number is not finite or the gate is false, else holds, fails or unclear. UsageError: unknown
        claim, one measured before, a rule that uses a number which was not given, a rule that both
        holds and fails, an interval without width, a share outside 0 to 1.
        """
        entry, where = self._unmeasured(claim), f"claim {claim}"
        if entry.across is not None:
            raise UsageError(f"{where} is decided across models; report {', '.join(entry.across)}")
        if value is None:
            if not otherwise.strip():
                raise UsageError(f"{where} has no value; say in `otherwise` why")
            self.results[claim] = Result(outcome="not_testable", reason=visible(otherwise))
            return "not_testable"
        value, interval, n = _parts(value, interval, n)
        named = _spread(where, named)
        null = null.asdict() if hasattr(null, "asdict") else null
        for name in named:
            if name.startswith("null_"):
                raise UsageError(f"{where}: {name!r} is a number of the null; give it in `null`")
            if name in RESERVED or keyword.iskeyword(name):
                raise UsageError(f"{where}: {name!r} cannot name a number, it has a meaning here")
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise UsageError(f"{where}: {name!r} cannot name a number; use letters, digits, _")
        if null is not None and entry.null is None:
            raise UsageError(f"{where}: measured against a null that the claims file does not name")
        measured = {"value": _number(f"{where}: value", value)}
        measured |= {"unit": visible(entry.unit), "note": visible(note)}
        interval, count = _interval(where, interval), _count(where, n)
        _check_possible(where, interval, entry.unit == "share")
        measured |= {key: _number(f"{where}: {key}", number) for key, number in named.items()}
        if null is not None:
            null = {key: _number(f"{where}: null {key}", x) for key, x in null.items()}
        if bad := [key for key in null or () if not re.fullmatch(r"[a-z][a-z0-9_]*", key)]:
            raise UsageError(f"{where}: null has a number named {bad[0]!r}; use letters, digits, _")
        if "description" in (null or ()):
            raise UsageError(f"{where}: 'description' cannot name a number of the null")
        outcome, reason = decide_claim(entry, measured, interval, count, null)
        self.results[claim] = Result(outcome, reason, measured, interval, count, null)
        return outcome

    def report(
        self, key: str, value: Any, *, interval: Any = None, n: Any = None, unit: str = ""
    ) -> None:
        """Store a number that the page shows and that is not a claim's own, under `key`; an
        Estimate brings its interval and n."""
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", key):
            raise UsageError(f"measurement {key!r}: a key is letters, digits and _")
        if key in self.measurements:
            raise UsageError(f"measurement {key} is reported twice")
        where = f"measurement {key}"
        value, interval, n = _parts(value, interval, n)
        number, ends = _number(where, value), _interval(where, interval)
        self.measurements[key] = {
            "value": number,
            "interval": None if ends is None else list(ends),
            "n": _count(where, n),
            "unit": visible(unit),
        }

    def role(self, role: str, heads: Iterable[tuple[int, int]], rule: str) -> None:
        """Store which heads, (layer, head), play one of ROLES, and by which rule that was decided.
        No head is a result too. UsageError for another role, one given twice, or no rule."""
        if role not in ROLES:
            near = did_you_mean(role, ROLES)
            raise UsageError(f"role {role!r}{near} (roles: {', '.join(ROLES)})")
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

    def table(self) -> HtmlTable:
        """The claims before anything is measured: a line each, whose rule, null and gate open."""
        rows = []
        for claim in self.claims:
            number = paper_number(claim.reported, **claim.source.model_dump())
            rule = _cell(claim.decision)
            if claim.smallest_effect is not None:
                text = f"{claim.smallest_effect.value}: {claim.smallest_effect.reason}"
                rule += small_print("Smallest effect of interest", text)
            rule += small_print("Null", claim.null)
            rule += small_print("Testable if", claim.gate_text)
            opened = f"<summary>{_cell(claim.statement)}</summary>\n<p>{rule}</p>"
            rows.append((_cell(claim.id), f"<details>{opened}</details>", number))
        return claims_table((), rows, self.is_method, "claims")

    def history(self) -> HtmlTable:
        """What was changed after the claims were first written, with date and reason."""
        texts = [[one[key] for key in ("date", "claim", "reason")] for one in self.changes]
        rows = [tuple(_cell(" ".join(text.split())) for text in row) for row in texts]
        head = ("date", "claim", "what was changed, and why")
        return HtmlTable(head, rows or [("–", "–", "nothing")], "history")

    def verdicts(self, model: Any) -> None:
        """Show what became of every claim, and store it in the cell's output for the record.
        `model` is what `model_info(model)` returns, or a mapping of the same fields."""
        from IPython.display import display

        display(self.bundle(model), raw=True)

    def bundle(self, model: Any) -> dict[str, Any]:
        """The output of `verdicts`: an HTML table, a plain one, and under MIME all the numbers."""
        info = dict(model if isinstance(model, Mapping) else model.asdict())
        for key in ("name", "sha256"):
            if key not in info:
                raise UsageError(f"verdicts: the model's information lacks {key!r}")
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
        result = asdict(self.results.get(claim.id, Result()))
        if claim.across is not None:
            if missing := [key for key in claim.across if key not in self.measurements]:
                raise UsageError(f"claim {claim.id}: {missing[0]!r} was not reported")
            result["reason"] = "decided on the page across models, from their records"
        if claim.null is not None or result["null"] is not None:
            result["null"] = {"description": claim.null} | (result["null"] or {})
        if result["interval"] is not None:
            result["interval"] = list(result["interval"])
        content = claim.model_dump(exclude={"null", "decision", "unit"})
        keys = ("gate", "gate_text", "holds_if", "fails_if", "smallest_effect")
        rule = {key: content.pop(key) for key in keys}
        if claim.smallest_effect is None:
            del rule["smallest_effect"]
        if claim.across is None:
            del content["across"]
        return {**content, **result, "decision_rule": {"text": claim.decision, **rule}}


def _is_estimate(value: Any) -> bool:
    return hasattr(value, "interval")  # its class needs torch, and the command line starts without


def _parts(value: Any, interval: Any, n: Any) -> tuple[Any, Any, Any]:
    """A value, its interval and its n; an Estimate's own where none are given besides."""
    if not _is_estimate(value):
        return value, interval, n
    return (
        value.value,
        value.interval if interval is None else interval,
        value.n if n is None else n,
    )


def _check_possible(
    where: str, interval: Sequence[float | None] | None, is_share: bool = False
) -> None:
    """Nothing measured on a sample is known without error, and no share leaves 0 to 1."""
    if interval is None or None in interval:
        return
    low, high = interval
    if low == high:
        raise UsageError(f"{where}: the interval has no width, {low} to {high}")
    if is_share and not 0 <= low <= high <= 1:
        raise UsageError(f"{where} is a share, but its interval is {low:.3g} to {high:.3g}")


def _spread(where: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers by name, Estimates as three."""
    numbers: dict[str, Any] = {}
    for name, x in named.items():
        more = {name: x}
        if _is_estimate(x):
            more = {name: x.value, f"{name}_low": x.low, f"{name}_high": x.high}
            _check_possible(f"{where}: {name}", x.interval)
        if twice := more.keys() & (numbers.keys() | named.keys() - {name}):
            raise UsageError(f"{min(twice)!r} is given twice, by itself and with its interval")
        numbers |= more
    return numbers


def _plain(where: str, value: Any) -> int | float | bool:
    """A plain number from a Python, numpy or torch scalar; may be infinite or not a number, and is
    infinite where a whole number is larger than any float."""
    shape = tuple(getattr(value, "shape", ()))
    if math.prod(shape) != 1:
        raise UsageError(f"{where} is an array of shape {shape}; give one number")
    plain = value.item() if hasattr(value, "item") else value
    if not isinstance(plain, int | float):
        given = f"{one_line(repr(value))}, a {type(value).__name__}"
        raise UsageError(f"{where} is {given}; give one number")
    if isinstance(plain, int) and abs(plain) > sys.float_info.max:
        return math.inf if plain > 0 else -math.inf
    return plain


def _number(where: str, value: Any) -> int | float | bool | None:
    """A plain number; None for one that is not finite."""
    plain = _plain(where, value)
    return plain if math.isfinite(plain) else None


def _interval(where: str, interval: Any) -> tuple[float | None, float | None] | None:
    if interval is None:
        return None
    try:
        low, high = interval
    except (TypeError, ValueError):
        given = one_line(repr(interval))
        raise UsageError(f"{where}: interval is {given}; give (low, high)") from None
    low, high = (float(_plain(f"{where}: {end}", x)) for end, x in (("low", low), ("high", high)))
    if low > high:
        raise UsageError(f"{where}: interval has low {low} above high {high}")
    return _number(where, low), _number(where, high)


def _count(where: str, n: Any) -> int | None:
    if n is None:
        return None
    count = _plain(f"{where}: n", n)
    if isinstance(count, bool) or not math.isfinite(count) or count < 0 or count != int(count):
        raise UsageError(f"{where}: n is {count}; give a count, 0 or more")
    return int(count)
