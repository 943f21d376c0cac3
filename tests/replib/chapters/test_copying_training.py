"""The grid of trainings: what is needed next, which setting is chosen, what is refused; and
training: alike when repeated, on the answer only, ended when the task is done, stored whole."""

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
from replib.chapters.copying_mamba.training import one_thread, train
from replib.chapters.copying_mamba.training_grid import (
    RATES,
    SELECTION_SEEDS,
    STUDIES,
    Cell,
    Study,
    cell_of,
)
from replib.chapters.stored import NotStored
from replib.files import find_root

NAMES = ("rope", "mamba2", "lstm")
LOSSES = (2.0, 1.0, 3.0)  # of the three first rates
ROPE = Cell("copy", "rope", 0.0056, "s10", 1)
PHONE = Cell("phone", "rope", 0.0056, "s10", 1)


@pytest.fixture
def short(monkeypatch):
    """Studies of few steps on short strings; one thread, as in `train_cell`."""
    small = {
        "copy": Study("copy", (2, 3), NAMES, 8, (1, 2)),
        "states": Study("copy", (2, 3), ("mamba2-4",), 8, (1,), like="copy"),
        "phone": Study(
            "phone_book", (2, 3), ("rope", "hybrid"), 6, (1, 2), like="copy", refined=True
        ),
    }
    for module in (grid, copy_training):
        monkeypatch.setattr(module, "STUDIES", small)
        monkeypatch.setattr(module, "EVERY", 2)
    monkeypatch.setattr(copy_training, "WARMUP", 2)
    monkeypatch.setattr(copy_training, "DECAY", 2)
    monkeypatch.setattr(grid, "SELECTION_STEPS", 4)
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
        "settings": grid.settings(cell),
        "curve": {"examples": [32], "loss": [loss], "string": [0.5]},
    }
    path.write_text(json.dumps(card | changes))


def store_search(root, study, architecture, losses=LOSSES, rates=RATES, starts=None):
    """Both selection seeds of a search; the last start is better than the others by a little."""
    for i, start in enumerate(starts or grid.starts(architecture)):
        for rate, loss in zip(rates, losses, strict=True):
            for seed, more in zip(SELECTION_SEEDS, (-0.1, 0.1), strict=True):
                store(root, Cell(study, architecture, rate, start, seed), loss - i / 10 + more)


def is_stale(root, cell):
    return stored.is_stale(root, stored.read_card(root, cell))


def names(root):
    return stored.missing(root)


def test_a_search_comes_first_then_seeds_then_what_takes_settings_over(short, tmp_path):
    first = list(map(cell_of, names(tmp_path)))
    # The hybrid has nothing to take over; of Mamba-2 there are four starts.
    assert {(cell.study, cell.seed) for cell in first} == {
        (study, seed) for study in ("copy", "phone") for seed in SELECTION_SEEDS
    }
    assert len(first) == 2 * 3 * (2 + 4 + 2) + 2 * 3 * 2
    for architecture in NAMES:
        store_search(tmp_path, "copy", architecture)
    store_search(tmp_path, "phone", "hybrid")
    second = [name for name in names(tmp_path) if name.startswith("copy/")]
    last = {name: grid.starts(name)[-1] for name in NAMES}
    assert second == [f"copy/{n}-0.0056-{last[n]}-{seed}" for n in NAMES for seed in (1, 2)]
    rest = [name for name in names(tmp_path) if not name.startswith("copy/")]
    assert rest[0] == "states/mamba2-4-0.0056-m10-1"  # no search of its own
    beside = ("0.0032", "0.0056", "0.01")  # around what was taken over, at its start
    assert rest[1:7] == [f"phone/rope-{r}-s10-{seed}" for r in beside for seed in SELECTION_SEEDS]
    store_search(tmp_path, "phone", "rope", starts=("s10",))
    for name in names(tmp_path):
        store(tmp_path, cell_of(name))
    assert names(tmp_path) == []


