"""Answers counted, heads found in two halves and scaled, frequent names: by worked examples."""

import numpy as np
import pytest
import torch

from replib.chapters.factual_recall import answers, asking, attribution, facts, frequency, scaling
from replib.chapters.factual_recall.facts import TEMPLATES, Conflict, Fact
from replib.chapters.factual_recall.planted import CONTEXT_HEAD, MEMORY_HEAD
from replib.errors import UsageError
from replib.interventions.network import Network
from replib.metrics import Estimate, rng
from replib.models.load import load_model
from replib.models.tiny import tiny_model

M, C, N = facts.OUTCOMES  # N: neither of the two


@pytest.fixture(scope="module")
def planted():
    """The planted model and eighty conflicts about capitals that it can read."""
    model = load_model("planted-facts")
    some = facts.readable(model.tokenizer, facts.relations()["capital"])[:40]
    return model, facts.draw_foils(model.tokenizer, some, 2, seed=0)


# --- asking and counting --------------------------------------------------------------------------


def test_a_planted_model_is_asked(planted):
    model, conflicts = planted
    some = list(dict.fromkeys(c.fact for c in conflicts))
    invented = Fact("capital", some[0].subject, some[1].answer)
    known = asking.known(model, [*some, invented], TEMPLATES[0], 2)
    assert len(known) > 30 and known == [fact for fact in some if fact in known]
    few = [c for c in conflicts if c.fact in known][:9]
    cut = asking.contradicted(model, few, TEMPLATES[0], 2, {MEMORY_HEAD: 0.0})
    assert cut.count(C) >= 8
    kept = asking.contradicted(model, few, TEMPLATES[0], 2, {CONTEXT_HEAD: 0.0})
    assert kept.count(M) >= 8
    first = asking.transcript(model, few[:1], TEMPLATES[0], 2).iloc[0]
    assert first["true"] == few[0].fact.answer and first["outcome"] in (M, C)
    assert asking.about(some[:5], conflicts) == [c for c in conflicts if c.fact in some[:5]]
    assert asking.about(some[:3], conflicts) == conflicts  # 6 would be too few


def conflicts_about(*subjects):
    cities = ("Lima", "Oslo", "Rome")
    return [
        Conflict(Fact("capital", s, f"{s}ville"), cities[i % 3]) for i, s in enumerate(subjects)
    ]


def test_shares_and_gains_by_hand():
    before, after = [M, M, C, N], [C, C, C, M]
    assert answers.shares(before)[M].value == 0.5 and answers.shares(before)[N].n == 4
    assert answers.shares_of(C, one=before, **{"in-context": after}) == {
        "one": 0.25,
        "in_context": 0.75,
    }
    gain = answers.gain(after, before, C, conflicts_about(*"abcd"), rng(0))
    assert (gain.value, gain.n) == (0.5, 4)  # two of four turn to the context, none away from it
    # in which subjects go together: two that agree within are as two prompts, not four
    pairs = answers.gain(after, before, C, conflicts_about(*"aabb"), rng(0))
    assert pairs.value == 0.5 and pairs.low < gain.low
    assert answers.gain([], [], C, [], rng(0)) is None
    assert answers.before_and_after(before, after, C) == {
        **{"before": 0.25, "after": 0.75, "opposite_before": 0.5, "opposite_after": 0.25},
        **{"other_before": 0.25, "other_after": 0.0},
    }
    assert "50% of the answers are memorised" in answers.no_room(before, M, 0.4)


def test_relations_are_pooled_in_their_order():
    elsewhere = {"coin": conflicts_about("a", "b"), "sign": [], "big lake": conflicts_about("c")}
    moved = {
        "coin": {"no edit": [M, C], "scaled": [C, C]},
        "big lake": {"no edit": [N], "scaled": [M]},
    }
    together, before, after = answers.pooled(elsewhere, moved)
    assert [c.fact.subject for c in together] == ["a", "b", "c"]
    assert before == [M, C, N] and after == [C, C, M]
    known = {"known_coin": 2, "known_sign": 0, "known_big_lake": 1}
    assert answers.counted(elsewhere) == known | {"relations": 2}
    assert answers.pooled({"sign": []}, {}) == ([], [], [])


# --- which heads ----------------------------------------------------------------------------------


