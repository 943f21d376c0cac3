"""Records: what they must hold, whatever is altered in them is found, and who agrees with whom."""

import json
import math
import re

import pytest
from small_book import EXPECTED, PAPER, ROOT, make_project

from bookkit.certify import certify, is_second, unite, unstable
from bookkit.cli import main
from bookkit.records import (
    _disagreement,
    alterations,
    certified_path,
    compare,
    find_run,
    read_record,
    record_value,
    record_values,
    seal,
    write_record,
)
from replib.claims.judge import judge
from replib.errors import UsageError

CERTIFIED = sorted((ROOT / "results").glob("*/*/record.json"))
OTHER = f"build/runs/{EXPECTED[1]}"
RUN = f"build/runs/{EXPECTED[0]}"  # of the small book: 1.1 holds, 1.2 is unclear, 1.10 not testable


def again(record):
    """The record that the run gives a second time, on one thread more."""
    other = {**record["numerics"], "threads": record["threads"] + 1, "instructions": "AVX2"}
    return json.loads(json.dumps(record)) | {"numerics": other}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    make_project(root)
    return read_record(root / RUN / "record.json")


@pytest.fixture
def record(small):
    record = json.loads(json.dumps(small))
    record["parameters"]["sizes"] = [1, 2]
    record["measurements"]["share"] = {"value": 0.9, "interval": [0.8, 1.0], "n": 10, "unit": ""}
    return record


@pytest.fixture
def run(project, monkeypatch):
    """`run(change)`: the folder of a run whose record was changed and sealed again, in a project
    where the record as it was is certified."""
    folder = project / RUN
    certify(project, folder, [], again(read_record(folder / "record.json")))
    monkeypatch.chdir(project)

    def run(change):
        record = read_record(folder / "record.json")
        change(record)
        write_record(folder / "record.json", record)
        return folder

    return run


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
        (lambda r: r["claims"][0].pop("scope"), "claim 1.1: 'scope' is a required property"),
        (lambda r: r["claims"][0].update(outcom=1), "unknown key 'outcom'; did you mean 'outcome'"),
        (lambda r: r.update(status="running"), "status: 'running' should be 'finished'"),
        (lambda r: r.update(wall_time_s=math.nan), "wall_time_s: a number is not finite: nan"),
        (lambda r: r.update(wall_time_s=10**400), "wall_time_s: a number is not finite"),
        (lambda r: r.update(seed=10**400), "seed: a number is not finite"),
        (lambda r: r.update(seed=1.0), "seed: 1.0 should be a valid integer"),
        (lambda r: r["claims"][0].update(measured=None), "claim 1.1: measured has no finite value"),
        (lambda r: r["claims"][0]["measured"].update(value=None), "claim 1.1: measured has no fin"),
        (lambda r: r["claims"][0].update(interval=[0, None]), "claim 1.1: interval has no finite"),
        (lambda r: r["claims"][0].update(outcome="not_testable"), "claim 1.1: reason is empty"),
        (lambda r: r["claims"][0].update(outcome="not_attempted"), "claim 1.1: measured is there"),
        (lambda r: r["claims"][0].update(interval=[0, math.inf]), "interval, entry 2: a number is"),
        (lambda r: r["claims"][1].update(id="1.1"), "claim 1.1 is there twice"),
        (lambda r: r["claims"][0]["measured"].update(value="0.3"), "value: '0.3' is not a number"),
        (lambda r: r["claims"][0]["measured"].update(n=1), "measured, n: 'n' cannot name a number"),
        (lambda r: r["claims"][0]["measured"].update({"a.b": 1}), "1.1, measured, a.b: 'a.b'"),
        (lambda r: r.update(paper="toy\n"), "paper: 'toy\\n' should match pattern"),
        (lambda r: r.update(title="a\x1b[31m"), "title: '\\x1b' cannot stand in a text"),
        (lambda r: r["parameters"].update(mode="\ud800"), "parameters, mode: '\\ud800' cannot st"),
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


