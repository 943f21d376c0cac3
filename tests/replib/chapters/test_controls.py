"""Whole chapters on planted and random models: found where it was planted, claimed nowhere else.

`make book` runs these controls. Its records are read where nothing has changed since; otherwise a
chapter is run here.
"""

import csv
import json
from pathlib import Path

import pytest

from bookkit.cli import main
from bookkit.records import read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import execute
from bookkit.run.plan import changed_since, plan
from replib.chapters.context_knob.intents import draw_cases, known_facts
from replib.chapters.factual_recall.facts import relations
from replib.chapters.factual_recall.planted import CONTEXT_HEAD, MEMORY_HEAD
from replib.chapters.ioi_circuit_reuse.planted import PLANTED_ROLES
from replib.chapters.successor_heads.planted import PLANTED_SUCCESSOR
from replib.interventions.generation import continuations
from replib.metrics import head_label
from replib.models.load import load_model

ROOT = Path(__file__).parents[3]
IOI, SUCCESSOR = "ioi-circuit-reuse", "successor-heads"
FACTS, KNOB = "factual-recall", "context-knob"
SMALL = {"n_prompts": "24", "n_deep": "16", "n_accuracy": "40", "n_cobj": "40", "n_draws": "40"}
TIMES = ("started", "wall_time_s", "peak_memory_mb", "seal")


def run(paper, model, out, profile="smoke", **settings):
    chapter = find_chapter(ROOT, paper)
    settings = settings or (SMALL if paper == IOI else {})
    return read_record(execute(plan(chapter, model, profile, settings, out=out)) / "record.json")


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """`control(paper, model)`: the record that `make book` left, if it is current, else one made
    here."""
    made = {}

    def find(paper, model):
        path = ROOT / "build/runs" / paper / model / "record.json"
        if path.is_file():
            record = read_record(path)
            if record["profile"] == "laptop" and not changed_since(
                record, find_chapter(ROOT, paper)
            ):
                return record
        if (paper, model) not in made:
            profile = "laptop" if model in ("planted-facts", "planted-gate") else "smoke"
            made[paper, model] = run(paper, model, tmp_path_factory.mktemp("control"), profile)
        return made[paper, model]

    return find


def by_id(record):
    return {claim["id"]: claim for claim in record["claims"]}


def outcomes(record):
    return {claim["id"]: claim["outcome"] for claim in record["claims"]}


def parts(note):
    """What a note says, `name: what; name: what`."""
    return dict(part.split(": ") for part in note.split("; "))


@pytest.mark.slow
def test_the_planted_circuit_is_found_head_by_head(control):
    claims = by_id(control(IOI, "planted-ioi"))
    found = parts(claims["1.1"]["measured"]["note"])
    for role, planted in {
        "movers": "name_movers",
        "inhibition heads": "inhibition_heads",
        "duplicate-token heads": "duplicate_token_heads",
        "induction heads": "induction_heads",
    }.items():
        assert set(found[role].split(", ")) == set(map(head_label, PLANTED_ROLES[planted]))
    assert claims["1.1"]["outcome"] == claims["1.2"]["outcome"] == "holds"
    assert claims["1.2"]["measured"]["note"] == head_label(PLANTED_ROLES["negative_movers"][0])
    # It knows nothing of colours: that is neither a success nor a failure of the other claims.
    assert {claims[f"1.{i}"]["outcome"] for i in range(3, 13)} == {"not_testable"}


@pytest.mark.slow
def test_the_planted_successor_head_is_found_piece_by_piece(control):
    record = control(SUCCESSOR, "planted-successor")
    claims, found = by_id(record), outcomes(record)
    pieces = [f"2.{i}" for i in (1, 3, 4, 5, 6, 8, 9, 10, 11, 12, 14)]
    assert {found[claim] for claim in pieces} == {"holds"}, found
    assert found["2.2"] == "not_testable"  # one model says nothing about many
    label = head_label(PLANTED_SUCCESSOR)
    assert claims["2.1"]["measured"]["note"] == (
        f"best {label}; chosen on half of the tokens: {label}"
    )
    assert claims["2.14"]["measured"]["note"] == f"most wins: {label}"


