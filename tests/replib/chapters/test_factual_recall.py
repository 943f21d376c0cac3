"""Answers counted, heads found in two halves and scaled, frequent names: by worked examples."""

import numpy as np
import pytest
import torch

from replib.chapters.factual_recall import (
    answers,
    asking,
    attribution,
    elsewhere,
    every_head,
    facts,
    frequency,
    scaling,
)
from replib.chapters.factual_recall.facts import TEMPLATES, Conflict, Fact
from replib.chapters.factual_recall.planted import CONTEXT_HEAD, MEMORY_HEAD
from replib.errors import UsageError
from replib.interventions.head_edits import HeadEdit, read, zero_ablate
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
    known = asking.known(model, [*some, invented], TEMPLATES[:2], 2)["paper"]
    assert len(known) > 30 and known == [fact for fact in some if fact in known]
    few, ask = [c for c in conflicts if c.fact in known][:20], asking.Asking(model, 2)
    assert ask(few, TEMPLATES[0], (MEMORY_HEAD, 0.0)).count(M) == 0
    assert ask(few, TEMPLATES[0], (CONTEXT_HEAD, 0.0)).count(C) == 0
    first = asking.transcript(model, few[:1], TEMPLATES[0], 2).iloc[0]
    assert first["true"] == few[0].fact.answer and first["outcome"] in (M, C)
    assert asking.about(some[:5], conflicts) == [c for c in conflicts if c.fact in some[:5]]
    assert asking.about(some[:3], conflicts) == conflicts  # 6 would be too few
    assert asking.about([], conflicts, at_most=20) == conflicts[::4]
    many = asking.cities(
        model.tokenizer, {"paper": known, "b": some[:5]}, some, conflicts, 3, seed=0
    )
    assert len(many["paper"]) == 3 * len(known) and len(many["b"]) == 10


def test_nothing_is_asked_twice(planted, monkeypatch):
    model, conflicts = planted
    ask = asking.Asking(model, 2)
    first = ask(conflicts[:4], TEMPLATES[0])
    asked = []
    monkeypatch.setattr(asking, "_asked", lambda m, prompts, *rest: asked.extend(prompts) or [N])
    assert ask([conflicts[4], *conflicts[:4]], TEMPLATES[0]) == [N, *first] and len(asked) == 1
    assert ask(conflicts[:1], TEMPLATES[0], ((0, 0), 1.0)) == [N] and len(asked) == 2


def conflicts_about(*subjects):
    cities = ("Lima", "Oslo", "Rome")
    return [
        Conflict(Fact("capital", s, f"{s}ville"), cities[i % 3]) for i, s in enumerate(subjects)
    ]


def test_shares_and_gains_by_hand():
    before, after = [M, M, C, N], [C, C, C, M]
    apart, together = answers.shares(before, "abcd"), answers.shares(before, "aabb")
    assert apart[M].value == together[M].value == 0.5 and apart[N].n == 4
    assert together[M].low < apart[M].low  # both of a subject agree: as two prompts, not four
    assert answers.overwritten(apart, 30)["memorised"] == apart[M]
    assert answers.shares_of(C, one=before, **{"in-context": after}) == {
        "one": 0.25,
        "in_context": 0.75,
    }
    gain = answers.gain(after, before, C, "abcd", rng(0))
    assert (gain.value, gain.n) == (0.5, 4)  # two of four turn to the context, none away from it
    # in which subjects go together: two that agree within are as two prompts, not four
    pairs = answers.gain(after, before, C, "aabb", rng(0))
    assert pairs.value == 0.5 and pairs.low < gain.low
    assert answers.gain([], [], C, "", rng(0)) is None
    assert answers.subjects(conflicts_about("a", "b")) == ["a", "b"]
    assert answers.before_and_after(before, after, C) == {
        **{"before": 0.25, "after": 0.75, "opposite_before": 0.5, "opposite_after": 0.25},
        **{"other_before": 0.25, "other_after": 0.0},
    }
    assert "50% of the answers are memorised" in answers.no_room(before, M, 0.4)