def test_a_record_that_is_none_is_one_line(record, tmp_path):
    path = tmp_path / "record.json"
    deep = "[" * 500 + "]" * 500
    for text in ("[]", "3", deep, json.dumps(record)[:-1] + f', "x": {deep}}}'):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"^record [^\n]*$"):
            read_record(path)


def test_a_value_is_found_by_its_key_and_near_keys_are_named(record):
    expected = {
        "claims.1.1.value": 0.3,
        "claims.1.1.high": 0.4,
        "claims.1.1.n": 40,
        "claims.1.1.null.q95": 0.05,
        "claims.1.1.accuracy": 0.9,
        "claims.1.1.outcome": "holds",
        "claims.1.1.source.mark": "abstract",
        "claims.1.10.outcome": "not_testable",
        "claims.1.10.low": None,
        "claims.1.10.null.q95": None,  # not measured: the page still builds
        "measurements.share.value": 0.9,
        "measurements.share.high": 1.0,
        "model.name": "model-a",
        "parameters.n_prompts": 30,
        "wall_time_s": 75.2,
        "calibration": None,
    }
    assert {key: record_value(record, key) for key in expected} == expected
    assert expected.keys() - record_values(record).keys() == {"claims.1.10.null.q95"}
    with pytest.raises(UsageError, match=r"fake-paper on model-a; did you mean 'claims\.1\.1\.val"):
        record_value(record, "claims.1.1.vale")
    with pytest.raises(UsageError, match=r"no 'model' in the record of fake-paper on model-a"):
        record_value(record, "model")


def leaves(node):
    """(the mapping or list that holds it, its key) of every single value in a record."""
    for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
        if isinstance(child, dict | list):
            yield from leaves(child)
        else:
            yield node, key


def test_every_altered_value_is_found(record, tmp_path):
    path = tmp_path / "record.json"
    write_record(path, record)
    content = read_record(path)
    for node, key in leaves(content):
        value = node[key]
        node[key] = f"{value} " if isinstance(value, str) else 1 + (value or 0)
        path.write_text(json.dumps(content))
        with pytest.raises(UsageError):
            read_record(path)
        node[key] = value
    del content["claims"][0]
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="was altered after it was written: its seal does not fit"):
        read_record(path)


@pytest.mark.parametrize("path", CERTIFIED, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_certified_outcomes_follow_from_their_own_rules(path):
    record = read_record(path)
    assert [judge(c) for c in record["claims"] if c["measured"]] == [
        claim["outcome"] for claim in record["claims"] if claim["measured"]
    ]
    assert alterations(path.parent) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda r: r["claims"][0].update(outcome="fails"), r"claim 1.1, outcome is"),
        (lambda r: r["claims"][0]["measured"].update(value=1e6), r"claim 1.1, measured is"),
        (lambda r: r["claims"].pop(), r"claim 1.11 is in the notebook only"),
        (lambda r: r["model"].update(note="better"), "model differs"),
        (lambda r: r["heads"].update(mover={"heads": [], "rule": "x"}), "heads differs"),
    ],
)
def test_the_notebook_tells_on_a_sealed_record(run, project, change, found, capsys):
    folder = run(change)
    assert any(re.search(found, text) for text in alterations(folder))
    with pytest.raises(UsageError, match="was altered since it ran"):
        certify(project, folder, [], None)
    assert main(["verify", str(folder)]) == 1
    assert "altered: " in capsys.readouterr().out


def test_without_a_notebook_the_rule_tells(run):
    folder = run(lambda record: record["claims"][0].update(outcome="fails"))
    (folder / "notebook.ipynb").write_text("{}")
    with pytest.raises(UsageError, match="does not hold one table of verdicts"):
        alterations(folder)
    (folder / "notebook.ipynb").unlink()
    (found,) = alterations(folder)
    assert "by its own rule and numbers" in found


def test_a_run_is_certified_and_agrees_with_itself(run, project):
    record = read_record(project / RUN / "record.json")
    path = certify(project, project / RUN, [], None)  # `run` has certified it
    assert path == certified_path(project, record) == project / f"results/{EXPECTED[0]}/record.json"
    apart, verdicts = compare(project, project / RUN)
    assert apart == [] and [verdict.disagreement for verdict in verdicts] == [""] * 4


