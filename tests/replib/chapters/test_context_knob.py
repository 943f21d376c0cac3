"""The chapter, whole, on the planted gate, on random weights, and on a reader's file."""

import csv

from bookkit.cli import main
from bookkit.records import read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import execute
from bookkit.run.plan import plan
from replib.chapters.context_knob.intents import draw_cases, known_facts
from replib.files import find_root
from replib.interventions.generation import continuations
from replib.models.load import load_model

PAPER = "context-knob"
TIMES = ("started", "wall_time_s", "peak_memory_mb", "seal")


def record_of(model, out, profile="smoke", **settings):
    chapter = find_chapter(find_root(), PAPER)
    return read_record(execute(plan(chapter, model, profile, settings, out=out)) / "record.json")


def by_id(record):
    return {claim["id"]: claim for claim in record["claims"]}


def test_the_planted_layers_and_the_planted_direction_are_found(tmp_path):
    claims = by_id(record_of("planted-gate", tmp_path, profile="laptop"))
    layers = claims["4.5"]["measured"]
    assert layers["note"] == (
        "intent: to the context: layers 1; intent: to memory: layers 1; "
        "memory: another question: layers 2; context: another question: layers 3"
    )
    knob = claims["4.6"]["measured"]
    assert knob["layer"] == 1 and knob["value"] > 0.9 and knob["wrong_layer"] < 0.2
    assert claims["4.5"]["outcome"] == claims["4.6"]["outcome"] == "holds"
    steered = claims["4.7"]["measured"]
    assert steered["steered"] > 0.9 and steered["unsteered_context"] < 0.1
    # It follows instructions already, and it has no adapter.
    for claim in ("4.1", "4.2", "4.3", "4.4", "4.7", "4.8"):
        assert claims[claim]["outcome"] == "not_testable"


def test_nothing_is_claimed_on_random_weights_and_two_runs_agree(tmp_path):
    first, second = (record_of("tiny", tmp_path / name) for name in ("first", "second"))
    assert {claim["outcome"] for claim in first["claims"]} == {"not_testable"}
    assert all(claim["reason"] for claim in first["claims"])
    assert by_id(first)["4.6"]["measured"]["value"] == 0
    without_times = [{k: v for k, v in r.items() if k not in TIMES} for r in (first, second)]
    assert without_times[0] == without_times[1]


def test_a_readers_cases_are_reported_on(tmp_path):
    model = load_model("planted-gate")
    known = known_facts(model.tokenizer, lambda p, a: continuations(model, p, 3), "validation", 60)
    path = tmp_path / "cases.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["context", "question", "prior_answer", "context_answer", "opening"])
        for case in draw_cases(model.tokenizer, known, 1, 5)[:24]:
            rows.writerow([case.context, case.question, case.prior, case.contextual, case.opening])
    record = record_of("planted-gate", tmp_path / "runs", conflicts_file=str(path))
    assert record["measurements"]["test_cases"]["value"] == 12  # n_cases of the smoke profile
    assert by_id(record)["4.7"]["measured"]["steered"] > 0.8
    assert "conflicts_file" in record["hashes"]["inputs"]


def test_a_row_that_cannot_be_used_is_refused_before_the_run(tmp_path, capsys):
    path = tmp_path / "cases.csv"
    path.write_text("context,question,prior_answer,context_answer\nA is B.,What is A?,B,B\n")
    out = tmp_path / "runs"
    code = main(
        ["run", PAPER, "--model", "tiny", "-p", f"conflicts_file={path}", "--out", str(out)]
    )
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and not out.exists()
    assert f"{path} row 1: prior_answer 'B' and context_answer 'B' cannot be told apart" in err
