"""Choosing, testing and comparing the heads of two tasks, worked by hand."""

import json
import math

import pytest
import torch

from replib.chapters.ioi_circuit_reuse import circuit, repair, reuse, single_heads, tasks
from replib.chapters.ioi_circuit_reuse.planted import PLANTED_ROLES
from replib.errors import UsageError
from replib.interventions.head_edits import (
    HeadEdit,
    Readout,
    Site,
    attention_row,
    read,
    zero_ablate,
)
from replib.interventions.network import Network
from replib.interventions.path_patching import PathPatch
from replib.metrics import Estimate, rng
from replib.models.load import load_model
from replib.models.tiny import tiny_model
from replib.prompts.capitals import capital_pairs
from replib.prompts.colored_objects import colored_objects_pairs
from replib.prompts.ioi import ioi_pairs
from replib.prompts.vocabulary import word_tokenizer
from replib.prompts.words import COLORS

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


def test_stages_that_chose_on_few_prompts_choose_by_all_of_them():
    stage = patch([[0.9, 0.9, 0.9, -9]], [[0.2, 0.2, 0.2, 0.2]])
    assert circuit.select(stage, torch.ones(2, 1, 4)) == [(0, 0), (1, 0)]
    assert circuit.select(stage, torch.ones(2, 1, 4), whole=True) == [(1, 0)]
    pairs = capital_pairs(WORD, 8, 0)
    assert [len(circuit.deep_prompts(pairs, n)) for n in (2, 9)] == [2, 4]
    nobody = circuit.report_patch(NET, pairs, [], [(1, 0)])
    assert nobody.shape == (NET.n_layers, NET.n_heads, 4) and nobody.isnan().all()


def test_a_role_takes_three_tests_on_the_report_half():
    steady, swing = [0.4, 0.5] * 8, [0.5] * 8 + [2.0, -1.9] * 4
    stage = patch([steady, swing, [0.01, 0.012] * 8, steady])
    attends = torch.tensor([[0.2, 0.3] * 8] * 3 + [[0.3] * 8 + [-0.2, 0.1] * 4])[None]
    groups = [str(i) for i in range(16)]
    heads = circuit.select(stage, attends)
    assert len(heads) == 4
    tested = circuit.confirmed(heads, stage.effect(), attends, groups, 0, "test")
    assert tested.found == [(0, 0)]
    # The one that swings may have the role yet; the third is too weak for certain.
    assert (0, 1) in tested.open and (0, 2) not in tested.open
    only_report = (circuit.halves(values)[1] for values in (stage.effect(), attends))
    assert circuit.confirmed(heads, *only_report, groups, 0, "test") == tested
    none = circuit.Tested([], [])
    counts = circuit.count_roles({"movers": tested, "inhibition heads": none})
    assert counts == {"movers": 1, "inhibition": 0, "value": 1, "possible": 1}


