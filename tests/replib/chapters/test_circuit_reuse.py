"""Choosing, testing and comparing the heads of two tasks, worked by hand."""

import itertools

import pytest
import torch

from replib.chapters.ioi_circuit_reuse import circuit, repair, reuse, tasks
from replib.chapters.ioi_circuit_reuse.planted import PLANTED_ROLES
from replib.interventions.head_edits import HeadEdit, Readout, zero_ablate
from replib.interventions.network import Network
from replib.interventions.path_patching import PathPatch
from replib.metrics import rng
from replib.models.load import load_model
from replib.models.tiny import tiny_model
from replib.prompts.capitals import capital_pairs
from replib.prompts.ioi import ioi_pairs
from replib.prompts.vocabulary import word_tokenizer

WORD = word_tokenizer()
NET = Network(tiny_model("gpt2"))
MOVERS = PLANTED_ROLES["name_movers"]


def patch(*effects):
    """A path patch with these effects [layer head prompt]: the gap is 1 and clean is 0."""
    values = torch.tensor(effects, dtype=torch.float32)
    n = values.shape[-1]
    return PathPatch(values, torch.zeros(n), torch.ones(n))


def test_attention_is_a_mean_over_the_positions_that_are_there():
    rows = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])[:, None, None]  # prompt 1 1 src
    at = torch.tensor([[0, 1], [2, -1]])
    assert torch.allclose(circuit.attention_on(rows, at), torch.tensor([[[0.4, 0.7]]]))
    assert circuit.mean_over([], torch.ones(1, 1, 3)).isnan().all()


def test_candidates_support_the_answer_and_attend_on_the_selection_half():
    #             selection    report
    stage = patch([[0.9, 0.9, -5, -5], [0.5, 0.5, 0, 0]], [[-0.7, -0.7, 1, 1], [0.3, 0.3, 1, 1]])
    assert circuit.select(stage) == [(0, 0), (1, 0), (0, 1), (1, 1)]  # by size
    gap = torch.tensor([[[-1.0, -1, 9, 9, 9], [1] * 5], [[1] * 5, [1] * 5]])  # of more prompts
    assert circuit.select(stage, gap) == [(0, 1), (1, 1)]
    assert circuit.receivers([(0, 1), (1, 1)], stage) == [(1, 1)]
    assert circuit.receivers([(0, 1)], stage) == [(1, 0)]  # the strongest with a head below it


def test_a_role_takes_three_tests_on_the_report_half():
    steady, swing = [0.4, 0.5] * 8, [0.5] * 8 + [2.0, -1.9] * 4
    stage = patch([steady, swing, [0.01, 0.012] * 8, steady])
    attends = torch.tensor([[0.2, 0.3] * 8] * 3 + [[0.3] * 8 + [-0.2, 0.1] * 4])[None]
    groups = [str(i) for i in range(16)]
    assert len(circuit.select(stage, attends)) == 4
    assert circuit.confirmed(stage, attends, groups, 0, "test") == [(0, 0)]


def test_the_negative_mover_lowers_the_name_that_it_attends_to():
    stage = patch([[1] * 4, [2] * 4, [3] * 4])
    io_over_s2 = torch.tensor([[[1.0] * 4, [-1] * 4, [-1] * 4]])
    #   direct effects on (IO, S) by head: lowers IO, lowers S, raises S
    direct = torch.tensor([[-3.0, 0], [9, -1], [-9, 1]]).expand(1, 4, 1, 3, 2)
    before = Readout(torch.zeros(1, 4), torch.zeros(4, 2, dtype=int), torch.zeros(1, 4, 2))
    before = Readout(**vars(before) | {"attribution": direct})
    found = circuit.negative_movers(stage, io_over_s2, before, capital_pairs(WORD, 4, 0), 0)
    assert (found.heads, found.on_s2, found.effect) == ([(0, 0), (0, 1)], [(0, 1)], -3)
    assert found.s2_over_io.value == -1  # of the first, which attends to IO


def test_random_sets_stay_in_their_layers():
    sets = circuit.random_sets([(1, 0), (1, 2), (3, 1)], 4, 20, rng(0))
    assert len(sets) == 20 and {tuple(layer for layer, _ in one) for one in sets} == {(1, 1, 3)}
    assert circuit.random_sets([], 4, 20, rng(0)) == [[]]


def heads_of(*stages, draws=None):
    sets = [set(stage) for stage in stages]
    return reuse.TaskHeads(sets, draws or [sets], 1.0)


def test_overlaps_by_hand():
    a, b, c, d = ((0, i) for i in range(4))
    one, other = heads_of([a, b], [a, c]), heads_of([a, d], [c, d], draws=[[{a, b}, {c, d}]])
    shared = reuse.between(one, other, 2)
    assert (shared.value, shared.low, shared.n) == (2 / 4, 3 / 4, 4)
    assert reuse.between(one, other, 1).value == 1 / 2
    none, half = heads_of([c, d], [b, d]), heads_of([b, c], [a, d])
    beyond = reuse.beyond(one, other, [none, half], 1)
    assert (beyond.value, beyond.low) == (1 / 2 - 1 / 2, 1 - 1 / 2)
    assert reuse.beyond(one, other, [], 1).value == 1 / 2
    assert reuse.n_specific(one, heads_of([b, a], [a, d])) == 1
    table = reuse.table(one, other)
    assert list(table.loc["stage 2"]) == ["L0H2", "L0H0", "L0H3"]


