"""Do frequent names win? A regression of outcomes on how often names occur in English.

Yu et al. (2310.15910, Sec. 5) count names in the Pile; here the frequency of a name is that of
general English (`facts.zipf`).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from replib.chapters.factual_recall.facts import Conflict, Fact, readable, zipf
from replib.chapters.factual_recall.regression import logistic, standardised
from replib.metrics import Estimate


def most_frequent(
    tokenizer: PreTrainedTokenizerBase, some: Sequence[Fact], n: int, at_least: int = 0
) -> list[Fact]:
    """The n facts that the tokenizer can write (`facts.readable`) whose subjects are most frequent
    in English. UsageError if it can write fewer than `at_least`."""
    written = readable(tokenizer, some, at_least)
    return sorted(written, key=lambda fact: -zipf(fact.subject))[:n]


def decided(
    conflicts: Sequence[Conflict], labels: Sequence[str]
) -> tuple[list[Conflict], list[bool]]:
    """The conflicts that memory or the context won, and whether it was memory."""
    both = [(c, label) for c, label in zip(conflicts, labels, strict=True) if label != "other"]
    return [c for c, _ in both], [label == "memorised" for _, label in both]


def columns(
    tokenizer: PreTrainedTokenizerBase, conflicts: Sequence[Conflict]
) -> dict[str, list[float]]:
    """For each conflict: log10 frequency of its country and of the stated city, and how many tokens
    each of the two has."""

    def n_tokens(name: str) -> float:
        return float(len(tokenizer(f"the {name}").input_ids))

    countries, cities = [c.fact.subject for c in conflicts], [c.foil for c in conflicts]
    return {
        "country": [zipf(name) for name in countries],
        "in-context\ncity": [zipf(name) for name in cities],
        "tokens,\ncountry": [n_tokens(name) for name in countries],
        "tokens,\ncity": [n_tokens(name) for name in cities],
    }


def effects(
    columns: Mapping[str, Sequence[float]],
    won: Sequence[bool],
    conflicts: Sequence[Conflict],
) -> dict[str, Estimate]:
    """Log odds that memory wins, for one standard deviation more of each column, the others held
    fixed. Errors are clustered by country and by city (`regression.logistic`). NaN where memory
    wins always or never."""
    y = np.array(won, dtype=bool)
    if y.all() or not y.any():
        return dict.fromkeys(columns, Estimate(np.nan, np.nan, np.nan, len(y)))
    x = standardised(np.array([*columns.values()], dtype=float).T)
    fit = logistic(x, y, [[c.fact.subject for c in conflicts], [c.foil for c in conflicts]])
    return {name: fit.effect(term) for term, name in enumerate(columns)}


def counts(conflicts: Sequence[Conflict], won: Sequence[bool]) -> dict[str, int]:
    """How many countries there are, and answers of either kind."""
    n = {"memorised_n": sum(won), "in_context_n": len(won) - sum(won)}
    return n | {"countries": len({c.fact.subject for c in conflicts})}