def test_the_negative_mover_lowers_the_name_that_it_attends_to():
    n = 16
    stage = patch(*[[[i / 10] * n for i in (1, 2, 3)]])
    io_over_s2 = torch.tensor([[[1.0] * n, [-1, -0.9] * (n // 2), [-1] * n]])
    #   direct effects on (IO, S) by head: lowers IO, lowers S, raises S
    direct = torch.tensor([[-3.0, 0], [9, -1], [-9, 1]]).expand(1, n, 1, 3, 2).clone()
    direct[0, ::2, 0, 1, 1] = -1.1
    before = Readout(torch.zeros(1, n), torch.zeros(n, 2, dtype=int), torch.zeros(1, n, 2))
    before = Readout(**vars(before) | {"attribution": direct})
    stage = PathPatch(stage.logit_diff, torch.ones(n), torch.zeros(n))
    groups = [str(i) for i in range(n)]
    found = circuit.negative_movers(stage, io_over_s2, before, groups, 0)
    assert (found.heads, found.found, found.effect) == ([(0, 0), (0, 1)], [(0, 1)], -3)
    assert found.s2_over_io.value == -1  # of the first, which attends to IO


def test_a_null_of_random_sets_says_how_often_it_holds_a_chosen_head():
    heads = [(1, 0), (3, 1)]
    sets = circuit.random_sets(heads, NET, 20, rng(0))
    assert len(sets) == 20 and {len(one) for one in sets} == {2}
    assert circuit.random_sets([], NET, 20, rng(0)) == [[]]
    null = circuit.null_of(torch.tensor([[1.0, 3.0], [0, 0], [5, 5]]))
    numbers = circuit.null_numbers(null, [[(1, 0)], [(0, 0)], [(2, 2), (3, 1)]], heads)
    assert numbers["mean"] == 7 / 3 and numbers["holding"] == pytest.approx(2 / 3)
    assert (numbers["without_mean"], numbers["without_draws"]) == (0, 1)
    every = circuit.null_numbers(null, [[(1, 0)]] * 3, heads)
    assert (every["without_mean"], every["without_draws"]) == (7 / 3, 0)


def test_what_the_answer_depends_on_is_where_the_prompts_differ():
    pairs = capital_pairs(WORD, 4, 0)
    rows = torch.zeros(4, 1, 2, pairs.clean.shape[1])
    rows[torch.arange(4), 0, 1, pairs.positions["country"]] = 1.0
    depends = circuit.on_what_differs(rows, pairs)
    assert torch.allclose(depends[0, 0], -1 / pairs.length)
    assert torch.allclose(depends[0, 1], 1 - 1 / pairs.length)


def heads_of(*stages):
    sets = [set(stage) for stage in stages]
    return reuse.TaskHeads(sets, sets[:2], 1.0)


def test_overlaps_by_hand():
    a, b, c, d = ((0, i) for i in range(4))
    one, other = heads_of([a, b], [a, c]), heads_of([a, d], [c, d])
    numbers = reuse.overlap_numbers(one, other, {"none": heads_of([c, d], [b, d])}, 4, 0)
    assert (numbers["value"], numbers["n"], numbers["controls"]) == (2 / 4, 4, 1)
    assert numbers["value"] < numbers["upper"] <= 1
    assert (numbers["end_overlap"], numbers["control_overlap"]) == (2 / 4, 0)
    # each of two heads is among two of a layer's four with probability 1/2
    assert numbers["null"].draws.mean() == pytest.approx(0.5, abs=0.05)
    assert reuse.overlap_numbers(one, other, {}, 4, 0)["control_overlap"] == 0
    assert list(reuse.table(one, other).loc["stage 2"]) == ["L0H2", "L0H0", "L0H3"]
    picture = reuse.bars(numbers, one, {"none": heads_of([c, d], [b, d])})
    assert "none, stages 1–2 0;" in picture.alt


def test_the_effect_of_shared_heads():
    stage = patch([[4, 4, 3, 3, 0], [-1, -1, -2, -2, 0], [2, 2, 0, 0, 1]])
    a, b, c = ((0, i) for i in range(3))
    own, other, far = heads_of([a, b], [a]), heads_of([a, c], [b]), heads_of([c], [b])
    groups = list("vwxyz")
    value = reuse.effect_beyond([stage] * 2, own, other, {"far": far}, groups, 0)
    # report half: a 2, b -4/3 with the sign of before; own 2 + 4/3 + 2, shared 2
    assert value.value == pytest.approx(2 / (2 + 4 / 3 + 2)) and value.n == 3
    same = reuse.effect_beyond([stage] * 2, own, own, {}, groups, 0)
    assert same.value == 1 and same.low < 1 and same.high == 1
    none = reuse.effect_beyond([stage] * 2, own, far, {"far": far}, groups, 0)
    assert none.value == 0 and none.low == -none.high < 0


def test_top_heads_and_their_ceiling():
    stage = patch([[5, 0, 0, 0], [0, 5, 0, 0], [0, 0, 3, 0], [0, 0, 0, 3]])
    heads = reuse.task_heads([stage, stage])
    assert heads.tops == heads.chosen == [{(0, 0)}, {(0, 0)}] and heads.ceiling == 0
    assert "from 1 at 1 to" in reuse.by_threshold([stage], [stage], 0).alt
    assert reuse.top_ten(stage, stage, has_gaps=True).value == 1
    assert math.isnan(reuse.top_ten(stage, stage, has_gaps=False).value)


def test_movers_again_and_heads_of_one_task():
    n = 24
    noise = torch.tensor([0.01, -0.01] * (n // 2))
    one = patch([(noise + 0.4).tolist(), (noise + 0.3).tolist(), noise.tolist()])
    other = patch([(noise + 0.2).tolist(), (noise + 0.001).tolist(), noise.tolist()])
    groups = [str(i) for i in range(n)]
    again = reuse.movers_again([(0, 0), (0, 1)], one, other, groups, 0)
    assert again.value == pytest.approx(0.201 / 0.7, abs=1e-3)
    found = reuse.specific([one, other], [other, other], 0)
    assert [(name, stage) for name, stage, _ in found] == [("L0H0", 1), ("L0H1", 1)]
    assert [by for *_, by in found] == pytest.approx([0.2, 0.299], abs=1e-3)


@pytest.mark.parametrize(("works", "tried", "found"), [(0, 1, 0), (2, 3, 2), (9, 5, 0)])
def test_the_first_variant_with_a_gap_is_taken_else_the_papers(monkeypatch, works, tried, found):
    variants = list(tasks.variants(WORD, 2, 12, 12, 0))
    gaps = {id(v.find): 0.1 if i == works else -0.1 for i, v in enumerate(variants)}

    def gap(_, pairs, seed):
        return Estimate(1.0, gaps[id(pairs)], 2.0, 2)

    monkeypatch.setattr(tasks, "gap", gap)
    variant, shares = tasks.first_workable(NET, iter(variants), 0)
    assert variant is variants[found] and len(shares) == tried


def own_file(tmp_path, n, n_objects):
    pairs = colored_objects_pairs(WORD, n, 3, n_objects)
    answers = WORD.batch_decode(pairs.answer[:, None])
    path = tmp_path / "own.json"
    path.write_text(json.dumps([list(row) for row in zip(pairs.text, answers, strict=True)]))
    return str(path)


def test_own_prompts_of_two_objects_have_the_chance_of_two(tmp_path):
    (own,) = tasks.variants(WORD, 50, 400, 100, 0, own_file(tmp_path, 30, 2))
    assert (own.n_objects, own.n_shots, own.more) == (2, 1, None)
    assert (len(own.find), len(own.report)) == (10, 20)
    said = tasks.read_unedited(NET, own, 0)
    assert said.gap.n == len(said.top1) == 20
    (many,) = tasks.variants(WORD, 5, 20, 10, 0, own_file(tmp_path, 30, 3))
    assert [len(pairs) for pairs in (many.find, many.report, many.more)] == [5, 10, 10]
    with pytest.raises(UsageError, match="has 8 prompts that this tokenizer can use; give 12"):
        next(tasks.variants(WORD, 5, 20, 10, 0, own_file(tmp_path, 8, 3)))


def test_what_was_right_before_set_by_set():
    variant = next(tasks.variants(WORD, 2, 7, 4, 0))
    said = tasks.read_unedited(NET, variant, 0)
    top1 = torch.tensor([False, True, True, False, False, False, False])
    said = tasks.Unedited(**vars(said) | {"top1": top1})
    (only,) = said.right_before(variant)
    assert only.text == variant.report.text[1:3]
    assert not (said.listed & ~said.listed).any() and len(said.listed_top1) == 7


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
    assert got.turned.value == 0.625
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

    def token(text):
        return WORD(text, add_special_tokens=False).input_ids[0]

    row = prompts.clean[0][prompts.positions["shot_colors"][0]]
    shown = WORD.decode(row[:1]).title()
    listed = prompts.candidates[0].tolist()
    shot = [token(WORD.decode([i]).title()) for i in row.tolist()]
    colors = [token(f" {color.title()}") for color in COLORS]
    other = next(color for color in colors if color not in (*listed, *shot))
    said = torch.tensor([listed[0], listed[1], token(shown), other, token(" John")])
    kinds = repair.kinds_of_answer(WORD, prompts[[0] * 5], said)
    assert torch.stack(list(kinds.values())).equal(torch.eye(5, dtype=bool))
    shares = repair.shares_said(WORD, prompts[[0] * 5], said)
    assert set(shares.values()) == {0.2}


def test_a_share_of_the_attention_is_moved():
    row = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    edit = repair.move_attention({(0, 1): 0.25}, row)
    site = Site((0, 1), slice(None), None)
    old = torch.tensor([[[0.5, 0.5, 0.0]], [[1.0, 0.0, 0.0]]])  # prompt dest src
    moved = torch.tensor([[[0.375, 0.625, 0.0]], [[0.75, 0.0, 0.25]]])
    assert torch.allclose(edit.apply(old, site), moved) and edit.at == "pattern"


def test_the_gap_that_a_cut_takes_away():
    def said(*rows):
        diff = torch.tensor(rows)
        return Readout(diff, torch.zeros(4, 2, dtype=int), torch.zeros(3, 4, 2))

    # gaps: 4 without an edit, 1 with the cut, 3 with the random one
    clean, corrupted = said([2.0] * 4, [1.0] * 4, [2.0] * 4), said([-2.0] * 4, [0.0] * 4, [-1] * 4)
    lost, null = repair.gap_lost(clean, corrupted, list("abcd"), 0)
    assert lost.value == 0.75 and null.draws.tolist() == [0.25]


def test_focus_and_lean_by_hand():
    prompts = next(tasks.variants(WORD, 2, 4, 4, 0)).report
    one = torch.ones(1, 1, 4)
    spread = torch.tensor([0.01, 0.0, 0.0, -0.01])
    attention = repair.TaskAttention(
        0.1 * one + spread, 0.3 * one + spread, 0.2 * one - 1 / prompts.length, one
    )
    active, lean = repair.focus([(0, 0)], attention, prompts, 0)
    assert active.value == pytest.approx(float((0.2 * prompts.length - 1).mean()), rel=1e-5)
    assert lean.value == pytest.approx(0.5) and lean.low < 0.5 < lean.high


def test_every_head_is_forced_alone():
    prompts = next(tasks.variants(WORD, 2, 4, 4, 0)).report
    row = torch.zeros(prompts.clean.shape).scatter(1, prompts.positions["wrong_colors"], 0.5)
    gain = single_heads.forced_alone(NET, prompts, row)
    assert gain.shape == (NET.n_layers, NET.n_heads, 4)
    said = read(NET, prompts, [HeadEdit(), attention_row([(2, 1)], row)]).logits
    alone = said[1] - said[0]
    assert torch.allclose(gain[2, 1], alone[:, 0] - alone[:, 1:].mean(-1), atol=1e-5)


def test_rank_correlation_within_layers():
    a = torch.tensor([1.0, 2, 3, 4, 5, 6])
    rho, null = single_heads.rank_correlation(a, a, rng(0), layers=[0, 0, 1, 1, 2, 2], draws=400)
    assert rho.value == pytest.approx(1) and rho.n == 6
    # The layers stay in order: at worst each pair is turned round, 1 - 6·6 / (6·35).
    assert null.draws.min() == pytest.approx(1 - 36 / 210)
    assert set((null.draws > 0.999).tolist()) == {True, False}
    assert single_heads.rank_correlation(a, a, rng(0))[1].draws.mean() == pytest.approx(0, abs=0.1)
    assert torch.isnan(torch.tensor(single_heads.rank_correlation(a, a * 0, rng(0))[0].value))
    grid = torch.tensor([[1.0, 2.0], [4.0, 3.0], [5.0, 6.0]])
    opposite, p = single_heads.tie(grid, -grid, 0)
    assert opposite.value == pytest.approx(-1) and p < 0.2  # one of eight orders within layers


def test_without_the_planted_movers_the_loss_rises():
    model = load_model("planted-ioi")
    pairs = ioi_pairs(model.tokenizer, 20)
    cost = repair.added_loss(Network(model), pairs, zero_ablate(MOVERS), 0)
    assert cost.low > 1  # nats


def test_no_heads_cost_nothing():
    pairs = capital_pairs(WORD, 4, 0)
    assert repair.added_loss(NET, pairs, HeadEdit(), 0).high == 0
