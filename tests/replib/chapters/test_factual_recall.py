"""The chapter, whole, on planted and random weights and on a reader's file of mixed facts."""

import json

import pytest

from bookkit.cli import main
from bookkit.records import read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import execute
from bookkit.run.plan import plan
from replib.chapters.factual_recall.facts import relations
from replib.chapters.factual_recall.planted import CONTEXT_HEAD, MEMORY_HEAD
from replib.files import find_root
from replib.metrics import head_label

PAPER = "factual-recall"
TIMES = ("started", "wall_time_s", "peak_memory_mb", "seal")


def record_of(model, out, profile="smoke", **settings):
    chapter = find_chapter(find_root(), PAPER)
    return read_record(execute(plan(chapter, model, profile, settings, out=out)) / "record.json")


def by_id(record):
    return {claim["id"]: claim for claim in record["claims"]}


def test_the_two_planted_heads_are_found_and_turn_the_answers(tmp_path):
    claims = by_id(record_of("planted-facts", tmp_path, profile="laptop"))
    memory, context = map(head_label, (MEMORY_HEAD, CONTEXT_HEAD))
    first = dict(part.split(": ") for part in claims["3.4"]["measured"]["note"].split("; "))
    assert first["memory"].split(", ")[0] == memory
    assert first["in-context"].split(", ")[0] == context
    for claim in ("3.1", "3.4", "3.5", "3.6"):
        assert claims[claim]["outcome"] == "holds"
    towards_context, towards_memory = (claims[i]["measured"] for i in ("3.5", "3.6"))
    assert towards_context["note"].startswith(f"memory head {memory}")
    assert towards_context["alpha"] < 1 and towards_context["after"] > 0.9
    assert towards_memory["after"] > 0.9
    if towards_memory["note"].startswith("memory head"):
        assert towards_memory["alpha"] > 1
    else:
        assert context in towards_memory["note"] and towards_memory["alpha"] < 1
    assert memory in claims["3.7"]["measured"]["note"]
    assert context in claims["3.7"]["measured"]["note"]
    # Planted: memory is stronger for frequent countries, copying weaker for frequent cities.
    assert claims["3.3"]["measured"]["value"] > 0 and claims["3.3"]["measured"]["city_low"] > 0
    # The same two heads work on chemical symbols, but one other relation is too little.
    assert claims["3.9"]["measured"]["value"] > 0.5
    assert claims["3.9"]["outcome"] == claims["3.2"]["outcome"] == "not_testable"


def test_nothing_is_claimed_on_random_weights_and_two_runs_agree(tmp_path):
    first, second = (record_of("tiny", tmp_path / name) for name in ("first", "second"))
    assert {claim["outcome"] for claim in first["claims"]} == {"not_testable"}
    assert all(claim["reason"] for claim in first["claims"])
    without_times = [{k: v for k, v in r.items() if k not in TIMES} for r in (first, second)]
    assert without_times[0] == without_times[1]


@pytest.fixture
def mixed_file(tmp_path):
    """200 facts of two relations with prompts of their own, as a reader might bring them."""
    rows = []
    for relation, prompt in (("capital", "The capital of {subject} is"), ("chemical symbol", None)):
        some = [f for f in relations()[relation] if f.subject.isalpha() and f.answer.isalpha()]
        for i, fact in enumerate(some[:100]):
            rows.append(
                {
                    "subject": fact.subject,
                    "prompt": prompt or f"Q: What is the {relation} of {fact.subject}?\nA:",
                    "answer": fact.answer,
                    "foil": some[(i ^ 1) % len(some[:100])].answer,
                    "relation": relation,
                }
            )
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(rows))
    return path


def test_a_file_of_200_mixed_facts_runs_through(tmp_path, mixed_file):
    record = record_of("planted-facts", tmp_path / "runs", facts_file=str(mixed_file))
    claims = by_id(record)
    assert record["measurements"]["facts"]["value"] == 200
    assert record["measurements"]["names_in_both_splits"]["value"] == 0
    assert claims["3.4"]["outcome"] == claims["3.5"]["outcome"] == "holds"


def test_a_row_that_cannot_be_used_is_refused_before_the_run(tmp_path, capsys):
    path = tmp_path / "facts.csv"
    path.write_text("subject,prompt,answer,foil\nCanada,Its capital is,Ottawa,Lima\n")
    out = tmp_path / "runs"
    code = main(["run", PAPER, "--model", "tiny", "-p", f"facts_file={path}", "--out", str(out)])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1
    assert f"{path} row 1: prompt has neither {{subject}} nor the subject 'Canada'" in err
    assert not out.exists()
