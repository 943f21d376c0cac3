"""The chapter's procedures on numbers that can be checked in the head."""

from unittest import mock

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from replib.chapters.context_knob import (
    asking,
    directions,
    knob,
    known,
    last_token,
    layer_search,
    steering,
)
from replib.chapters.context_knob.intents import Case
from replib.chapters.context_knob.reading import BothIntents
from replib.chapters.factual_recall.facts import Fact
from replib.interventions.generation import Prefilled
from replib.models.tiny import ARCHITECTURES, tiny_model
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


def test_pairacc_over_seeds_by_hand():
    found = [answers([1, 1, 0], [1, 0, 1]), answers([1, 1, 1], [0, 1, 0])]  # intent case, by seed
    assert asking.over_seeds(found).tolist() == [0.5, 0.5, 0.0]
    assert asking.over_seeds(found, "prior").tolist() == [0.5, 0.5, 0.5]
    numbers = asking.summary(found, ["a", "b", "c"], 0)
    context, prior = numbers.pop("context_accuracy"), numbers.pop("prior_accuracy")
    assert (context.value, prior.value) == pytest.approx((5 / 6, 0.5))
    assert 0 <= prior.low < 0.5 < prior.high <= 1
    assert numbers == pytest.approx(dict.fromkeys(numbers, 1 / 3)) and len(numbers) == 3


def test_dealt_cases_come_back_in_their_order():
    assert asking.hands(5, 3) == [[0, 3], [1, 4], [2]] and asking.hands(1, 2) == [[0], [0]]
    parts = [answers([1, 0], [1, 1]), answers([0, 1], [1, 0]), answers([1], [0])]
    assert asking.together(parts).right.tolist() == [
        [True, False, True, False, True],
        [True, True, False, True, False],
    ]


def test_an_answer_is_decided_once_it_cannot_become_one_of_the_two():
    for text, done in ((" Ni", False), (" Niger", False), (" Nigeria", True), (" Niger.", True)):
        assert asking.decided(text, "Niger", "Chad") == done
    assert asking.decided(" The", "Niger", "Chad") and not asking.decided(" ", "Niger", "Chad")
    assert not asking.decided(" S\ufffd", "São Tomé", "Chad")  # half of a letter


def test_as_many_answers_as_possible_come_first():
    named = [Fact("x", str(i), answer) for i, answer in enumerate("aabac")]
    named.append(Fact("y", "5", "a"))
    assert [fact.subject for fact in known.in_turn(named)] == ["0", "5", "2", "4", "1", "3"]


def test_two_sets_of_other_cases_count_alike():
    sets = {"sentence": CASES[:2], "multi-hop": CASES[:4], "arithmetic": CASES[4:6]}
    after = {"sentence": [1.0, 1.0], "multi-hop": [1.0, 1, 1, 0], "arithmetic": [0.0, 1]}
    after = {name: torch.tensor(values, dtype=torch.double) for name, values in after.items()}
    before = {name: torch.zeros_like(values) for name, values in after.items()}
    gain, numbers = asking.outside(sets, before, after, 0)
    assert gain.value == pytest.approx((0.75 + 0.5) / 2)
    gap = numbers.pop("gap")
    assert gap.value == pytest.approx(1 - 0.625) and gap.low < gap.value < gap.high
    kinds = {"multi_hop": 0.75, "multi_hop_zero_shot": 0.0}
    kinds |= {"arithmetic": 0.5, "arithmetic_zero_shot": 0.0}
    assert numbers == {"in_domain": 1.0, "zero_shot": 0.0} | kinds


def test_cases_in_a_ring_share_no_answer_with_their_neighbours():
    own = torch.tensor([1, 2, 3, 1, 0, 1, 2, 4])  # context's answer of four cases, then memory's
    rows = directions.Opposites(
        CASES[:4], mock.Mock(spec=Prefilled), own.roll(4), torch.zeros(1, 8, 2), own[:, None]
    )
    assert layer_search.ring_of(rows, 8) == [0, 2] and layer_search.ring_of(rows, 1) == [0]
    runs = layer_search.runs_between(rows, [0, 2])
    assert runs["intent: to memory"].answers.tolist() == [[0, 1], [2, 3]]
    other = runs["context: another question"]
    assert (other.source.tolist(), other.target.tolist()) == ([2, 0], [0, 2])
    assert other.answers.tolist() == [[3, 1], [1, 3]]


def test_runs_of_layers_and_others_far_from_the_chosen():
    assert layer_search.windows(5) == [(0,), (1,), (2,), (3,), (4,)]
    assert layer_search.windows(18)[-1] == (15, 16, 17)
    assert layer_search.others([(1,)], 5) == [(0,), (2,), (3,), (4,)]
    assert all(not {7, 8, 9} & set(some) for some in layer_search.others([(7, 8, 9)], 18))


def test_a_search_is_asked_again_of_resampled_cases():
    def read(layers):  # of two cases, one needs layer 2, the other layer 4
        p = np.zeros((2, 6, 2))
        for i, needed in enumerate((2, 4)):
            p[i, 5, 0] = needed in layers
        return p

    found = layer_search.searches(read, 6, 0, draws=60).shares
    assert found.keys() == {(2, 3, 4), (2,), (4,)} and sum(found.values()) == pytest.approx(1)