def test_a_best_rate_at_the_edge_extends_the_grid_of_its_start(short, tmp_path):
    store_search(tmp_path, "copy", "rope", starts=("s02",))
    store_search(tmp_path, "copy", "rope", (3.0, 2.0, 1.0), starts=("s10",))
    further = [f"copy/rope-0.018-s10-{seed}" for seed in SELECTION_SEEDS]
    assert [name for name in names(tmp_path) if "rope" in name] == further
    with pytest.raises(NotStored, match="not complete"):
        stored.reported(tmp_path, "copy", "rope")
    for name in further:
        store(tmp_path, cell_of(name), 5.0)
    # 0.01 has the loss 1.0 at s10; at s02 the best is 1.0 as well, at 0.0056, and comes first
    assert stored.reported(tmp_path, "copy", "rope")[0].rate in (0.0056, 0.01)


def test_rates_go_in_quarters_of_a_decade_and_no_best_lies_at_an_edge():
    rates = [grid.RATES[0]]
    for _ in range(5):
        rates.append(grid.next_rate(rates[-1], up=True))
    assert rates == [0.0032, 0.0056, 0.01, 0.018, 0.032, 0.056]
    assert [grid.next_rate(rate, up=False) for rate in rates[1:]] == rates[:-1]
    losses = {(0.0032, "s02"): 3.0, (0.0056, "s02"): 2.0, (0.01, "s02"): 2.5}
    assert grid.beyond(losses) == [] and grid.chosen(losses) == (0.0056, "s02")
    losses |= {(0.0032, "s10"): 1.0, (0.0056, "s10"): 1.5}
    assert grid.beyond(losses) == [(0.0018, "s10")] and grid.chosen(losses) is None
    at_the_end = {(0.1, "s02"): 1.0, (0.056, "s02"): 2.0}
    assert grid.chosen(at_the_end) == (0.1, "s02")  # there the grid ends
    half = {(0.01, "s02"): {101: 1.0}, (0.0056, "s02"): {101: 1.0, 102: 2.0}}
    assert grid.mean_losses(half) == {(0.0056, "s02"): 1.5}


def test_an_altered_or_old_cell_is_needed_again(short, tmp_path, monkeypatch):
    for architecture in NAMES:
        store_search(tmp_path, "copy", architecture)
    some = [name for name in names(tmp_path) if name.startswith("copy/")]
    altered, whole, *_, old = cells = list(map(cell_of, some))
    for cell in cells:
        store(tmp_path, cell)
    stored.weights_path(tmp_path, altered).write_bytes(b"other")
    store(tmp_path, old, code_sha256="0" * 64)
    again = [name for name in names(tmp_path) if name.startswith("copy/")]
    assert again == [altered.name, old.name]
    with pytest.raises(NotStored, match=rf"altered.*replib train .* --cell {altered.name}"):
        stored.needed(tmp_path, {}, "trained-copying")  # before a run starts
    assert stored.needed(tmp_path, {}, "planted-copying") == {}
    assert stored.files(tmp_path, "untrained-copying") == []
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
        ("copy/rope", "write study/architecture-rate-start-seed"),
        ("copy/gru-0.01-s10-1", "has the architectures hard-alibi"),
        ("copy/rope-0.01-m10-1", "rope has the starts s02, s10"),
        ("copy/rope-3-s10-1", "between 0 and 1"),
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
    cell = Cell("copy", architecture, 0.01, "s10", 1)
    (first, curve), (again, same_curve) = train(cell), train(cell)
    assert same(first, again) and curve == same_curve
    assert curve["examples"] == [64, 128, 192, 256]
    assert curve["loss"][-1] < curve["loss"][0]
    assert not same(first, train(Cell("copy", architecture, 0.01, "s10", 2))[0])
    _, part = train(cell, stop_after=4)
    assert part == {key: values[:2] for key, values in curve.items()}


def test_architectures_of_one_seed_read_the_same_strings(short, monkeypatch):
    read = []

    def logits(network, strings):
        read.append(strings.tokens)
        return answer_logits(network, strings)

    monkeypatch.setattr(copy_training, "answer_logits", logits)
    for architecture in ("rope", "lstm"):
        train(Cell("copy", architecture, 0.01, "s10", 1))
    assert len(read) == 2 * 12  # 8 steps, 4 points of the curve
    assert all(map(torch.equal, read[:12], read[12:]))
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


def test_the_rate_rises_stays_and_falls_to_nothing(short):
    heights = [copy_training.height(step, 8, 2) for step in range(1, 9)]
    assert heights == [0.5, 1, 1, 1, 1, 1, 1, 0.5]
    assert copy_training.height(9, 8, 2) == 0


