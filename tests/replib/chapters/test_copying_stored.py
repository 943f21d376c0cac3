"""The grid: what is needed next, which rate is chosen, what is refused."""

import hashlib
import json
from dataclasses import asdict

import pytest

from bookkit.cli import main
from replib.chapters.copying_mamba import stored
from replib.chapters.copying_mamba import training_grid as grid
from replib.chapters.copying_mamba.training_grid import RATES, SELECTION_SEED, Cell, Study, cell_of
from replib.chapters.stored import NotStored
from replib.errors import UsageError


@pytest.fixture
def studies(monkeypatch):
    small = {
        "copy": Study("copy", (5, 6), ("rope", "lstm"), (1, 2)),
        "phone": Study("phone_book", (2, 3), ("rope",), (1, 2), start="copy"),
    }
    monkeypatch.setattr(grid, "STUDIES", small)
    return small


def store(root, cell, loss=1.0, code=None, start=None):
    path = stored.card_path(root, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = cell.name.encode() if cell.is_reported else b""
    if weights:
        stored.weights_path(root, cell).write_bytes(weights)
    card = {
        "cell": asdict(cell),
        "sha256": hashlib.sha256(weights).hexdigest() if weights else "",
        "code_sha256": code or stored.code_sha256(),
        "settings": grid.settings(cell.study),
        "start": start.name if start else "",
        "start_sha256": stored.read_card(root, start)["sha256"] if start else "",
        "curve": {"examples": [32], "loss": [loss], "string": [0.5]},
    }
    path.write_text(json.dumps(card))


def store_rates(root, study, architecture, losses):
    for rate, loss in losses.items():
        store(root, Cell(study, architecture, rate, SELECTION_SEED), loss)


INSIDE = dict(zip(RATES, (3.0, 1.0, 2.0, 4.0), strict=True))


def test_rates_come_first_then_seeds_then_what_starts_with_them(studies, tmp_path):
    first = list(map(cell_of, stored.missing(tmp_path)))
    assert {cell.study for cell in first} == {"copy"}
    assert {cell.seed for cell in first} == {SELECTION_SEED} and len(first) == 8
    for architecture in ("rope", "lstm"):
        store_rates(tmp_path, "copy", architecture, INSIDE)
    second = stored.missing(tmp_path)
    assert second == [
        "copy/rope-0.003-1",
        "copy/rope-0.003-2",
        "copy/lstm-0.003-1",
        "copy/lstm-0.003-2",
    ]
    for name in second:
        store(tmp_path, cell_of(name))
    third = map(cell_of, stored.missing(tmp_path))
    assert {(cell.study, cell.seed) for cell in third} == {("phone", 0)}
    store_rates(tmp_path, "phone", "rope", INSIDE)
    for name in stored.missing(tmp_path):
        store(tmp_path, cell_of(name))
    assert stored.missing(tmp_path) == []


def test_a_best_rate_at_the_edge_extends_the_grid(studies, tmp_path):
    store_rates(tmp_path, "copy", "lstm", INSIDE)
    store_rates(tmp_path, "copy", "rope", dict(zip(RATES, (4.0, 3.0, 2.0, 1.0), strict=True)))
    assert "copy/rope-0.09-0" in stored.missing(tmp_path)
    with pytest.raises(NotStored, match="not complete"):
        stored.reported(tmp_path, "copy", "rope")
    store(tmp_path, Cell("copy", "rope", 0.09, SELECTION_SEED), 5.0)
    assert stored.reported(tmp_path, "copy", "rope")[0] == Cell("copy", "rope", 0.03, 1)


def test_the_next_rate_up_and_down():
    assert [grid.next_rate(rate, up=True) for rate in (1e-3, 3e-3, 0.03)] == [0.003, 0.009, 0.09]


def test_an_altered_or_old_cell_is_needed_again(studies, tmp_path, monkeypatch):
    for architecture in ("rope", "lstm"):
        store_rates(tmp_path, "copy", architecture, INSIDE)
    cells = list(map(cell_of, stored.missing(tmp_path)))
    for cell in cells:
        store(tmp_path, cell)
    altered, old = cells[0], cells[3]
    stored.weights_path(tmp_path, altered).write_bytes(b"other")
    store(tmp_path, old, code="0" * 64)
    assert stored.missing(tmp_path) == [altered.name, old.name]
    with pytest.raises(NotStored, match=rf"altered.*--cell {altered.name}"):
        stored.read_card(tmp_path, altered)
    assert stored.is_stale(tmp_path, stored.read_card(tmp_path, old))
    longer = dict(studies, copy=Study("copy", (5, 6), ("rope", "lstm"), (1, 2), steps=2000))
    monkeypatch.setattr(grid, "STUDIES", longer)
    assert stored.is_stale(tmp_path, stored.read_card(tmp_path, cells[1]))


def test_a_cell_is_old_when_what_it_started_with_has_changed(studies, tmp_path):
    start, cell = Cell("copy", "rope", 0.003, 1), Cell("phone", "rope", 0.003, 1)
    store(tmp_path, start)
    store(tmp_path, cell, start=start)
    assert not stored.is_stale(tmp_path, stored.read_card(tmp_path, cell))
    weights = stored.weights_path(tmp_path, start)
    weights.write_bytes(b"trained again")
    assert stored.is_stale(tmp_path, stored.read_card(tmp_path, cell))  # altered
    card = json.loads(stored.card_path(tmp_path, start).read_text())
    card["sha256"] = hashlib.sha256(b"trained again").hexdigest()
    stored.card_path(tmp_path, start).write_text(json.dumps(card))
    assert stored.is_stale(tmp_path, stored.read_card(tmp_path, cell))


def test_a_missing_a_foreign_and_an_unreadable_card_are_refused(studies, tmp_path):
    cell = Cell("copy", "rope", 0.003, 1)
    with pytest.raises(NotStored, match=r"missing.*replib train copying-mamba --cell"):
        stored.read_card(tmp_path, cell)
    store(tmp_path, cell)
    path = stored.card_path(tmp_path, cell)
    card = json.loads(path.read_text())
    for content, message in {
        json.dumps(card | {"cell": asdict(Cell("copy", "rope", 0.003, 2))}): "another cell",
        "{}": "cannot be read",
        "[" * 100_000: "cannot be read",
        json.dumps(card | {"curve": {"examples": [10**400]}}): "cannot be read",
    }.items():
        path.write_text(content)
        with pytest.raises(NotStored, match=message):
            stored.read_card(tmp_path, cell)


def test_names_and_cells_are_the_same_thing():
    for study, settings in grid.STUDIES.items():
        for architecture in settings.architectures:
            cell = Cell(study, architecture, 0.03, 4)
            assert cell_of(cell.name) == cell


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
    with pytest.raises(UsageError, match=words):
        cell_of(name)
    assert main(["train", "copying-mamba", "--cell", name]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
