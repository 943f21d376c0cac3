"""Greater-than."""

import random
import string

from transformers import PreTrainedTokenizerBase

from replib.errors import UsageError
from replib.prompts.pairs import Pair, PromptPairs, assemble, draw_pairs, fill_template
from replib.prompts.tokens import (
    check_tokenizer,
    continuation_ids,
    need,
    single_token,
    single_tokens,
)
from replib.prompts.words import CENTURIES, GREATER_THAN_TEMPLATE, NOUNS


def greater_than_pairs(
    tokenizer: PreTrainedTokenizerBase, n_prompts: int, seed: int = 0
) -> PromptPairs:
    """Greater-Than as pairs (Hanna et al. 2305.00586): "The war lasted from the year 1732 to the
    year 17" must go on with a later year.

    Answer: a continuation later than the start year; foil: an earlier one. Tokenizers with single
    digits are asked for the tens digit only: after 1732 the answer is one of 4..9 and the foil one
    of 0..2 (a 3 could be either). Tokenizers that read a year as two pairs of digits are asked for
    a pair (answer 33..99, foil 02..31, as in the paper). Corrupted: the start year ends in 01, so
    that both continuations are possible and the prompt no longer tells them apart; the logit
    difference of the corrupted prompt is then the model's habit, not the opposite answer.
    Answers are larger than foils, so a model that likes large digits is right without reading the
    start year: compare clean with corrupted before crediting it.

    Positions: "YY" [prompt, 2 or 1] (the last two digits of the start year), "END" [prompt].

    UsageError if the tokenizer reads years in any other way.
    """
    task = "greater_than"
    check_tokenizer(tokenizer, task, n_prompts)
    nouns = list(single_tokens(tokenizer, NOUNS))
    need(task, nouns=(nouns, 1))

    def prompt(noun: str, century: str, start: str) -> tuple[str, dict[str, int]]:
        words = {"noun": noun, "century": century, "start": start}
        return fill_template(GREATER_THAN_TEMPLATE, words)

    two_digits = [f"{number:02d}" for number in range(100)]
    probe, _ = prompt(nouns[0], "17", "32")
    added = [len(continuation_ids(tokenizer, probe, digits)) for digits in two_digits]
    if added.count(1) > 50:
        size, ways, starts = 1, two_digits, two_digits[3:99]
    elif set(added) == {2} and all(single_token(tokenizer, d, probe) for d in string.digits):
        size, ways, starts = 2, list(string.digits), two_digits[10:90]
    else:
        raise UsageError(
            f"{task}: needs a tokenizer that splits a year into digits or into two pairs of "
            f"digits; this one reads ' 1745' as {tokenizer.tokenize(' 1745')}"
        )
    token = {digits: single_token(tokenizer, digits, probe) for digits in ways}

    def aligned(century: str, year: str) -> bool:
        """Does `year`, two digits, follow `century` in tokens of its own?"""
        tail = [token[year]] if size == 1 else [token[digit] for digit in year]
        text, _ = prompt(nouns[0], century, "01")
        return continuation_ids(tokenizer, text, year) == tail

    # Per century: the two-digit years that are tokens of their own. 01 is the corrupted one.
    known = {c: [year for year in two_digits if aligned(c, year)] for c in CENTURIES}
    centuries = [c for c in CENTURIES if {"01", "02", "99"} <= set(known[c])]
    years = [(c, start) for c in centuries for start in starts if start in known[c]]
    if not years:
        raise UsageError(f"{task}: no year splits into its century and its last two digits")
    rng = random.Random(seed)

    def draw(i: int) -> Pair:
        noun = nouns[i % len(nouns)]
        century, start = rng.choice(years)
        clean, at = prompt(noun, century, start)
        corrupted, _ = prompt(noun, century, "01")
        ends = ways if size == 2 else [year for year in known[century] if year > "01"]
        split = start[:1] if size == 2 else start
        answer = rng.choice([end for end in ends if end > split])
        foil = rng.choice([end for end in ends if end < split])
        marks = {"YY": [at["start"]] if size == 1 else [at["start"] - 1, at["start"]]}
        return Pair(clean, corrupted, token[answer], token[foil], marks, f"greater-than-{noun}")

    dropped = {"nouns": len(NOUNS) - len(nouns), "years": len(CENTURIES) * len(starts) - len(years)}
    return assemble(tokenizer, task, draw_pairs(task, n_prompts, draw), dropped)
