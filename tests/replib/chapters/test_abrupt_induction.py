"""The birth of an induction head: sequences, network, planted parts, curves, stored trainings."""

import hashlib
import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from replib.chapters.abrupt_induction import (
    births,
    curves,
    measures,
    minimal,
    planting,
    stored,
    three_logits,
    training,
)
from replib.chapters.abrupt_induction import training_grid as grid
from replib.chapters.abrupt_induction.law import N_FRESH, N_PLACES, Law
from replib.chapters.abrupt_induction.network import TwoLayers, layer
from replib.chapters.abrupt_induction.planted import history, planted_network
from replib.chapters.abrupt_induction.sequences import draw, draw_directions
from replib.chapters.abrupt_induction.training_grid import STUDIES, Cell, Study
from replib.chapters.stored import NotStored
from replib.errors import UsageError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some(law, n=64, seed=0, swapped=False):
    directions = draw_directions(law, generator(seed))
    return directions, draw(law, directions, n, generator(seed + 1), swapped)


# --- Sequences ------------------------------------------------------------------------------------


def test_a_bursty_sequence_has_each_class_as_often_as_it_should():
    law = Law(n_pairs=4, n_classes=64, burst=2, fresh=0.0)
    _, sequences = some(law)
    for row in range(len(sequences)):
        counts = sequences.classes[row].unique(return_counts=True)[1]
        assert counts.tolist() == [2, 2]
        assert len(sequences.labels[row].unique()) == 2  # classes of a context differ in label
    assert (sequences.labels == sequences.classes % 32).all()
    assert (sequences.matches.sum(1) == 2).all() and (
        sequences.answer == sequences.query % 32
    ).all()


def test_a_query_is_in_the_context_if_the_sequence_is_bursty_or_fresh():
    law = Law(n_classes=1024, bursty=0.0, fresh=0.5)
    _, sequences = some(law, 400)
    is_fresh = sequences.query >= 1024
    assert 120 < is_fresh.sum() < 280
    assert sequences.matches[is_fresh].any(1).all()  # as in the author's code
    assert sequences.matches[~is_fresh].any(1).float().mean() < 0.05
    assert ((sequences.classes >= 1024) == is_fresh[:, None]).all()
    assert sequences.query.max() < 1024 + N_FRESH


def test_tokens_stand_in_a_row_of_places_and_carry_their_content():
    law = Law(n_classes=64, noise=0.0, fresh=0.0)
    directions, sequences = some(law, 400)
    place = sequences.tokens[..., :N_PLACES]
    assert (place.sum(-1) == 1).all() and (place.argmax(-1).diff(dim=1) == 1).all()
    first = place.argmax(-1)[:, 0]
    assert first.min() < 10 and first.max() == N_PLACES - law.n_tokens
    content = sequences.tokens[..., N_PLACES:]
    assert torch.equal(content[:, 1::2], directions.labels[sequences.labels])
    assert torch.equal(content[:, :-1:2], directions.classes[sequences.classes])
    assert torch.equal(content[:, -1], directions.classes[sequences.query])


def test_an_item_has_the_length_of_its_class_with_its_noise():
    law = Law(n_classes=64, noise=1.0, fresh=0.0)
    directions, sequences = some(law, 400)
    content = sequences.tokens[:, -1, N_PLACES:]
    assert content.norm(dim=1).square().mean() == pytest.approx(1.0, abs=0.05)
    along = (content * directions.classes[sequences.query]).sum(1).mean()
    assert along == pytest.approx(0.5**0.5, abs=0.08)


def test_swapped_labels_are_the_next_ones():
    law = Law(n_classes=64, fresh=0.0)
    _, plain = some(law)
    _, swapped = some(law, swapped=True)
    assert torch.equal(swapped.labels, (plain.labels + 1) % 32)
    assert torch.equal(swapped.answer, (plain.answer + 1) % 32)
    assert torch.equal(swapped.classes, plain.classes)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"burst": 3}, "the burst divides the pairs"),
        ({"n_labels": 4, "n_classes": 512}, "each class of a context needs its own label"),
        ({"n_classes": 100}, "every label needs as many"),
        ({"n_pairs": 40, "n_labels": 64}, "do not fit"),
    ],
)
def test_a_law_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        Law(**wrong)


