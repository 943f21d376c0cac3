"""The chapter's procedures on numbers that can be checked in the head."""

from unittest import mock

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from replib.chapters.context_knob import asking, directions, knob, known, layer_search, steering
from replib.chapters.context_knob.intents import Case
from replib.chapters.context_knob.steering import LayerSearch
from replib.interventions.generation import Prefilled
from replib.models.tiny import tiny_model
from replib.prompts.vocabulary import word_tokenizer


def case(subject, prior, contextual, relation="capital"):
    return Case(relation, subject, f"{subject} {contextual}.", f"{subject}?", "", prior, contextual)


CASES = [case(f"S{i}", f"p{i}", f"c{i}") for i in range(10)]


def answers(*rows):
    return asking.Answers(torch.tensor(rows).bool(), torch.zeros(1, 2, len(rows[0]), 1))


def test_cases_are_kept_where_memorys_answer_comes_and_all_where_too_few_do():
    model = mock.Mock(spec=TransformerBridge, tokenizer=word_tokenizer([" a"]))
    for wrong, kept, n in (((3,), [0, 1, 2, 4, 5], 5), ((1, 3, 8), [0, 1, 2, 3, 4], 0)):
        said = ["?" if i in wrong else f" p{i}" for i in range(10)]
        with mock.patch.object(known, "continuations", return_value=said):
            found = known.keep(model, CASES, 5)
        assert (found.cases, found.n) == ([CASES[i] for i in kept], n)
    test = known.Known(CASES[:2], 2)
    assert known.right_under_both(test, torch.tensor([0.0, 1.0])) == known.Known(CASES[1:2], 1)
    assert known.right_under_both(test, torch.zeros(2)) == known.Known(CASES[:2], 0)


def test_pairacc_over_seeds_by_hand():
    found = [answers([1, 1, 0], [1, 0, 1]), answers([1, 1, 1], [0, 1, 0])]  # intent case, by seed
    assert asking.over_seeds(found).tolist() == [0.5, 0.5, 0.0]
    assert asking.over_seeds(found, "prior").tolist() == [0.5, 0.5, 0.5]
    numbers = {"context_accuracy": 5 / 6, "prior_accuracy": 0.5, "fine_tuned": 1 / 3}
    assert asking.summary(found) == pytest.approx(
        numbers | {"lowest_seed": 1 / 3, "highest_seed": 1 / 3}
    )


def test_two_sets_of_other_cases_count_alike():
    sets = {"sentence": CASES[:2], "multi-hop": CASES[:4], "arithmetic": CASES[4:6]}
    after = {"sentence": [1.0, 1.0], "multi-hop": [1.0, 1, 1, 0], "arithmetic": [0.0, 1]}
    after = {name: torch.tensor(values, dtype=torch.double) for name, values in after.items()}
    before = {name: torch.zeros_like(values) for name, values in after.items()}
    gain, numbers = asking.outside(sets, before, after, 0)
    assert gain.value == pytest.approx((0.75 + 0.5) / 2)
    gap = numbers.pop("gap")
    assert gap.value == pytest.approx(1 - 0.625) and gap.low < gap.value < gap.high
    assert numbers == {
        "multi_hop": 0.75,
        "multi_hop_zero_shot": 0.0,
        "arithmetic": 0.5,
        "arithmetic_zero_shot": 0.0,
    }


def test_searched_cases_share_no_answer_and_windows_leave_out_the_found():
    tokenizer = word_tokenizer([" a b c d e f g"])
    some = [case("1", "a", "b"), case("2", "b", "c"), case("3", "c", "d"), case("4", "e", "f", "x")]
    for n, subjects in ((8, ["1", "3"]), (1, ["1"])):
        chosen = layer_search.without_common_answers(tokenizer, some, n)
        assert [one.subject for one in chosen] == subjects
    assert layer_search.other_windows((1, 2), 4) == [(0, 1), (2, 3)]
    assert layer_search.other_windows((0, 1), 2) == [(0, 1)]


def test_the_sweep_counts_falls_and_knows_the_step_that_suffices():
    upper, lower = np.array([0.1, 0.9, 0.8, 1.0]), np.array([1.0, 0.5, 0.6])
    swept = layer_search.Sweep([2, 4, 6, 8], 2, upper, lower)
    assert (swept.falls, swept.first_enough) == (2, 4)  # 0.9 to 0.8; from the right, 0.6 to 0.5
    agrees = [swept.agrees(LayerSearch((0,), u, 0, 1)) for u in (2, 3, 4, 5)]
    assert agrees == [False, True, True, False] and not swept.agrees(None)