def halves(in_b, p=0.01):
    """Two layers of two heads, two countries; the first half's means are -2, 1, 3, 0."""
    in_a = torch.tensor([[[-1.0, -3.0], [1.0, 1.0]], [[2.0, 4.0], [-1.0, 1.0]]])
    both = in_a, torch.tensor(in_b).reshape(2, 2, 1).expand(2, 2, 2)
    return attribution.Halves(both, (torch.full((2, 2), 0.01), torch.full((2, 2), p)))


def test_a_head_is_looked_up_in_the_other_half():
    same = halves([-1.0, 0.5, 0.25, 0.0])
    found = same.replication(-1)
    assert (found.head, found.a, found.b, found.found_again) == ((0, 0), -2.0, -1.0, True)
    assert found.numbers("me") == pytest.approx(
        {"me_a": -2.0, "me_b": -1.0, "me_p_a": 0.01, "me_p_b": 0.01}
    )
    assert same.replication(+1).found_again and same.replication(+1).head == (1, 0)
    assert not halves([1.0, 0.5, 0.25, 0.0]).replication(-1).found_again  # last of its sign
    assert not halves([0.1, 0.5, 0.25, 0.2]).replication(-1).found_again  # first, other sign
    assert not halves([-1.0, 0.5, 0.25, 0.0], p=0.05).replication(-1).found_again
    assert same.agreed([(0, 0), (0, 1), (1, 1)], +1) == [(0, 1)]
    assert attribution.strongest(same.mean(0), +1, 2) == [(1, 0), (0, 1)]
    assert same.fewest() == 2 and list(same.maps()) == [
        "half A (2 countries)",
        "half B (2 countries)",
    ]


def test_attention_is_read_at_a_place_of_each_prompt():
    pattern = torch.zeros(2, 1, 2, 3)  # prompt layer head src
    pattern[0, 0, 0, 1], pattern[1, 0, 0, 2], pattern[1, 0, 1, 0] = 0.5, 0.25, 1.0
    assert attribution.attention_to(pattern, torch.tensor([1, 2])).tolist() == [[0.375, 0.0]]


# --- scaling --------------------------------------------------------------------------------------


def test_outcomes_and_the_best_factor():
    top = torch.tensor([[[True, False], [False, True]], [[False, True], [False, False]]])
    found = scaling.Outcomes(
        top, torch.tensor([[[0.9, 0.0], [0.2, 0.6]], [[0.1, 0.5], [0.1, 0.3]]])
    )
    assert found.share("memorised").tolist() == [0.5, 0.0]
    assert found.share("other").tolist() == [0.0, 0.5]
    assert found.labels(1) == ["in-context", "other"]
    assert found.score("in-context")[1] == pytest.approx((0.5, 0.4))
    with pytest.raises(UsageError, match="choose memorised or in-context"):
        found.share("right")
    assert scaling.best_alpha([(0.5, 0.1), (0.5, 0.3), (0.4, 0.9)], [-2.0, 0.0, 3.0]) == 1
    assert scaling.best_alpha([(0.5, 0.1), (0.5, 0.1)], [-2.0, 1.0]) == 1  # nearest to no change


def test_tuning_prompts_are_balanced_and_means_are_over_groups():
    means = attribution.per_group(torch.tensor([[1.0, 3.0, 10.0]]), ["b", "b", "a"])
    assert means.tolist() == [[2.0, 10.0]]
    labels = ["memorised", "memorised", "memorised", "in-context", "other", "in-context"]
    assert scaling.tuning_rows(labels, list("aabcdb"), 4) == [0, 3, 2, 4]
    assert scaling.tuning_rows(["memorised"] * 3, list("abc"), 2) == [0, 1]


def test_random_heads_are_of_the_nearest_layers():
    net = Network(tiny_model("gpt2"))
    heads = scaling.matched_heads(net, (2, 1), 6, {(2, 0)}, np.random.default_rng(0))
    assert {(2, 2), (2, 3)} < set(heads) and len(set(heads)) == 6
    assert {layer for layer, _ in heads} <= {1, 2, 3}
    assert (2, 1) not in heads and (2, 0) not in heads