# --- Network --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_fast_pass_is_two_plain_layers_with_the_same_gradients(n_layers):
    law = Law(n_pairs=3)
    _, sequences = some(law, 16)
    network = TwoLayers(32, generator(5), n_layers)
    x, W = sequences.tokens, dict(network.named_parameters())
    y, first = layer(x, W["Q1"], W["K1"], W["V1"])
    z, second = layer(y, W["Q2"], W["K2"], W["V2"])
    logits = network.classify(z[:, -1])
    seen = network.run(x)
    for fast, plain in zip(seen, (logits, first, second[:, -1]), strict=True):
        assert torch.allclose(fast, plain, atol=1e-5)
    losses = [torch.nn.functional.cross_entropy(a, sequences.answer) for a in (seen[0], logits)]
    trained = [p for p in W.values() if p.requires_grad]
    assert len(trained) == (12 if n_layers == 1 else 13)
    some_gradients = [torch.autograd.grad(one, trained, allow_unused=True) for one in losses]
    for fast, plain in zip(*some_gradients, strict=True):
        zero = torch.zeros(())
        assert torch.allclose(
            zero if fast is None else fast, zero if plain is None else plain, atol=1e-5
        )


def test_attention_in_place_of_the_first_layers_is_used():
    _, sequences = some(Law(n_pairs=2), 4)
    network = TwoLayers(32, generator(1))
    own = network.first_attention(sequences.tokens)
    assert torch.allclose(network.run(sequences.tokens, own).logits, network(sequences.tokens))
    other = torch.eye(5).expand(4, 5, 5)
    assert not torch.allclose(
        network.run(sequences.tokens, other).logits, network(sequences.tokens)
    )


# --- Planted, and what is measured ----------------------------------------------------------------


def test_a_planted_head_copies_and_one_place_off_it_does_not():
    law = Law()
    directions = draw_directions(law, generator())
    tests = measures.tests_of(law, directions, 500)
    head = measures.measured(planted_network(directions), tests)
    assert head["ic"] > 0.95 and head["ila1"] > 0.95 and head["tila2"] > 0.85
    assert measures.measured(planted_network(directions, offset=2), tests)["ic"] < 0.25
    picker = measures.measured(planted_network(directions, formed=0.0), tests)
    assert picker["cla"] > 0.8 and 0.08 < picker["ic"] < 0.2
    even = measures.chance(law)
    assert picker["ila1"] < 1e-4
    for name in ("tila2", "tla2"):
        assert picker[name] == pytest.approx(even[name], abs=1e-4)
    assert abs(picker["shuffled"] - even["cla"]) < 0.06


def test_a_copier_is_right_about_swapped_labels_and_a_memory_wrong():
    law = Law(n_classes=32, burst=4, fresh=0.0)
    directions = draw_directions(law, generator())
    tests = measures.tests_of(law, directions, 500)
    copier = measures.measured(planted_network(directions), tests)
    memory = measures.measured(planted_network(directions, formed=0.0, known=1.0), tests)
    assert copier["ic2"] > 0.95 and copier["iw"] < 0.35  # 8 items of 32 classes: often by luck
    assert memory["ic2"] < 0.05 and memory["iw"] > 0.95


def test_measures_by_hand():
    _, sequences = some(Law(n_pairs=4, n_classes=64, burst=2, fresh=0.0), 1)
    first = torch.zeros(1, 9, 9)
    for i, share in enumerate((1.0, 0.5, 0.0, 0.5)):
        first[0, 2 * i + 1, 2 * i] = share
    second = torch.tensor([[0.0, 0.1, 0.0, 0.2, 0.0, 0.3, 0.0, 0.4, 0.0]])
    logits = torch.nn.functional.one_hot(sequences.answer, 32).float()
    seen = measures.Seen(logits, first, second)
    found = measures.head_of(seen, sequences)
    assert found["ila1"].item() == 0.5 and found["tla2"].item() == pytest.approx(1.0)
    by_hand = (torch.tensor([0.1, 0.2, 0.3, 0.4]) * sequences.matches[0]).sum()
    assert found["tila2"].item() == pytest.approx(float(by_hand))
    assert measures.is_right(seen, sequences).item()
    assert measures.in_context(seen, sequences.labels).item()
    assert not measures.in_context(seen, (sequences.labels + 16) % 32).item()


def test_a_planted_birth_is_one_and_an_untrained_run_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(births, "N_TEST", 512)
    study = STUDIES["birth"]
    run = births._planted(tmp_path, Cell("birth", 2), study)
    assert run.jump.abrupt and set(run.networks) == {"start", "before", "at", "end"}
    untrained = births._untrained(tmp_path, Cell("birth", 2), study)
    assert not untrained.jump.jumped and max(untrained.curve["ic"]) < 0.12
    assert not births._planted(tmp_path, Cell("equal", 2), STUDIES["equal"]).jump.jumped
    lost = planting.necessity(run, 200, 0)
    assert lost["whole"] > 0.95 and lost["labels"] < 0.25 and lost["items"] > 0.9


