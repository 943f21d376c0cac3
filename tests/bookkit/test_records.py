"""Records: what they must hold, whatever is altered in them is found, and who agrees with whom."""

import json
import math
import random
import re
from copy import deepcopy
from pathlib import Path

import pytest

from bookkit.cli import main
from bookkit.records import (
    Record,
    _disagreement,
    alterations,
    certified_path,
    certify,
    compare,
    find_run,
    read_record,
    record_value,
    record_values,
    seal,
    write_record,
)
from replib.claims.file import MIME
from replib.claims.judge import judge
from replib.claims.schema import fit
from replib.errors import UsageError

ROOT = Path(__file__).parents[2]
CERTIFIED = sorted((ROOT / "results").glob("*/*/record.json"))
RUN = ROOT / "results/ioi-circuit-reuse/smollm2-135m/record.json"
HASHES = ("notebook", "claims", "library", "requirements", "environment", "parameters")
CLAIM = {
    "id": "1.8",
    "statement": "Accuracy rises.",
    "reported": "49.6% to 93.7%",
    "source": {"mark": "abstract", "where": "Sec. 5"},
    "measured": {"value": 0.3, "unit": "points", "note": "", "inhibition_only": 0.25, "broken": 1},
    "interval": [0.2, 0.4],
    "n": 50,
    "null": {"description": "random heads", "mean": 0.0, "q95": 0.1},
    "decision_rule": {
        "text": "Ten points and more than the null.",
        "gate": None,
        "gate_text": None,
        "holds_if": "value >= 0.1 and low > null_q95",
        "fails_if": "high < 0.1",
    },
    "outcome": "holds",
    "reason": "",
    "scope": "transfer",
}
OPEN = {"id": "1.10", "measured": None, "interval": None, "n": None, "outcome": "not_attempted"}
RECORD = {
    "schema_version": 1,
    "paper": "toy",
    "title": "A title",
    "arxiv": "2310.08740",
    "model": {"name": "tiny", "sha256": "abc"},
    "profile": "smoke",
    "parameters": {"n_prompts": 10, "prompts_file": None, "sizes": [1, 2], "seed": 0},
    "seed": 0,
    "claims": [CLAIM, CLAIM | OPEN | {"null": {"description": "random heads"}}],
    "measurements": {"ioi": {"value": 0.9, "interval": [0.8, 1.0], "n": 10, "unit": ""}},
    "heads": {},
    "changes": [],
    "status": "finished",
    "hashes": dict.fromkeys(HASHES, "0" * 64) | {"weights": "abc", "inputs": {}},
    "versions": {"python": "3.11"},
    "device": "cpu",
    "threads": 1,
    "wall_time_s": 1.5,
    "peak_memory_mb": 10,
    "started": "2025-01-02T03:04:05Z",
    "calibration": None,
}


@pytest.fixture
def record():
    return deepcopy(RECORD)


