"""Asking a model: which facts, alone or contradicted, with or without some heads scaled.

Answers are greedy continuations, scored by `facts.outcome` as in Yu, Merullo and Pavlick
(2310.15910, Sec. 3); heads are scaled as in Sec. 6. The labels of a set of prompts are a list of
`facts.OUTCOMES`, in the order of the prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    model: TransformerBridge, some: Sequence[Fact], templates: Sequence[Template], n_new: int
) -> dict[str, list[Fact]]:
    """By template: the facts whose answer the model gives, within `n_new` tokens, when nothing was
    stated. All templates are asked at once, because a large batch takes hardly longer."""
    asked = [(template, fact) for template in templates for fact in some]
    prompts = [template.alone(fact) for template, fact in asked]
    labels = _asked(model, prompts, [(fact.answer, None) for _, fact in asked], n_new)
    found: dict[str, list[Fact]] = {template.name: [] for template in templates}
    for (template, fact), label in zip(asked, labels, strict=True):
        if label == "memorised":
            found[template.name].append(fact)
    return found


@dataclass
class Asking:
    """Asks a model about conflicts and remembers its answers, so that none is asked for twice."""

    model: TransformerBridge
    n_new: int  # tokens of an answer
    said: dict[tuple, dict[Conflict, str]] = field(default_factory=dict)

    def __call__(
        self, conflicts: Sequence[Conflict], template: Template, *edits: tuple[Head, float]
    ) -> list[str]:
        """The outcome of each conflict. `edits`: heads whose output is multiplied by a factor at
        every position, of the prompt and of the answer."""
        labels = self.said.setdefault((template.name, edits), {})
        new = [conflict for conflict in dict.fromkeys(conflicts) if conflict not in labels]
        prompts = [template.conflict(c.fact, c.foil) for c in new]
        both = [(c.fact.answer, c.foil) for c in new]
        found = _asked(self.model, prompts, both, self.n_new, dict(edits))
        labels.update(zip(new, found, strict=True))
        return [labels[conflict] for conflict in conflicts]


def about(
    some: Sequence[Fact], conflicts: Sequence[Conflict], at_least: int = 8, at_most: int = 64
) -> list[Conflict]:
    """The conflicts about these facts. Where they are fewer than `at_least`, about `at_most` of all
    conflicts, evenly taken: then everything can still be drawn, and the gates of the claims see to
    it that nothing is claimed."""
    ours = [conflict for conflict in conflicts if conflict.fact in some]
    few = conflicts[:: max(1, len(conflicts) // at_most)]
    return ours if len(ours) >= at_least else list(few)


def cities(
    tokenizer: PreTrainedTokenizerBase,
    known: Mapping[str, Sequence[Fact]],
    asked: Sequence[Fact],
    some: Sequence[Conflict],
    n: int,
    seed: int,
) -> dict[str, list[Conflict]]:
    """What the known facts of each template are contradicted with: in the first, the paper's, up to
    n answers of all other facts that are asked about, in the others `some`."""
    paper, *others = known
    found = {paper: about(known[paper], facts.draw_foils(tokenizer, asked, n, seed))}
    return found | {name: about(known[name], some) for name in others}


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