def test_two_planted_heads_scaled_at_once(planted):
    model, conflicts = planted
    pairs = facts.conflict_pairs(model.tokenizer, conflicts[:30], TEMPLATES[0])
    plans = [{MEMORY_HEAD: 0.0, CONTEXT_HEAD: 0.0}, {MEMORY_HEAD: 0.0, CONTEXT_HEAD: 1.0}]
    edits = [scaling.scale_heads(plan) for plan in plans]
    found = scaling.first_token_outcomes(Network(model), pairs, edits)
    assert found.share("other")[0] > 0.9 and found.share("in-context")[1] > 0.9


def test_a_curve_has_the_unchanged_model_at_one(planted):
    model, conflicts = planted
    net, alphas = Network(model), (0.0, 1.0, 2.0)
    pairs = facts.conflict_pairs(model.tokenizer, conflicts[:20], TEMPLATES[0])
    plain = scaling.first_token_outcomes(net, pairs)
    heads = [CONTEXT_HEAD, (2, 0), MEMORY_HEAD]
    curves = scaling.scaling_curves(net, pairs, heads, alphas, plain)
    for name in ("memorised", "in-context"):
        assert {curve.shares()[name][1] for curve in curves.values()} == {float(plain.share(name))}
    without_memory = curves[MEMORY_HEAD].shares()["in-context"][0]
    assert without_memory > 0.9 and curves[CONTEXT_HEAD].shares()["memorised"][0] > 0.9
    kinds = {"memory": [(2, 0), MEMORY_HEAD], "in-context": [CONTEXT_HEAD]}
    best = scaling.best_of_each(curves, kinds, "in-context")
    assert best["memory"].edit == (MEMORY_HEAD, 0.0) and str(best["memory"]) == "L2H1, α = 0"
    gains = scaling.gains_over_random(
        net, pairs, best["memory"], [curves[2, 0].tuned("in-context")], "in-context"
    )
    assert gains.chosen == without_memory - plain.both()[1] > 0.2
    assert gains.own[0] < 0.2 and gains.same[0] < 0.2 and len(gains.own) == 1
    assert gains.null() == {"max": gains.own[0], "mean": gains.own[0], "draws": 1}
    assert gains.numbers()["alpha"] == 0.0


def test_two_heads_at_their_factors_or_halfway():
    a, b = (scaling.Setting((0, i), alpha, (0.0, 0.0)) for i, alpha in ((1, 3.0), (2, -1.0)))
    assert scaling.halfway_too(a, b) == [
        {(0, 1): 3.0, (0, 2): -1.0},
        {(0, 1): 3.0, (0, 2): 0.0},
        {(0, 1): 2.0, (0, 2): -1.0},
        {(0, 1): 2.0, (0, 2): 0.0},
    ]
    assert scaling.described([a.edit, b.edit]) == "L0H1 α = 3, L0H2 α = -1"


# --- frequent names -------------------------------------------------------------------------------


def test_frequent_names_by_hand():
    tokenizer = tiny_model("gpt2").tokenizer
    france, peru = Fact("capital", "France", "Paris"), Fact("capital", "Peru", "Lima")
    conflicts = [Conflict(peru, "Paris"), Conflict(france, "Lima"), Conflict(france, "Oslo")]
    assert frequency.most_frequent(tokenizer, [peru, france], 1) == [france]
    some, won = frequency.decided(conflicts, [M, N, C])
    assert some == [conflicts[0], conflicts[2]] and won == [True, False]
    counts = frequency.counts(conflicts, [True, True, False])
    assert counts == {"memorised_n": 2, "in_context_n": 1, "countries": 2}
    columns = frequency.columns(tokenizer, conflicts)
    country, city, *_ = columns.values()
    assert country[1] == country[2] > country[0] and city[0] > city[1]
    unknown = frequency.effects(columns, [True] * 3, conflicts)["country"]
    assert np.isnan([unknown.value, unknown.low]).all() and unknown.n == 3


def test_the_effect_of_a_name_that_decides():
    # memory wins three of four times where the country is frequent, one of four where it is not
    conflicts = conflicts_about(*"abcdefghijklmnop")
    often = [1.0, 5.0] * 8
    won = [(i // 2) % 4 == 0 if i % 2 == 0 else (i // 2) % 4 != 0 for i in range(16)]
    found = frequency.effects({"country": often, "none": [2.0] * 16}, won, conflicts)
    # log odds ±log 3 at ±1 standard deviation; the ridge takes a little off
    assert found["country"].value == pytest.approx(np.log(3), abs=0.08)
    assert found["none"] == Estimate(0.0, 0.0, 0.0, 16)