def test_record_round_trip(record, tmp_path):
    path = tmp_path / "record.json"
    write_record(path, record)
    first = path.read_bytes()
    assert read_record(path) == record | {"seal": seal(record)}
    write_record(path, dict(reversed(record.items())))
    assert path.read_bytes() == first  # keys are sorted
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["claims"][0].pop("scope"), "claim 1.8: 'scope' is a required property"),
        (lambda r: r.update(extra=1), "unknown key 'extra'"),
        (lambda r: r["claims"][0].update(outcom=1), "unknown key 'outcom'; did you mean 'outcome'"),
        (lambda r: r["hashes"].update(wieghts=1), "hashes: unknown key 'wieghts'; did you mean"),
        (lambda r: r.update(status="running"), "status: 'running' should be 'finished'"),
        (lambda r: r.update(wall_time_s=math.nan), "wall_time_s: a number is not finite: nan"),
        (lambda r: r.update(wall_time_s=10**400), "wall_time_s: a number is not finite"),
        (lambda r: r.update(wall_time_s=True), "wall_time_s: True should be a valid number"),
        (lambda r: r.update(seed=10**400), "seed: a number is not finite"),
        (lambda r: r.update(seed=1.0), "seed: 1.0 should be a valid integer"),
        (lambda r: r.update(threads=True), "threads: True should be a valid integer"),
        (lambda r: r["claims"][0].update(outcome="maybe"), "claim 1.8, outcome: 'maybe' should"),
        (lambda r: r["claims"][0].update(scope="both"), "claim 1.8, scope"),
        (lambda r: r["claims"][0].update(measured=None), "claim 1.8: measured has no finite value"),
        (lambda r: r["claims"][0]["measured"].update(value=None), "claim 1.8: measured has no fin"),
        (lambda r: r["claims"][0].update(interval=[0, None]), "claim 1.8: interval has no finite"),
        (lambda r: r["claims"][0].update(outcome="not_testable"), "claim 1.8: reason is empty"),
        (lambda r: r["claims"][0].update(outcome="not_attempted"), "claim 1.8: measured is there"),
        (lambda r: r["claims"][0].update(interval=[1]), "claim 1.8, interval: [1] should have at"),
        (lambda r: r["claims"][0].update(interval=[0, math.inf]), "interval, entry 2: a number is"),
        (lambda r: r["claims"][1].update(id="1.8"), "claim 1.8 is there twice"),
        (
            lambda r: r["claims"][0]["measured"].update(value="0.3"),
            "claim 1.8, measured, value: '0.3' is not a number",
        ),
        (lambda r: r["claims"][0]["measured"].update(x=math.nan), "measured, x: a number is not"),
        (lambda r: r["claims"][0]["measured"].update(n=1), "measured, n: 'n' cannot name a number"),
        (
            lambda r: r["claims"][0]["measured"].update({"a.b": 1}),
            "claim 1.8, measured, a.b: 'a.b'",
        ),
        (lambda r: r["claims"][0]["null"].update({"Q 95": 1}), "claim 1.8, null, Q 95: 'Q 95'"),
        (lambda r: r.update(paper="toy\n"), "paper: 'toy\\n' should match pattern"),
        (lambda r: r.update(title="a\x1b[31m"), "title: '\\x1b' cannot stand in a text"),
        (lambda r: r["parameters"].update(mode="\ud800"), "parameters, mode: '\\ud800' cannot st"),
        (lambda r: r["parameters"].update(sizes=[math.inf]), "parameters, sizes"),
        (lambda r: r["model"].update(n_params="many"), "model, n_params: 'many' should be a valid"),
        (lambda r: r["model"].update(n_layers=10**6), "model, n_layers: 1000000 should be less"),
        (lambda r: r["model"].update(dtype=math.nan), "model, dtype: a number is not finite"),
        (lambda r: r["hashes"].update(library="xyz"), "hashes, library: 'xyz' should match"),
    ],
)
def test_a_bad_record_is_neither_written_nor_read(record, tmp_path, change, message):
    path = tmp_path / "record.json"
    change(record)
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        write_record(path, record)
    assert "\n" not in str(error.value)
    assert not path.exists()
    path.write_text(json.dumps(record | {"seal": "0" * 64}))
    with pytest.raises(UsageError):
        read_record(path)


PLACES = ((), ("claims", 0), ("claims", 0, "source"), ("claims", 0, "decision_rule"), ("hashes",))


@pytest.mark.parametrize("place", [*PLACES, ("measurements", "ioi")], ids=str)
def test_every_key_is_needed(record, place):
    node = record
    for step in place:
        node = node[step]
    for key in list(node):
        value = node.pop(key)
        with pytest.raises(UsageError, match=f"{key!r} is a required property"):
            fit(Record, record | {"seal": "0" * 64}, "record")
        node[key] = value


def test_a_record_that_is_none_is_one_line(tmp_path):
    path = tmp_path / "record.json"
    deep = "[" * 500 + "]" * 500
    for text in ("[]", "3", '"x"', deep, json.dumps(RECORD)[:-1] + f', "x": {deep}}}'):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"^record [^\n]*$"):
            read_record(path)


# --- looking up -----------------------------------------------------------------------------------