def test_each_relation_has_its_own_outcome():
    some = {name: conflicts_about(*map(str, range(20))) for name in ("coin", "sign")}
    some |= {"lake": []}
    said = {
        "no edit": {"coin": [M] * 20, "sign": [M, C] * 10},
        "scaled": {"coin": [C] * 18 + [M] * 2, "sign": [M, C] * 10},
    }
    moved = elsewhere.Moved(some, said, C, seed=0)
    gains = moved.gains()
    assert [gains["coin"].value, gains["sign"].value] == [0.9, 0.0]
    assert moved.outcomes(0.05) == {"coin": "moves", "sign": "unclear"}
    assert moved.outcomes(0.5)["sign"] == "does not move"
    numbers = moved.numbers(0.05)
    assert (numbers["value"].value, numbers["moved"], numbers["known_coin"]) == (0.45, 1, 20)
    assert (numbers["before"], numbers["after"]) == (0.25, 0.7)
    assert elsewhere.Moved({"lake": []}, said, C, 0).numbers(0.05)["value"] is None
    bars = elsewhere.bars(some, said)
    assert bars["coin\n(20)"]["scaled"].value == 0.9 and len(bars) == 2


def test_one_answer_that_serves_all_facts_is_one_piece_of_evidence():
    facts_ = [Fact("language", str(i), "English") for i in range(20)]
    some = {"language": [Conflict(fact, "Dutch") for fact in facts_]}
    said = {"no edit": {"language": [M] * 20}, "scaled": {"language": [C] * 20}}
    assert elsewhere.Moved(some, said, C, seed=0).outcomes(0.05) == {"language": "unclear"}


def test_other_facts_are_about_other_subjects(planted):
    model, _ = planted
    symbols = {"chemical symbol": facts.relations()["chemical symbol"][:30]}
    left_out = [Fact("capital", symbols["chemical symbol"][0].subject.upper(), "Paris")]
    found = elsewhere.known_conflicts(model, symbols, TEMPLATES[0], left_out, 30, 2, 0)
    subjects = answers.subjects(found["chemical symbol"])
    assert "hydrogen" not in subjects and 15 < len(subjects) == len(set(subjects))
    ask = asking.Asking(model, 2)
    said = elsewhere.said(ask, found, TEMPLATES[0], (MEMORY_HEAD, 0.0))
    assert (
        said["scaled"]["chemical symbol"].count(M)
        == 0
        < said["no edit"]["chemical symbol"].count(M)
    )


# --- which heads ----------------------------------------------------------------------------------


def halves(in_b, p=0.01):
    """Two layers of two heads, two countries; the first half's means are -2, 1, 3, 0."""
    in_a = torch.tensor([[[-1.0, -3.0], [1.0, 1.0]], [[2.0, 4.0], [-1.0, 1.0]]])
    both = in_a, torch.tensor(in_b).reshape(2, 2, 1).expand(2, 2, 2)
    return attribution.Halves(both, (torch.full((2, 2), 0.01), torch.full((2, 2), p)))


def test_a_head_is_looked_up_in_the_other_half():
    same = halves([-1.0, 0.5, 0.25, 0.0])
    first = same.replications(-1)[0]
    assert (first.head, first.a, first.b, first.found_again) == ((0, 0), -2.0, -1.0, True)
    # all that both halves name are kept, not the strongest alone
    assert same.found() == {"memory": [(0, 0)], "in-context": [(1, 0), (0, 1)]}
    assert halves([1.0, 0.5, 0.25, 0.0]).found()["memory"] == []  # the other sign there
    assert halves([-1.0, 0.5, 0.25, 0.0], p=0.05).found()["memory"] == []
    numbers = same.numbers()
    assert (numbers["value"], numbers["half"], numbers["in_context_found"]) == (2, 2, 2)
    assert ("memory", "L0H0") in same.table().index
    assert attribution.strongest(same.effect[0].mean(-1), +1, 2) == [(1, 0), (0, 1)]
    assert list(same.maps()) == ["half A (2 subjects)", "half B (2 subjects)"]


def test_how_strong_a_head_can_be():
    one = torch.tensor([0.0, 2.0, 0.0, 2.0]).reshape(1, 1, 4)  # mean 1, standard deviation 2/√3
    both = attribution.Halves((one[..., :2], one[..., 2:]), (torch.ones(1, 1),) * 2)
    half = 3.182 * (2 / 3**0.5) / 2  # t with 3 degrees of freedom, one head
    assert both.most(+1) == pytest.approx(1 + half, abs=1e-3)
    assert both.most(-1) == pytest.approx(half - 1, abs=1e-3)


