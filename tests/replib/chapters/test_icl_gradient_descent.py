"""Gradient descent in context: worked by hand, by a loop and by a layer; measures on what is known;
trainings that are alike when repeated, stored whole, and refused when altered."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from replib.chapters.icl_gradient_descent import (
    agreement,
    bench,
    depth,
    descent,
    planted,
    proposition,
    stored,
    subjects,
    tasks,
    training,
    training_grid,
    watching,
    weights,
)
from replib.chapters.icl_gradient_descent.network import (
    Form,
    Layers,
    Perceptron,
    attend,
    from_products,
    predictions,
    sensitivities,
    sinusoids,
)
from replib.chapters.icl_gradient_descent.training_grid import STUDIES, Cell, Study, cell_of
from replib.chapters.stored import NotStored
from replib.errors import UsageError
from replib.metrics import Estimate
from replib.models.device import one_thread


def some(n=300, seed=0, **law):
    return tasks.draw(n, torch.Generator().manual_seed(seed), **law)


def tiny():
    """One pair with one input: x = 2, y = 6, and the query 3."""
    return tasks.Tasks(*(torch.tensor(x) for x in ([[[2.0]]], [[6.0]], [[3.0]], [9.0])))


# --- Tasks ----------------------------------------------------------------------------------------


def test_tokens_hold_what_a_network_may_read():
    one = tiny()
    assert one.tokens().tolist() == [[[2.0, 6.0], [3.0, 0.0]]]
    assert one.separate_tokens().tolist() == [[[2.0], [6.0], [3.0]]]
    many = some(50)
    assert many.separate_tokens().shape == (50, 21, 10)
    assert torch.equal(many.separate_tokens()[:, 1:20:2, -1], many.y)
    assert many.separate_tokens()[:, 1:20:2, :-1].abs().max() == 0


def test_labels_fit_their_inputs_and_laws_their_scale():
    many = some(2000, input_scale=2.0)
    assert many.x.abs().max() <= 1 and many.x.var() == pytest.approx(4 / 12, rel=0.02)
    fitted = torch.linalg.solve(many.x.double(), many.y.double()[..., None])[..., 0]
    error = (fitted * many.query.double()).sum(1) - many.target
    assert error.abs().median() < 1e-4
    for law in tasks.LAWS[1:]:
        other = some(50, law=law, input_scale=3.0)
        assert torch.allclose(other.x.flatten(1).norm(dim=1), torch.full((50,), 3.0))
    assert some(50, law="exponential").x.min() >= 0 > some(50, law="laplace").x.min()
    assert torch.allclose(some(5, target_scale=4.0).y, 4 * some(5).y)
    with pytest.raises(UsageError, match="choose one of uniform, normal"):
        some(5, law="cauchy")


def test_shuffled_labels_are_the_same_labels_elsewhere():
    many = some(50)
    mixed = many.shuffled(torch.Generator().manual_seed(1))
    assert torch.equal(mixed.y.sort(1).values, many.y.sort(1).values)
    assert (mixed.y != many.y).float().mean() > 0.8


# --- Algorithms -----------------------------------------------------------------------------------


def test_a_step_by_hand_by_loop_and_by_layer():
    one, rate = tiny(), 0.5
    assert descent.gd(one, [rate]).item() == 0.5 * 6 * 2  # and times the query, 3: 18
    assert descent.predict(one, descent.gd(one, [rate])).item() == 18
    qk, vp = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, -rate]))
    h = one.tokens()
    assert -(h + attend(h, qk, vp))[0, -1, -1].item() == 18
    assert descent.losses(one, torch.tensor([18.0])).item() == 0.5 * 81
    two = descent.gd(one, [rate, rate])  # the residual is then 6 - 2 * 6 = -6
    assert two.item() == 6 + 0.5 * -6 * 2
    step = descent.gd_step(replace(one, y=one.y - one.x[..., 0] * 6), torch.zeros(1, 1), rate)
    assert two.item() == 6 + step.item()


def test_gd_pp_without_gamma_is_gd_and_with_it_one_step_is():
    many, rates = some(), [6.0, 4.0]
    assert torch.allclose(descent.gd_pp(many, rates, [0, 0]), descent.gd(many, rates), atol=1e-5)
    assert torch.allclose(descent.gd_pp(many, [6.0], [0.3]), descent.gd(many, [6.0]), atol=1e-5)
    one = tiny()  # first step 6; then x = 2 - g 8, query 3 - g 12, y = 6 - 12
    g = 0.1
    x, moved = 2 - 8 * g, 1 - 4 * g
    assert descent.gd_pp(one, [0.5, 0.5], [g, g]).item() == pytest.approx(
        6 + 0.5 * -6 * x * moved, rel=1e-5
    )


def test_the_closed_form_is_that_of_many_tasks():
    theory, many = descent.best_one_step(), some(200_000)
    assert theory.rate == pytest.approx(6.0606, abs=1e-4)
    assert theory.loss == pytest.approx(0.20623, abs=1e-5)
    for s, expected in ((descent.gd(many, [theory.rate]), theory.loss), (0, theory.zero)):
        found = descent.losses(many, descent.predict(many, s + torch.zeros_like(many.query)))
        assert abs(found.mean() - expected) < 3 * found.std() / len(found) ** 0.5


def test_least_squares_solves_tasks_without_noise_and_the_search_finds_good_steps():
    many = some(4000)
    exact = descent.predict(many, descent.ridge(many, 0.0))
    assert (exact - many.target).abs().median() < 1e-4
    chosen = descent.choose(many, depths=(2,))
    assert abs(chosen.one - descent.best_one_step().rate) < 0.3
    losses = [
        descent.losses(many, descent.predict(many, s)).mean()
        for s in (chosen.gd(many), chosen.gd(many, 2), descent.gd(many, chosen.two))
    ]
    losses.append(descent.losses(many, descent.predict(many, chosen.gd_pp(many, 2))).mean())
    assert losses == sorted(losses, reverse=True)


# --- The construction -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hundred_hand_set_layers_are_a_hundred_steps(dtype):
    task = proposition.regression(3, dtype)
    d, width = len(task.query), task.tokens().shape[1]
    keep_x = torch.diag(torch.tensor([1.0] * d + [0.0] * (width - d), dtype=dtype))
    keep_y = torch.eye(width, dtype=dtype) - keep_x
    values = -keep_y
    values[:d, d:] = task.w.T
    said = proposition.layers(task, (keep_x, keep_x, values, 0.01 / 45 * keep_y), 100)
    right = proposition.descend(task, 0.01, 100)
    assert (said - right).abs().max() < (1e-4 if dtype == torch.float32 else 1e-9)
    assert (proposition.descend(task, 0.0101, 100) - right).abs().max() > 1e-2
    assert torch.equal(proposition.descend(task, 0.01, 0), task.w @ task.query)


def test_every_hand_set_network_is_its_algorithm():
    many, rate = some(), descent.best_one_step().rate
    one = descent.gd(many, [rate])
    for seed in (1, 2):  # other matrices, the same function
        layer = planted.network("linear", seed)
        assert torch.allclose(predictions(layer, many), descent.predict(many, one), atol=1e-4)
        assert torch.allclose(sensitivities(layer, many), one, atol=1e-4)
        assert weights.deviation(weights.combined(layer), rate).largest < 1e-4
    first, second = (planted.network("linear", seed).query for seed in (1, 2))
    assert (first - second).abs().max() > 0.1
    for name, k in (("two-layers", 2), ("five-layers", 5)):
        size, gamma = planted.PLUS[k]
        right = descent.predict(many, descent.gd_pp(many, [size] * k, [gamma] * k))
        assert torch.allclose(predictions(planted.network(name, 1), many), right, atol=1e-2)


def test_two_softmax_heads_that_subtract_are_nearly_one_linear_head():
    many = some(2000)
    lost = [
        descent.losses(many, predictions(planted.network(name, 1), many)).mean()
        for name in ("softmax-1", "softmax-2", "linear")
    ]
    assert lost[0] > lost[1] + 0.04 > lost[2] + 0.04
    summed = depth.effective(planted.network("softmax-2", 1))
    assert summed.diagonal()[:10].mean() * -10 == pytest.approx(5.745, abs=0.01)


def test_two_linear_heads_are_one():
    qk, vp = weights.construction(6.0)
    halves = from_products(Form(heads=2), [[(qk, vp / 3), (qk, vp * 2 / 3)]])
    one = weights.constructed(6.0)
    assert torch.allclose(predictions(halves, some()), predictions(one, some()), atol=1e-5)


def test_the_hand_set_copier_copies_from_the_next_token():
    network, many = planted.network("separate", 1), some(64)
    norms = watching.copying(network, many)
    assert norms["next"] > 0.9 and norms["other"] < 1e-3
    assert norms["own"] == pytest.approx(10**0.5, rel=1e-3)  # the residual stream itself
    h = network.layer(network.embed(network.read(many)), 0)
    assert torch.allclose(h[:, :-2:2, 18], many.y, atol=0.03)
    assert watching.copying(planted.network("frozen", 1), many)["next"] < 0.1


# --- What holds for any network of the form -------------------------------------------------------


def rough(form=None):
    """A network with random weights that are not small."""
    network = Layers(form or Form(), 3)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(8)
    return network


def test_the_order_of_pairs_is_nothing_and_labels_scale_predictions():
    many, layer = some(), rough()
    turned = replace(many, x=many.x.flip(1), y=many.y.flip(1))
    assert torch.allclose(predictions(layer, many), predictions(layer, turned), atol=1e-6)
    built = planted.network("linear", 2)
    tripled = replace(many, y=3 * many.y)
    assert torch.allclose(predictions(built, tripled), 3 * predictions(built, many), atol=1e-4)


def test_the_query_reaches_no_key_and_no_value():
    layer, h = rough(), some(20).tokens()
    other = h.clone()
    other[:, -1] += 1.0
    first, second = layer.layer(h, 0), layer.layer(other, 0)
    assert torch.equal(first[:, :-1], second[:, :-1])
    assert not torch.equal(first[:, -1], second[:, -1])


@pytest.mark.parametrize("study", ["linear", "two-layers", "five-layers", "softmax-2", "separate"])
def test_the_last_layer_needs_the_query_only(study):
    network, many = rough(Form(**STUDIES[study].form)), some(20)
    h = network.embed(network.read(many))
    for at in range(network.form.layers):
        h = network.layer(h, at)
    assert torch.allclose(network(network.read(many)), -h[:, -1, -1], atol=1e-5)


def test_first_weights_have_the_released_codes_spread():
    layer = Layers(Form(), 0)
    spread = torch.cat([w.flatten() for w in layer.parameters()])
    assert spread.std().item() == pytest.approx((0.002 / 11) ** 0.5, rel=0.1)
    assert spread.abs().max() < 2.3 * (0.002 / 11) ** 0.5
    assert not torch.equal(layer.query, Layers(Form(), 1).query)
    assert sinusoids(21, 10)[20, 1] == pytest.approx(np.cos(20), abs=1e-6)


# --- Measures -------------------------------------------------------------------------------------


def test_a_cosine_is_1_with_itself_and_0_with_permuted_labels():
    many = some(2000)
    one = descent.gd(many, [6.0])
    mixed = descent.gd(many.shuffled(torch.Generator().manual_seed(2)), [6.0])
    assert watching.cosines(one, one).min() > 1 - 1e-9
    assert watching.cosines(one, mixed).mean().abs() < 0.05
    assert watching.cosines(one, 0 * one).abs().max() == 0


def test_deviations_by_hand():
    m = torch.zeros(11, 11)
    m[range(10), range(10)] = -0.5
    m[0, 1], m[-1, :], m[2, -1] = 0.9, 0.05, 1.1
    found = weights.deviation(m, 5.0)
    assert found.diagonal == pytest.approx(0, abs=1e-6)
    assert found.off == pytest.approx((0.81 / 90) ** 0.5 / 0.5, rel=1e-5)
    assert found.row == pytest.approx(0.1, rel=1e-5)
    assert found.column == pytest.approx(((1.21 + 0.0025) / 11) ** 0.5 / 0.5, rel=1e-5)
    assert found.largest == found.column
    assert weights.deviation(m, 4.0).diagonal == pytest.approx(0.25, rel=1e-5)


def test_averages_need_the_scale_fixed():
    layer, rate, many = planted.network("linear", 3), descent.best_one_step().rate, some()
    halfway = weights.half_way(layer, rate)
    assert torch.allclose(predictions(halfway, many), predictions(layer, many), atol=1e-4)
    raw = weights.half_way_raw(layer, weights.constructed(rate))
    assert (predictions(raw, many) - predictions(layer, many)).abs().mean() > 0.1


def test_a_repeated_layer_is_damped_gradient_descent():
    many = some()
    said = agreement.repeated(planted.network("linear", 1), many, 4)
    rate = 0.75 * descent.best_one_step().rate
    for k in (1, 4):
        right = descent.predict(many, descent.gd(many, [rate] * k))
        assert torch.allclose(said[k - 1], right, atol=1e-4)


def test_without_its_correction_gd_pp_is_gd():
    many, (size, _) = some(), planted.PLUS[2]
    plain = depth.without_correction(planted.network("two-layers", 1))
    right = descent.predict(many, descent.gd(many, [size] * 2))
    assert torch.allclose(predictions(plain, many), right, rtol=1e-3, atol=1e-3)


def test_intervals_of_seeds_are_joined_and_ratios_are_of_means():
    one, two = Estimate(1.0, 0.9, 1.1, 50), Estimate(2.0, 1.5, 2.5, 50)
    assert bench.envelope([one, two]) == Estimate(1.5, 0.9, 2.5, 2)
    assert bench.n_outside([[one, two], [one]], 0.5, 1.2) == 1
    a, b = torch.tensor([1.0, 3.0]).double(), torch.tensor([2.0, 2.0]).double()
    found = bench.ratio(a, b)
    assert found.value == 1 and found.high - 1 == pytest.approx(1.96 * 2**0.5 / 2 / 2**0.5)
    assert bench.ratio(b, b).low == bench.ratio(b, b).high == 1
    assert np.isnan(bench.ratio(a, 0 * b).value)


def test_half_of_the_way():
    steps = [0, 10, 20, 30]
    assert watching.half_way(steps, [0.0, 0.4, 0.5, 1.0]) == 20
    assert watching.half_way(steps, [1.0, 0.6, 0.3, 0.2]) == 10
    assert watching.half_way(steps, [1.0, 1.0, 1.0, 1.0]) == 30
    curve = {"step": steps, "next": [0.0, 1.0, 1.0, 1.0], "loss": [0.9, 0.4, 0.4, 0.2]}
    one = training.Trained(1, Layers(Form(), 1), curve, torch.zeros(0, 1, 1))
    assert depth.crossings(one, 0.4) == (10, 30)  # the fall from 0.9 to 0.4 does not count


# --- Trainings ------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    """A few steps on a few tasks."""
    made = {name: replace(study, steps=6, every=3, seeds=(1,)) for name, study in STUDIES.items()}
    for module in (training_grid, training, subjects, planted):
        monkeypatch.setattr(module, "STUDIES", made)
    monkeypatch.setattr(training, "BATCH", 32)
    monkeypatch.setattr(watching, "N_WATCHED", 50)
    monkeypatch.setattr(watching, "_N_COPYING", 8)
    monkeypatch.setattr(stored, "code_sha256", lambda: "1" * 64)  # takes long
    with one_thread():
        yield made


def test_one_cell_trained_again_is_the_stored_one(short, tmp_path):
    for name in ("linear/1", "separate/1", "softmax-2/1"):
        cell = cell_of(name)
        training.train_cell(tmp_path, cell)
        kept, again = training.read(tmp_path, cell), training.train(cell)
        assert kept.curve == again.curve and kept.curve["step"] == [0, 3, 6]
        pairs = zip(kept.network.parameters(), again.network.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert stored.weights_path(tmp_path, cell).stat().st_size < 100_000
        assert not kept.is_stale
    assert kept.matrices.numel() == 0
    assert training.read(tmp_path, Cell("linear", 1)).matrices.shape == (3, 11, 11)


def test_training_does_what_the_study_says(short):
    first = training.start(STUDIES["frozen"], 1)
    frozen = training.train(Cell("frozen", 1)).network
    for before, after in zip(first.parameters(), frozen.parameters(), strict=True):
        assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])
    assert isinstance(training.train(Cell("perceptron", 1)).network, Perceptron)
    plain, mixed = (training.train(Cell(name, 1)) for name in ("linear", "shuffled"))
    assert plain.curve["loss"] != mixed.curve["loss"]
    with pytest.raises(UsageError, match="give at least 3"):
        training.train(Cell("linear", 1), stop_after=2)


def test_a_layer_learns(monkeypatch):
    """A small version of the real thing: 200 steps with three times the paper's rate."""
    study = replace(STUDIES["linear"], rate=0.003, every=200, steps=200)
    monkeypatch.setitem(training.STUDIES, "linear", study)
    monkeypatch.setattr(training, "BATCH", 512)
    made = training.train(Cell("linear", 1))
    assert made.curve["loss"][-1] < 0.9 * made.curve["loss"][0]
    assert made.curve["cosine"][-1] > 0.9