def test_a_history_is_slow_then_sudden():
    assert history([0.0, 250.0, 960.0, 1000.0, 1040.0], 1000.0) == [
        {"picked": 0.0, "formed": 0.0},
        {"picked": 0.5, "formed": 0.0},
        {"picked": 1.0, "formed": 0.0},
        {"picked": 1.0, "formed": pytest.approx(0.5, abs=1e-5)},
        {"picked": 1.0, "formed": 1.0},
    ]


def test_other_models_are_refused():
    with pytest.raises(UsageError, match="has its own networks: trained-induction-birth"):
        births.way_of("smollm2-135m")


# --- Curves ---------------------------------------------------------------------------------------


def test_t10_and_t90_of_a_step_and_of_a_ramp():
    step = {"step": [0, 100, 200, 300], "ic": [0.0, 0.125, 1.0, 1.0]}
    found = curves.jump(step, 8)
    assert (found.t10, found.t90) == (pytest.approx(110), pytest.approx(190))
    assert found.jumped and found.ratio == pytest.approx(80 / 190)
    assert found.plateau == pytest.approx(8 * 0.125 * 0.99)
    ramp = {"step": [0, 1000], "ic": [0.125, 1.0]}
    assert curves.jump(ramp, 8).ratio == pytest.approx(0.8 / 0.9)
    never = curves.jump({"step": [0, 1000], "ic": [0.03, 0.9]}, 8)
    assert not never.jumped and math.isnan(never.t90)
    ready = curves.jump({"step": [0, 1000], "ic": [0.9, 1.0]}, 8)
    assert not ready.jumped


def test_half_rise_is_half_the_way_from_the_first_value_to_the_largest():
    assert curves.half_rise([0, 10, 20], [0.2, 0.2, 1.0]) == pytest.approx(15)
    assert math.isnan(curves.crossing([0, 10], [0.0, 0.4], 0.5))


# --- Three logits and the minimal model -----------------------------------------------------------


def test_the_three_logit_loss_by_hand():
    origin = torch.zeros(3, dtype=torch.float64)
    assert three_logits.nested_loss(origin, 32, 8).item() == pytest.approx(math.log(32))
    far = torch.tensor([50.0, 50.0, 50.0], dtype=torch.float64)
    assert three_logits.nested_loss(far, 32, 8).item() == pytest.approx(0.0, abs=1e-9)
    picks = torch.tensor([0.0, 0.0, 400.0], dtype=torch.float64)  # labels known, attention even
    assert three_logits.nested_loss(picks, 32, 8).item() == pytest.approx(math.log(8))


@pytest.mark.parametrize(("L", "slope"), [(8, 0.0), (9, -1 / 72), (32, -24 / 256)])
def test_the_gradient_at_the_origin_vanishes_if_labels_are_as_many_as_pairs(L, slope):
    small = 1e-6
    ends = [torch.tensor([0.0, 0.0, x], dtype=torch.float64) for x in (small, -small)]
    up, down = (three_logits.nested_loss(x, L, 8).item() for x in ends)
    assert (up - down) / (2 * small) == pytest.approx(slope, abs=1e-8)
    assert three_logits.gradient_at_origin(L, 8) == pytest.approx(abs(slope), abs=1e-12)


def test_the_plateau_is_counted_up_to_the_drop():
    losses = torch.tensor([[3.0, 3.0], [2.0, 2.0], [2.1, 2.0], [0.05, 2.0], [0.01, 2.0]])
    shares, reached = three_logits.plateau_share(losses, 2.0)
    assert shares.tolist() == pytest.approx([2 / 3, 4 / 5]) and reached.tolist() == [True, False]


def test_from_the_origin_with_as_many_labels_as_pairs_nothing_moves():
    x = torch.zeros(1, 3, dtype=torch.float64)
    losses, path = three_logits.descend(three_logits.nested_loss, x, 8, 8, 20)
    assert path.abs().max() == 0 and losses.std() == 0
    _, path = three_logits.descend(three_logits.nested_loss, x, 32, 8, 20)
    assert path[-1, 0, 2] > 0.5


def test_the_minimal_model_by_hand():
    law = Law(n_pairs=2, n_classes=32, noise=0.0, fresh=0.0)
    directions, sequences = some(law, 32)
    model = minimal.Minimal(32, generator(), directions.labels)
    with torch.no_grad():
        model.numbers.copy_(torch.tensor([40.0, 0.0, 60.0]))
        right = model(minimal.content_of(sequences)).argmax(-1) == sequences.answer
        assert right.double().mean() > 0.8  # the first item carries itself, and is found as well
        model.numbers.zero_()
        even = model(minimal.content_of(sequences))
    mean = minimal.content_of(sequences).mean(1) @ directions.labels.T
    assert torch.allclose(even, mean, atol=1e-6)


