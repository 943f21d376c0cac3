"""Every rule of the chapter can say yes and no at the chapter's own sample sizes."""

import math

import numpy as np
import pytest
import torch
from worlds import EXPECTED, cases, missing, outcome

from replib.chapters.abrupt_induction import evidence, minimal, three_logits
from replib.metrics import rng

PAPER, N, L, SEEDS = "abrupt-induction", 8, 32, 6
STEPS = np.arange(0, 38_001, 250)
N_TEST, N_PAGE = 2000, 2000  # sequences of a curve, and of a test of the page


def sampled(share, label, n=N_TEST):
    """Shares measured on `n` sequences."""
    return rng(0, label).binomial(n, np.clip(share, 0, 1)) / n


def curve(seed, rise=0.1, learns=True, picks=0.95, head=True, plateau=1 / N, start=1 / L):
    """A training whose IC leaves the plateau at about step 24,000 + 1,000 seed; `rise`: how long
    that takes, as a share of its end. With `head`, ILA1 and TILA2 go with it."""
    end = 24_000 + 1000 * seed
    x = (STEPS - end * (1 - rise)) / (end * rise)
    up = np.clip(x, 0, 1) ** 1.5 if learns else 0 * x
    slow = np.clip(STEPS / 8000, 0, 1)
    ic = start + (plateau - start) * slow + (0.99 - plateau) * up
    cla = np.maximum(0.25 + (picks - 0.25) * slow, ic)
    own = up if head else np.clip(STEPS / 3000, 0, 1) * 0.2
    tila2 = 0.06 + 0.06 * slow + 0.85 * own
    made: dict = {
        "ic": sampled(ic, ("ic", seed)),
        "cla": sampled(cla, ("cla", seed)),
        "shuffled": sampled(0 * x + 0.25, ("other", seed)),
        "ila1": 0.17 + 0.75 * own + 0.002 * rng(0, "ila", seed).normal(size=len(x)),
        "tila2": tila2 + 0.002 * rng(0, "tila", seed).normal(size=len(x)),
    }
    made["tla2"] = made["tila2"] + 0.4 * (1 - own)
    return {"step": STEPS.tolist()} | {key: value.tolist() for key, value in made.items()}


def curves(**how):
    return [curve(seed, **how) for seed in range(1, SEEDS + 1)]


LEARNING = curves()
FAILING = curves(learns=False)


def abrupt(some):
    return evidence.of_abruptness(some, N)


def picking(some, n_labels=L):
    return evidence.of_picking(some, N, n_labels)


def forming(some):
    return evidence.of_formation(some, N)


def classifier(ic=1.0, begins=400, steps=6000):
    at = list(range(0, steps + 1, 100))
    return {"step": at, "ic": [ic if step > begins else 1 / L for step in at]}


def causes(labels=0.13, items=0.9, planted=1.0, some=LEARNING):
    edited = []
    for i in range(sum(max(one["ic"]) > 0.95 for one in some)):
        at = [("whole", 0.99), ("labels", labels), ("items", items)]
        edited.append({k: float(sampled(x, (k, i), N_PAGE)) for k, x in at})
    return evidence.of_causes(edited, classifier(planted), classifier(0.03), some, N)


def reduced(order=True, full=LEARNING, learns=True):
    """Minimal models, set by hand; without `order`, beta_1 comes first."""
    some = [minimal.planted_curve(N, 1500) for _ in range(SEEDS)]
    given = [minimal.planted_curve(N, 1500, given=True) for _ in range(SEEDS)]
    for one in some:
        if not order:
            one["beta_1"] = np.clip(np.array(one["step"]) / 20, 0, 1).tolist()
        if not learns:
            one["ic"] = [1 / N] * len(one["ic"])
    return evidence.of_minimal(some, given, full, N)


def nesting(waits=0.5, start=L, end=0.01, others=0.02):
    """Losses that stay at log N for this share of their run."""

    def losses(share, label):
        level, steps = math.log(N), 1000
        shares = rng(0, label).uniform(0.9, 1.1, 20) * share
        made = []
        for one in shares:
            n = round(steps * one)
            made.append(
                np.r_[np.linspace(math.log(start), level + 0.3, steps - n), [level] * n, end]
            )
        return torch.tensor(
            np.array(
                [np.interp(np.linspace(0, 1, 1001), np.linspace(0, 1, len(m)), m) for m in made]
            )
        ).T

    return evidence.of_nesting(losses(waits, "a"), losses(others, "b"), L, N)


def critical(more=LEARNING, equal=FAILING):
    origins = three_logits.gradient_at_origin(L, N), three_logits.gradient_at_origin(N, N)
    return evidence.of_critical_start(more, equal, origins, N)


