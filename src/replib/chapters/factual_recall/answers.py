"""How often each outcome occurs among the answers, and what an edit gains.

Labels are those of `asking.Asking`: a list of `facts.OUTCOMES`, one a prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from replib import metrics
from replib.chapters.factual_recall import facts
from replib.chapters.factual_recall.facts import Conflict
from replib.metrics import Estimate


def share(labels: Sequence[str], wanted: str) -> float:
    """Share of the labels that are `wanted`; 0 where there is no label."""
    return labels.count(wanted) / max(1, len(labels))


def subjects(conflicts: Sequence[Conflict]) -> list[str]:
    """What each conflict is about: several about one subject count as fewer."""
    return [conflict.fact.subject for conflict in conflicts]


def shares(labels: Sequence[str], groups: Sequence[str]) -> dict[str, Estimate]:
    """Share of each outcome, with its 95% interval (`metrics.proportion`, prompts of one group
    counting as fewer). UsageError where there is no label."""
    return {
        name: metrics.proportion(torch.tensor([label == name for label in labels]), groups)
        for name in facts.OUTCOMES
    }


def overwritten(shares: Mapping[str, Estimate], known: int) -> dict[str, Any]:
    """What claim 3.1 is measured by: both shares, and how many facts are known."""
    both = {"value": shares["in-context"], "memorised": shares["memorised"]}
    return both | {"other": shares["other"].value, "known": known}


def shares_of(wanted: str, **labels: Sequence[str]) -> dict[str, float]:
    """The share of one outcome in each of several lists of labels, by their names with _ for -."""
    return {name.replace("-", "_"): share(some, wanted) for name, some in labels.items()}


def gain(
    after: Sequence[str],
    before: Sequence[str],
    wanted: str,
    groups: Sequence[str],
    generator: np.random.Generator,
) -> Estimate | None:
    """Share of wanted outcomes after an edit less that before, on the same prompts, and its 95%
    interval (`metrics.bootstrap`), in which those of one group go together. None for no prompt."""
    if not before:
        return None
    change = [(a == wanted) - (b == wanted) for a, b in zip(after, before, strict=True)]
    return metrics.bootstrap(torch.tensor(change, dtype=torch.double), groups, generator)


OPPOSITE = {"in-context": "memorised", "memorised": "in-context"}


def before_and_after(before: Sequence[str], after: Sequence[str], wanted: str) -> dict[str, float]:
    """Shares of the wanted outcome, of the opposite one and of neither, before and after an edit,
    by the names under which the claims file has them."""
    names = {"": wanted, "opposite_": OPPOSITE[wanted], "other_": "other"}
    return {
        f"{name}{when}": share(labels, outcome)
        for name, outcome in names.items()
        for when, labels in (("before", before), ("after", after))
    }


def no_room(before: Sequence[str], wanted: str, most: float) -> str:
    """Why nothing more can be gained: words for a claim that is not testable."""
    return (
        f"{share(before, wanted):.0%} of the answers are {wanted} before any edit, which leaves "
        f"no room for more (at most {most:.0%} allowed)"
    )
