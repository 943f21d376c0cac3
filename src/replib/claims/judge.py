"""A claim is decided here: its gate, then its rules, over the numbers that were measured."""

import math
from collections.abc import Mapping
from typing import Any

import simpleeval

from replib.claims.file import Claim
from replib.claims.rules import FUNCTIONS, OPERATORS, TRUTH, names_in
from replib.claims.schema import fit
from replib.errors import UsageError, did_you_mean, one_line


def decide_claim(claim: Claim, numbers: Mapping[str, int | float | bool]) -> tuple[str, str]:
    """(outcome, reason) of a claim from its measured numbers."""
    rules = {"gate": claim.gate, "holds_if": claim.holds_if, "fails_if": claim.fails_if}
    rules = {rule: expression for rule, expression in rules.items() if expression is not None}
    for rule, expression in rules.items():
        if unknown := sorted(names_in(expression) - set(numbers)):
            raise UsageError(
                f"claim {claim.id}: {rule} uses {unknown[0]!r}, which was not measured"
                f"{did_you_mean(unknown[0], numbers)} (measured: {', '.join(sorted(numbers))})"
            )
    infinite = sorted(name for name, number in numbers.items() if not math.isfinite(number))
    if claim.gate is not None and not names_in(claim.gate) & set(infinite):
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
    rule = dict(entry["decision_rule"])
    content = {key: entry[key] for key in ("id", "statement", "reported", "source")}
    content |= {"null": None, "decision": rule.pop("text"), **rule}
    claim = fit(Claim, content, f"claim {entry['id']}")
    numbers = {k: x for k, x in entry["measured"].items() if k not in ("unit", "note")}
    nulls = {k: x for k, x in (entry["null"] or {}).items() if k != "description"}
    numbers |= {f"null_{key}": number for key, number in nulls.items()}
    if entry["interval"] is not None:
        numbers |= dict(zip(("low", "high"), entry["interval"], strict=True))
    if entry["n"] is not None:
        numbers["n"] = entry["n"]
    finite = {key: math.nan if number is None else number for key, number in numbers.items()}
    return decide_claim(claim, finite)[0]


def _evaluate(claim: Claim, rule: str, expression: str, numbers: Mapping[str, Any]) -> bool:
    names = {**TRUTH, **numbers}
    evaluator = simpleeval.SimpleEval(operators=OPERATORS, functions=FUNCTIONS, names=names)
    try:
        answer = evaluator.eval(" ".join(expression.split()))
    except RecursionError:
        raise UsageError(f"claim {claim.id}: {rule} is nested too deeply") from None
    if not isinstance(answer, bool):
        raise UsageError(
            f"claim {claim.id}: {rule} gives {answer!r}, not true or false: {one_line(expression)}"
        )
    return answer
