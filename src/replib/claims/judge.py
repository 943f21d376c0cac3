"""The rules that decide a claim: arithmetic and comparison over its measured numbers, nothing else."""

import ast
import math
import operator
from collections.abc import Mapping
from typing import Any

import simpleeval

from replib.claims.file import OUTCOMES, Claim
from replib.errors import UsageError, did_you_mean, one_line

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