def rows_of(states, likely):
    token = torch.tensor([1, 1, 0, 0])  # of the source: memory's answer for the context rows
    return directions.Opposites(CASES[:2], mock.Mock(spec=Prefilled), token, states, likely)


def test_rows_are_paired_with_the_other_intent_and_the_plain_directions():
    h = torch.tensor([[3.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, 1.0]])  # context, context, memory
    rows = rows_of(h[None], torch.tensor([[0], [0], [1], [0]]))
    assert rows.own_token.tolist() == [0, 0, 1, 1]
    assert rows.right.tolist() == [True, False] and rows.kept.tolist() == [0, 2]
    assert rows_of(h[None], torch.ones(4, 1).long() * 5).kept.tolist() == [0, 1, 2, 3]
    assert rows.by_direction(rows.token).tolist() == [[1, 1], [0, 0]]
    assert directions.mean_difference(h).tolist() == [2.0, 0.0]
    # x = (2, 0, -2, 0) along the first axis: gram 8, penalty 0.01 · 8 / 2, x · sign = 4
    assert directions.ridge_probe(h).tolist() == pytest.approx([4 / 8.04, 0.0])


def test_a_dial_stays_within_what_occurs():
    h = torch.tensor([[3.0, 0.0], [-1.0, 5.0], [1.0, 0.0]])
    dial = knob.dial_along(torch.tensor([2.0, 0.0]), 4, h)
    assert [dial.at(k) for k in (-1.0, -0.5, 0.0, 0.5, 1.0)] == [-1.0, 0.0, 1.0, 2.0, 3.0]


def test_settings_are_the_smallest_that_do_most_on_their_side_and_are_cheap_enough():
    dial = knob.Dial(0, torch.ones(2), 0.0, -1.0, 1.0)
    asked = mock.Mock(spec=asking.Unstated)
    cost = dict.fromkeys(knob.KS, 0.0)

    def leads(asked, dial, change, values):  # the context leads in both cases from ½ on
        return torch.tensor([[c - 0.4, c - 0.3] for c in values])

    with mock.patch.object(knob, "leads", leads):
        ks = knob.settings(asked, dial, torch.add, 0, cost)
        assert (ks["context"].first, ks["prior"].first) == (0.5, -0.25)
        either = knob.settings(asked, dial, torch.add, 0, either_sign=True)
        assert either["prior"].first == 0.25
        dear = knob.settings(asked, dial, torch.add, 0, cost | {0.5: 0.2, -0.25: 0.2})
        assert (dear["context"].first, dear["prior"].first) == (0.75, -0.5)
        none = knob.settings(asked, dial, torch.add, 0, dict.fromkeys(knob.KS, 9.3))
        assert none == {"context": None, "prior": None}


def test_variants_side_by_side_are_what_each_is_alone():
    model = tiny_model("llama")
    prompts = Prefilled(model, ["When Mary went to the store, John", "John gave a drink to"])
    u = torch.randn(32, generator=torch.Generator().manual_seed(1))

    def double(h, v, c):
        return 2 * h + c[..., None] * v

    states = steering.residuals(prompts)[2]
    found = steering.swept(prompts, u, [0.5, -3.0], layer=2, states=states, change=double)
    for i, c in enumerate((0.5, -3.0)):
        with torch.no_grad(), steering.edited(model, 2, lambda h, c=c: 2 * h + c * u):
            alone = prompts.step()
        logits = last_token.logits(prompts, found[:, i])
        torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)
        both = last_token.between(prompts, found[:, [i]], torch.tensor([[5, 9], [9, 7]]))
        torch.testing.assert_close(both[:, 0], alone.gather(1, torch.tensor([[5, 9], [9, 7]])))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_layers_below_a_start_need_not_be_run(arch):
    model = tiny_model(arch)
    prompts = Prefilled(model, ["When Mary went to the store, John", "John gave a drink to"])
    rows, h = torch.arange(2), steering.residuals(prompts)[1]
    with torch.no_grad():
        whole = last_token.final_states(prompts, rows, 3)
        above = last_token.final_states(prompts, rows, 3, (1, h[:, None].expand(-1, 3, -1)))
        again = last_token.final_states(prompts, rows, 3)
    torch.testing.assert_close(above, whole, atol=1e-4, rtol=1e-4)
    assert torch.equal(again, whole)  # no trace is left
    torch.testing.assert_close(
        last_token.logits(prompts, whole[:, 2]), prompts.step(), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("arch", ("gpt2", "neox", "llama"))
def test_prompts_of_both_intents_are_what_each_is_alone(arch):
    model = tiny_model(arch)
    start = "When Mary and John went to"
    ends = (" the store, Mary gave", " the park, John gave a drink", " it, she gave him a ball")
    prompts = [f"{start}{end}{more}" for more in (" to John", " and a ball to") for end in ends]
    found, alone = BothIntents(model, prompts), Prefilled(model, prompts)
    assert (found.common, found.width) == (6, alone.width)
    assert torch.equal(found.gap, alone.gap)
    torch.testing.assert_close(found.step(), alone.step(), atol=1e-4, rtol=1e-4)
    assert found.continuations(3) == alone.continuations(3)
