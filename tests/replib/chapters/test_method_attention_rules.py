"""The rules of the page on attention can say yes and no, at its own sample sizes."""

import pytest
import torch
from worlds import EXPECTED, cases, missing, outcome

from replib import metrics
from replib.chapters.method import attention
from replib.metrics import rng
from replib.prompts.vocabulary import word_tokenizer

PAGE = "method-attention"
N_SEQUENCES, N_NAMES, N_DRAWS = 96, 120, 100
SHAPE = (3, 4)  # layers, heads
HEAD = (1, 2)


def looking(kind: str, share: float):
    """Sequences in which HEAD gives the right places a share of its attention that differs from one
    sequence to the next as much as it may; all else is spread at random."""
    names = attention.repeated_names(word_tokenizer(), N_SEQUENCES, 0)
    choose, tell = names.halves()
    n = names.tokens.shape[1]
    noise = torch.from_numpy(rng(0, kind).exponential(size=(N_SEQUENCES, *SHAPE, n, n)))
    pattern = noise.tril()
    pattern = pattern / pattern.sum(-1, keepdim=True)
    every = getattr(names, kind)(torch.arange(N_SEQUENCES))
    given = torch.from_numpy(rng(1, kind).binomial(1, share, N_SEQUENCES)).double()
    at = given[every.seq]
    pattern[every.seq, *HEAD, every.dest] *= (1 - at)[:, None]
    pattern[every.seq, *HEAD, every.dest, every.src] += at
    score = attention.attention_to(pattern, getattr(names, kind)(choose)).mean(0)
    head = metrics.top_heads(score, 1)[0]
    looks = getattr(names, kind)(tell)
    return attention.look_and_chance(pattern, looks, head, rng(0, "look"), N_DRAWS)


def found(share: float = 0.5):
    return attention.above_null(**looking("after_same", share))


def match(mean: float):
    values = torch.from_numpy(rng(0, "match").normal(mean, 2, N_SEQUENCES // 2))
    return metrics.bootstrap(values, range(len(values)), rng(1))


def own(strength: float):
    """The share of names whose own entry comes first in a circuit, if that is as much larger."""
    noise = torch.from_numpy(rng(0, "circuit").normal(size=(N_NAMES, N_NAMES)))
    circuit = noise + strength * torch.eye(N_NAMES)
    return metrics.proportion(attention.own_first(circuit))


NO_FLOOR = "a head that looks nowhere in particular is the wrong world: nothing else is needed"
NO_CEILING = "1 is what is looked for"
WORLDS = {
    "M7.1": {
        "right": lambda: looking("after_same", 0.5),
        "wrong": lambda: looking("after_same", 0.0),
        "floor": NO_FLOOR,
        "ceiling": NO_CEILING,
    },
    "M7.2": {
        "right": lambda: {**looking("just_before", 0.8), "above_null": found(), "match": match(3)},
        "wrong": lambda: {**looking("just_before", 0.0), "above_null": found(), "match": match(3)},
        "floor": lambda: {**looking("just_before", 0.8), "above_null": found(), "match": match(0)},
        "ceiling": NO_CEILING,
    },
    "M7.3": {
        "right": lambda: {"value": own(5), "above_null": found(), "match": match(3)},
        "wrong": lambda: {"value": own(0), "above_null": found(), "match": match(3)},
        "floor": lambda: {"value": own(5), "above_null": found(0), "match": match(3)},
        "ceiling": NO_CEILING,
    },
    "M7.4": {
        "right": lambda: {"value": own(5), "above_null": found()},
        "wrong": lambda: {"value": own(0), "above_null": found()},
        "floor": lambda: {"value": own(5), "above_null": found(0)},
        "ceiling": NO_CEILING,
    },
}


@pytest.mark.parametrize(("claim", "world"), cases(WORLDS))
def test_a_rule_says_yes_and_no(claim, world):
    assert outcome(PAGE, WORLDS, claim, world) == EXPECTED[world]


def test_every_claim_has_its_worlds():
    assert missing(PAGE, WORLDS) == []