def test_the_order_and_the_slow_phase_of_a_minimal_model():
    curve = minimal.planted_curve(8, 1000)
    assert minimal.in_order(curve)
    assert not minimal.in_order(curve | {"beta_1": curve["cla"], "cla": curve["beta_1"]})
    assert minimal.slow_phase(curve, 8) == pytest.approx(682, abs=25)
    assert minimal.likeness([curve], [curve]) == pytest.approx(1.0)


# --- Trainings that are stored --------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    """Studies of a few steps."""
    law = Law(n_pairs=2, n_labels=4, n_classes=4)
    small = {
        "lasting": Study(law, (1,), 4, until=3.0, keeps=("before", "at", "end")),
        "equal": Study(replace(law, n_labels=2), (1, 2), 4),
    }
    for module in (grid, training):
        monkeypatch.setattr(module, "STUDIES", small)
        monkeypatch.setattr(module, "EVERY", 2)
        monkeypatch.setattr(module, "N_TEST", 16)
    monkeypatch.setattr(stored, "code_sha256", lambda: "1" * 64)  # takes long
    return small


def test_a_cell_trained_again_gives_the_same_curve_and_weights(short, tmp_path):
    cell = Cell("lasting", 1)
    path = training.train_cell(tmp_path, cell)
    first, weights = path.read_text(), stored.weights_path(tmp_path, cell).read_bytes()
    training.train_cell(tmp_path, cell)
    one, two = json.loads(first), json.loads(path.read_text())
    assert one["curve"] == two["curve"] and one["curve"]["step"] == [0, 2, 4]
    assert one["sha256"] == two["sha256"] == hashlib.sha256(weights).hexdigest()
    networks = training.load_networks(tmp_path, cell)
    assert list(networks) == ["start", "end"]  # it has not jumped
    assert not torch.equal(networks["start"].W4, networks["end"].W4)


def test_what_is_missing_altered_or_old_is_to_be_trained(short, tmp_path):
    assert stored.missing(tmp_path) == ["lasting/1", "equal/1", "equal/2"]
    for name in stored.missing(tmp_path):
        training.train_cell(tmp_path, grid.cell_of(name))
    assert stored.missing(tmp_path) == []
    assert set(stored.needed(tmp_path, {}, stored.TRAINED)) == {
        "training lasting/1",
        "training equal/1",
        "training equal/2",
    }
    assert stored.needed(tmp_path, {}, "planted-induction-birth") == {}
    stored.weights_path(tmp_path, Cell("lasting", 1)).write_bytes(b"other")
    with pytest.raises(NotStored, match=r"altered.*replib train abrupt-induction --cell lasting/1"):
        stored.needed(tmp_path, {}, stored.TRAINED)
    path = stored.card_path(tmp_path, Cell("equal", 2))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code_sha256": "0" * 64}))
    assert stored.missing(tmp_path) == ["lasting/1", "equal/2"]
    assert not stored.weights_path(tmp_path, Cell("equal", 2)).exists()


def test_a_training_ends_at_a_multiple_of_t90_or_with_its_budget():
    study = STUDIES["birth"]
    jumped = {"step": [0, 10_000, 10_250, 11_000], "ic": [0.03, 0.125, 0.97, 0.98]}
    assert not training.is_over(study, {k: v[:3] for k, v in jumped.items()})
    assert not training.is_over(study, jumped)
    later = {"step": [*jumped["step"], 11_300], "ic": [*jumped["ic"], 0.98]}
    assert training.is_over(study, later)
    flat = {"step": [0, 38_000], "ic": [0.03, 0.125]}
    assert training.is_over(study, flat)
    kept = [{"x": torch.tensor(float(i))} for i in range(4)]
    found = training.moments(study, jumped, kept)
    assert {k: int(v["x"]) for k, v in found.items()} == {"before": 0, "at": 2, "end": 3}


def test_every_cell_has_a_name_that_gives_it_back():
    assert [grid.cell_of(cell.name) for cell in grid.cells()] == grid.cells()
    with pytest.raises(UsageError, match="none of the studies lasting, birth"):
        grid.cell_of("copy/1")
    with pytest.raises(UsageError, match="study equal has the seeds 1, 2"):
        grid.cell_of("equal/9")
    assert asdict(Cell("equal", 1)) == {"study": "equal", "seed": 1}