def test_a_disagreement_is_found_and_named(run, capsys):
    folder = run(lambda record: record["claims"][0].update(interval=[0.5, 0.6]))
    assert main(["verify", str(folder)]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^1\.1 +interval \[0\.5, 0\.6\], certified \[0\.2, 0\.4\]$", out, re.M), out
    assert "3 of 4 claims agree" in out


def entry(value=1.0, interval=None, outcome="holds", measured=True, **named):
    number = {"value": value, **named} if measured else None
    return {"outcome": outcome, "interval": interval, "measured": number}


@pytest.mark.parametrize(
    ("fresh", "old", "said"),
    [
        (entry(), None, "not in the certified record"),
        (entry(outcome="fails"), entry(), "outcome fails, certified holds"),
        (entry(measured=False), entry(), "measured in one of the two only"),
        (entry(measured=False), entry(measured=False), ""),
        (entry(None), entry(2.0), "value not finite, certified 2"),
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
        (entry(-0.5), entry(-0.5001), ""),
        (entry(0.0), entry(0.001), "value 0, certified 0.001"),
        # rounding errors: up to 2^-24 * sqrt(1000) = 1.9e-6 of the claim's largest number, or of 1
        (entry(7.5e-7), entry(5.2e-7), ""),
        (entry(5e-6), entry(2e-6), "value 5e-06, certified 2e-06"),
        (entry(5e-6, gap=6.0), entry(2e-6), ""),
        (entry(5e-6, n_heads=6), entry(2e-6), "value 5e-06, certified 2e-06"),  # a count
        (entry(7e-7, [6e-7, 8e-7]), entry(4e-7, [3e-7, 5e-7]), ""),
        # of what cannot be tested no number says anything
        (entry(1.0, outcome="not_testable"), entry(5.0, outcome="not_testable"), ""),
        (entry(measured=False, outcome="not_testable"), entry(5.0, outcome="not_testable"), ""),
    ],
)
def test_agreement_by_hand(fresh, old, said):
    assert _disagreement(fresh, old) == said


# --- two runs -------------------------------------------------------------------------------------


def test_what_differs_between_two_runs_is_unstable(small, tmp_path):
    """1.1 holds and fails; 1.10 is not testable and holds, with numbers of the second run alone."""
    second = again(small)
    first = {claim["id"]: claim for claim in small["claims"]}
    claims = {claim["id"]: claim for claim in second["claims"]}
    numbers = first["1.1"]["measured"] | {"value": 0.01}
    claims["1.1"] |= {"outcome": "fails", "measured": numbers, "interval": [0.0, 0.02]}
    numbers = {"value": 0.5, "unit": "", "note": ""}
    claims["1.10"] |= {"outcome": "holds", "reason": "", "measured": numbers}
    record = unite(small, second)
    assert unstable(record) == ["1.1", "1.10"]
    assert record["again"]["numerics"] == second["numerics"]
    one, same, ten, _ = record["claims"]
    assert same == first["1.2"]
    assert one["reason"] == (
        "unstable: holds (0.3 [0.2, 0.4]) with 2 threads, all instructions; "
        "fails (0.01 [0, 0.02]) with 3 threads, AVX2 instructions"
    )
    assert one["outcome"] == ten["outcome"] == "unclear"
    assert one["measured"]["value"] == 0.3 and ten["measured"]["value"] == 0.5
    write_record(tmp_path / "record.json", record)  # it fits the schema
    assert alterations(tmp_path) == []
    assert record_value(record, "claims.1.1.unstable.second.measured.value") == 0.01
    one["unstable"]["first"]["outcome"] = "unclear"  # by its numbers it holds
    write_record(tmp_path / "record.json", record)
    assert alterations(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda claim: claim.update(outcome="holds"), "unstable is there, but not two outcomes"),
        (lambda claim: claim["unstable"]["second"].update(outcome="holds"), "not two outcomes"),
        (lambda claim: claim["measured"].update(value=9.0), "of neither of the two runs"),
    ],
)
def test_an_unstable_claim_that_cannot_be(small, tmp_path, change, message):
    second = again(small)
    second["claims"][0]["outcome"] = "fails"
    record = json.loads(json.dumps(unite(small, second)))
    change(record["claims"][0])
    with pytest.raises(UsageError, match=message):
        write_record(tmp_path / "record.json", record)


