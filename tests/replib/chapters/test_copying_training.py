"""The grid of trainings: what is needed next, which rate is chosen, what is refused; and training:
alike when repeated, on the answer only, stored whole."""

import hashlib
import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from bookkit.cli import main
from replib.chapters.copying_mamba import stored
from replib.chapters.copying_mamba import training as copy_training
from replib.chapters.copying_mamba import training_grid as grid
from replib.chapters.copying_mamba.networks import build
from replib.chapters.copying_mamba.strings import answer_logits, copy
from replib.chapters.copying_mamba.training import one_thread, train, train_here
from replib.chapters.copying_mamba.training_grid import (
    RATES,
    SELECTION_SEED,
    STUDIES,
    Cell,
    Study,
    cell_of,
)
from replib.chapters.stored import NotStored
from replib.files import find_root

NAMES = ("rope", "mamba2", "lstm")
ROPE, PHONE = Cell("copy", "rope", 0.003, 1), Cell("phone", "rope", 0.003, 1)


@pytest.fixture
def short(monkeypatch):
    """Studies of few steps on short strings; one thread, as in `train_cell`."""
    small = {
        "copy": Study("copy", (2, 3), NAMES, (1, 2), steps=6),
        "phone": Study("phone_book", (2, 3), ("rope",), (1, 2), steps=4, start="copy"),
    }
    for module in (grid, copy_training):
        monkeypatch.setattr(module, "STUDIES", small)
        monkeypatch.setattr(module, "EVERY", 2)
    monkeypatch.setattr(copy_training, "WARMUP", 2)
    monkeypatch.setattr(stored, "code_sha256", lambda: "1" * 64)  # takes long
    with one_thread():
        yield small


# --- The grid -------------------------------------------------------------------------------------


