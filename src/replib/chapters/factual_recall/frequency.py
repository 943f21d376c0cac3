"""Do frequent names win? A regression of outcomes on how often names occur in English.

Yu et al. (2310.15910, Sec. 5) count names in the Pile; here the frequency of a name is that of
general English (`facts.zipf`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

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


# Names of countries and capitals that are common words, or names of people and other places too.
AMBIGUOUS = {
    *("Turkey", "Jordan", "Georgia", "Chad", "Guinea", "Jersey", "Male", "Victoria", "Hamilton"),
    *("Kingston", "Georgetown", "Plymouth", "Stanley", "Douglas", "Sofia", "Santiago"),
}


def of_one_word(
    conflicts: Sequence[Conflict], labels: Sequence[str]
) -> tuple[list[Conflict], list[str]]:
    """The conflicts whose subject and stated answer are single words and not `AMBIGUOUS`, and their
    labels: of several words the package only guesses the frequency from the parts."""

    def is_one(name: str) -> bool:
        return name.isalpha() and name not in AMBIGUOUS

    both = zip(conflicts, labels, strict=True)
    some = [(c, label) for c, label in both if is_one(c.fact.subject) and is_one(c.foil)]
    return [c for c, _ in some], [label for _, label in some]


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
    is_so: Sequence[bool],
    conflicts: Sequence[Conflict],
) -> dict[str, Estimate]:
    """Log odds that the outcome is so, for one standard deviation more of each column, the others
    held fixed. Errors are clustered by country and by city (`regression.logistic`). NaN where it is
    always or never so."""
    y = np.array(is_so, dtype=bool)
    if y.all() or not y.any():
        return dict.fromkeys(columns, Estimate(np.nan, np.nan, np.nan, len(y)))
    x = standardised(np.array([*columns.values()], dtype=float).T)
    fit = logistic(x, y, [[c.fact.subject for c in conflicts], [c.foil for c in conflicts]])
    return {name: fit.effect(term) for term, name in enumerate(columns)}


def both_effects(
    columns: Mapping[str, Sequence[float]], labels: Sequence[str], conflicts: Sequence[Conflict]
) -> dict[str, Estimate]:
    """What claim 3.3 asks for: the country's effect on memorised answers and the city's on
    in-context ones, each against all other answers; without numbers of tokens, and with them."""
    found = {}
    for added, names in (("", [*columns][:2]), (",\nsame tokens", [*columns])):
        used = {name: columns[name] for name in names}
        for name, outcome in zip(names, ("memorised", "in-context"), strict=False):
            is_so = [label == outcome for label in labels]
            found[f"{name}{added}"] = effects(used, is_so, conflicts)[name]
    return found


def is_found(effect: Estimate, smallest: float) -> str:
    """One half of claim 3.3 by itself, as its rule decides it."""
    if not np.isfinite(effect.interval).all():
        return "not testable"
    if effect.low > 0 or effect.high < 0:
        return "found"
    return "absent" if max(effect.high, -effect.low) < smallest else "unclear"


def numbers(
    effects: Mapping[str, Estimate],
    conflicts: Sequence[Conflict],
    labels: Sequence[str],
    smallest: float,
) -> dict[str, Any]:
    """What claim 3.3 is measured by: the two effects of `both_effects` without numbers of tokens,
    how many countries there are and answers of either kind, and each half's own outcome (not
    testable with fewer than 15 answers of the kind)."""
    country, city, *_ = effects.values()
    n = [labels.count(outcome) for outcome in ("memorised", "in-context")]
    each = (
        is_found(effect, smallest) if count >= 15 else "not testable"
        for effect, count in zip((country, city), n, strict=True)
    )
    note = ", ".join(f"{name} {one}" for name, one in zip(("country", "city"), each, strict=True))
    counts = {"memorised_n": n[0], "in_context_n": n[1]}
    counts |= {"countries": len({conflict.fact.subject for conflict in conflicts})}
    return {"value": country, "city": city, "note": note, **counts}
