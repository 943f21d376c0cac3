"""A claim is decided here: its gate, then its rules, over the numbers that were measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import simpleeval

from replib.claims.file import Claim
from replib.claims.rules import FUNCTIONS, OPERATORS, TRUTH, names_in
from replib.claims.schema import fit
from replib.errors import UsageError, did_you_mean, one_line


class _NotTestableError(Exception):
    """The reason why the numbers decide nothing."""


def decide_claim(
    claim: Claim,
    measured: Mapping[str, Any],
    interval: Sequence[float | None] | None,
    n: int | None,
    null: Mapping[str, Any] | None,
) -> tuple[str, str]:
    """(outcome, reason) of a claim from its numbers, as a record has them: None is not finite."""
    numbers = {name: number for name, number in measured.items() if name not in ("unit", "note")}
    nulls = {f"null_{name}": x for name, x in (null or {}).items() if name != "description"}
    numbers |= nulls | dict(zip(("low", "high"), interval or (), strict=False))
    if n is not None:
        numbers["n"] = n
    if claim.smallest_effect is not None:
        numbers["smallest_effect"] = claim.smallest_effect.value
    for rule in ("gate", "holds_if", "fails_if"):
        if unknown := sorted(names_in(getattr(claim, rule) or "true") - set(numbers)):
            raise UsageError(
                f"claim {claim.id}: {rule} uses {unknown[0]!r}, which was not measured"
                f"{did_you_mean(unknown[0], numbers)} (measured: {', '.join(sorted(numbers))})"
            )
    infinite = {name for name, number in numbers.items() if number is None}
    try:
        gate_is_known = claim.gate is not None and not names_in(claim.gate) & infinite
        if gate_is_known and not _evaluate(claim, "gate", numbers):
            return "not_testable", f"gate not passed: {claim.gate_text}"
        if infinite:
            return "not_testable", f"not a finite number: {', '.join(sorted(infinite))}"
        holds, fails = (_evaluate(claim, rule, numbers) for rule in ("holds_if", "fails_if"))
    except _NotTestableError as reason:
        return "not_testable", str(reason)
    if holds and fails:
        raise UsageError(
            f"claim {claim.id}: bad rule, holds_if ({one_line(claim.holds_if)}) and fails_if "
            f"({one_line(claim.fails_if)}) are both true"
        )
    return "holds" if holds else "fails" if fails else "unclear", ""


def judge(entry: Mapping[str, Any]) -> str | None:
    """The outcome that the rule of a record's claim gives for its numbers; None: none measured.
    Of one whose outcome differs between two runs it is unclear."""
    if both := entry.get("unstable"):
        runs = [{**entry, "unstable": None, **both[name]} for name in ("first", "second")]
        outcomes = [judge(run) or run["outcome"] for run in runs]
        return "unclear" if outcomes == [run["outcome"] for run in runs] else outcomes[0]
    if entry["measured"] is None:
        return None
    numbers = (entry[key] for key in ("measured", "interval", "n", "null"))
    return decide_claim(claim_of(entry), *numbers)[0]


def claim_of(entry: Mapping[str, Any]) -> Claim:
    """The claim of the file, as far as its rule goes, from a record's entry."""
    rule = dict(entry["decision_rule"])
    content = {key: entry[key] for key in ("id", "statement", "reported", "source")}
    content |= {"null": None, "decision": rule.pop("text"), **rule}
    return fit(Claim, content, f"claim {entry['id']}")


def _evaluate(claim: Claim, rule: str, numbers: Mapping[str, Any]) -> bool:
    expression, what = getattr(claim, rule), "gate" if rule == "gate" else "rule"
    names = {**TRUTH, **numbers}
    evaluator = simpleeval.SimpleEval(operators=OPERATORS, functions=FUNCTIONS, names=names)
    try:
        answer = evaluator.eval(" ".join(expression.split()))
    except RecursionError:
        raise UsageError(f"claim {claim.id}: {rule} is nested too deeply") from None
    except ZeroDivisionError:
        raise _NotTestableError(f"the {what} divides by zero") from None
    except OverflowError:
        raise _NotTestableError(f"the {what}'s numbers are too large") from None
    if not isinstance(answer, bool):
        raise UsageError(
            f"claim {claim.id}: {rule} gives {answer!r}, not true or false: {one_line(expression)}"
        )
    return answer