def test_the_weaker_direction_decides_and_begins_where_layers_were_found():
    p = {(0, 1, 2): 0.8, (1,): 0.6, (0,): 0.2, (2,): 0.7, (): 0.1}

    def score(runs, sets, start):
        assert start == [2] * len(sets)
        out = np.zeros((len(sets), 3, 2))
        out[:, -1, 0] = [p[some] / float(1 + runs.source) for some in sets]
        return out

    towards = dict.fromkeys(layer_search.INTENT_RUNS, LayerSearch((1,), 2, 1, 3))
    found = towards | {"memory: another question": LayerSearch((2,), 3, 2, 3), "context": None}
    kinds = {
        name: layer_search.Runs(
            mock.Mock(spec=Prefilled), torch.tensor([i]), torch.tensor([0]), torch.tensor([[1, 2]])
        )
        for i, name in enumerate(layer_search.INTENT_RUNS)
    }
    recovered = layer_search.recoveries(score, kinds, found, 3)
    value, numbers = layer_search.weaker(recovered, found, 3)
    assert value == pytest.approx(0.75)
    assert numbers.pop("null").draws == pytest.approx([0.25, 0.875])
    assert numbers.pop("note").endswith("memory: another question: layers 2; context: layers none")
    starts = {"intent_start": 1, "answer_start": 2}
    shares = {"unpatched": 0.1, "all_layers": 0.4, "as_good": 0.5, "share": 1 / 3}
    assert numbers == pytest.approx(starts | shares)


def test_rows_are_paired_with_the_other_intent_and_the_plain_directions():
    h = torch.tensor([[3.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, 1.0]])  # context, context, memory
    rows = directions.Opposites(
        CASES[:2], mock.Mock(spec=Prefilled), *torch.arange(12).view(3, 4), h[None]
    )
    assert rows.given[0].tolist() == h[[2, 3, 0, 1]].tolist()
    assert rows.own_token.tolist() == [10, 11, 8, 9]
    assert directions.mean_difference(h).tolist() == [2.0, 0.0]
    # x = (2, 0, -2, 0) along the first axis: gram 8, penalty 0.01 · 8 / 2, x · sign = 4
    assert directions.ridge_probe(h).tolist() == pytest.approx([4 / 8.04, 0.0])
    best = {("validation", 1): 0.2, ("validation", 2): 0.9, ("test", 0): 0.1}
    choice = directions.Choice(best | {("training", 2): 1.0}, [1, 2], [0])
    assert choice.layer == 2 and choice.numbers(4)["wrong_layer"] == 0.1
    np.testing.assert_equal(choice.curves(3)["learned, validation"], [np.nan, 0.2, 0.9])


def test_k_is_the_smallest_that_is_right_most_often_on_its_own_side():
    asked = knob.Unstated(CASES[:1], mock.Mock(spec=Prefilled), torch.tensor([[1], [0]]))

    def swept(prompts, direction, values):  # token 1 from c = 12 on, token 0 below
        return torch.tensor([[[0.0, 1.0] if c >= 12 else [1.0, 0.0]] for c in values])

    dial = knob.Dial(torch.ones(2), 10.0, 2.0)
    ks = knob.choose_k(swept, asked, dial)
    assert ks == {"context": 1.0, "prior": -0.5} and dial.all_at(ks)["context"] == 12.0
    assert (
        knob.choose_k(swept, asked, dial, either_sign=True)["prior"] == 0.5
    )  # the first of equals
    assert knob.first_token_pair(swept, asked, dial, ks) == 1.0
    assert knob.first_token_pair(swept, asked, dial, {"context": 0.5, "prior": -0.5}) == 0.0
    e = float(np.exp(1))
    shares = knob.answer_shares(swept, asked, dial, [0.0] * 11)
    assert shares[0, 0] == pytest.approx([1 / (1 + e), e / (1 + e), 0.0], abs=1e-6)


def test_correlations_of_random_directions_are_taken_either_way_round():
    b = torch.tensor([1.0, 2.0, 3.0])
    found = knob.random_correlations(lambda v: b * v[0], torch.tensor([[-2.0, 0], [3.0, 0]]), b)
    assert found == pytest.approx([1.0, 1.0])
    rho, null, p = knob.rank_test(b, b, np.random.default_rng(0))
    assert rho == pytest.approx(1) and p == null.pvalue(rho)
    assert np.isnan(knob.rank_test(b * 0, b, np.random.default_rng(0))[2])


def test_a_sweep_sets_each_value_in_turn():
    model = tiny_model("llama")
    prompts = Prefilled(model, ["When Mary went to the store, John", "John gave a drink to"])
    u = torch.randn(32, generator=torch.Generator().manual_seed(1))

    def double(h, v, c):
        return 2 * h + c[:, None] * v

    found = steering.swept(prompts, u, [0.5, -3.0], layer=2, change=double)
    for i, c in enumerate((0.5, -3.0)):
        with torch.no_grad(), steering.edited(model, 2, lambda h, c=c: 2 * h + c * u):
            torch.testing.assert_close(found[i], prompts.step(), atol=1e-4, rtol=1e-4)
