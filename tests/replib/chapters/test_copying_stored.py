"""The grid: what is needed next, which rate is chosen, what is refused."""

import hashlib
import json
import shutil
from dataclasses import asdict, replace

import pytest

from bookkit.cli import main
from replib.chapters.copying_mamba import stored
from replib.chapters.copying_mamba import training_grid as grid
from replib.chapters.copying_mamba.training_grid import RATES, SELECTION_SEED, Cell, Study, cell_of
from replib.chapters.stored import NotStored
from replib.files import find_root

ROPE, PHONE = Cell("copy", "rope", 0.003, 1), Cell("phone", "rope", 0.003, 1)


@pytest.fixture(autouse=True)
def studies(monkeypatch):
    small = {
        "copy": Study("copy", (5, 6), ("rope", "lstm"), (1, 2)),
        "phone": Study("phone_book", (2, 3), ("rope",), (1, 2), start="copy"),
    }
    monkeypatch.setattr(grid, "STUDIES", small)
    return small


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


def test_rates_come_first_then_seeds_then_what_starts_with_them(tmp_path):
    first = list(map(cell_of, stored.missing(tmp_path)))
    assert {cell.study for cell in first} == {"copy"}
    assert {cell.seed for cell in first} == {SELECTION_SEED} and len(first) == 8
    for architecture in ("rope", "lstm"):
        store_rates(tmp_path, "copy", architecture)
    second = stored.missing(tmp_path)
    assert second == [f"copy/{name}-0.003-{seed}" for name in ("rope", "lstm") for seed in (1, 2)]
    for name in second:
        store(tmp_path, cell_of(name))
    third = map(cell_of, stored.missing(tmp_path))
    assert {(cell.study, cell.seed) for cell in third} == {("phone", 0)}
    store_rates(tmp_path, "phone", "rope")
    for name in stored.missing(tmp_path):
        store(tmp_path, cell_of(name))
    assert stored.missing(tmp_path) == []


def test_a_best_rate_at_the_edge_extends_the_grid(tmp_path):
    store_rates(tmp_path, "copy", "lstm")
    store_rates(tmp_path, "copy", "rope", (4.0, 3.0, 2.0, 1.0))
    assert "copy/rope-0.09-0" in stored.missing(tmp_path)
    with pytest.raises(NotStored, match="not complete"):
        stored.reported(tmp_path, "copy", "rope")
    store(tmp_path, Cell("copy", "rope", 0.09, SELECTION_SEED), 5.0)
    assert stored.reported(tmp_path, "copy", "rope")[0] == Cell("copy", "rope", 0.03, 1)
    assert grid.next_rate(0.001, up=False) == 0.0003


def test_an_altered_or_old_cell_is_needed_again(studies, tmp_path, monkeypatch):
    for architecture in ("rope", "lstm"):
        store_rates(tmp_path, "copy", architecture)
    altered, whole, _, old = cells = list(map(cell_of, stored.missing(tmp_path)))
    for cell in cells:
        store(tmp_path, cell)
    stored.weights_path(tmp_path, altered).write_bytes(b"other")
    store(tmp_path, old, code_sha256="0" * 64)
    assert stored.missing(tmp_path) == [altered.name, old.name]
    with pytest.raises(NotStored, match=rf"altered.*--cell {altered.name}"):
        stored.read_card(tmp_path, altered)
    assert is_stale(tmp_path, old) and not is_stale(tmp_path, whole)
    monkeypatch.setitem(studies, "copy", replace(studies["copy"], steps=2000))
    assert is_stale(tmp_path, whole)


def test_a_cell_is_old_when_what_it_started_with_has_changed(tmp_path):
    store(tmp_path, ROPE)
    sha256 = stored.read_card(tmp_path, ROPE)["sha256"]
    store(tmp_path, PHONE, start=ROPE.name, start_sha256=sha256)
    assert not is_stale(tmp_path, PHONE)
    stored.weights_path(tmp_path, ROPE).write_bytes(b"altered")
    assert is_stale(tmp_path, PHONE)
    store(tmp_path, ROPE, weights=b"trained again")
    assert is_stale(tmp_path, PHONE)


def test_a_missing_a_foreign_and_an_unreadable_card_are_refused(tmp_path):
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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rope-0.003-1", "none of the studies copy"),
        ("copy/rope", "write study/architecture-rate-seed"),
        ("copy/gru-0.003-1", "has the architectures rope"),
        ("copy/rope-3-1", "between 0 and 1"),
    ],
)
def test_a_name_that_is_no_cell_is_refused(name, words, capsys):
    assert main(["train", stored.PAPER, "--cell", name]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_an_altered_training_is_one_line_before_the_run(monkeypatch, tmp_path, capsys):
    monkeypatch.undo()  # the real studies
    shutil.copytree(find_root() / "notebooks" / stored.PAPER, tmp_path / "notebooks" / stored.PAPER)
    shutil.copy(find_root() / "requirements.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    cell = stored.reported(tmp_path, "copy", "rope")[0]
    stored.weights_path(tmp_path, cell).write_bytes(b"other")
    words = ["--model", "tiny", "--profile", "smoke", "--out", str(tmp_path / "runs")]
    assert main(["run", stored.PAPER, *words]) == 2
    err = capsys.readouterr().err
    assert f"replib train copying-mamba --cell {cell.name}" in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
