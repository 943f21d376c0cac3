"""What is measured of a network on given sequences (names after Reddy 2312.03002, Fig. 4; the exact
formulas are ours)."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replib.chapters.abrupt_induction.law import Law
from replib.chapters.abrupt_induction.network import Seen, TwoLayers
from replib.chapters.abrupt_induction.sequences import Directions, Sequences, draw

_TEST_SEED = 10**6  # no training has it


def tests_of(law: Law, directions: Directions, n: int) -> dict[str, Sequences]:
    """The sequences on which a network is tested, always the same: `ic` of fresh classes; where a
    law has known classes also `ic2`, with swapped labels, and `iw`, without burstiness.

    Without burstiness in training (the author's B = 0) ic and ic2 have each class once.
    """
    generator = torch.Generator().manual_seed(_TEST_SEED)
    bursty = replace(law, bursty=1.0, fresh=1.0)
    found = {"ic": draw(bursty, directions, n, generator)}
    if law.fresh < 1:
        known = replace(law, bursty=1.0, fresh=0.0)
        found["ic2"] = draw(known, directions, n, generator, swapped=True)
        found["iw"] = draw(replace(known, bursty=0.0), directions, n, generator)
    return found


def is_right(seen: Seen, sequences: Sequences) -> Bool[Tensor, " row"]:
    """Is the most probable label the answer?"""
    return seen.logits.argmax(-1) == sequences.answer


def in_context(seen: Seen, labels: Int[Tensor, "row pair"]) -> Bool[Tensor, " row"]:
    """Is the most probable label one of these?"""
    return (seen.logits.argmax(-1)[:, None] == labels).any(1)


def head_of(seen: Seen, sequences: Sequences) -> dict[str, Float[Tensor, " row"]]:
    """ILA1, TILA2 and TLA2 of each sequence. Labels stand at the odd tokens, counted from 0. TILA2
    is summed over the labels of the query's class."""
    label = torch.arange(1, sequences.tokens.shape[1], 2)
    to_labels = seen.second[:, label]  # row pair
    return {
        "ila1": seen.first[:, label, label - 1].mean(1),
        "tila2": (to_labels * sequences.matches).sum(1),
        "tla2": to_labels.sum(1),
    }


@torch.no_grad()
def measured(network: TwoLayers, tests: dict[str, Sequences]) -> dict[str, float]:
    """All measures, as means over sequences: `ic`, `cla` (the answer is a label of the context),
    `shuffled` (of another sequence's context), `ila1`, `tila2`, `tla2`, and `ic2` and `iw` where
    there are tests of them."""
    seen = network.run(tests["ic"].tokens)
    labels = tests["ic"].labels
    found = {
        "ic": is_right(seen, tests["ic"]),
        "cla": in_context(seen, labels),
        "shuffled": in_context(seen, labels.roll(1, 0)),
        **head_of(seen, tests["ic"]),
    }
    for name in tests.keys() - {"ic"}:
        found[name] = is_right(network.run(tests[name].tokens), tests[name])
    return {name: found[name].double().mean().item() for name in sorted(found)}


@torch.no_grad()
def answers(
    network: TwoLayers, law: Law, directions: Directions, n: int
) -> dict[str, Bool[Tensor, " row"]]:
    """Which answers are right, on `n` sequences of each test of a law."""
    tests = tests_of(law, directions, n)
    return {name: is_right(network.run(some.tokens), some) for name, some in tests.items()}


def chance(law: Law) -> dict[str, float]:
    """What blind attention and guessing give: attention shared evenly by all tokens up to the one
    that looks, and a label drawn from all."""
    n = law.n_pairs
    return {
        "ic": 1 / law.n_labels,
        "cla": (n // law.burst) / law.n_labels,
        "ila1": sum(1 / (2 * i + 2) for i in range(n)) / n,
        "tila2": law.burst / law.n_tokens,
        "tla2": n / law.n_tokens,
    }
