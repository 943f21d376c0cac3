"""The claims file of a paper: one claim as the file has it, and the file read with every check."""

import contextlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from replib.claims.rules import names_in, parse_rule
from replib.claims.schema import (
    ClaimId,
    Key,
    Slug,
    SmallestEffect,
    Source,
    Strict,
    Text,
    Words,
    fit,
)
from replib.errors import UsageError, did_you_mean
from replib.files import read_text, read_yaml, sha256_text

# What an attention head can be, in the words of the papers.
ROLES = (
    *("mover", "negative mover", "inhibition", "induction", "duplicate-token", "previous-token"),
    *("content gatherer", "in-context", "memory", "suppressing", "successor", "copy"),
)
MIME = "application/vnd.replib.claims+json"


class Claim(Strict):
    """One statement of the paper, with the rule that decides it; all texts are as in the file.

    `gate`, `holds_if` and `fails_if` are expressions over the numbers measured for the claim:
    value, low, high, n, null_<name>, smallest_effect and every named number; comparison,
    and/or/not, + - * /, min, max, abs. A false gate means that the model cannot test the claim.
    """

    id: ClaimId
    statement: Words
    reported: Words | None  # the paper's number or finding, if one is known
    source: Source
    null: Words | None  # the null hypothesis in words, if the rule needs one
    gate: Words | None
    gate_text: Words | None  # the gate in words
    holds_if: Words
    fails_if: Words
    decision: Words  # the rule in words
    unit: Text = ""  # of the value; "share" is checked: it and its interval lie in 0 to 1
    smallest_effect: SmallestEffect | None = None
    # The numbers that each model reports, if the claim compares models: it is decided from their
    # records, on the page across models, and on no page of one model.
    across: list[Key] | None = None

    @field_validator("smallest_effect", mode="before")
    @classmethod
    def _read_number(cls, given: Any) -> Any:
        """All scalars of a claims file are texts; this one is a number."""
        if isinstance(given, dict) and isinstance(given.get("value"), str):
            with contextlib.suppress(ValueError):
                return {**given, "value": float(given["value"])}
        return given

    @model_validator(mode="after")
    def _is_sound(self) -> "Claim":
        if self.source.mark == "none" and self.reported is not None:
            raise ValueError(
                f"source mark none, but reported is {self.reported!r}; a number of the paper "
                "needs its source, or is null"
            )
        if (self.gate is None) != (self.gate_text is None):
            raise ValueError("gate and gate_text go together, or are both null")
        for rule in ("gate", "holds_if", "fails_if"):
            if (expression := getattr(self, rule)) is not None:
                parse_rule(rule, expression)
        used = names_in(self.holds_if) | names_in(self.fails_if)
        if (self.smallest_effect is None) == ("smallest_effect" in used):
            raise ValueError("smallest_effect and a rule that uses it go together")
        return self


class Change(Strict):
    """What was changed after the claims were first written."""

    date: Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
    claim: Words  # an id, or several: 1.2, 1.3
    reason: Words


class ClaimsFile(Strict):
    """The whole file."""

    paper: Slug
    title: Words
    # None: a page of the method, whose claims are facts of the method
    arxiv: Annotated[str, Field(pattern=r"^[0-9]{4}\.[0-9]{4,5}$")] | None
    model: Words  # the paper's own; any other model is a transfer
    claims: Annotated[list[Claim], Field(min_length=1)]
    changes: list[Change] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names_claims_once(self) -> "ClaimsFile":
        ids = [claim.id for claim in self.claims]
        if twice := [i for i in ids if ids.count(i) > 1]:
            raise ValueError(f"claim {twice[0]} is there twice")
        for change in self.changes:
            for named in change.claim.split(", "):
                if named not in ids:
                    near = did_you_mean(named, ids)
                    raise ValueError(f"a change names claim {named}, which is not there{near}")
        return self


def read_claims(path: str | Path) -> tuple[ClaimsFile, str]:
    """(the claims, the file's sha256). UsageError, in one line, for anything that does not fit, an
    id that comes twice, an expression that does not parse, or a number that is not verified."""
    where = f"claims file {path}"
    text = read_text(path, "claims file")
    claims = fit(ClaimsFile, read_yaml(text, where, texts_only=True), where)
    if "[MEM]" in text:
        raise UsageError(f"{where}: a number marked [MEM] is unverified; leave it")
    return claims, sha256_text(text)