def test_a_training_ends_a_decay_after_its_task_is_done(short, monkeypatch):
    assert not copy_training.is_solved([1.0])
    assert not copy_training.is_solved([1.0, 0.9, 1.0]) and copy_training.is_solved([0.95, 0.99])
    monkeypatch.setattr(copy_training, "is_solved", lambda strings: len(strings) == 2)
    _, curve = train(Cell("copy", "lstm", 0.01, "s10", 1))  # solved at step 4, decay of 1 step
    assert curve["examples"] == [64, 128, 160]
    _, curve = train(Cell("copy", "lstm", 0.01, "s10", SELECTION_SEEDS[0]))
    assert curve["examples"] == [64, 128]  # to choose a setting all have equal steps


def test_mamba_begins_with_short_strings():
    cell = Cell("copy", "mamba", 0.01, "m10", 21)
    at = [copy_training.lengths_at(cell, step) for step in (1, 800, 1600, 4000)]
    assert at == [(5, 5), (5, 12), (5, 20), (5, 20)]
    assert copy_training.lengths_at(Cell("copy", "rope", 0.01, "s10", 21), 1) == (5, 20)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "hybrid"])
def test_vectors_and_the_decay_rates_of_states_do_not_decay(name):
    network = build(name, 0)
    optimizer = copy_training._optimizer(network, rate=1.0)
    usual, spared = optimizer.param_groups
    assert (usual["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    named = dict(network.named_parameters())
    expected = {id(p) for key, p in named.items() if p.ndim < 2 or "A_log" in key}
    assert {id(p) for p in spared["params"]} == expected
    assert any("A_log" in key for key in named)


def test_a_loss_that_is_no_number_is_said_to_diverge(short, monkeypatch):
    monkeypatch.setattr(copy_training, "_loss", lambda logits, strings: logits.mean() * math.nan)
    _, curve = train(Cell("copy", "lstm", 0.01, "s10", 1))
    assert curve["loss"] == [copy_training.DIVERGED] * 4
    json.dumps(curve, allow_nan=False)


def test_a_cell_is_stored_and_read_again(short, tmp_path):
    path = copy_training.train_cell(tmp_path, ROPE)
    card = stored.read_card(tmp_path, ROPE)
    network, curve = train(ROPE)
    assert json.loads(path.read_text()) == card and card["curve"] == curve
    assert is_stored(copy_training.load_network(tmp_path, ROPE), network)
    choosing = replace(ROPE, seed=SELECTION_SEEDS[0])  # of which only the curve is kept
    copy_training.train_cell(tmp_path, choosing)
    assert stored.read_card(tmp_path, choosing)["sha256"] == ""
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".json", ".safetensors"]
    with pytest.raises(NotStored, match="missing"):
        copy_training.load_network(tmp_path, Cell("copy", "rope", 0.0032, "s10", 2))


def all_stored():
    """Is the grid trained? Before it is, the chapter's page on trained networks cannot be made."""
    try:
        return bool(stored.needed(find_root(), {}, "trained-copying"))
    except NotStored:
        return False


TRAINED = pytest.mark.skipif(not all_stored(), reason="the grid of trainings is not stored")


@TRAINED
@pytest.mark.parametrize("study", STUDIES)
def test_the_stored_grid_is_whole_and_no_older_than_the_code(study):
    root = find_root()
    for architecture in STUDIES[study].architectures:
        for cell in stored.reported(root, study, architecture):
            card = stored.read_card(root, cell)
            assert not stored.is_stale(root, card)
            assert card["curve"]["examples"][-1] <= cell.steps * grid.BATCH
            assert card["sha256"]
            assert stored.weights_path(root, cell).stat().st_size < 1_000_000


@TRAINED
@pytest.mark.parametrize(
    "architecture", ["hard-alibi", pytest.param("mamba2", marks=pytest.mark.slow)]
)
def test_training_a_stored_cell_again_gives_its_curve(architecture):
    """Its first point here; other processors add up in another order."""
    root = find_root()
    cell = stored.reported(root, "copy", architecture)[0]
    kept = stored.read_card(root, cell)["curve"]
    with one_thread():
        _, curve = train(cell, stop_after=grid.EVERY)
    for key, values in curve.items():
        assert values[0] == pytest.approx(kept[key][0], rel=2e-3, abs=2e-3)