def right(share, label):
    return torch.from_numpy(rng(0, label).random(N_PAGE) < share)


def data(many=(0.98, 0.05), few=(0.02, 0.99), spread=(0.01, 0.99), loss=0.1):
    """(IC2, IW) of three networks."""
    named = {"many": many, "few": few, "spread": spread}
    answers = {
        name: {test: right(p, (name, test)) for test, p in zip(("ic2", "iw"), two, strict=True)}
        for name, two in named.items()
    }
    return evidence.of_data(answers, dict.fromkeys(named, loss))


def both(ic=0.97, iw=0.98):
    return evidence.of_both(right(ic, "ic"), right(iw, "iw"))


def lasting(end=0.985, best=0.99, length=3.0):
    steps = np.arange(0, 25_000 * length + 1, 250)
    up = np.clip((steps - 22_000) / 2500, 0, 1)
    late = np.clip((steps - 30_000) / 45_000, 0, 1)
    ic = 1 / N + (best - 1 / N) * up - (best - end) * late
    made = {"step": steps.tolist(), "ic": sampled(ic, "lasting").tolist()}
    return evidence.of_lasting(made, N, N_TEST)


WORLDS = {
    "11.1": {
        "right": lambda: abrupt(LEARNING),
        "wrong": lambda: abrupt(curves(rise=0.9)),
        "floor": lambda: abrupt(FAILING),
        "ceiling": lambda: abrupt(curves(start=0.6, plateau=0.6)),
    },
    "11.2": {
        "right": lambda: picking(LEARNING),
        "wrong": lambda: picking(curves(picks=0.25, plateau=1 / L)),
        "floor": lambda: picking(FAILING),
        "ceiling": lambda: picking(curves(picks=1.0), n_labels=N),
    },
    "11.3": {
        "right": lambda: forming(LEARNING),
        "wrong": lambda: forming(curves(head=False)),
        "floor": lambda: forming(FAILING),
        "ceiling": lambda: forming(curves(start=0.6, plateau=0.6)),
    },
    "11.4": {
        "right": causes,
        "wrong": lambda: causes(labels=0.95),
        "floor": lambda: causes(some=FAILING),
        "ceiling": "all of the jump may be lost: that is the claim",
    },
    "11.5": {
        "right": reduced,
        "wrong": lambda: reduced(order=False),
        "floor": lambda: reduced(full=FAILING),
        "ceiling": "an order has no ceiling",
    },
    "11.6": {
        "right": nesting,
        "wrong": lambda: nesting(waits=0.02),
        "floor": lambda: nesting(end=0.5),
        "ceiling": lambda: nesting(start=N),
    },
    "11.7": {
        "right": critical,
        "wrong": lambda: critical(equal=LEARNING),
        "floor": lambda: critical(more=FAILING),
        "ceiling": "all seeds may learn at L = 32, and none at L = N: that is the claim",
    },
    "11.8": {
        "right": data,
        "wrong": lambda: data(many=(0.5, 0.5), few=(0.5, 0.5)),
        "floor": lambda: data(loss=2.0),
        "ceiling": "a difference of 1 is the claim",
    },
    "11.9": {
        "right": both,
        "wrong": lambda: both(iw=0.03),
        "floor": lambda: both(0.12, 0.03),
        "ceiling": "both may be perfect: that is the claim",
    },
    "11.10": {
        "right": lasting,
        "wrong": lambda: lasting(end=0.6),
        "floor": lambda: lasting(best=0.5, end=0.5),
        "ceiling": "an accuracy that never falls is the claim",
    },
}


@pytest.mark.parametrize(("claim", "world"), cases(WORLDS))
def test_each_world_has_its_outcome(claim, world):
    assert outcome(PAPER, WORLDS, claim, world) == EXPECTED[world]


def test_no_world_is_missing():
    assert missing(PAPER, WORLDS) == []


@pytest.mark.parametrize("n_abrupt", range(SEEDS + 1))
def test_five_of_six_hold_and_none_fails(n_abrupt):
    some = LEARNING[:n_abrupt] + curves(rise=0.9)[n_abrupt:]
    worlds = {"11.1": {"x": lambda: abrupt(some)}}
    expected = "holds" if n_abrupt >= 5 else "fails" if n_abrupt == 0 else "unclear"
    assert outcome(PAPER, worlds, "11.1", "x") == expected


def test_only_the_order_of_picking_is_unclear():
    worlds = {"11.2": {"x": lambda: picking(curves(picks=0.6))}}
    assert outcome(PAPER, worlds, "11.2", "x") == "unclear"
