"""Certifying a record, and finding where a fresh run disagrees with it."""

import re
from pathlib import Path

import pytest

from bookkit.certified import TOLERANCE, _disagreement, certified_path, certify, compare, find_run
from bookkit.cli import main
from bookkit.records import read_record, write_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import execute
from bookkit.run.plan import plan
from replib.errors import UsageError
from replib.files import find_root

TOY = find_root(Path(__file__)) / "tests"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return execute(plan(find_chapter(TOY, "toy"), "tiny", "smoke", {"mode": "well"}, out=out))


@pytest.fixture
def project(tmp_path):
    """A project of the toy paper without results."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "notebooks").symlink_to(TOY / "notebooks")
    return root


@pytest.fixture
def altered(finished, tmp_path):
    """The finished run with some of its record changed."""

    def altered(change):
        record = read_record(finished / "record.json")
        change(record)
        folder = tmp_path / "altered"
        folder.mkdir(exist_ok=True)
        write_record(folder / "record.json", record)
        return folder

    return altered


def same_requirements(record):
    record["hashes"]["requirements"] = None  # the project of the test has no such file


def test_a_run_is_certified_and_agrees_with_itself(project, altered):
    folder = altered(same_requirements)
    path = certify(project, folder)
    record = read_record(folder / "record.json")
    assert path == certified_path(project, record) == project / "results/toy/tiny/record.json"
    apart, verdicts = compare(project, folder)
    assert apart == [] and len(verdicts) == len(record["claims"]) > 0
    assert all(verdict.disagreement == "" for verdict in verdicts)


def first_measured(record):
    return next(claim for claim in record["claims"] if claim["measured"] is not None)


def outcome(record):
    first_measured(record)["outcome"] = "unclear"


def value(record):
    claim = first_measured(record)
    claim["measured"]["value"] *= 1 + 2 * TOLERANCE
    claim["interval"] = None


def interval(record):
    claim = first_measured(record)
    claim["interval"] = [claim["interval"][1] + 1, claim["interval"][1] + 2]


def unmeasured(record):
    claim = first_measured(record)
    claim |= {"measured": None, "outcome": "not_testable", "reason": "no", "interval": None}


def below(record):
    first_measured(record)["interval"] = [-2.0, -1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (outcome, r"outcome unclear, certified \w+"),
        (value, r"value \S+, certified \S+"),
        (interval, r"interval \[.*\], certified \[.*\]"),
        (below, r"interval \[-2, -1\], certified \[0, 1\]"),
        (unmeasured, r"outcome not_testable, certified \w+"),
    ],
)
def test_a_disagreement_is_found_and_named(project, altered, change, message, capsys, monkeypatch):
    def with_interval(record):
        same_requirements(record)
        first_measured(record)["interval"] = [0.0, 1.0]

    certify(project, altered(with_interval))
    folder = altered(lambda record: (with_interval(record), change(record)))
    monkeypatch.chdir(project)
    assert main(["verify", str(folder)]) == 1
    out = capsys.readouterr().out
    claim = first_measured(read_record(project / "results/toy/tiny/record.json"))["id"]
    assert re.search(rf"^{re.escape(claim)}\s+{message}$", out, re.M), out
    assert "claims agree" in out


def test_a_small_difference_is_none(project, altered):
    certify(project, altered(same_requirements))

    def nudged(record):
        same_requirements(record)
        first_measured(record)["measured"]["value"] *= 1 + TOLERANCE / 2

    assert not any(v.disagreement for v in compare(project, altered(nudged))[1])


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


def test_a_claim_that_one_record_lacks_is_a_disagreement(project, altered):
    certify(project, altered(same_requirements))

    def renamed(record):
        same_requirements(record)
        record["claims"][0]["id"] = "9.9"

    found = {v.claim: v for v in compare(project, altered(renamed))[1]}
    assert found["9.9"].disagreement == "not in the certified record"
    assert found["1.1"].outcome == "missing"
    assert found["1.1"].disagreement == "certified, not in this run"


def test_other_settings_are_said(project, altered):
    certify(project, altered(same_requirements))

    def otherwise(record):
        same_requirements(record)
        record["seed"] = record["parameters"]["seed"] = 7
        record["parameters"]["n_prompts"] = 11

    assert compare(project, altered(otherwise))[0] == ["seed", "parameter n_prompts"]


def test_what_the_runs_do_not_share_is_said(project, altered):
    certify(project, altered(same_requirements))

    def elsewhere(record):
        same_requirements(record)
        record["device"] = "cuda"
        record["hashes"]["library"] = "1" * 64

    assert compare(project, altered(elsewhere))[0] == ["library", "device"]


def test_a_stale_record_is_not_certified(project, altered):
    def stale(record):
        same_requirements(record)
        record["hashes"] |= {"notebook": "1" * 64, "library": "2" * 64}

    with pytest.raises(UsageError, match=r"stale .*: notebook and library changed"):
        certify(project, altered(stale))
    assert not (project / "results").exists()


def test_what_only_this_machine_has_is_not_certified(project, altered, tmp_path):
    def folder_of_mine(record):
        same_requirements(record)
        record["model"]["name"] = str(tmp_path)

    def file_of_mine(record):
        same_requirements(record)
        record["parameters"]["rows_file"] = "mine.json"

    with pytest.raises(UsageError, match="folder of this machine"):
        certify(project, altered(folder_of_mine))
    with pytest.raises(UsageError, match="file of yours"):
        certify(project, altered(file_of_mine))


def test_no_run_and_no_certified_record_are_one_line(project, altered, tmp_path):
    with pytest.raises(UsageError, match="no finished run 'toy/small'"):
        find_run("toy/small", tmp_path)
    with pytest.raises(UsageError, match="no certified record of toy on tiny"):
        compare(project, altered(same_requirements))


@pytest.mark.parametrize("name", ["~no-such-user/x", "x" * 5000, "a\0b", "../none"])
def test_a_run_that_has_no_such_name(name, tmp_path):
    with pytest.raises(UsageError, match="no finished run"):
        find_run(name, tmp_path)
