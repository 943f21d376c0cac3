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
N_CROSSED = 16  # of them, asked in the other format
OTHER = {"multi-hop": 16, "arithmetic": 16}  # cases of other kinds
FT, ICL, ZS = 0.93, 0.88, 0.45  # the paper's PairAcc (Llama-3.1-8B-Instruct)
SEEDS = range(3)


def some_cases(n, relation="official language", n_answers=16):
    return [Case(relation, f"S{i}", "", "", "", f"a{i % n_answers}", f"b{i}") for i in range(n)]


CASES = some_cases(N)
GROUPS = asking.groups_of(CASES)


def of_cases(p, label, *shape):
    """Exactly this share of the cases, others for each label: no luck but in how they meet."""
    ones = np.arange(shape[-1]) < round(p * shape[-1])
    return torch.from_numpy(rng(0, label).permuted(np.broadcast_to(ones, shape), axis=-1))


def shaken(right, label):
    """The same answers, but that by chance one is lost and one is won."""
    found, generator = right.clone(), rng(0, label)
    for at in (right.nonzero()[:, 0], (~right).nonzero()[:, 0]):
        if len(at):
            found[at[generator.integers(len(at))]] ^= True
    return found


def answers(pair, label):
    """Answers of this PairAcc, or right in these cases; of the others one intent is wrong."""
    pair = of_cases(pair, label, N) if isinstance(pair, float) else pair
    right, wrong = torch.ones(2, N).bool(), (~pair).nonzero()[:, 0]
    right[0, wrong[::2]] = right[1, wrong[1::2]] = False
    return asking.Answers(right, torch.zeros(1, 2, N, 1))


def behaviour(ft=FT, zs=ZS, icl=ICL, n=N):
    """What the notebook measures for 4.1 and 4.2, of models with these PairAcc; None: as zero-shot,
    but for chance."""
    plain = answers(zs, "zs")
    of_plain = plain.right.all(0)
    tuned = [answers(shaken(of_plain, f"ft {i}") if ft is None else ft, f"ft {i}") for i in SEEDS]
    shown = answers(shaken(of_plain, "icl") if icl is None else icl, "icl").pair
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


def other_contexts(reached=(0.88, 0.54), zs=(0.40, 0.31), inside=FT):
    """PairAcc of multi-hop cases and of arithmetic; None: as zero-shot, but for chance."""
    sets = {"sentence": CASES} | {kind: some_cases(n, kind, 10) for kind, n in OTHER.items()}
    before, after = {"sentence": of_cases(ZS, "zs", N).double()}, {}
    for i, (kind, n) in enumerate(OTHER.items()):
        was = of_cases(zs[i], f"before {kind}", n)
        now = shaken(was, kind) if reached is None else of_cases(reached[i], f"after {kind}", n)
        before[kind], after[kind] = was.double(), now.double()
    seeds = torch.stack([of_cases(inside, f"ft {i}", N) for i in SEEDS])
    after["sentence"] = seeds.double().mean(0)
    gain, numbers = asking.outside(sets, before, after, 0)
    numbers |= {"n": sum(OTHER.values()), "adapters": 3}
    return {"value": gain.value, "interval": gain.interval, **numbers}


def transfer(there=0.9, back=0.664, zs=ZS):
    """All seeds are asked `N_CROSSED` cases. None: no asymmetry, but for chance."""
    n, groups = N_CROSSED, GROUPS[:N_CROSSED]

    def mean(p, label):
        if p is None:
            some = [shaken(of_cases(there, f"there {i}", n), f"{label} {i}") for i in SEEDS]
        else:
            some = [of_cases(p, f"{label} {i}", n) for i in SEEDS]
        return torch.stack(some).double().mean(0)

    to, back, plain = mean(there, "there"), mean(back, "back"), of_cases(zs, "zs", n).double()
    return {
        "value": asking.mean_of(to - plain, groups, rng(0, "4.4")),
        "asymmetry": asking.mean_of(to - back, groups, rng(0, "4.4 asymmetry")),
        "transfer": max(to.mean(), back.mean()),
        "zero_shot": plain.mean(),
        "n": n,
        "adapters": 3,
    }