def test_record_value(record):
    expected = {
        "claims.1.8.value": 0.3,
        "claims.1.8.low": 0.2,
        "claims.1.8.high": 0.4,
        "claims.1.8.n": 50,
        "claims.1.8.unit": "points",
        "claims.1.8.null.q95": 0.1,
        "claims.1.8.null.description": "random heads",
        "claims.1.8.inhibition_only": 0.25,
        "claims.1.8.outcome": "holds",
        "claims.1.8.scope": "transfer",
        "claims.1.8.reported": "49.6% to 93.7%",
        "claims.1.8.source.mark": "abstract",
        "claims.1.10.outcome": "not_attempted",
        "claims.1.10.value": None,
        "claims.1.10.low": None,
        "claims.1.10.null.q95": None,  # not measured: the page still builds
        "claims.1.10.inhibition_only": None,
        "measurements.ioi.value": 0.9,
        "measurements.ioi.high": 1.0,
        "model.name": "tiny",
        "parameters.n_prompts": 10,
        "hashes.weights": "abc",
        "wall_time_s": 1.5,
        "calibration": None,
    }
    assert {key: record_value(record, key) for key in expected} == expected
    assert set(expected) - set(record_values(record)) == {
        "claims.1.10.null.q95",
        "claims.1.10.inhibition_only",
    }


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("claims.1.8.vale", "'claims.1.8.value'"),
        ("claims.1.8.inhibition_onlly", "'claims.1.8.inhibition_only'"),
        ("claims.1.9.value", "'claims.1.8.value'"),
        ("measurements.iou.value", "'measurements.ioi.value'"),
        ("model", "toy on tiny"),
        ("claims", "toy on tiny"),
        ("parameters.sizes", "'parameters.sizes'"),
        ("", "toy on tiny"),
    ],
)
def test_an_unknown_key_names_near_ones(record, key, near):
    with pytest.raises(UsageError, match=re.escape(near)):
        record_value(record, key)


# --- altered afterwards ---------------------------------------------------------------------------


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


@pytest.fixture
def written(record, tmp_path):
    write_record(tmp_path / "record.json", record)
    return tmp_path / "record.json"


def test_every_altered_value_is_found(written):
    text = written.read_text()
    for leaf in leaves(json.loads(text)):
        changed = json.loads(text)
        node = changed
        for key in leaf[:-1]:
            node = node[key]
        node[leaf[-1]] = other(node[leaf[-1]])
        written.write_text(json.dumps(changed))
        with pytest.raises(UsageError):
            read_record(written)


def test_a_flipped_bit_is_found(written):
    whole, draw, before = written.read_bytes(), random.Random(0), read_record(written)
    for _ in range(100):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        written.write_bytes(changed)
        try:
            assert read_record(written) == before  # white space that means the same
        except UsageError as error:
            assert "\n" not in str(error)


def test_a_removed_claim_is_found(written):
    record = json.loads(written.read_text())
    del record["claims"][0]
    written.write_text(json.dumps(record))
    with pytest.raises(UsageError, match="was altered after it was written: its seal does not fit"):
        read_record(written)


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
        certify(ROOT, folder, [])
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


# --- certified, and compared ----------------------------------------------------------------------


@pytest.fixture
def altered(tmp_path):
    """A run's folder with the record in which something is changed."""

    def altered(change=lambda record: None):
        record = deepcopy(RECORD)
        change(record)
        write_record(tmp_path / "altered" / "record.json", record)
        return tmp_path / "altered"

    return altered


def test_a_run_is_certified_and_agrees_with_itself(tmp_path, altered):
    folder = altered()
    path = certify(tmp_path, folder, [])
    record = read_record(folder / "record.json")
    assert path == certified_path(tmp_path, record) == tmp_path / "results/toy/tiny/record.json"
    apart, verdicts = compare(tmp_path, folder)
    assert apart == [] and [verdict.disagreement for verdict in verdicts] == ["", ""]


