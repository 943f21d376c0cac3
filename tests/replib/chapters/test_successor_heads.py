"""The successor-heads chapter, whole: found in the planted model, claimed nowhere at random."""

import pytest

from bookkit.records import read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import execute
from bookkit.run.plan import plan
from replib.chapters.successor_heads.planted import PLANTED_SUCCESSOR
from replib.files import find_root
from replib.metrics import head_label


def record_of(model, out):
    chapter = find_chapter(find_root(), "successor-heads")
    return read_record(execute(plan(chapter, model, "smoke", {}, out=out)) / "record.json")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    record = record_of("planted-successor", tmp_path_factory.mktemp("planted"))
    return {claim["id"]: claim for claim in record["claims"]}


@pytest.mark.parametrize(
    "claim", ["2.1", "2.3", "2.4", "2.5", "2.6", "2.8", "2.9", "2.10", "2.11", "2.12", "2.14"]
)
def test_the_planted_mechanism_is_found_piece_by_piece(planted, claim):
    assert planted[claim]["outcome"] == "holds", planted[claim]


def test_the_planted_head_is_named(planted):
    label = head_label(PLANTED_SUCCESSOR)
    assert planted["2.1"]["measured"]["note"] == (
        f"best {label}; chosen on half of the tokens: {label}"
    )
    assert planted["2.14"]["measured"]["note"] == f"most wins: {label}"
    assert planted["2.2"]["outcome"] == "not_testable"  # one model says nothing about many


def test_nothing_is_claimed_on_random_weights(tmp_path):
    record = record_of("tiny", tmp_path)
    assert {claim["outcome"] for claim in record["claims"]} == {"not_testable"}
    assert all(claim["reason"] for claim in record["claims"])
