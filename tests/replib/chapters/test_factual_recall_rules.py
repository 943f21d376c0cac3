"""Every rule of the chapter can say yes and no: simulated answers and effects, as many as
smollm2-135m gives, through the chapter's own statistics."""

from functools import partial

import numpy as np
import pytest
import torch
from worlds import EXPECTED, cases, missing, outcome

from replib.chapters.factual_recall import answers, elsewhere, every_head, frequency, scaling
from replib.chapters.factual_recall.attribution import Halves
from replib.chapters.factual_recall.facts import Conflict, Fact
from replib.metrics import rng

PAPER = "factual-recall"
M, C, N = "memorised", "in-context", "other"
LAYERS, HEADS, HEAD = 30, 9, (23, 4)
COUNTRIES = 46  # known in the report split; two cities each
GROUPS = [str(i // 2) for i in range(2 * COUNTRIES)]
KNOWN = {"known": COUNTRIES, "known_selection": 36}
FEW = {"known": COUNTRIES, "known_selection": 12}
FOUND = {"memory_found": 1, "in_context_found": 1}
NOT_FOUND = KNOWN | {"memory_found": 0, "in_context_found": 1}


def said(wanted, n, *shares):
    """Labels of the same n prompts under several edits, with these shares of the wanted outcome: a
    prompt that is turned by a weak edit is turned by a strong one."""
    u = rng(0, wanted, n).random(n)
    other = {C: M, M: C}[wanted]
    return [[wanted if x < share else other if x < 0.9 else N for x in u] for share in shares]


def overwritten(memorised, in_context, known=25):
    u = rng(0, "3.1").random(4 * known)
    labels = [M if x < memorised else C if x < memorised + in_context else N for x in u]
    shares = answers.shares(labels, [str(i // 4) for i in range(4 * known)])
    return answers.overwritten(shares, known)


def frequent(country, city, memorised=0.0, in_context=0.0, n=220):
    """Answers drawn with log odds that depend on two standard normal frequencies."""
    g = rng(0, "3.3")
    of_country, cities = np.repeat(g.normal(size=n // 4), 4), g.normal(size=n // 4)
    at = g.integers(n // 4, size=n)
    of_city = cities[at]
    odds = np.stack([memorised + country * of_country, in_context + city * of_city, 0 * of_city])
    share = np.exp(odds) / np.exp(odds).sum(0)
    labels = [(M, C, N)[g.choice(3, p=share[:, i])] for i in range(n)]
    conflicts = [Conflict(Fact("capital", str(i // 4), "x"), str(at[i])) for i in range(n)]
    columns = {"country": of_country.tolist(), "city": of_city.tolist()}
    columns |= {"tokens, country": [float(i % 3) for i in range(n)]}
    effects = frequency.both_effects(columns, labels, conflicts)
    return frequency.numbers(effects, conflicts, labels, 0.4)


def attributed(size, known=36, countries=15):
    g = rng(0, "3.4")
    effect = []
    for _ in "AB":
        a = torch.from_numpy(g.normal(0, 0.1, (LAYERS, HEADS, countries)))
        a[23, 4] -= size * torch.from_numpy(g.normal(1, 0.3, countries))
        a[23, 0] += size * torch.from_numpy(g.normal(1, 0.3, countries))
        effect.append(a)
    return {**Halves.compare(effect, 0).numbers(), "known": known, "null": {"draws": 1000}}


def scaled(wanted, share_before, share_after, gates=KNOWN):
    """What 3.5 and 3.6 are measured by."""
    before, after = said(wanted, len(GROUPS), share_before, share_after)
    g, change = rng(0, "3.5"), share_after - share_before
    moved = torch.from_numpy(g.normal(0, 0.5, (LAYERS, HEADS, COUNTRIES)))
    moved[HEAD] += 5 * change
    pairs = zip(after, before, strict=True)
    chosen = torch.tensor([float((a == wanted) - (b == wanted)) for a, b in pairs]).double()
    random = torch.from_numpy(g.choice([-1.0, 0, 1], (10, len(GROUPS)), p=[0.02, 0.96, 0.02]))
    gains = scaling.Gains((HEAD, 0.0), chosen, random, (False,) * 10)
    return {
        "value": answers.gain(after, before, wanted, GROUPS, rng(0)),
        "null": gains.null(),
        "p": every_head.pvalue(moved, HEAD, 0),
        **gains.numbers(GROUPS, 0),
        **answers.before_and_after(before, after, wanted),
        **gates,
    }


def compared(share_before, less, more, name, gates=KNOWN | FOUND):
    """What 3.7 and 3.8 are measured by: `more` over `less`."""
    before, under, over = said(C, len(GROUPS), share_before, less, more)
    value = answers.gain(over, under, C, GROUPS, rng(0))
    return {"value": value, **answers.shares_of(C, before=before, **{name: under}), **gates}


def transferred(share_before, share_after, sizes=(40, 60, 80), **gates):
    n_answers = {"official language": 8, "currency": 20, "chemical symbol": 80}
    conflicts, before, after = {}, {}, {}
    for (name, n), size in zip(n_answers.items(), sizes, strict=True):
        conflicts[name] = [Conflict(Fact(name, str(i), str(i % n)), "x") for i in range(size)]
        before[name], after[name] = said(C, size, share_before, share_after)
    moved = elsewhere.Moved(conflicts, {"no edit": before, "scaled": after}, C, 0)
    return moved.numbers(0.05) | {"capitals_low": 0.2, "known_selection": 36} | gates


def attribution_finds(gain, cause=0.4, share_before=0.3, gates=KNOWN):
    before, after, by_cause = said(C, len(GROUPS), share_before, share_before + gain, 0.3 + cause)
    return {
        "value": answers.gain(after, before, C, GROUPS, rng(0)),
        "cause": answers.gain(by_cause, before, C, GROUPS, rng(0)),
        "before": answers.share(before, C),
        **gates,
    }


WORLDS = {
    "3.1": {
        "right": partial(overwritten, 0.43, 0.26),
        "wrong": partial(overwritten, 0.95, 0.0),
        "floor": partial(overwritten, 0.4, 0.3, known=12),
        "ceiling": "none: that one answer is always given is what the claim denies",
    },
    "3.3": {
        "right": partial(frequent, 2.0, -2.0),
        "wrong": partial(frequent, 2.0, 0.0, in_context=0.5),
        "floor": partial(frequent, 1.0, 1.0, memorised=-6.0),
        "ceiling": partial(frequent, 1.0, 1.0, memorised=6.0),
    },
    "3.4": {
        "right": partial(attributed, 1.5),
        "wrong": partial(attributed, 0.0),
        "floor": partial(attributed, 1.5, known=12),
        "ceiling": "none: a head can be arbitrarily strong",
    },
    "3.5": {
        "right": partial(scaled, C, 0.3, 0.7),
        "wrong": partial(scaled, C, 0.3, 0.35),
        "floor": partial(scaled, C, 0.3, 0.7, FEW),
        "ceiling": partial(scaled, C, 0.95, 1.0),
    },
    "3.6": {
        "right": partial(scaled, M, 0.35, 0.7),
        "wrong": partial(scaled, M, 0.35, 0.35),
        "floor": partial(scaled, M, 0.35, 0.7, FEW),
        "ceiling": partial(scaled, M, 0.97, 1.0),
    },
    "3.7": {
        "right": partial(compared, 0.3, 0.45, 0.75, "in_context"),
        "wrong": partial(compared, 0.3, 0.6, 0.6, "in_context"),
        "floor": partial(
            compared, 0.3, 0.4, 0.7, "in_context", KNOWN | {**FOUND, "memory_found": 0}
        ),
        "ceiling": partial(compared, 0.9, 0.92, 0.95, "in_context"),
    },
    "3.8": {
        "right": partial(compared, 0.3, 0.6, 0.85, "better_alone"),
        "wrong": partial(compared, 0.3, 0.6, 0.6, "better_alone"),
        "floor": partial(compared, 0.3, 0.6, 0.8, "better_alone", FEW | FOUND),
        "ceiling": partial(compared, 0.3, 0.99, 1.0, "better_alone"),
    },
    "3.9": {
        "right": partial(transferred, 0.3, 0.6),
        "wrong": partial(transferred, 0.3, 0.3),
        "floor": partial(transferred, 0.3, 0.6, sizes=(5, 5, 5)),
        "ceiling": partial(transferred, 0.96, 1.0),
    },
    "3.10": {
        "right": partial(attribution_finds, 0.4),
        "wrong": partial(attribution_finds, 0.02),
        "floor": partial(attribution_finds, 0.0, cause=0.05),
        "ceiling": partial(attribution_finds, 0.04, share_before=0.95),
    },
}


@pytest.mark.parametrize(("claim", "world"), cases(WORLDS))
def test_a_rule_says_what_the_world_is(claim, world):
    assert outcome(PAPER, WORLDS, claim, world) == EXPECTED[world]


def test_every_claim_has_its_worlds():
    assert missing(PAPER, WORLDS) == []


def test_a_relation_that_moves_alone_is_enough_and_no_relation_is_not():
    """One outcome a relation: the gain over all may be above 0 without any of them moving."""
    right, wrong = (WORLDS["3.9"][world]() for world in ("right", "wrong"))
    assert right["moved"] >= 1 and wrong["moved"] == 0