@pytest.mark.slow
def test_the_two_planted_heads_are_found_and_turn_the_answers(control):
    record = control(FACTS, "planted-facts")
    claims, found = by_id(record), outcomes(record)
    memory, context = map(head_label, (MEMORY_HEAD, CONTEXT_HEAD))
    first = parts(claims["3.4"]["measured"]["note"])
    assert first["memory"].split(", ")[0] == memory
    assert first["in-context"].split(", ")[0] == context
    assert {found[claim] for claim in ("3.1", "3.4", "3.5", "3.6")} == {"holds"}
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
    assert found["3.9"] == found["3.2"] == "not_testable"


@pytest.mark.slow
def test_the_planted_layers_and_the_planted_direction_are_found(control):
    record = control(KNOB, "planted-gate")
    claims, found = by_id(record), outcomes(record)
    assert claims["4.5"]["measured"]["note"] == (
        "intent: to the context: layers 1; intent: to memory: layers 1; "
        "memory: another question: layers 2; context: another question: layers 3"
    )
    knob = claims["4.6"]["measured"]
    assert knob["layer"] == 1 and knob["value"] > 0.9 and knob["wrong_layer"] < 0.2
    assert found["4.5"] == found["4.6"] == "holds"
    steered = claims["4.7"]["measured"]
    assert steered["steered"] > 0.9 and steered["unsteered_context"] < 0.1
    # It follows instructions already, and it has no adapter.
    assert {found[f"4.{i}"] for i in (1, 2, 3, 4, 7, 8)} == {"not_testable"}


@pytest.mark.slow
@pytest.mark.parametrize("paper", [IOI, SUCCESSOR, FACTS, KNOB])
def test_nothing_is_claimed_on_random_weights(control, paper):
    record = control(paper, "tiny")
    assert set(outcomes(record).values()) == {"not_testable"}
    assert all(claim["reason"] for claim in record["claims"])
    if paper == KNOB:
        assert by_id(record)["4.6"]["measured"]["value"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("paper", [IOI, FACTS, KNOB])
def test_two_runs_agree(tmp_path, paper):
    first, second = (run(paper, "tiny", tmp_path / name) for name in ("first", "second"))
    assert {k: v for k, v in first.items() if k not in TIMES} == {
        k: v for k, v in second.items() if k not in TIMES
    }


# --- A reader's own rows --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_file_of_200_mixed_facts_runs_through(tmp_path):
    """Two relations with prompts of their own, as a reader might bring them."""
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
    record = run(FACTS, "planted-facts", tmp_path / "runs", facts_file=str(path))
    assert record["measurements"]["facts"]["value"] == 200
    assert record["measurements"]["names_in_both_splits"]["value"] == 0
    assert outcomes(record)["3.4"] == outcomes(record)["3.5"] == "holds"


@pytest.mark.slow
def test_a_readers_cases_are_reported_on(tmp_path):
    model = load_model("planted-gate")
    known = known_facts(model.tokenizer, lambda p, a: continuations(model, p, 3), "validation", 60)
    path = tmp_path / "cases.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["context", "question", "prior_answer", "context_answer", "opening"])
        for case in draw_cases(model.tokenizer, known, 1, 5)[:24]:
            rows.writerow([case.context, case.question, case.prior, case.contextual, case.opening])
    record = run(KNOB, "planted-gate", tmp_path / "runs", conflicts_file=str(path))
    assert record["measurements"]["test_cases"]["value"] == 12  # n_cases of the smoke profile
    assert by_id(record)["4.7"]["measured"]["steered"] > 0.8
    assert "conflicts_file" in record["hashes"]["inputs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("paper", "parameter", "rows", "reason"),
    [
        (
            FACTS,
            "facts_file",
            "subject,prompt,answer,foil\nCanada,Its capital is,Ottawa,Lima\n",
            "prompt has neither {subject} nor the subject 'Canada'",
        ),
        (
            KNOB,
            "conflicts_file",
            "context,question,prior_answer,context_answer\nA is B.,What is A?,B,B\n",
            "prior_answer 'B' and context_answer 'B' cannot be told apart",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_before_the_run(
    tmp_path, capsys, paper, parameter, rows, reason
):
    path, out = tmp_path / "rows.csv", tmp_path / "runs"
    path.write_text(rows)
    given = ["--model", "tiny", "-p", f"{parameter}={path}", "--out", str(out)]
    assert main(["run", paper, *given]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and not out.exists()
    assert f"{path} row 1: {reason}" in err
