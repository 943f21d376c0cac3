"""One claim of a paper as its file has it, and the words that claims use."""

from dataclasses import dataclass

from replib.claims.rules import parse_rule
from replib.errors import UsageError

# What an attention head can be, in the words of the papers.
ROLES = (
    *("mover", "negative mover", "inhibition", "induction", "duplicate-token", "previous-token"),
    *("content gatherer", "in-context", "memory", "successor", "copy"),
)
MIME = "application/vnd.replib.claims+json"


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
                parse_rule(f"claim {self.id}: {rule}", expression)