def test_what_is_missing_altered_or_old_is_trained_next(short, tmp_path):
    names = [cell.name for cell in training_grid.cells()]
    assert sorted(stored.missing(tmp_path)) == sorted(names)
    linear = Cell("linear", 1)
    training.train_cell(tmp_path, linear)
    assert "linear/1" not in stored.missing(tmp_path)
    with pytest.raises(NotStored, match=r"replib train icl-gradient-descent --cell"):
        stored.needed(tmp_path, {}, "trained-icl-gd")
    assert stored.needed(tmp_path, {}, "planted-icl-gd") == {}
    path = stored.card_path(tmp_path, linear)
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"code_sha256": "0" * 64}))
    assert "linear/1" in stored.missing(tmp_path)
    path.write_text(json.dumps(card | {"cell": {"study": "linear", "seed": 2}}))
    with pytest.raises(NotStored, match="another cell"):
        stored.read_card(tmp_path, linear)
    path.write_text("{")
    with pytest.raises(NotStored, match="cannot be read"):
        stored.read_card(tmp_path, linear)
    path.write_text(json.dumps(card))
    stored.weights_path(tmp_path, linear).write_bytes(b"other")
    with pytest.raises(NotStored, match="was altered"):
        training.read(tmp_path, linear)


def test_the_grid_is_the_papers():
    assert STUDIES["linear"] == Study((1, 2, 3, 4, 5))
    assert [STUDIES[s].steps for s in ("linear", "two-layers", "softmax-2")] == [5000] * 3
    assert STUDIES["separate"].steps == 10_000 and STUDIES["five-layers"].steps == 7500
    assert training_grid.settings("linear")["batch"] == 2048
    for name, reason in (("linear-1", "none of the studies"), ("linear/x", "write study/seed")):
        with pytest.raises(UsageError, match=reason):
            cell_of(name)


# --- Subjects -------------------------------------------------------------------------------------


def test_a_page_is_about_one_of_three_kinds_of_networks(short, tmp_path):
    hand = subjects.load(tmp_path, "planted-icl-gd")
    assert hand.is_set_by_hand and set(hand.studies) == set(STUDIES)
    assert hand.info(tmp_path)["n_params"] == 484
    random = subjects.load(tmp_path, "untrained-icl-gd")
    assert not random.is_set_by_hand
    assert len(set(random.studies["linear"][0].curve["loss"])) == 1
    with pytest.raises(NotStored):
        subjects.load(tmp_path, "trained-icl-gd")
    with pytest.raises(UsageError, match="trains its own networks; choose trained-icl-gd"):
        subjects.load(tmp_path, "smollm2-135m")
