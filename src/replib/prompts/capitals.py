"""Capitals of countries."""

import random
from collections import Counter

from transformers import PreTrainedTokenizerBase

from replib.errors import UsageError
from replib.prompts.pairs import Pair, PromptPairs, assemble, draw_pairs, fill_template
from replib.prompts.tokens import check_tokenizer, continuation_ids, readable_words
from replib.prompts.words import CAPITAL_TEMPLATES, CAPITALS


def capital_pairs(tokenizer: PreTrainedTokenizerBase, n_prompts: int, seed: int = 0) -> PromptPairs:
    """World capitals: "The capital of France is the city of" is answered by " Paris".

    The template of Merullo et al. (2310.08744, App. H) is not public; these are our own.
    Corrupted: another country with as many tokens. Answer and foil: the first token of the two
    capitals. A country is dropped if its capital's first token is that of an earlier one, or if no
    other country has as many tokens.

    Positions, each [prompt]: "country" (its last token), "END".

    UsageError if fewer than n_prompts prompts can be made.
    """
    task = "capitals"
    check_tokenizer(tokenizer, task, n_prompts)
    first: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for country, capital in CAPITALS.items():
        added = continuation_ids(tokenizer, "the city of", f" {capital}")
        size = len(continuation_ids(tokenizer, "the capital of", f" {country}"))
        known = tokenizer.unk_token_id not in added and readable_words(tokenizer, f" of {country}")
        if added and size and known and added[0] not in first.values():
            first[country], sizes[country] = added[0], size
    counts = Counter(sizes.values())
    countries = [country for country in first if counts[sizes[country]] > 1]
    probe = countries[0] if countries else "France"
    templates = [t for t in CAPITAL_TEMPLATES if readable_words(tokenizer, t.format(country=probe))]
    everything = [(template, country) for country in countries for template in templates]
    if n_prompts > len(everything):
        raise UsageError(
            f"{task}: {len(countries)} countries in {len(templates)} templates give "
            f"{len(everything)} prompts in this tokenizer, {n_prompts} were asked for"
        )
    rng = random.Random(seed)
    rng.shuffle(everything)

    def draw(i: int) -> Pair:
        template, country = everything[i]
        size = sizes[country]
        other = rng.choice([c for c in countries if sizes[c] == size and c != country])
        clean, at = fill_template(template, {"country": country})
        corrupted, _ = fill_template(template, {"country": other})
        group = f"capitals-{CAPITAL_TEMPLATES.index(template)}"
        return Pair(clean, corrupted, first[country], first[other], at, group)

    dropped = {
        "countries": len(CAPITALS) - len(countries),
        "templates": len(CAPITAL_TEMPLATES) - len(templates),
    }
    return assemble(tokenizer, task, draw_pairs(task, n_prompts, draw), dropped)
