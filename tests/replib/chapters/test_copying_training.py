"""Training: alike when repeated, on the answer only, stored whole, and the stored curves."""

import json
import math

import pytest
import torch

from replib.chapters.copying_mamba import stored
from replib.chapters.copying_mamba import training as copy_training
from replib.chapters.copying_mamba import training_grid as grid
from replib.chapters.copying_mamba.networks import build
from replib.chapters.copying_mamba.strings import answer_logits, copy
from replib.chapters.copying_mamba.training import one_thread, train, train_here
from replib.chapters.copying_mamba.training_grid import SELECTION_SEED, STUDIES, Cell, Study
from replib.chapters.stored import NotStored
from replib.files import find_root


@pytest.fixture
def short(monkeypatch):
    """Studies of few steps on short strings; one thread, as in `train_cell`."""
    small = {
        "copy": Study("copy", (2, 3), ("rope", "mamba2", "lstm"), (1, 2), steps=6),
        "phone": Study("phone_book", (2, 3), ("rope",), (1, 2), steps=4, start="copy"),
    }
    for module in (grid, copy_training):
        monkeypatch.setattr(module, "STUDIES", small)
        monkeypatch.setattr(module, "EVERY", 2, raising=False)
    monkeypatch.setattr(copy_training, "WARMUP", 2)
    with one_thread():
        yield small


def same(a, b):
    return all(map(torch.equal, a.parameters(), b.parameters()))


def is_stored(read, network):
    """Is `read` the network in float16, as weights are stored?"""
    pairs = zip(read.parameters(), network.parameters(), strict=True)
    return all(torch.equal(a, b.half().float()) for a, b in pairs)


@pytest.mark.parametrize("architecture", ["rope", "mamba2", "lstm"])
def test_two_trainings_with_one_seed_agree_in_every_bit(short, architecture):
    cell = Cell("copy", architecture, 0.01, 1)
    (first, curve), (again, same_curve) = train(cell), train(cell)
    assert same(first, again) and curve == same_curve
    assert curve["examples"] == [64, 128, 192]
    assert curve["loss"][-1] < curve["loss"][0]
    assert not same(first, train(Cell("copy", architecture, 0.01, 2))[0])
    _, part = train(cell, stop_after=4)
    assert part == {key: values[:2] for key, values in curve.items()}


def test_architectures_of_one_seed_read_the_same_strings(short, monkeypatch):
    seen = {}
    for architecture in ("rope", "lstm"):
        read = seen.setdefault(architecture, [])

        def loss(logits, strings, read=read):
            read.append(strings.tokens)
            return logits.square().mean()

        monkeypatch.setattr(copy_training, "_loss", loss)
        train(Cell("copy", architecture, 0.01, 1))
    assert len(seen["rope"]) == len(seen["lstm"]) == 9  # 6 steps, 3 points of the curve
    assert all(map(torch.equal, seen["rope"], seen["lstm"]))
    assert len({rows.shape for rows in seen["rope"]}) == 3  # both lengths, validation strings


def test_the_loss_is_on_the_answer_only():
    strings = copy(3, 4, torch.Generator().manual_seed(0))

    class Certain(torch.nn.Module):
        """Of the next token in the answer, and of a wrong one before it."""

        def forward(self, tokens):
            following = torch.cat([tokens[:, 1:], tokens[:, :1]], 1)
            following[:, :5] = (following[:, :5] + 1) % 30
            return 100.0 * torch.nn.functional.one_hot(following, 30).float()

    loss = copy_training._loss(answer_logits(Certain(), strings), strings)
    assert loss.item() == pytest.approx(0, abs=1e-5)


def test_the_rate_rises_then_falls_to_nothing(short):
    optimizer, schedule = copy_training._optimizer(torch.nn.Linear(2, 2), rate=1.0, steps=6)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("name", ["mamba", "mamba2", "hybrid"])