def store(root, cell, /, loss=1.0, weights=b"weights", **changes):
    path = stored.card_path(root, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    if cell.is_reported:
        stored.weights_path(root, cell).write_bytes(weights)
    card = {
        "cell": asdict(cell),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "code_sha256": stored.code_sha256(),
        "settings": grid.settings(cell.study),
        "start": "",
        "start_sha256": "",
        "curve": {"examples": [32], "loss": [loss], "string": [0.5]},
    }
    path.write_text(json.dumps(card | changes))


def store_rates(root, study, architecture, losses=(3.0, 1.0, 2.0, 4.0)):
    for rate, loss in zip(RATES, losses, strict=True):
        store(root, Cell(study, architecture, rate, SELECTION_SEED), loss)


def is_stale(root, cell):
    return stored.is_stale(root, stored.read_card(root, cell))


def test_rates_come_first_then_seeds_then_what_starts_with_them(short, tmp_path):
    first = list(map(cell_of, stored.missing(tmp_path)))
    assert {cell.study for cell in first} == {"copy"}
    assert {cell.seed for cell in first} == {SELECTION_SEED} and len(first) == 12
    for architecture in NAMES:
        store_rates(tmp_path, "copy", architecture)
    second = stored.missing(tmp_path)
    assert second == [f"copy/{name}-0.003-{seed}" for name in NAMES for seed in (1, 2)]
    for name in second:
        store(tmp_path, cell_of(name))
    third = map(cell_of, stored.missing(tmp_path))
    assert {(cell.study, cell.seed) for cell in third} == {("phone", 0)}
    store_rates(tmp_path, "phone", "rope")
    for name in stored.missing(tmp_path):
        store(tmp_path, cell_of(name))
    assert stored.missing(tmp_path) == []


def test_a_best_rate_at_the_edge_extends_the_grid(short, tmp_path):
    store_rates(tmp_path, "copy", "lstm")
    store_rates(tmp_path, "copy", "rope", (4.0, 3.0, 2.0, 1.0))
    assert "copy/rope-0.09-0" in stored.missing(tmp_path)
    with pytest.raises(NotStored, match="not complete"):
        stored.reported(tmp_path, "copy", "rope")
    store(tmp_path, Cell("copy", "rope", 0.09, SELECTION_SEED), 5.0)
    assert stored.reported(tmp_path, "copy", "rope")[0] == Cell("copy", "rope", 0.03, 1)
    assert grid.next_rate(0.001, up=False) == 0.0003


def test_an_altered_or_old_cell_is_needed_again(short, tmp_path, monkeypatch):
    for architecture in NAMES:
        store_rates(tmp_path, "copy", architecture)
    altered, whole, *_, old = cells = list(map(cell_of, stored.missing(tmp_path)))
    for cell in cells:
        store(tmp_path, cell)
    stored.weights_path(tmp_path, altered).write_bytes(b"other")
    store(tmp_path, old, code_sha256="0" * 64)
    assert stored.missing(tmp_path) == [altered.name, old.name]
    with pytest.raises(NotStored, match=rf"altered.*replib train .* --cell {altered.name}"):
        stored.needed(tmp_path, {}, "tiny")  # before a run starts
    assert is_stale(tmp_path, old) and not is_stale(tmp_path, whole)
    monkeypatch.setitem(short, "copy", replace(short["copy"], steps=2000))
    assert is_stale(tmp_path, whole)


def test_a_missing_a_foreign_and_an_unreadable_card_are_refused(short, tmp_path):
    with pytest.raises(NotStored, match=r"missing.*replib train copying-mamba --cell"):
        stored.read_card(tmp_path, ROPE)
    for changes, message in (
        ({"cell": asdict(PHONE)}, "another cell"),
        ({"curve": {}}, "cannot be read"),
        ({"curve": {"examples": [10**400]}}, "cannot be read"),
    ):
        store(tmp_path, ROPE, **changes)
        with pytest.raises(NotStored, match=message):
            stored.read_card(tmp_path, ROPE)
    stored.card_path(tmp_path, ROPE).write_text("[" * 100_000)
    with pytest.raises(NotStored, match="cannot be read"):
        stored.read_card(tmp_path, ROPE)


def test_a_name_that_is_no_cell_is_refused(capsys):
    for name, words in (
        ("rope-0.003-1", "none of the studies copy"),
        ("copy/rope", "write study/architecture-rate-seed"),
        ("copy/gru-0.003-1", "has the architectures rope"),
        ("copy/rope-3-1", "between 0 and 1"),
    ):
        assert main(["train", stored.PAPER, "--cell", name]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1


# --- Training -------------------------------------------------------------------------------------


def same(a, b):
    return all(map(torch.equal, a.parameters(), b.parameters()))


def is_stored(read, network):
    """Is `read` the network in float16, as weights are stored?"""
    pairs = zip(read.parameters(), network.parameters(), strict=True)
    return all(torch.equal(a, b.half().float()) for a, b in pairs)


@pytest.mark.parametrize("architecture", NAMES)
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
    read = []

    def logits(network, strings):
        read.append(strings.tokens)
        return answer_logits(network, strings)

    monkeypatch.setattr(copy_training, "answer_logits", logits)
    for architecture in ("rope", "lstm"):
        train(Cell("copy", architecture, 0.01, 1))
    assert len(read) == 2 * 9  # 6 steps, 3 points of the curve
    assert all(map(torch.equal, read[:9], read[9:]))
    assert len({rows.shape for rows in read}) == 3  # both lengths, validation strings


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
    path = copy_training.train_cell(tmp_path, ROPE)
    card = stored.read_card(tmp_path, ROPE)
    network, curve = train(ROPE)
    assert json.loads(path.read_text()) == card and card["curve"] == curve
    assert is_stored(copy_training.load_network(tmp_path, ROPE), network)
    choosing = replace(ROPE, seed=SELECTION_SEED)  # of which only the curve is kept
    copy_training.train_cell(tmp_path, choosing)
    assert stored.read_card(tmp_path, choosing)["sha256"] == ""
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".json", ".safetensors"]
    with pytest.raises(NotStored, match="missing"):
        copy_training.load_network(tmp_path, Cell("copy", "rope", 0.003, 2))


def test_a_study_can_start_with_the_weights_of_another_and_is_old_when_they_change(short, tmp_path):
    store_rates(tmp_path, "copy", "rope")
    with pytest.raises(NotStored, match=r"copy/rope-0\.003-1"):
        copy_training.train_cell(tmp_path, PHONE)
    copy_training.train_cell(tmp_path, ROPE)
    copy_training.train_cell(tmp_path, PHONE)
    assert stored.read_card(tmp_path, PHONE)["start"] == ROPE.name
    start = copy_training.load_network(tmp_path, ROPE)
    moved, _ = train(PHONE, start.state_dict())
    assert is_stored(copy_training.load_network(tmp_path, PHONE), moved)
    assert not same(moved, train(PHONE)[0])
    assert not is_stale(tmp_path, PHONE)
    stored.weights_path(tmp_path, ROPE).write_bytes(b"altered")
    assert is_stale(tmp_path, PHONE)
    store(tmp_path, ROPE, weights=b"trained again")
    assert is_stale(tmp_path, PHONE)


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
