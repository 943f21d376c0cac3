"""Simulated worlds for the rules of a chapter: the paper is right in one, wrong in another, and
nothing can be measured at the floor and at the ceiling.

A chapter's test has WORLDS: claim -> world -> a function without arguments that simulates data at
the chapter's own sample sizes, puts them through the chapter's own statistics and returns what
`Claims.measure` is given; or, for a floor or ceiling that cannot be, a text that says why.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from replib.claims.measure import Claims

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
EXPECTED = {
    "right": "holds",
    "wrong": "fails",
    "floor": "not_testable",
    "ceiling": "not_testable",
}
Worlds = Mapping[str, Mapping[str, Callable[[], Mapping[str, Any]] | str]]


def load(paper: str) -> Claims:
    return Claims.load(NOTEBOOKS / paper / "claims.yaml")


def cases(worlds: Worlds) -> list[tuple[str, str]]:
    """(claim, world) of every world that can be simulated."""
    return [(id, w) for id, four in worlds.items() for w, made in four.items() if callable(made)]


def outcome(paper: str, worlds: Worlds, claim: str, world: str) -> str:
    return load(paper).measure(claim, **worlds[claim][world]())


def missing(paper: str, worlds: Worlds) -> list[tuple[str, str]]:
    """(claim, world) of every world that is neither simulated nor, at floor and ceiling, excused.
    Claims across models are decided elsewhere."""
    lacking = []
    for claim in load(paper).claims:
        for world in EXPECTED if claim.across is None else ():
            made = worlds.get(claim.id, {}).get(world)
            if not callable(made) and not (made and world in ("floor", "ceiling")):
                lacking.append((claim.id, world))
    return lacking
