"""A record that was changed after it was written is found, whatever was changed in it."""

import json
import random
import re

import pytest

from bookkit.certified import alterations, certify
from bookkit.cli import main
from bookkit.records import read_record, write_record
from replib.claims.file import MIME
from replib.claims.judge import judge
from replib.errors import UsageError
from replib.files import find_root

CERTIFIED = sorted((find_root() / "results").glob("*/*/record.json"))
RUN = find_root() / "results/ioi-circuit-reuse/smollm2-135m/record.json"


def leaves(node, path=()):
    """The path of every single value in a record."""
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return [leaf for key, child in items for leaf in leaves(child, (*path, key))]
    return [path]


def other(value):
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value} "
    return "something"


def test_every_altered_value_is_found(tmp_path):
    record = json.loads(RUN.read_text())
    path = tmp_path / "record.json"
    paths = random.Random(0).sample(leaves(record), 150)
    paths += [leaf for leaf in leaves(record) if leaf[0] in ("hashes", "seal")]
    assert len(paths) > 150
    for leaf in paths:
        changed = json.loads(RUN.read_text())
        node = changed
        for key in leaf[:-1]:
            node = node[key]
        node[leaf[-1]] = other(node[leaf[-1]])
        path.write_text(json.dumps(changed))
        with pytest.raises(UsageError):
            read_record(path)


def test_a_flipped_bit_is_found(tmp_path):
    whole, draw = RUN.read_bytes(), random.Random(0)
    path = tmp_path / "record.json"
    for _ in range(300):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        try:
            assert read_record(path) == read_record(RUN)  # white space that means the same
        except UsageError as error:
            assert "\n" not in str(error)


def test_a_removed_claim_is_found(tmp_path):
    record = json.loads(RUN.read_text())
    del record["claims"][0]
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="was altered after it was written: its seal does not fit"):
        read_record(tmp_path / "record.json")


@pytest.mark.parametrize("path", CERTIFIED, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_certified_outcomes_follow_from_their_own_rules(path):
    record = read_record(path)
    assert [judge(c) for c in record["claims"] if c["measured"]] == [
        claim["outcome"] for claim in record["claims"] if claim["measured"]
    ]
    assert alterations(path.parent) == []


# --- sealed again by whoever altered it -----------------------------------------------------------


@pytest.fixture
def forged(tmp_path):
    """A run's folder: a real record, its notebook, and the record written anew with a change."""

    def forged(change, notebook=True):
        record = read_record(RUN)
        claims = [{k: v for k, v in c.items() if k != "scope"} for c in record["claims"]]
        bundle = {
            key: record[key]
            for key in ("paper", "title", "arxiv", "model", "measurements", "heads", "changes")
        } | {"claims": claims}
        cell = {"cell_type": "code", "outputs": [{"data": {MIME: bundle}}]}
        if notebook:
            (tmp_path / "notebook.ipynb").write_text(json.dumps({"cells": [cell]}))
        change(record)
        write_record(tmp_path / "record.json", record)
        return tmp_path

    return forged


def flip(record):
    claim = next(c for c in record["claims"] if c["outcome"] in ("holds", "fails"))
    claim["outcome"] = {"holds": "fails", "fails": "holds"}[claim["outcome"]]


def raise_value(record):
    claim = next(c for c in record["claims"] if c["measured"])
    claim["measured"]["value"] = 1e6


def add_measurement(record):
    record["measurements"]["more"] = {"value": 1, "interval": None, "n": None, "unit": ""}


def rename(record):
    record["model"]["note"] = "better"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (flip, r"claim \S+, outcome is"),
        (raise_value, r"claim \S+, measured is"),
        (add_measurement, "measurements differs"),
        (rename, "model differs"),
        (lambda record: record["heads"].clear(), "heads differs"),
    ],
)
def test_the_notebook_tells_on_a_sealed_record(forged, change, found, capsys):
    folder = forged(change)
    assert any(re.search(found, text) for text in alterations(folder))
    with pytest.raises(UsageError, match="was altered since it ran"):
        certify(find_root(), folder)
    assert main(["verify", str(folder)]) == 1
    assert "altered: " in capsys.readouterr().out


def test_without_a_notebook_the_rule_tells(forged):
    (found,) = alterations(forged(flip, notebook=False))
    assert "by its own rule and numbers" in found


def test_a_notebook_without_verdicts(forged):
    folder = forged(lambda record: None)
    (folder / "notebook.ipynb").write_text("{}")
    with pytest.raises(UsageError, match="does not hold one table of verdicts"):
        alterations(folder)
