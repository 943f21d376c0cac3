"""What a rule may be: arithmetic, comparison and logic over the numbers of one claim."""

import ast

import simpleeval

from replib.errors import UsageError, one_line

OUTCOMES = ("holds", "fails", "unclear", "not_testable", "not_attempted")
FUNCTIONS = {"min": min, "max": max, "abs": abs}
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub, ast.UAdd)
_LOGIC = (ast.Not, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
OPERATORS = {kind: simpleeval.DEFAULT_OPERATORS[kind] for kind in (*_ARITHMETIC, *_LOGIC)}
_SYNTAX = (ast.Expression, ast.BoolOp, ast.boolop, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call)
_SYNTAX = (*_SYNTAX, ast.Name, ast.Load, ast.Constant, *OPERATORS)
TRUTH = {"true": True, "false": False}
# What `claims.<id>.<name>` means in a record besides the named numbers.
_FIELDS = ("value", "low", "high", "n", "unit", "note", "outcome", "reason", "scope", "reported")
RESERVED = {
    *_FIELDS,
    "smallest_effect",
    "null",
    "id",
    "statement",
    "measured",
    "interval",
    "source",
    "decision_rule",
    "unstable",
}
RESERVED |= {*OUTCOMES, *FUNCTIONS, *TRUTH}


def parse_rule(where: str, expression: str) -> ast.expr:
    """The expression's syntax tree; UsageError if it is more than a rule may be."""
    shown = one_line(expression)
    try:
        tree = ast.parse(" ".join(expression.split()), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(f"{where} does not parse: {shown}") from None
    called = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            simple = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
            if not simple or node.keywords or not node.args:
                raise UsageError(f"{where} may call min, max and abs only: {shown}")
            if (len(node.args) == 1) != (node.func.id == "abs"):
                raise UsageError(f"{where}: abs takes one number, min and max two or more: {shown}")
            called.add(node.func)
        elif not isinstance(node, _SYNTAX):
            raise UsageError(f"{where} may not contain {type(node).__name__}: {shown}")
        elif isinstance(node, ast.Constant) and not isinstance(node.value, int | float):
            raise UsageError(f"{where} may not contain {node.value!r}: {shown}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node not in called:
            if node.id in OUTCOMES:
                raise UsageError(f"{where} uses the outcome {node.id!r}; a rule uses numbers only")
            if node.id in FUNCTIONS:
                raise UsageError(f"{where} uses {node.id} without calling it: {shown}")
    return tree.body


def names_in(expression: str) -> set[str]:
    tree = ast.parse(" ".join(expression.split()), mode="eval")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names - set(FUNCTIONS) - set(TRUTH)
