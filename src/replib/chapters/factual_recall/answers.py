"""What a model answers, alone and when contradicted, and how often each outcome occurs.

Answers are greedy continuations, scored by `facts.outcome` as in Yu, Merullo and Pavlick
(2310.15910, Sec. 3). They can be asked for while some heads are scaled (Sec. 6). The labels of a
set of prompts are a list of `facts.OUTCOMES`, in the order of the prompts.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge

from replib import metrics
from replib.chapters.factual_recall import facts
from replib.chapters.factual_recall.facts import Conflict, Fact, Template
from replib.interventions.generation import continuations
from replib.interventions.network import Head
from replib.metrics import Estimate

Scales = Mapping[Head, float]  # the factor of each head that is scaled


def _asked(
    model: TransformerBridge,
    prompts: Sequence[str],
    answer_and_foil: Sequence[tuple[str, str | None]],
    n_new: int,
    scales: Scales | None = None,
) -> list[str]:
    """The outcome of each prompt's continuation, which ends when no more text can change it."""

    def settled(i: int, text: str) -> bool:
        return facts.settled(text, answer_and_foil[i][0])

    said = continuations(model, prompts, n_new, scales, settled)
    return [facts.outcome(text, *both) for text, both in zip(said, answer_and_foil, strict=True)]


def known(
    model: TransformerBridge, some: Sequence[Fact], template: Template, n_new: int
) -> set[Fact]:
    """The facts whose answer the model gives, within `n_new` tokens, when nothing was stated."""
    prompts = [template.alone(fact) for fact in some]
    labels = _asked(model, prompts, [(fact.answer, None) for fact in some], n_new)
    return {fact for fact, label in zip(some, labels, strict=True) if label == "memorised"}


def contradicted(
    model: TransformerBridge,
    conflicts: Sequence[Conflict],
    template: Template,
    n_new: int,
    scales: Scales | None = None,
) -> list[str]:
    """The outcome of each conflict, read from `n_new` tokens. `scales`: heads whose output is
    multiplied at every position, of the prompt and of the answer."""
    prompts = [template.conflict(c.fact, c.foil) for c in conflicts]
    return _asked(model, prompts, [(c.fact.answer, c.foil) for c in conflicts], n_new, scales)


def about(some: set[Fact], conflicts: Sequence[Conflict], at_least: int = 8) -> list[Conflict]:
    """The conflicts about these facts. Where they are fewer than `at_least`, all conflicts: then
    everything can still be drawn, and the gates of the claims see to it that nothing is claimed."""
    ours = [conflict for conflict in conflicts if conflict.fact in some]
    return ours if len(ours) >= at_least else list(conflicts)


def share(labels: Sequence[str], wanted: str) -> float:
    """Share of the labels that are `wanted`; 0 where there is no label."""
    return labels.count(wanted) / max(1, len(labels))


def shares(labels: Sequence[str]) -> dict[str, Estimate]:
    """Share of each outcome, with its 95% Wilson interval. UsageError where there is no label."""
    return {
        name: metrics.wilson(torch.tensor([label == name for label in labels]))
        for name in facts.OUTCOMES
    }


def gain(
    after: Sequence[str],
    before: Sequence[str],
    wanted: str,
    groups: Sequence[Hashable],
    generator: np.random.Generator,
) -> Estimate:
    """Share of wanted outcomes after an edit less that before, on the same prompts, and its 95%
    interval (`metrics.bootstrap`). `groups`: the subject of each prompt."""
    change = [(a == wanted) - (b == wanted) for a, b in zip(after, before, strict=True)]
    return metrics.bootstrap(torch.tensor(change, dtype=torch.double), groups, generator)


OTHER_WAY = {"in-context": "memorised", "memorised": "in-context"}


def before_and_after(before: Sequence[str], after: Sequence[str], wanted: str) -> dict[str, Any]:
    """Shares of the wanted outcome, of the opposite one and of neither, before and after an edit,
    by the names under which the claims file has them."""
    names = {"": wanted, "opposite_": OTHER_WAY[wanted], "other_": "other"}
    return {
        f"{name}{when}": share(labels, outcome)
        for name, outcome in names.items()
        for when, labels in (("before", before), ("after", after))
    }
