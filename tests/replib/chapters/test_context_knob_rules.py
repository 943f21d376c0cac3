"""Every rule of the chapter can say yes and no at the chapter's own sample sizes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from worlds import EXPECTED, cases, missing, outcome

from replib.chapters.context_knob import asking, choosing, exchange, knob
from replib.chapters.context_knob import layer_search as search
from replib.chapters.context_knob.choosing import Choices
from replib.chapters.context_knob.intents import Case
from replib.metrics import Null, rng

PAPER, N = "context-knob", 28  # cases of the test relation
OTHER = {"multi-hop": 20, "arithmetic": 12}  # cases of other kinds
SEEDS = range(3)


def some_cases(n, relation="official language", n_answers=16):
    return [Case(relation, f"S{i}", "", "", "", f"a{i % n_answers}", f"b{i}") for i in range(n)]


CASES = some_cases(N)
GROUPS = asking.groups_of(CASES)


def coin(p, label, *shape):
    return torch.from_numpy(rng(0, label).random(shape) < p)


def answers(context, prior, label, n=N):
    right = torch.stack([coin(context, f"{label} c", n), coin(prior, f"{label} p", n)])
    return asking.Answers(right, torch.zeros(1, 2, n, 1))


def behaviour(ft=(0.98, 0.92), zs=(0.95, 0.03), icl=0.4, n=N):
    """What the notebook measures for 4.1 and 4.2, of models with these accuracies."""
    tuned = [answers(*ft, f"ft {i}") for i in SEEDS]
    plain, shown = answers(*zs, "zs"), coin(icl, "icl", N).double()
    of_tuned = asking.over_seeds(tuned)
    gates = {"n": n, "adapters": 3, "zero_shot": plain.pair.mean()}
    first = {
        "value": asking.mean_of(of_tuned - plain.pair, GROUPS, rng(0, "4.1")),
        **gates,
        **asking.summary(tuned, GROUPS, 0),
    }
    second = {
        "value": asking.mean_of(shown - plain.pair, GROUPS, rng(0, "4.2")),
        **gates,
        "ft_icl": asking.mean_of(of_tuned - shown, GROUPS, rng(0, "4.2 ft")),
        "draws": 5,
    }
    return SimpleNamespace(first=first, second=second)


def other_contexts(reached=0.45, zs=0.02, inside=0.95):
    sets = {"sentence": CASES} | {kind: some_cases(n, kind, 10) for kind, n in OTHER.items()}
    before = {name: coin(zs, f"before {name}", len(s)).double() for name, s in sets.items()}
    after = {kind: coin(reached, f"after {kind}", n).double() for kind, n in OTHER.items()}
    after["sentence"] = coin(inside, "inside", N).double()
    gain, numbers = asking.outside(sets, before, after, 0)
    numbers |= {"n": sum(OTHER.values()), "adapters": 3}
    return {"value": gain.value, "interval": gain.interval, **numbers}


def transfer(there=0.9, back=0.4, zs=0.03):
    there, back, plain = (coin(p, f"4.4 {p}", N).double() for p in (there, back, zs))
    return {
        "value": asking.mean_of(there - plain, GROUPS, rng(0, "4.4")),
        "asymmetry": asking.mean_of(there - back, GROUPS, rng(0, "4.4 asymmetry")),
        "transfer": max(there.mean(), back.mean()),
        "zero_shot": plain.mean(),
        "n": N,
        "adapters": 3,
    }


def layers(window=0.75, found=0.7, pair_accuracy=0.85):
    noise = torch.from_numpy(rng(0, "p").uniform(0.9, 1.1, (2, N)))
    right = coin(0.85, "right", N).expand(2, -1).double()

    def p(value):
        return value * noise * right

    others = torch.stack([p(x) for x in (0.02, 0.05, 0.1, 0.15, 0.2)])
    one = search.Carried(right * 0.85, p(window), p(found), others, p(0.01))
    value, numbers = search.recovered([one] * 3, GROUPS, 0)
    names = ("intent: to memory", "intent: to the context", "memory: x", "context: x")
    intent, answer = Choices({(8, 9): 0.8, (8,): 0.2}), Choices({(12,): 1.0})
    choices = dict(zip(names, [intent, intent, answer, answer], strict=True))
    numbers |= search.of_searches([choices] * 3, [Choices({(8, 9, 10): 1.0})] * 3, 18)
    return {"value": value, "n": int(right[0].sum()), "pair_accuracy": pair_accuracy, **numbers}


def direction(learned=0.85, shuffled=0.4, pair_accuracy=0.85):
    right = coin(0.85, "right", N).expand(2, -1).double()
    random = coin(0.03, "random", 20, 2, N).double() * right
    p = dict(zip(exchange.WAYS, (learned, 0.6, 0.3, shuffled), strict=True))
    turned = [
        exchange.Turned(
            {way: coin(p[way], f"{way} {i}", 2, N).double() * right for way in p}, random, right
        )
        for i in SEEDS
    ]
    one = exchange.Learned(Choices({10: 1.0}), {10: torch.ones(2)}, torch.ones(2, 2))
    numbers = exchange.numbers(turned, [one] * 3, GROUPS, 0)
    value = exchange.turned_share(turned, "learned", GROUPS, 0)
    return {"value": value, "n": int(right[0].sum()), "pair_accuracy": pair_accuracy, **numbers}


def steering(steered=0.65, told=0.03, shots=0.15, pair_accuracy=0.85):
    pair = torch.stack([coin(steered, f"steered {i}", N).double() for i in SEEDS])
    others = torch.stack([coin(told, "told", N).double(), coin(shots, "shots", N).double()])
    null = Null(rng(0, "null").uniform(0, 0.2, 20))
    none = torch.zeros(1, N).double()
    return {
        "value": choosing.gain_over_best(pair, others, GROUPS, 0, "4.7"),
        "first_token": choosing.gain_over_best(pair, none, GROUPS, 0, "first"),
        "best_told": others.mean(1).max(),
        "pair_accuracy": pair_accuracy,
        "null": null.asdict() | {"max": null.draws.max()},
        "n": N,
    }


def separation(noise=0.05, low=0.0, high=0.95, n=12):
    pairs = torch.linspace(low, high, n).double()
    drawn = torch.from_numpy(rng(0, "apart").normal(size=(3, n)))
    apart = (pairs if noise < 1 else 0 * pairs) + noise * drawn
    by_chance = torch.from_numpy(rng(0, "chance").normal(size=(500, n)))
    value, numbers = knob.of_separation(apart, by_chance, pairs, 0)
    return {"value": value, "n": n, "pair_accuracy": 0.85, **numbers}


WORLDS = {
    "4.1": {
        "right": lambda: behaviour().first,
        "wrong": lambda: behaviour(ft=(0.95, 0.03)).first,
        "floor": lambda: behaviour(n=0).first,
        "ceiling": lambda: behaviour(zs=(0.97, 0.97)).first,
    },
    "4.2": {
        "right": lambda: behaviour(ft=(1.0, 1.0), icl=0.5).second,
        "wrong": lambda: behaviour(icl=0.02).second,
        "floor": lambda: behaviour(n=0).second,
        "ceiling": lambda: behaviour(zs=(0.97, 0.97)).second,
    },
    "4.3": {
        "right": other_contexts,
        "wrong": lambda: other_contexts(reached=0.02),
        "floor": lambda: other_contexts(reached=0.02, inside=0.1),
        "ceiling": lambda: other_contexts(zs=0.95, reached=0.95),
    },
    "4.4": {
        "right": transfer,
        "wrong": lambda: transfer(there=0.4, back=0.9),
        "floor": lambda: transfer(there=0.02, back=0.03),
        "ceiling": lambda: transfer(there=0.95, back=0.9, zs=0.94),
    },
    "4.5": {
        "right": layers,
        "wrong": lambda: layers(window=0.1, found=0.08),
        "floor": lambda: layers(pair_accuracy=0.2),
        "ceiling": "nothing recovers more than all layers, which is the measure",
    },
    "4.6": {
        "right": direction,
        "wrong": lambda: direction(learned=0.01, shuffled=0.01),
        "floor": lambda: direction(pair_accuracy=0.2),
        "ceiling": "all answers may turn: that is the claim",
    },
    "4.7": {
        "right": steering,
        "wrong": lambda: steering(steered=0.05, shots=0.4),
        "floor": lambda: steering(pair_accuracy=0.2),
        "ceiling": lambda: steering(told=0.97),
    },
    "4.8": {
        "right": separation,
        "wrong": lambda: separation(noise=1.0),
        "floor": lambda: separation(high=0.1),
        "ceiling": lambda: separation(low=0.9, high=1.0),
    },
}


@pytest.mark.parametrize(("claim", "world"), cases(WORLDS))
def test_each_world_has_its_outcome(claim, world):
    assert outcome(PAPER, WORLDS, claim, world) == EXPECTED[world]


def test_no_world_is_missing():
    assert missing(PAPER, WORLDS) == []


def test_a_choice_is_followed_alone_where_it_is_stable_else_in_proportion():
    score = torch.tensor([[1.0] * 8, [0.0] * 8])
    sure = choosing.resampled_best(score, ["a", "b"], np.random.default_rng(0))
    assert sure.followed == {"a": 1.0} and sure.stability == 1.0
    split = choosing.of_draws(["a"] * 6 + ["b"] * 3 + ["c"] * 1)
    assert split.followed == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1})
    assert choosing.of_draws(["a", "b"] * 2 + ["c", "d", "e"]).followed.keys() == {"a", "b", "c"}


def test_the_weaker_direction_of_the_median_adapter_counts():
    of = torch.ones(3, 2, 4)
    hits = torch.zeros(3, 2, 4)
    hits[:, 0], hits[0, 1, :2], hits[1, 1, :1] = 1.0, 1.0, 1.0  # weaker: 0.5, 0.25, 0
    found = choosing.weaker_median(hits, of, list("abcd"), 0, "x")
    assert found.value == 0.25 and found.low < 0.25 < found.high
    shares = choosing.each_share(hits, of)
    assert choosing.spread(shares) == pytest.approx(
        {
            "towards_memory": 1.0,
            "towards_context": 0.25,
            "lowest_adapter": 0.0,
            "highest_adapter": 0.5,
        }
    )
    pairs = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    others = torch.tensor([[0.0, 0, 0, 0], [0, 1, 0, 0]])
    assert choosing.gain_over_best(pairs, others, list("abcd"), 0, "x").value == 0.25
