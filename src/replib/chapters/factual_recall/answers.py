"""How often each outcome occurs among the answers, and what an edit gains.

Labels are those of `asking.contradicted`: a list of `facts.OUTCOMES`, one a prompt.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from replib import metrics
from replib.chapters.factual_recall import facts
from replib.chapters.factual_recall.facts import Conflict
from replib.metrics import Estimate


def share(labels: Sequence[str], wanted: str) -> float:
    """Share of the labels that are `wanted`; 0 where there is no label."""
    return labels.count(wanted) / max(1, len(labels))


def shares(labels: Sequence[str]) -> dict[str, Estimate]:
    """Share of each outcome, with its 95% interval. UsageError where there is no label."""
    return {
        name: metrics.proportion(torch.tensor([label == name for label in labels]))
        for name in facts.OUTCOMES
    }


def shares_of(wanted: str, **labels: Sequence[str]) -> dict[str, float]:
    """The share of one outcome in each of several lists of labels, by their names with _ for -."""
    return {name.replace("-", "_"): share(some, wanted) for name, some in labels.items()}


def gain(
    after: Sequence[str],
    before: Sequence[str],
    wanted: str,
    conflicts: Sequence[Conflict],
    generator: np.random.Generator,
) -> Estimate | None:
    """Share of wanted outcomes after an edit less that before, on the same conflicts, and its 95%
    interval (`metrics.bootstrap`), in which those of one subject go together. None for none."""
    if not conflicts:
        return None
    groups = [conflict.fact.subject for conflict in conflicts]
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


def pooled(
    conflicts: Mapping[str, Sequence[Conflict]], labels: Mapping[str, Mapping[str, Sequence[str]]]
) -> tuple[list[Conflict], list[str], list[str]]:
    """All relations together: the conflicts, and their labels with no edit and with heads scaled.
    `labels`, by relation (none for one without conflicts), then "no edit" and "scaled"."""
    together = [conflict for some in conflicts.values() for conflict in some]
    before, after = (
        [label for relation in conflicts if conflicts[relation] for label in labels[relation][name]]
        for name in ("no edit", "scaled")
    )
    return together, before, after


def counted(conflicts: Mapping[str, Sequence[Conflict]]) -> dict[str, int]:
    """How many facts of each relation are known, and of how many relations any is."""
    known = {f"known_{name.replace(' ', '_')}": len(some) for name, some in conflicts.items()}
    return known | {"relations": sum(map(bool, known.values()))}
