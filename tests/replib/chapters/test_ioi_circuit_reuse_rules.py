"""Every claim of the IOI chapter in simulated worlds: prompts by prompts, through the chapter's own
statistics, at its own sample sizes (50 prompts to find heads, 100 to report, 400 for the gate)."""

import pytest
import torch

from replib import metrics
from replib.chapters.ioi_circuit_reuse import circuit, repair, reuse, single_heads
from replib.interventions.head_edits import Readout
from replib.interventions.path_patching import PathPatch
from replib.metrics import rng
from replib.prompts.colored_objects import colored_objects_pairs
from replib.prompts.vocabulary import word_tokenizer
from tests.worlds import EXPECTED, cases, missing, outcome

LAYERS, HEADS, FIND, REPORT, GATE = 30, 9, 50, 100, 400
GROUPS = [f"template {i // 2}" for i in range(FIND)]
COLORED = [f"{surface} {start}" for surface in "tdf" for start in "isy"]
COBJ_GROUPS = [COLORED[i // 3 % 9] for i in range(FIND)]
PROMPTS = colored_objects_pairs(word_tokenizer(), REPORT, seed=0)
GAPS = {"ioi_gap_low": 2.0, "cobj_gap_low": 1.0}
ANSWERS = {"listed_top1": 0.9, "cobj_top1": 0.45, "edited_heads": 3}
NO_CEILING = "a gap in logit difference cannot be too large"
MOVERS = [(9, 0), (9, 3), (10, 1)]


def normal(seed, *shape, mean=0.0, sd=1.0):
    draws = rng(seed, "world").normal(mean, sd, size=shape)
    return torch.from_numpy(draws).float()


def scores(seed, strong, n=FIND, sd=0.1):
    """A path patch in which the `strong` heads have these mean effects and the others none."""
    effect = normal(seed, LAYERS, HEADS, n, sd=0.004)
    for i, (head, mean) in enumerate(strong.items()):
        effect[head] += normal(seed + 1 + i, n, mean=mean, sd=sd)
    return PathPatch(effect, torch.zeros(n), torch.ones(n))


def flags(n, share, seed=0):
    """`n` prompts, of which this share, to the nearest prompt, is true."""
    yes = torch.arange(n) < round(share * n)
    return yes[torch.from_numpy(rng(seed, "flags").permutation(n))]


# --- 1.1 to 1.5: heads of two tasks ---------------------------------------------------------------


def roles(strength, attention, gap=2.0):
    names = ("movers", "inhibition heads", "duplicate-token heads", "induction heads")
    tested = {}
    for i, name in enumerate(names):
        stage = scores(10 * i, dict.fromkeys(MOVERS, strength), sd=0.05)
        looks = normal(i, LAYERS, HEADS, FIND, mean=-0.3, sd=0.1)
        for head in MOVERS:
            looks[head] += 0.3 + attention
        heads = circuit.select(stage, looks)
        given = (heads, stage.effect(), looks, GROUPS, 0, name)
        tested[name] = circuit.confirmed(*given)
    return circuit.count_roles(tested) | {"null": {"draws": 1000}, "ioi_gap_low": gap}


def negative(attention, gap=2.0):
    stage = scores(3, {(10, 2): 0.2})
    looks = normal(4, LAYERS, HEADS, FIND, sd=0.05)
    looks[10, 2] -= attention  # to IO less S2
    direct = torch.zeros(1, FIND, LAYERS, HEADS, 2)
    direct[0, :, 10, 2] = -1 + normal(5, FIND, 2, sd=0.2)
    said = torch.zeros(1, FIND), torch.zeros(FIND, 2, dtype=int), torch.zeros(1, FIND, 2)
    before = Readout(*said, attribution=direct)
    found = circuit.negative_movers(stage, looks, before, GROUPS, 0)
    return {"value": found.s2_over_io, "candidates": len(found.heads), "ioi_gap_low": gap}


def heads_of(seed, at):
    """Four stages: each has its strongest heads in the places `at`."""
    return [
        scores(100 * seed + i, dict.fromkeys(at, 0.2), FIND if i < 2 else 14, sd=0.05)
        for i in range(4)
    ]


IOI_AT = [(9, 0), (9, 3), (10, 1), (11, 0), (12, 5), (14, 2)]  # the top 2% of 270 heads
ELSEWHERE = [(layer, 8 - head) for layer, head in IOI_AT]  # other heads of the same layers
FAR = [(layer + 8, head) for layer, head in IOI_AT]


def two_tasks(other):
    ioi, cobj, control = (heads_of(i, at) for i, at in enumerate((IOI_AT, other, FAR), 1))
    tops = [reuse.task_heads(stages) for stages in (ioi, cobj, control[:2])]
    return ioi, cobj, (tops[0], tops[1], {"a control": tops[2]})


def overlap(other, **gates):
    _, _, tasks = two_tasks(other)
    return reuse.overlap_numbers(*tasks, HEADS, 0) | GAPS | gates


def beyond(other, **gates):
    ioi, _, tasks = two_tasks(other)
    value = reuse.effect_beyond(ioi, *tasks, GROUPS, 0)
    return {"value": value, "controls": 1} | GAPS | gates


def again(strength, shared, **gates):
    ioi = [scores(1, dict.fromkeys(MOVERS, 0.2)), scores(2, {(7, 1): 0.3})]
    cobj = [scores(3, dict.fromkeys(MOVERS, strength)), scores(4, {(6, 2): 0.3})]
    given = {"shared": shared, "specific": len(reuse.specific(ioi, cobj, 0))}
    value = reuse.movers_again(MOVERS, ioi[0], cobj[0], COBJ_GROUPS, 0)
    return {"value": value, "movers": len(MOVERS)} | given | GAPS | gates


# --- 1.6 and 1.7: content gatherers, inhibition heads ---------------------------------------------


def cut(lost, **gates):
    n, draws = REPORT // 2, 100
    clean, corrupted = (normal(i, n, mean=m) for i, m in ((1, 2.0), (2, -2.0)))
    loses = torch.tensor([0.0, lost, *normal(3, draws, mean=0.05, sd=0.05)])[:, None]
    shift = 2 * loses + normal(4, draws + 2, n, sd=0.1) * (loses != 0)
    said = [
        Readout(diff, torch.zeros(n, 2, dtype=int), torch.zeros(draws + 2, n, 2))
        for diff in (clean - shift, corrupted + shift)
    ]
    value, null = repair.gap_lost(*said, PROMPTS.group[:n], 0)
    sets = [[(5, i % HEADS)] for i in range(draws)]
    null = circuit.null_numbers(null, sets, [(5, 1)])
    return {"value": value, "null": null, "gatherers": 1, "cobj_gap_low": 1.0} | gates


def looks(to_right, to_wrong, **gates):
    shape = (1, 1, REPORT)
    right, wrong = (normal(i, *shape, mean=m, sd=0.01) for i, m in ((1, to_right), (2, to_wrong)))
    uniform = 1 / PROMPTS.length
    colors = (right + 2 * wrong) / 3 - uniform
    attention = repair.TaskAttention(right, wrong, colors, colors)
    active, lean = repair.focus([(0, 0)], attention, PROMPTS, 0)
    numbers = {"value": active, "lean": lean, "inhibition_heads": 1, "cobj_top1": 0.45}
    return numbers | GAPS | gates


# --- 1.8 to 1.12: the repair ----------------------------------------------------------------------


def gain(after, before):
    return repair.gained(after, before, PROMPTS.group, 0)


BEFORE = flags(REPORT, 0.45)


def repaired(share):
    """Right before, and this share of the others too."""
    more = torch.zeros(REPORT, dtype=torch.bool)
    more[~BEFORE] = flags(int((~BEFORE).sum()), share, 1)
    return BEFORE | more


def repairs(share, **gates):
    value = gain(repaired(share), BEFORE)
    null = circuit.null_of(torch.stack([flags(REPORT, 0.42, i) for i in range(100)]).double())
    null = metrics.Null(null.draws - 0.45)
    sets = [[(5, i % HEADS)] for i in range(100)]
    return {"value": value, "null": circuit.null_numbers(null, sets, [(5, 1)])} | ANSWERS | gates


def parts(one, other, both, **gates):
    a, b, c = map(repaired, (one, other, both))
    better = a if a.sum() >= b.sum() else b
    numbers = {"inhibition_gain": gain(a, BEFORE), "negative_gain": gain(b, BEFORE)}
    numbers |= {"value": gain(c, better), "inhibition_heads": 2, "negative_movers": 1}
    return numbers | ANSWERS | gates


def spoilt(share, right=0.45, **gates):
    rate = metrics.proportion(flags(round(GATE * right), share))
    return {"value": rate} | ANSWERS | {"cobj_top1": right} | gates


def readout(right, wrong, importance, tracks, seed):
    """What 3 movers and 21 other heads attend to, and their direct effects on the right colour."""
    n_heads, n_colors = 24, 3
    pattern = torch.zeros(1, REPORT, 1, n_heads, PROMPTS.clean.shape[1])
    rows, at = torch.arange(REPORT), PROMPTS.positions["colors"]
    for column, mean in ((0, right), (1, wrong), (2, wrong)):
        noise = normal(seed + column, REPORT, n_heads, sd=0.01)
        noise[:, :3] += mean
        pattern[0, rows, 0, :, at[:, column]] = 0.2 + noise
    direct = torch.zeros(1, REPORT, 1, n_heads, n_colors)
    direct[0, :, 0, :, 0] = tracks * importance + normal(seed + 9, REPORT, n_heads, sd=0.3)
    empty = torch.zeros(1, REPORT), PROMPTS.candidates, torch.zeros(1, REPORT, n_colors)
    return Readout(*empty, pattern=pattern, attribution=direct)


IMPORTANCE = torch.linspace(-0.2, 1.0, 24)


def respond(right, wrong, tracks=0.0):
    every = [(0, head) for head in range(24)]
    heads = repair.Downstream(every, every[:3], every[3:])
    before = readout(0.0, 0.0, IMPORTANCE, 0.0, 100)
    return every, [
        repair.response(
            heads, PROMPTS, before, readout(right, wrong, IMPORTANCE, tracks, 200 + dose), 0
        )
        for dose in (0, 50)
    ]


def turned(right, wrong, **gates):
    _, (paper, ioi) = respond(right, wrong)
    numbers = {"right": paper.right, "wrong": paper.wrong, "contrast": paper.contrast}
    numbers |= {"value": paper.turned, "ioi_dose": ioi.turned, "movers": 3}
    return numbers | ANSWERS | gates


def tracking(tracks, **gates):
    heads, both = respond(0.1, -0.1, tracks)
    (rho, p, null), (less, less_p, _) = (
        repair.tracks(heads, IMPORTANCE[None], response, 0) for response in both
    )
    numbers = {"value": rho, "p": p, "null": null, "ioi_dose": less, "ioi_dose_p": less_p}
    return numbers | ANSWERS | gates


FLOOR, CEILING = {"listed_top1": 0.3}, {"cobj_top1": 0.97}


def gated(function, *right):
    """The repair's worlds at floor (no colour is said) and ceiling (nothing to repair)."""
    return {
        "floor": lambda: function(*right, **FLOOR),
        "ceiling": lambda: function(*right, **CEILING),
    }


WORLDS = {
    "1.1": {
        "right": lambda: roles(0.2, 0.3),
        "wrong": lambda: roles(0.2, -0.3),
        "floor": lambda: roles(0.2, 0.3, gap=-0.1),
        "ceiling": NO_CEILING,
    },
    "1.2": {
        "right": lambda: negative(0.5),
        "wrong": lambda: negative(0.0),
        "floor": lambda: negative(0.5, gap=-0.1),
        "ceiling": NO_CEILING,
    },
    "1.3": {
        "right": lambda: overlap(IOI_AT),
        "wrong": lambda: overlap(ELSEWHERE),
        "floor": lambda: overlap(IOI_AT, cobj_gap_low=-0.1),
        "ceiling": NO_CEILING,
    },
    "1.4": {
        "right": lambda: beyond(IOI_AT),
        "wrong": lambda: beyond(ELSEWHERE),
        "floor": lambda: beyond(IOI_AT, controls=0),
        "ceiling": NO_CEILING,
    },
    "1.5": {
        "right": lambda: again(0.2, shared=3),
        "wrong": lambda: again(0.0, shared=0),
        "floor": lambda: again(0.2, shared=3, cobj_gap_low=-0.1),
        "ceiling": NO_CEILING,
    },
    "1.6": {
        "right": lambda: cut(0.9),
        "wrong": lambda: cut(0.1),
        "floor": lambda: cut(0.9, cobj_gap_low=-0.1),
        "ceiling": NO_CEILING,
    },
    "1.7": {
        "right": lambda: looks(0.1, 0.1),
        "wrong": lambda: looks(0.05, 0.15),
        "floor": lambda: looks(0.1, 0.1, cobj_gap_low=-0.1),
        "ceiling": lambda: looks(0.1, 0.1, cobj_top1=0.97),
    },
    "1.8": {
        "right": lambda: repairs(0.8),
        "wrong": lambda: repairs(0.05),
        **gated(repairs, 0.8),
    },
    "1.9": {
        "right": lambda: parts(0.5, 0.4, 0.8),
        "wrong": lambda: parts(0.5, 0.0, 0.5),
        **gated(parts, 0.5, 0.4, 0.8),
    },
    "1.10": {
        "right": lambda: spoilt(0.0),
        "wrong": lambda: spoilt(0.2),
        "floor": lambda: spoilt(0.0, right=0.1),  # too few right before
        "ceiling": lambda: spoilt(0.0, right=0.97),
    },
    "1.11": {
        "right": lambda: turned(0.1, -0.1),
        "wrong": lambda: turned(0.0, 0.0),
        **gated(turned, 0.1, -0.1),
    },
    "1.12": {
        "right": lambda: tracking(1.0),
        "wrong": lambda: tracking(-1.0),
        **gated(tracking, 1.0),
    },
}


@pytest.mark.parametrize(("claim", "world"), cases(WORLDS))
def test_a_world_is_called_what_it_is(claim, world):
    assert outcome("ioi-circuit-reuse", WORLDS, claim, world) == EXPECTED[world]


def test_every_claim_has_its_worlds():
    assert missing("ioi-circuit-reuse", WORLDS) == []


def test_wrong_in_other_ways():
    """Inhibition heads on the right colour, and heads that hardly look at colours."""
    for other in (lambda: looks(0.15, 0.05), lambda: looks(0.01, 0.01)):
        worlds = {"1.7": {"wrong": other}}
        assert outcome("ioi-circuit-reuse", worlds, "1.7", "wrong") == "fails"


def test_a_head_chosen_of_all_is_held_to_the_best_of_all():
    groups = PROMPTS.group[:50]
    noise = normal(1, LAYERS, HEADS, 50)
    assert single_heads.best_alone(noise, groups, 0).p > 0.05
    noise[4, 2] += 2
    best = single_heads.best_alone(noise, groups, 0)
    assert best.head == (4, 2) and best.p < 0.05 and best.gain.n == 25
