"""The first chapter, whole, on the planted and the random model: found there, claimed nowhere."""

import pytest

from bookkit.records import read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import execute
from bookkit.run.plan import plan
from replib.chapters.ioi_circuit_reuse.planted import PLANTED_ROLES
from replib.files import find_root
from replib.metrics import head_label

PAPER = "ioi-circuit-reuse"
SMALL = {"n_prompts": "24", "n_deep": "16", "n_accuracy": "40", "n_cobj": "40", "n_draws": "40"}
TIMES = ("started", "wall_time_s", "peak_memory_mb", "seal")


def record_of(model, out):
    chapter = find_chapter(find_root(), PAPER)
    return read_record(execute(plan(chapter, model, "smoke", SMALL, out=out)) / "record.json")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return record_of("planted-ioi", tmp_path_factory.mktemp("planted"))


def test_the_planted_circuit_is_found_head_by_head(planted):
    claims = {claim["id"]: claim for claim in planted["claims"]}
    found = dict(part.split(": ") for part in claims["1.1"]["measured"]["note"].split("; "))
    for role, planted_role in {
        "movers": "name_movers",
        "inhibition heads": "inhibition_heads",
        "duplicate-token heads": "duplicate_token_heads",
        "induction heads": "induction_heads",
    }.items():
        assert set(found[role].split(", ")) == set(map(head_label, PLANTED_ROLES[planted_role]))
    assert claims["1.1"]["outcome"] == "holds"
    assert claims["1.2"]["outcome"] == "holds"
    assert claims["1.2"]["measured"]["note"] == head_label(PLANTED_ROLES["negative_movers"][0])


def test_what_the_planted_model_cannot_do_is_not_testable(planted):
    """It knows nothing of colours: that is neither a success nor a failure of those claims."""
    outcomes = {claim["id"]: claim["outcome"] for claim in planted["claims"]}
    assert {outcomes[f"1.{i}"] for i in range(3, 13)} == {"not_testable"}


def test_nothing_is_claimed_on_random_weights_and_two_runs_agree(tmp_path):
    first, second = (record_of("tiny", tmp_path / name) for name in ("first", "second"))
    assert {claim["outcome"] for claim in first["claims"]} == {"not_testable"}
    assert all(claim["reason"] for claim in first["claims"])
    without_times = [{k: v for k, v in r.items() if k not in TIMES} for r in (first, second)]
    assert without_times[0] == without_times[1]
