"""Asking a model: which facts, alone or contradicted, with or without some heads scaled.

Answers are greedy continuations, scored by `facts.outcome` as in Yu, Merullo and Pavlick
(2310.15910, Sec. 3); heads are scaled as in Sec. 6. The labels of a set of prompts are a list of
`facts.OUTCOMES`, in the order of the prompts.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
from pandas.io.formats.style import Styler
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerBase

from replib.chapters.factual_recall import facts
from replib.chapters.factual_recall.facts import Conflict, Fact, Template
from replib.chapters.factual_recall.frequency import most_frequent
from replib.interventions.generation import continuations
from replib.interventions.network import Head


def asked_about(
    tokenizer: PreTrainedTokenizerBase,
    capitals: Sequence[Fact],
    n_facts: int,
    facts_file: str,
    n_new: int,
) -> tuple[list[Fact], tuple[Template, ...]]:
    """The facts that are asked about, and the templates: the capitals of the n countries that are
    most frequent in English, in the paper's template and two more, or the facts of a reader's file
    in their own prompts. UsageError if the tokenizer can write fewer than eight."""
    if facts_file:
        own = facts.facts_from_file(facts_file, tokenizer, n_new)
        return facts.readable(tokenizer, own, at_least=8), (facts.OWN_TEMPLATE,)
    return most_frequent(tokenizer, capitals, n_facts, at_least=8), facts.TEMPLATES


def prompts_table(templates: Sequence[Template], fact: Fact, foil: str) -> Styler:
    """One fact as each template asks it, alone and after the false statement."""
    prompts = {t.name: [t.alone(fact), t.conflict(fact, foil)] for t in templates}
    table = pd.DataFrame(prompts, index=["alone", "contradicted"]).T
    return table.style.set_properties(**{"white-space": "pre-wrap", "text-align": "left"})


def _asked(
    model: TransformerBridge,
    prompts: Sequence[str],
    answer_and_foil: Sequence[tuple[str, str | None]],
    n_new: int,
    scales: Mapping[Head, float] | None = None,
) -> list[str]:
    """The outcome of each prompt's continuation, which ends when no more text can change it."""

    def settled(i: int, text: str) -> bool:
        return facts.settled(text, answer_and_foil[i][0])

    said = continuations(model, prompts, n_new, scales, settled)
    return [facts.outcome(text, *both) for text, both in zip(said, answer_and_foil, strict=True)]


def known(
    model: TransformerBridge, some: Sequence[Fact], template: Template, n_new: int
) -> list[Fact]:
    """The facts whose answer the model gives, within `n_new` tokens, when nothing was stated."""
    prompts = [template.alone(fact) for fact in some]
    labels = _asked(model, prompts, [(fact.answer, None) for fact in some], n_new)
    return [fact for fact, label in zip(some, labels, strict=True) if label == "memorised"]


def contradicted(
    model: TransformerBridge,
    conflicts: Sequence[Conflict],
    template: Template,
    n_new: int,
    scales: Mapping[Head, float] | None = None,
) -> list[str]:
    """The outcome of each conflict, read from `n_new` tokens. `scales`: heads whose output is
    multiplied at every position, of the prompt and of the answer."""
    prompts = [template.conflict(c.fact, c.foil) for c in conflicts]
    return _asked(model, prompts, [(c.fact.answer, c.foil) for c in conflicts], n_new, scales)


def about(some: Sequence[Fact], conflicts: Sequence[Conflict], at_least: int = 8) -> list[Conflict]:
    """The conflicts about these facts. Where they are fewer than `at_least`, all conflicts: then
    everything can still be drawn, and the gates of the claims see to it that nothing is claimed."""
    ours = [conflict for conflict in conflicts if conflict.fact in some]
    return ours if len(ours) >= at_least else list(conflicts)


def transcript(
    model: TransformerBridge, conflicts: Sequence[Conflict], template: Template, n_new: int
) -> pd.DataFrame:
    """What the model says, word by word, to a few conflicts, and how that is scored."""
    prompts = [template.conflict(c.fact, c.foil) for c in conflicts]
    rows = [
        (c.fact.subject, c.fact.answer, c.foil, text, facts.outcome(text, c.fact.answer, c.foil))
        for c, text in zip(conflicts, continuations(model, prompts, n_new), strict=True)
    ]
    names = ["asked about", "true", "stated", "the model goes on", "outcome"]
    return pd.DataFrame(rows, columns=names)