def test_vectors_and_the_decay_rates_of_states_do_not_decay(name):
    network = build(name, 0)
    optimizer, _ = copy_training._optimizer(network, rate=1.0, steps=6)
    usual, spared = optimizer.param_groups
    assert (usual["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    named = dict(network.named_parameters())
    expected = {id(p) for key, p in named.items() if p.ndim < 2 or "A_log" in key}
    assert {id(p) for p in spared["params"]} == expected
    assert any("A_log" in key for key in named)


def test_a_loss_that_is_no_number_is_said_to_diverge(short, monkeypatch):
    monkeypatch.setattr(copy_training, "_loss", lambda logits, strings: logits.mean() * math.nan)
    _, curve = train(Cell("copy", "lstm", 0.01, 1))
    assert curve["loss"] == [copy_training.DIVERGED] * 3
    json.dumps(curve, allow_nan=False)


def test_a_cell_is_stored_and_read_again(short, tmp_path):
    cell = Cell("copy", "rope", 0.003, 1)
    path = copy_training.train_cell(tmp_path, cell)
    card = stored.read_card(tmp_path, cell)
    network, curve = train(cell)
    assert json.loads(path.read_text()) == card and card["curve"] == curve
    assert is_stored(copy_training.load_network(tmp_path, cell), network)
    assert not list(path.parent.glob(".*"))
    with pytest.raises(NotStored, match="missing"):
        copy_training.load_network(tmp_path, Cell("copy", "rope", 0.003, 2))


def test_a_study_can_start_with_the_weights_of_another(short, tmp_path):
    for rate, loss in ((0.001, 2.0), (0.003, 1.0), (0.01, 3.0), (0.03, 4.0)):
        cell = Cell("copy", "rope", rate, SELECTION_SEED)
        path = copy_training.train_cell(tmp_path, cell)
        card = json.loads(path.read_text())
        card["curve"]["loss"][-1] = loss
        path.write_text(json.dumps(card))
    phone = Cell("phone", "rope", 0.001, 1)
    with pytest.raises(NotStored, match=r"copy/rope-0\.003-1"):
        copy_training.train_cell(tmp_path, phone)
    first = Cell("copy", "rope", 0.003, 1)
    copy_training.train_cell(tmp_path, first)
    copy_training.train_cell(tmp_path, phone)
    assert stored.read_card(tmp_path, phone)["start"] == "copy/rope-0.003-1"
    start = copy_training.load_network(tmp_path, first)
    moved, _ = train(phone, start.state_dict())
    assert is_stored(copy_training.load_network(tmp_path, phone), moved)
    assert not same(moved, train(phone)[0])


@pytest.mark.slow
def test_trained_in_processes_is_trained_the_same():
    cells = [Cell("copy", "rope", 0.003, 11), Cell("copy", "lstm", 0.003, 11)]
    found = train_here(cells, stop_after=2)
    with one_thread():
        for cell, (network, _) in zip(cells, found, strict=True):
            assert same(network, train(cell, stop_after=2)[0])


@pytest.mark.parametrize("study", STUDIES)
def test_the_stored_grid_is_whole_and_no_older_than_the_code(study):
    root = find_root()
    for architecture in STUDIES[study].architectures:
        for cell in stored.reported(root, study, architecture):
            card = stored.read_card(root, cell)
            assert not stored.is_stale(root, card)
            assert card["curve"]["examples"][-1] == STUDIES[study].steps * grid.BATCH
            assert stored.weights_path(root, cell).stat().st_size < 1_000_000


@pytest.mark.parametrize("architecture", ["rope", pytest.param("mamba2", marks=pytest.mark.slow)])
def test_training_a_stored_cell_again_gives_its_curve(architecture):
    """Its first point here; other processors add up in another order."""
    root = find_root()
    cell = stored.reported(root, "copy", architecture)[0]
    kept = stored.read_card(root, cell)["curve"]
    with one_thread():
        _, curve = train(cell, stop_after=grid.EVERY)
    for key, values in curve.items():
        assert values[0] == pytest.approx(kept[key][0], rel=2e-3, abs=2e-3)