def test_a_second_run_is_of_the_same_computation(small):
    assert is_second(small, again(small))
    for key, value in (("seed", 7), ("hashes", {}), ("numerics", small["numerics"])):
        assert not is_second(small, again(small) | {key: value})
    with pytest.raises(UsageError, match="another's: seed"):
        unite(small, again(small) | {"seed": 7})
    with pytest.raises(UsageError, match="another's: numerics, which are equal"):
        unite(small, small)


def test_an_unstable_claim_agrees_with_both_of_its_outcomes(run, project, capsys):
    """In the certified record it is unclear; a third outcome is a disagreement."""
    folder = run(lambda record: None)
    record = read_record(folder / "record.json")
    del record["again"]
    second = again(record)
    second["claims"][0] |= {"outcome": "fails", "interval": [0.0, 0.02]}
    write_record(folder / "record.json", record)
    certify(project, folder, [], second)
    certified = read_record(certified_path(project, record))
    assert read_record(folder / "record.json") == certified  # as the book of runs shows it
    assert alterations(folder) == []  # its notebook is the first run's
    assert main(["verify", str(folder)]) == 0
    write_record(folder / "record.json", record)
    assert main(["verify", str(folder)]) == 0
    assert "1.1      agrees (holds, certified as unstable)" in capsys.readouterr().out
    other = entry(outcome="not_testable")
    assert _disagreement(other, certified["claims"][0]).startswith("outcome not_testable")


def test_what_the_runs_do_not_share_is_said(run, project):
    def otherwise(record):
        record |= {"seed": 7, "device": "cuda"}
        record["parameters"] |= {"seed": 7, "n_prompts": 11}
        record["hashes"]["library"] = "1" * 64
        record["numerics"]["threads"] = 9
        record["claims"][0]["id"] = "9.9"

    apart, verdicts = compare(project, run(otherwise))
    assert apart == ["library", "seed", "device", "parameter n_prompts", "threads"]
    found = {verdict.claim: verdict for verdict in verdicts}
    assert found["9.9"].disagreement == "not in the certified record"
    assert found["1.1"].outcome == "missing"
    assert found["1.1"].disagreement == "certified, not in this run"


def test_what_is_not_certified(run, project):
    with pytest.raises(UsageError, match=r"model-a is stale .*: notebook and library changed"):
        certify(project, project / RUN, ["notebook", "library"], None)
    before = (project / f"results/{EXPECTED[0]}/record.json").read_bytes()
    with pytest.raises(UsageError, match=r"file of yours \(rows_file\)"):
        certify(project, run(lambda r: r["parameters"].update(rows_file="mine.json")), [], None)
    folder = run(lambda r: r["model"].update(name=str(project)))
    (folder / "notebook.ipynb").unlink()  # which would tell first
    with pytest.raises(UsageError, match="folder of this machine"):
        certify(project, folder, [], None)
    with pytest.raises(UsageError, match="the form of records changed since; run it again"):
        certify(project, run(lambda r: r.pop("numerics")), [], None)
    with pytest.raises(UsageError, match="was not run a second time"):
        certify(project, project / OTHER, [], None)
    assert [path.read_bytes() for path in project.glob("results/*/*/*")] == [before]
    with pytest.raises(UsageError, match=rf"no certified record of {PAPER} on {project}"):
        compare(project, folder)


@pytest.mark.parametrize("name", ["toy/small", "~no-such-user/x", "x" * 5000, "a\0b", "../none"])
def test_a_run_that_has_no_such_name(name, tmp_path):
    with pytest.raises(UsageError, match="no finished run"):
        find_run(name, tmp_path)