def layers(window=0.85, found=0.85, pair_accuracy=FT):
    """Of what all layers give, in cases that are right; the paper's search asks for 0.85."""
    noise = torch.from_numpy(rng(0, "p").uniform(0.9, 1.1, (2, N)))
    right = of_cases(FT, "right", N).expand(2, -1).double()

    def p(value):
        return value * 0.85 * noise * right

    others = torch.stack([p(x) for x in (0.02, 0.05, 0.1, 0.15)])
    one = search.Carried(right * 0.85, p(window), p(found), others, p(0.01))
    value, numbers = search.recovered([one] * 3, GROUPS, 0)
    names = ("intent: to memory", "intent: to the context", "memory: x", "context: x")
    intent, answer = Choices({(13, 14, 15): 0.8, (13, 14): 0.2}), Choices({(15,): 1.0})
    choices = dict(zip(names, [intent, intent, answer, answer], strict=True))
    numbers |= search.of_searches([choices] * 3, [Choices({(12, 13, 14): 1.0})] * 3, 32)
    return {"value": value, "n": int(right[0].sum()), "pair_accuracy": pair_accuracy, **numbers}


def direction(learned=0.9, shuffled=0.4, pair_accuracy=FT):
    right = of_cases(FT, "right", N).expand(2, -1).double()
    random = of_cases(0.03, "random", 20, 2, N).double() * right
    p = dict(zip(exchange.WAYS, (learned, 0.6, 0.3, shuffled), strict=True))
    turned = [
        exchange.Turned(
            {way: of_cases(p[way], f"{way} {i}", 2, N).double() * right for way in p}, random, right
        )
        for i in SEEDS
    ]
    one = exchange.Learned(Choices({10: 1.0}), {10: torch.ones(2)}, torch.ones(2, 2))
    numbers = exchange.numbers(turned, [one] * 3, GROUPS, 0)
    value = exchange.turned_share(turned, "learned", GROUPS, 0)
    return {"value": value, "n": int(right[0].sum()), "pair_accuracy": pair_accuracy, **numbers}


def steering(steered=0.8, told=0.11, shots=0.34, pair_accuracy=FT):
    """The paper shows it in figures; instructions and demonstrations as with its Mistral (with its
    Llama they leave nothing to gain)."""
    pair = torch.stack([of_cases(steered, f"steered {i}", N).double() for i in SEEDS])
    others = torch.stack([of_cases(told, "told", N), of_cases(shots, "shots", N)]).double()
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
    return {"value": value, "n": n, "pair_accuracy": FT, **numbers}


# Right: the paper's own numbers. Wrong: no effect, but for chance.
WORLDS = {
    "4.1": {
        "right": lambda: behaviour().first,
        "wrong": lambda: behaviour(ft=None).first,
        "floor": lambda: behaviour(n=0).first,
        "ceiling": lambda: behaviour(zs=0.93).first,
    },
    "4.2": {
        "right": lambda: behaviour().second,
        "wrong": lambda: behaviour(icl=None).second,
        "floor": lambda: behaviour(n=0).second,
        "ceiling": lambda: behaviour(zs=0.93).second,
    },
    "4.3": {
        "right": other_contexts,
        "wrong": lambda: other_contexts(reached=None),
        "floor": lambda: other_contexts(reached=None, zs=(0.0, 0.0), inside=0.1),
        "ceiling": lambda: other_contexts(zs=(0.95, 0.92), reached=(0.95, 0.92)),
    },
    "4.4": {
        "right": transfer,
        "wrong": lambda: transfer(back=None),
        "floor": lambda: transfer(there=0.04, back=0.04, zs=0.04),
        "ceiling": lambda: transfer(there=0.96, back=0.9, zs=0.93),
    },
    "4.5": {
        "right": layers,
        "wrong": lambda: layers(window=0.01, found=0.01),
        "floor": lambda: layers(pair_accuracy=0.2),
        "ceiling": "nothing recovers more than all layers, which is the measure",
    },
    "4.6": {
        "right": direction,
        "wrong": lambda: direction(learned=0.0, shuffled=0.0),
        "floor": lambda: direction(pair_accuracy=0.2),
        "ceiling": "all answers may turn: that is the claim",
    },
    "4.7": {
        "right": steering,
        "wrong": lambda: steering(steered=0.0, told=0.0, shots=0.0),
        "floor": lambda: steering(pair_accuracy=0.2),
        "ceiling": lambda: steering(told=ZS, shots=ICL),
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
