"""Each rule of the chapter says holds, fails or not testable in a world that is so, at its own
sample sizes: five seeds, strings of 5 to 120 letters, curves with a point every 1,600 examples."""

import numpy as np
import pytest
import worlds

from replib.chapters.copying_mamba import decided
from replib.chapters.copying_mamba.lengths import LENGTHS, ByLength
from replib.chapters.copying_mamba.state_bits import BITS
from replib.chapters.copying_mamba.survival import arrivals
from replib.chapters.copying_mamba.training_grid import BATCH, EVERY
from replib.metrics import rng

PAPER, POINT = "copying-mamba", BATCH * EVERY


def falling(middle, lengths, n=5, top=0.985, spread=0.02, label=""):
    """Accuracy of seeds that is high up to about `middle` and then falls."""
    draw = rng(1, "falling", middle, label)
    at = middle * np.exp(draw.normal(0, 0.05, (n, 1)))
    lengths = np.array(lengths, float)
    shape = 1 / (1 + np.exp(np.minimum(50, 4 * (lengths - at) / np.maximum(at, 1) * 2)))
    return np.clip(top * shape + draw.normal(0, spread, (n, len(lengths))), 0, 1)


def study(name, **middles):
    """A study in which each architecture copies up to so many letters, or an array as it is."""
    lengths = LENGTHS[name]
    rows = {
        key.replace("_", "-"): m if isinstance(m, np.ndarray) else falling(m, lengths, label=key)
        for key, m in middles.items()
    }
    return ByLength(name, lengths, rows, rows)


def curves(points, budget):
    """Curves of seeds that can copy from these points on; None: never within the budget."""
    some = []
    for first in points:
        at = range(1, (first or budget) + 1)
        some.append(
            {"examples": [p * POINT for p in at], "string": [float(p == first) for p in at]}
        )
    return arrivals(some)


def efficiency(transformer, ssm, budget=120):
    return decided.efficiency(curves(transformer, 60), curves(ssm, budget), budget * POINT)


def states(slope, full=20.0, start=2.0):
    draw = rng(1, "states", slope, full)
    bound = np.array(BITS) / np.log2(26)
    rise = start + slope * np.arange(len(BITS)) + draw.normal(0, 0.3, (5, len(BITS)))
    return decided.state_bits(BITS, np.clip(rise, 0, bound), np.full(5, full))


RUNS = tuple(range(1, 8))


def runs(shape, n=5):
    draw = rng(1, "runs", *shape)
    right = np.clip(np.array(shape) + draw.normal(0, 0.03, (n, 7)), 0, 1)
    return decided.ngram_lookup(RUNS, right, np.full((5, 7), 0.97))


LOOKUP = (0.97, 0.96, 0.93, 0.4, 0.28, 0.26, 0.25)


def suffix(ssm, transformer=90):
    return decided.suffix_lookup(study("suffix", hard_alibi=transformer, mamba2=ssm))


def prefix_and_suffix(before, after):
    """(Transformer, Mamba-2) in each of the two lookups."""
    first, second = (
        study(name, hard_alibi=both[0], mamba2=both[1], nope=40)
        for name, both in (("prefix", before), ("suffix", after))
    )
    return decided.prefix_and_suffix(first, second)


def phone(transformer, ssm, hybrid):
    def rows(share):
        draw = rng(1, "phone", share)
        return np.clip(share + draw.normal(0, 0.03, (5, 4)), 0, 1)

    return decided.hybrid(
        study("phone", hard_alibi=rows(transformer), mamba2=rows(ssm), hybrid=rows(hybrid))
    )


def copied(**middles):
    return study("copy", **middles)


WORLDS = {
    "5.1": {
        "right": lambda: states(2.0),
        "wrong": lambda: states(0.1),  # more bits change next to nothing
        "floor": lambda: states(0.2, full=4.0),
        "ceiling": "with the whole state L50 is what the bits allow: the right world",
    },
    "5.2": {
        "right": lambda: efficiency((12, 14, 15, 16, 20), (90, 100, None, None, None)),
        "wrong": lambda: efficiency((12, 14, 15, 16, 20), (11, 13, 16, 18, 21)),
        "floor": lambda: efficiency((50, None, None, None, None), (None,) * 5),
        "ceiling": lambda: efficiency((1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
    },
    "5.3": {
        "right": lambda: decided.lstm(copied(mamba2=24, lstm=9), "mamba2"),
        "wrong": lambda: decided.lstm(copied(mamba2=24, lstm=24.5), "mamba2"),
        "floor": lambda: decided.lstm(copied(mamba2=8, lstm=5), "mamba2"),
        "ceiling": lambda: decided.lstm(copied(mamba2=500, lstm=500), "mamba2"),
    },
    "5.4": {
        "right": lambda: decided.generalisation(
            copied(hard_alibi=100, rope=40, mamba2=24), "rope", "mamba2"
        ),
        "wrong": lambda: decided.generalisation(
            copied(hard_alibi=28, rope=27, mamba2=60), "rope", "mamba2"
        ),
        "floor": lambda: decided.generalisation(
            copied(hard_alibi=9, rope=9, mamba2=9), "rope", "mamba2"
        ),
        "ceiling": lambda: decided.generalisation(
            copied(hard_alibi=900, rope=900, mamba2=900), "rope", "mamba2"
        ),
    },
    "5.5": {
        "right": lambda: runs(LOOKUP),
        "wrong": lambda: runs((0.97,) * 7),
        "floor": lambda: runs((0.3, 0.28, 0.27, 0.26, 0.25, 0.25, 0.25)),
        "ceiling": "a network that is right after every run does not look up: the wrong world",
    },
    "5.6": {
        "right": lambda: suffix(40),
        "wrong": lambda: suffix(90),
        "floor": lambda: suffix(12, 12),
        "ceiling": "a network that is right at every length keeps all: that is the wrong world",
    },
    "5.7": {
        "right": lambda: prefix_and_suffix((90, 90), (90, 40)),
        "wrong": lambda: prefix_and_suffix((90, 90), (90, 90)),
        "floor": lambda: prefix_and_suffix((20, 20), (20, 20)),
        "ceiling": "where all are right there is no lead in either: that is the wrong world",
    },
    "5.13": {
        "right": lambda: phone(0.8, 0.4, 0.8),
        "wrong": lambda: phone(0.8, 0.4, 0.42),
        "floor": lambda: phone(0.05, 0.04, 0.05),
        "ceiling": lambda: phone(0.98, 0.98, 0.98),
    },
}


@pytest.mark.parametrize(("claim", "world"), worlds.cases(WORLDS))
def test_a_rule_says_what_is_so(claim, world):
    assert worlds.outcome(PAPER, WORLDS, claim, world) == worlds.EXPECTED[world]


def test_every_claim_has_its_worlds():
    assert worlds.missing(PAPER, WORLDS) == []