def test_a_disagreement_is_found_and_named(altered, capsys, monkeypatch, tmp_path):
    (tmp_path / "notebooks/toy").mkdir(parents=True)
    (tmp_path / "notebooks/toy/claims.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    certify(tmp_path, altered(), [])
    folder = altered(lambda record: record["claims"][0].update(interval=[0.5, 0.6]))
    assert main(["verify", str(folder)]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^1\.8 +interval \[0\.5, 0\.6\], certified \[0\.2, 0\.4\]$", out, re.M), out
    assert "1 of 2 claims agree" in out


def entry(value=1.0, interval=None, outcome="holds", measured=True):
    return {
        **{"outcome": outcome, "interval": interval},
        "measured": {"value": value} if measured else None,
    }


@pytest.mark.parametrize(
    ("fresh", "old", "said"),
    [
        (entry(), None, "not in the certified record"),
        (entry(), entry(), ""),
        (entry(outcome="fails"), entry(), "outcome fails, certified holds"),
        (entry(measured=False), entry(), "measured in one of the two only"),
        (entry(), entry(measured=False), "measured in one of the two only"),
        (entry(measured=False), entry(measured=False), ""),
        (entry(None), entry(2.0), "value not finite, certified 2"),
        (entry(2.0), entry(None), "value 2, certified not finite"),
        (entry(None, [0.0, None]), entry(None, [0.0, None]), ""),
        # intervals that touch agree, whatever the values; those that do not never do
        (entry(0.0, [-1.0, 1.0]), entry(2.0, [1.0, 3.0]), ""),
        (entry(2.0, [1.0, 3.0]), entry(0.0, [-1.0, 1.0]), ""),
        (entry(1.0, [0.0, 1.0]), entry(1.0, [1.1, 2.0]), "interval [0, 1], certified [1.1, 2]"),
        (entry(1.0, [1.1, 2.0]), entry(1.0, [0.0, 1.0]), "interval [1.1, 2], certified [0, 1]"),
        # an interval in one of the two, or one without ends, is none
        (entry(1.0, [0.0, 9.0]), entry(2.0), "value 1, certified 2"),
        (entry(1.0, [0.0, None]), entry(2.0, [0.0, 9.0]), "value 1, certified 2"),
        (entry(100.0), entry(100.9), ""),
        (entry(100.0), entry(101.1), "value 100, certified 101.1"),
        (entry(100.9), entry(100.0), ""),
        (entry(0.5), entry(-0.5), "value 0.5, certified -0.5"),
        (entry(-0.5), entry(-0.5001), ""),
        (entry(0.0), entry(0.001), "value 0, certified 0.001"),
        (entry(0.0), entry(0.0), ""),
    ],
)
def test_agreement_by_hand(fresh, old, said):
    assert _disagreement(fresh, old) == said


def test_a_claim_that_one_record_lacks_is_a_disagreement(tmp_path, altered):
    certify(tmp_path, altered(), [])
    folder = altered(lambda record: record["claims"][0].update(id="9.9"))
    found = {v.claim: v for v in compare(tmp_path, folder)[1]}
    assert found["9.9"].disagreement == "not in the certified record"
    assert found["1.8"].outcome == "missing"
    assert found["1.8"].disagreement == "certified, not in this run"


def test_what_the_runs_do_not_share_is_said(tmp_path, altered):
    certify(tmp_path, altered(), [])

    def otherwise(record):
        record |= {"seed": 7, "device": "cuda"}
        record["parameters"] |= {"seed": 7, "n_prompts": 11}
        record["hashes"]["library"] = "1" * 64

    apart = ["library", "seed", "device", "parameter n_prompts"]
    assert compare(tmp_path, altered(otherwise))[0] == apart


def test_what_is_not_certified(tmp_path, altered):
    with pytest.raises(UsageError, match=r"toy on tiny is stale .*: notebook and library changed"):
        certify(tmp_path, altered(), ["notebook", "library"])
    with pytest.raises(UsageError, match="folder of this machine"):
        certify(tmp_path, altered(lambda r: r["model"].update(name=str(tmp_path))), [])
    with pytest.raises(UsageError, match=r"file of yours \(rows_file\)"):
        certify(tmp_path, altered(lambda r: r["parameters"].update(rows_file="mine.json")), [])
    assert not (tmp_path / "results").exists()
    with pytest.raises(UsageError, match="no certified record of toy on tiny"):
        compare(tmp_path, altered())


@pytest.mark.parametrize("name", ["toy/small", "~no-such-user/x", "x" * 5000, "a\0b", "../none"])
def test_a_run_that_has_no_such_name(name, tmp_path):
    with pytest.raises(UsageError, match="no finished run"):
        find_run(name, tmp_path)
