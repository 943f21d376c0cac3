"""The page across models: claims that compare models, decided from the records in the book.

A claims file gives such a claim `across: [number]` or `across: [number, bar]`. Each model's
notebook reports these, the number with its interval; the bar is 0 where none is named. The rule is
written over `NUMBERS`. A *family* are models whose names differ in their size only. Random and
planted models are checks of the procedure and do not count.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import binomtest

from bookkit.book.html import macro
from bookkit.book.runs import Run, by_paper, of_papers
from replib.claims.judge import claim_of, decide_claim
from replib.claims.rules import names_in

NUMBERS = {
    "models": "models that report the number",
    "above": "of these with an interval wholly above the bar",
    "below": "of these with an interval wholly below the bar",
    "share": "share of models above the bar",
    "share_low": "lower end of its 95% interval, were all undecided models not above",
    "share_high": "upper end of its 95% interval, were all undecided models above",
    "sizes": "sizes of the family that has most of them",
    "growth": "number of that family's largest model less that of its smallest",
    "growth_low": "lower end of its 95% interval",
    "growth_high": "upper end of its 95% interval",
}
_SIZE = re.compile(r"\d+([.p]\d+)?[mb]|x*-?(small|medium|large|xl)")


@dataclass(frozen=True)
class Reported:
    """What one model's record reports for a claim across models."""

    run: Run
    value: float
    low: float
    high: float
    bar: float

    @property
    def size(self) -> int:
        return self.run.record["model"].get("n_params", 0)

    @property
    def family(self) -> str:
        return family(self.run.record["model"]["name"])

    @property
    def place(self) -> str:
        """Where the interval lies, seen from the bar."""
        return "above" if self.low > self.bar else "below" if self.high < self.bar else "around"


@dataclass(frozen=True)
class Comparison:
    """One claim across models, decided."""

    paper: str
    title: str
    claim: Mapping[str, Any]  # as one of the records has it
    models: list[Reported]
    left_out: list[tuple[Run, str]]  # with the reason
    numbers: Mapping[str, float | int | None]  # those that the rule names; None: cannot be computed
    outcome: str
    reason: str
    meanings: Mapping[str, str] = field(default_factory=lambda: NUMBERS)

    @property
    def id(self) -> str:
        return self.claim["id"]

    @property
    def has_bar(self) -> bool:
        """Does the rule ask on which side of a bar each model lies?"""
        return bool({"above", "below", "share", "share_low", "share_high"} & {*self.numbers})


def family(name: str) -> str:
    """A model's name without its owner, its size and its revision: `pythia` of
    `EleutherAI/pythia-1.4b`."""
    words = re.split(r"[-_]", name.rpartition("/")[2].partition("@")[0].lower())
    return "-".join(word for word in words if not _SIZE.fullmatch(word)) or name


def largest_family(models: Iterable[Reported]) -> list[Reported]:
    """The models of the family with most sizes, of two such of the one with more models."""
    families: dict[str, list[Reported]] = {}
    for model in models:
        families.setdefault(model.family, []).append(model)
    return max(families.values(), key=lambda of: (len(sizes(of)), len(of)), default=[])


def sizes(models: Iterable[Reported]) -> set[int]:
    return {model.size for model in models}


def numbers(models: list[Reported]) -> dict[str, float | int | None]:
    """All of `NUMBERS`; None for one that cannot be computed from these models."""
    places = [model.place for model in models]
    n, above, below = len(models), places.count("above"), places.count("below")
    found: dict[str, float | int | None] = {"models": n, "above": above, "below": below}
    found |= {"share": None, "share_low": None, "share_high": None}
    if n:
        found["share"] = above / n
        found["share_low"] = float(binomtest(above, n).proportion_ci().low)  # Clopper-Pearson
        found["share_high"] = float(binomtest(n - below, n).proportion_ci().high)
    related = largest_family(models)
    found["sizes"] = len(sizes(related))
    found |= {"growth": None, "growth_low": None, "growth_high": None}
    if found["sizes"] >= 2:
        small, large = (of(related, key=lambda model: model.size) for of in (min, max))
        growth = large.value - small.value
        # The interval of a difference from those of its two numbers (MOVER, Zou and Donner 2008).
        down = math.hypot(large.value - large.low, small.high - small.value)
        up = math.hypot(large.high - large.value, small.value - small.low)
        found |= {"growth": growth, "growth_low": growth - down, "growth_high": growth + up}
    return found


def compare(runs: Iterable[Run]) -> list[Comparison]:
    """Every claim across models of the papers in these runs, decided by its rule."""
    found = []
    for members in by_paper(of_papers(sorted(runs, key=lambda run: run.key))).values():
        # What a claim says is read where it is not out of date, if there is such a record.
        ordered = sorted(members, key=lambda run: (bool(run.stale), run.control, run.key))
        claims = [claim for run in ordered for claim in run.record["claims"]]
        first = {claim["id"]: claim for claim in reversed(claims) if claim.get("across")}
        models = [run for run in members if not run.control]
        ids = dict.fromkeys(claim["id"] for claim in claims if claim["id"] in first)
        found += [_decide(first[id], models, members[0]) for id in ids]
    return found


def _decide(claim: Mapping[str, Any], runs: list[Run], of_paper: Run) -> Comparison:
    read = [(run, _reported(run, *claim["across"][:2])) for run in runs]
    models = [model for _, model in read if isinstance(model, Reported)]
    left_out = [(run, why) for run, why in read if isinstance(why, str)]
    named = claim_of(claim)
    rules = (named.gate or "true", named.holds_if, named.fails_if)
    used = set().union(*map(names_in, rules))
    known = numbers(models)
    # An unknown name stays in the rule, and is refused there.
    shown = {name: known[name] for name in NUMBERS if name in used}
    outcome, reason = decide_claim(named, shown, None, None, None)
    if outcome == "not_testable":
        related = largest_family(models)
        here = f"{len(models)} {'model' if len(models) == 1 else 'models'}"
        if related:
            here += f", {known['sizes']} in one family at most ({related[0].family})"
        reason += f"; there are {here}"
    about = (of_paper.paper, of_paper.record["title"], claim)
    return Comparison(*about, models, left_out, shown, outcome, reason)


def _reported(run: Run, key: str, bar: str = "") -> Reported | str:
    """A model's numbers, or why it has none."""
    entries = [run.record["measurements"].get(name) for name in filter(None, (key, bar))]
    for name, entry in zip((key, bar), entries, strict=False):
        if entry is None:
            return f"its record has no {name}"
        if entry["value"] is None:
            return f"{name} is not finite"
    low, high = entries[0]["interval"] or (None, None)
    if low is None or high is None:
        return f"{key} has no interval"
    above = entries[1]["value"] if bar else 0.0
    return Reported(run, float(entries[0]["value"]), low, high, float(above))


def page(runs: Iterable[Run]) -> str:
    """All comparisons as HTML, for a page at the root of the book."""
    return macro("across.html", "page", compare(runs))