def test_a_resampling_takes_the_same_prompts_in_every_stage():
    stage = patch([[5, 0, 0, 0], [0, 5, 0, 0], [0, 0, 3, 0], [0, 0, 0, 3]])
    heads = reuse.task_heads([stage, stage], ["a", "b", "c", "d"], 0, "test", 50)
    assert heads.tops == [{(0, 0)}, {(0, 0)}] and heads.ceiling == 0
    assert all(first == second for first, second in heads.resampled)
    assert set.union(*(first for first, _ in heads.resampled)) >= {(0, 0), (0, 1), (0, 2)}
    curves, _ = reuse.by_threshold([stage], [stage], [25, 100], 0)
    assert list(curves.values()) == [[1, 1], [0, 1]]


@pytest.mark.parametrize(("works", "tried", "found"), [(0, 1, 0), (2, 3, 2), (9, 5, 0)])
def test_the_first_variant_above_chance_is_taken_else_the_papers(monkeypatch, works, tried, found):
    variants = list(itertools.islice(tasks.variants(WORD, 2, 12, 12, 0), 5))
    right = {id(v.choose): i == works for i, v in enumerate(variants)}

    def said(is_right, n):
        logits = torch.tensor([[[float(is_right), 0.5]] * n])
        return Readout(torch.zeros(1, n), torch.zeros(n, 2, dtype=int), logits)

    def unedited(_, variant):
        listed = torch.full((12,), right[id(variant.choose)])
        return tasks.Unedited(variant, said(False, 12), listed, listed)

    monkeypatch.setattr(tasks, "read", lambda _, pairs: said(right[id(pairs)], len(pairs)))
    monkeypatch.setattr(tasks, "read_unedited", unedited)
    task, shares = tasks.first_workable(NET, iter(variants))
    assert task.variant is variants[found] and len(shares) == tried


def test_the_heads_that_can_feel_an_edit():
    heads = repair.downstream(NET, [(0, 1), (1, 0)], [(0, 0), (1, 1)])
    later = [(layer, head) for layer, head in NET.heads() if layer > 0 and (layer, head) != (1, 0)]
    assert heads.heads == later and heads.movers == [(1, 1)]
    assert heads.others == [(1, head) for head in range(2, NET.n_heads)]
    assert repair.downstream(NET, [], [(1, 1)]) == repair.Downstream([], [], [])


def test_movers_turn_from_the_wrong_colours_to_the_right_one():
    prompts = next(tasks.variants(WORD, 2, 4, 4, 0)).report
    n, (right, wrong) = len(prompts), prompts.positions["colors"][0, :2].tolist()

    def said(to_right, to_wrong, direct):  # by head of one layer: a mover, another
        pattern = torch.zeros(1, n, 1, 2, prompts.clean.shape[1])
        pattern[..., 0, right], pattern[..., 0, wrong] = to_right, to_wrong
        attribution = torch.full((1, n, 1, 2, 3), direct)
        tokens = torch.zeros(1, n), prompts.candidates, torch.zeros(1, n, 3)
        return Readout(*tokens, pattern=pattern, attribution=attribution)

    prompts = prompts[[0] * n]
    heads = repair.Downstream([(0, 0), (0, 1)], [(0, 0)], [(0, 1)])
    got = repair.response(heads, prompts, said(0.25, 0.5, 1.0), said(0.75, 0.25, 3.0), 0)
    # Each of the two wrong colours counts half.
    assert (got.right.value, got.wrong.value, got.contrast.value) == (0.5, -0.125, 0.625)
    assert got.attribution_ratio == 3 and (got.direct == 2).all()
    assert got.bars["other heads,\nsame layers"]["right colour"].value == 0
    none = repair.Downstream([(0, 0)], [], [])
    got = repair.response(none, prompts, said(0.25, 0.5, 1.0), said(0.75, 0.25, 3.0), 0)
    assert got.wrong is None and list(got.bars) == ["movers (none found)"]


def test_random_tokens_are_before_end_and_no_colours_and_each_word_is_of_one_kind():
    prompts = next(tasks.variants(WORD, 2, 6, 6, 0)).report
    places = repair.other_places(prompts, 0)
    for i, two in enumerate(places["on two\nother\ntokens"].tolist()):
        colors = (
            prompts.positions["colors"][i].tolist() + places["on the\nshots'\ncolours"][i].tolist()
        )
        assert len(set(two)) == 2 and max(two) < prompts.length[i] - 1 and not {*two} & {*colors}
    color, word = (WORD(text, add_special_tokens=False).input_ids[0] for text in (" Red", " John"))
    listed = prompts.candidates.tolist()
    other = next(i for i, row in enumerate(listed) if color not in row)
    said = torch.tensor([listed[other][0], listed[other][1], color, word])
    kinds = repair.kinds_of_answer(WORD, prompts[[other] * 4], said)
    assert torch.stack(list(kinds.values())).equal(torch.eye(4, dtype=bool))


def test_without_the_planted_movers_the_loss_rises():
    model = load_model("planted-ioi")
    pairs = ioi_pairs(model.tokenizer, 20)
    cost = repair.added_loss(Network(model), pairs, zero_ablate(MOVERS), 0)
    assert cost.low > 1  # nats


def test_no_heads_cost_nothing():
    pairs = capital_pairs(WORD, 4, 0)
    assert repair.added_loss(NET, pairs, HeadEdit(), 0).high == 0
