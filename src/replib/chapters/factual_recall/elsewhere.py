"""Do the head and factor that were tuned on one relation's facts work on other facts? (Yu et al.,
2310.15910, Sec. 6, on CounterFact; here on other relations.)

Nothing is shared with what the head was chosen on: subjects of the selection split are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from replib.chapters.factual_recall import answers, asking, facts
from replib.chapters.factual_recall.attribution import per_group
from replib.chapters.factual_recall.facts import Conflict, Fact, Template
from replib.chapters.factual_recall.frequency import most_frequent
from replib.interventions.network import Head
from replib.metrics import Estimate, max_statistic_pvalues, rng


def known_conflicts(
    model: TransformerBridge,
    relations: Mapping[str, Sequence[Fact]],
    template: Template,
    chosen_on: Sequence[Fact],
    n: int,
    n_new: int,
    seed: int,
) -> dict[str, list[Conflict]]:
    """A conflict about each of the n most frequent facts of each relation that the model knows and
    that are about other subjects than those of `chosen_on`."""
    seen, tokenizer = {fact.subject.casefold() for fact in chosen_on}, model.tokenizer
    asked = {
        name: [fact for fact in some if fact.subject.casefold() not in seen]
        for name, some in relations.items()
    }
    asked = {name: most_frequent(tokenizer, some, n) for name, some in asked.items()}
    every = [fact for some in asked.values() for fact in some]
    known = set(asking.known(model, every, [template], n_new)[template.name])
    return {
        name: facts.draw_foils(tokenizer, [fact for fact in some if fact in known], 1, seed)
        for name, some in asked.items()
    }


def said(
    ask: asking.Asking,
    conflicts: Mapping[str, Sequence[Conflict]],
    template: Template,
    edit: tuple[Head, float],
) -> dict[str, dict[str, list[str]]]:
    """The outcomes of each relation, with no edit and with a head scaled; all relations at once."""
    every = [conflict for some in conflicts.values() for conflict in some]
    for edits in ((), (edit,)):
        ask(every, template, *edits)
    return {
        name: {relation: ask(some, template, *edits) for relation, some in conflicts.items()}
        for name, edits in (("no edit", ()), ("scaled", (edit,)))
    }


def bars(
    conflicts: Mapping[str, Sequence[Conflict]], said: Mapping[str, Mapping[str, Sequence[str]]]
) -> dict[str, dict[str, Estimate]]:
    """The share of in-context answers by relation, with and without the edit."""
    return {
        f"{relation}\n({len(some)})": {
            name: answers.shares(of[relation], answers.subjects(some))["in-context"]
            for name, of in said.items()
        }
        for relation, some in conflicts.items()
        if some
    }


class Moved:
    """What an edit does to the answers of several relations.

    `said`: the outcomes of each relation's conflicts, with no edit and with a head scaled.
    Intervals and p-values count true answers, not facts: English and the dollar serve many.
    """

    def __init__(
        self,
        conflicts: Mapping[str, Sequence[Conflict]],
        said: Mapping[str, Mapping[str, Sequence[str]]],
        wanted: str,
        seed: int,
    ):
        self.conflicts = {name: some for name, some in conflicts.items() if some}
        self.before, self.after, self.wanted, self.seed = *said.values(), wanted, seed

    def _gain(self, *names: str) -> Estimate | None:
        before, after = ([x for n in names for x in of[n]] for of in (self.before, self.after))
        groups = [c.fact.answer for n in names for c in self.conflicts[n]]
        return answers.gain(after, before, self.wanted, groups, rng(self.seed, "moved", *names))

    def gains(self) -> dict[str, Estimate]:
        """Each relation by itself."""
        return {name: self._gain(name) for name in self.conflicts}

    def pvalue(self, name: str) -> float:
        """Of one relation: signs swapped for whole answers at random, times the number of
        relations (Bonferroni)."""
        pairs = zip(self.after[name], self.before[name], strict=True)
        change = [float((a == self.wanted) - (b == self.wanted)) for a, b in pairs]
        groups = [conflict.fact.answer for conflict in self.conflicts[name]]
        means = per_group(torch.tensor(change, dtype=torch.double), groups)
        p = max_statistic_pvalues(means[None, None], rng(self.seed, "moved", name, "p"))
        return min(1.0, float(p) * len(self.conflicts))

    def outcomes(self, smallest: float) -> dict[str, str]:
        """Each relation's own outcome: moves, does not move (an effect as large as the smallest of
        interest is excluded), or unclear."""
        found = {}
        for name, gain in self.gains().items():
            moves = gain.value > 0 and self.pvalue(name) < 0.05
            absent = "does not move" if gain.high < smallest else "unclear"
            found[name] = "moves" if moves else absent
        return found

    def table(self, smallest: float) -> pd.DataFrame:
        """One relation a row."""
        rows = {}
        for name, gain in self.gains().items():
            interval = f"{gain.value:+.0%} [{gain.low:+.0%}, {gain.high:+.0%}]"
            row = {"known": gain.n, "gain": interval, "p": f"{self.pvalue(name):.3f}"}
            rows[name] = row | {"outcome": self.outcomes(smallest)[name]}
        return pd.DataFrame(rows).T

    def numbers(self, smallest: float) -> dict[str, Any]:
        """What claim 3.9 is measured by; its value is None where no fact is known."""
        names, outcomes = [*self.conflicts], self.outcomes(smallest)
        labels = {
            when: [x for n in names for x in of[n]]
            for when, of in (("before", self.before), ("after", self.after))
        }
        known = {f"known_{n.replace(' ', '_')}": len(self.conflicts[n]) for n in names}
        numbers = {"value": self._gain(*names), "moved": [*outcomes.values()].count("moves")}
        return numbers | known | answers.shares_of(self.wanted, **labels)