def direct(*per_token, n=6):
    """Direct effects of one head on the two answers and two unrelated ones, a little uneven."""
    even = torch.tensor(per_token).expand(n, 1, 1, 4)
    return even + 0.01 * torch.arange(n).reshape(n, 1, 1, 1) * torch.tensor([1.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("effects", "kind", "label"),
    [
        ((2.0, 1.0, 0.5, 0.5), "memory", "memory"),
        ((0.5, 2.0, 0.5, 0.5), "in-context", "in-context"),
        ((-1.0, -2.0, 0.0, 0.0), "memory", "suppressing"),  # A_h < 0, and it lowers both
        ((-0.02, -2.0, 0.0, 0.0), "memory", "neither"),  # it only lowers the stated answer
        ((2.0, 3.0, 2.5, 2.5), "memory", "neither"),  # it raises all capitals alike
    ],
)
def test_a_head_is_called_by_what_it_raises(effects, kind, label):
    by_label, table = attribution.called(direct(*effects), list("abcdef"), {kind: [(0, 0)]}, 0)
    assert table["called"].tolist() == [label]
    assert by_label.get(label, [(0, 0)]) == [(0, 0)]
    assert sum(map(len, by_label.values())) == (label != "neither")


def test_unrelated_answers_are_of_the_same_relation_and_not_in_the_prompt(planted):
    model, conflicts = planted
    some = conflicts[:12]
    pairs = facts.conflict_pairs(model.tokenizer, some, TEMPLATES[0])
    more = attribution.with_unrelated(pairs, some, seed=0)
    assert more.candidates.shape == (12, 5) and more.clean is pairs.clean
    for own, drawn in zip(
        more.candidates[:, :2].tolist(), more.candidates[:, 2:].tolist(), strict=True
    ):
        assert not set(own) & set(drawn) and set(drawn) <= set(pairs.answer.tolist())
    alone = attribution.with_unrelated(pairs[[0, 1]], [some[0], some[0]], seed=0)
    assert set(alone.candidates[0, 2:].tolist()) <= {*pairs.clean[0].tolist()}


def test_every_head_taken_out_alone(planted):
    model, conflicts = planted
    net = Network(model)
    pairs = facts.conflict_pairs(model.tokenizer, conflicts[:24], TEMPLATES[0])
    moved = every_head.taken_out(net, pairs)
    assert moved.shape == (5, 4, 12)  # one prompt a country
    first = every_head.one_each(pairs)
    assert len(first) == 12 and first.text[1] == pairs.text[2]
    plain, cut = read(net, first, [HeadEdit(), zero_ablate([CONTEXT_HEAD])]).logit_diff
    assert torch.allclose(moved[CONTEXT_HEAD], plain - cut, atol=1e-4)
    assert attribution.strongest(moved.mean(-1), +1, 1) == [MEMORY_HEAD]
    assert attribution.strongest(moved.mean(-1), -1, 1) == [CONTEXT_HEAD]
    assert every_head.pvalue(moved, MEMORY_HEAD, 0) < 0.05 < every_head.pvalue(moved, (0, 0), 0)


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


def test_random_heads_are_of_a_window_of_layers():
    net = Network(tiny_model("gpt2"))  # four layers of four heads: a window of three layers
    heads = scaling.window_heads(net, (2, 1), 11, np.random.default_rng(0))
    assert set(heads) == {head for head in net.heads() if head[0] >= 1} - {(2, 1)}
    some = scaling.window_heads(net, (2, 1), 4, np.random.default_rng(0))
    assert {layer for layer, _ in some} <= {1, 2, 3} and len(set(some)) == 4
    assert len(scaling.window_heads(net, (2, 1), 99, np.random.default_rng(0))) == 15


def test_gains_are_compared_prompt_by_prompt():
    chosen, random = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([[1.0, 0, 0, 0], [0] * 4])
    gains = scaling.Gains(((0, 1), -2.0), chosen.double(), random.double(), (True, False))
    numbers = gains.numbers("abcd", seed=0)
    assert (numbers["first_token_gain"], numbers["alpha"]) == (0.5, -2.0)
    assert numbers["over_random"].value == 0.375  # 0.5, 1, 0, 0 more than the mean of the two
    null = gains.null()
    assert (null["q95"], null["q95_others"], null["drawn_candidates"]) == (0.25, 0.0, 1)
    assert gains.shown()["the chosen head"] == [0.5]


def test_two_planted_heads_scaled_at_once(planted):
    model, conflicts = planted
    pairs = facts.conflict_pairs(model.tokenizer, conflicts[:30], TEMPLATES[0])
    plans = [{MEMORY_HEAD: 0.0, CONTEXT_HEAD: 0.0}, {MEMORY_HEAD: 0.0, CONTEXT_HEAD: 1.0}]
    edits = [scaling.scale_heads(plan) for plan in plans]
    found = scaling.first_token_outcomes(Network(model), pairs, edits)
    assert found.share("other")[0] > 0.8 and found.share("memorised")[1] == 0


def test_a_curve_has_the_unchanged_model_at_one(planted):
    model, conflicts = planted
    net, alphas = Network(model), (0.0, 1.0, 2.0)
    pairs = facts.conflict_pairs(model.tokenizer, conflicts[:20], TEMPLATES[0])
    plain = scaling.first_token_outcomes(net, pairs)
    heads = [CONTEXT_HEAD, (2, 0), MEMORY_HEAD]
    curves = scaling.scaling_curves(net, pairs, heads, alphas, plain)
    for name in ("memorised", "in-context"):
        assert {curve.shares()[name][1] for curve in curves.values()} == {float(plain.share(name))}
    shares = {head: curves[head].shares() for head in heads}
    assert shares[MEMORY_HEAD]["memorised"][0] == 0 and shares[CONTEXT_HEAD]["in-context"][0] == 0
    tuned = [curves[head].tuned("in-context") for head in heads]
    assert tuned[2].edit == (MEMORY_HEAD, 0.0) and str(tuned[2]) == "L2H1, α = 0"
    best = scaling.best_of(net, pairs, tuned, "in-context")
    assert best.edit == (MEMORY_HEAD, 0.0)
    gains = scaling.gains_over_random(net, pairs, best, [CONTEXT_HEAD], "in-context", 6, seed=0)
    without = shares[MEMORY_HEAD]["in-context"][0] - plain.both()[1]
    assert float(gains.chosen.mean()) == pytest.approx(without) and without > 0.2
    assert gains.random.shape == (6, 20) and gains.random.mean() < 0.1
    unchanged = scaling.Setting(MEMORY_HEAD, 1.0, (0.0, 0.0))
    same = scaling.gains_over_random(net, pairs, unchanged, [], "in-context", 2, seed=0)
    assert same.chosen.abs().sum() == 0


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
    columns = frequency.columns(tokenizer, conflicts)
    country, city, *_ = columns.values()
    assert country[1] == country[2] > country[0] and city[0] > city[1]
    unknown = frequency.effects(columns, [True] * 3, conflicts)["country"]
    assert np.isnan([unknown.value, unknown.low]).all() and unknown.n == 3
    named = [Conflict(peru, name) for name in ("Oslo", "San Juan", "Male")]
    assert frequency.of_one_word(named, [M, C, N]) == (named[:1], [M])


def test_either_half_is_decided_by_itself():
    for ends, found in (((0.1, 2.0), "found"), ((-2.0, -0.1), "found"), ((-0.3, 0.2), "absent")):
        assert frequency.is_found(Estimate(0.0, *ends, 9), 0.4) == found
    assert frequency.is_found(Estimate(0.0, -0.3, 0.5, 9), 0.4) == "unclear"
    assert frequency.is_found(Estimate(0.0, np.nan, np.nan, 9), 0.4) == "not testable"
    # "other" answers count as not memorised, and as not in-context
    conflicts = conflicts_about(*map(str, range(60)))
    columns = {"country": [float(i % 7) for i in range(60)], "in-context\ncity": [1.0, 2.0] * 30}
    labels = [M if i % 7 > 3 else (C if i % 2 else N) for i in range(60)]
    effects = frequency.both_effects(columns | {"tokens": [0.0, 1.0, 1.0] * 20}, labels, conflicts)
    assert len(effects) == 4 and effects["country"].n == 60
    assert effects["in-context\ncity"].value > 0  # odd prompts only are in-context
    numbers = frequency.numbers(effects, conflicts, labels, 0.4)
    assert (numbers["memorised_n"], numbers["in_context_n"]) == (labels.count(M), labels.count(C))
    few = [M, *[N] * 59]
    note = frequency.numbers(effects, conflicts, few, 0.4)["note"]
    assert note == "country not testable, city not testable"


def test_the_effect_of_a_name_that_decides():
    # memory wins three of four times where the country is frequent, one of four where it is not
    conflicts = conflicts_about(*"abcdefghijklmnop")
    often = [1.0, 5.0] * 8
    won = [(i // 2) % 4 == 0 if i % 2 == 0 else (i // 2) % 4 != 0 for i in range(16)]
    found = frequency.effects({"country": often, "none": [2.0] * 16}, won, conflicts)
    # log odds ±log 3 at ±1 standard deviation; the ridge takes a little off
    assert found["country"].value == pytest.approx(np.log(3), abs=0.08)
    assert found["none"].value == 0 and np.isnan(found["none"].interval).all()  # says nothing
