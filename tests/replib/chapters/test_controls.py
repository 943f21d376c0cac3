"""Whole chapters on planted and random models: found where it was planted, claimed nowhere else.

`make book` runs these controls. Its records are read where nothing has changed since; otherwise a
chapter is run here.
"""

import csv
import json
from functools import cache
from pathlib import Path

import pytest
from transformers import MambaConfig, MambaForCausalLM

from bookkit.records import read_record
from bookkit.run.chapter import find_chapter
from bookkit.run.execute import execute
from bookkit.run.plan import changed_since, plan
from replib.chapters.context_knob.intents import draw_cases, known_facts
from replib.chapters.copying_mamba.training_grid import STUDIES
from replib.chapters.factual_recall.facts import relations
from replib.chapters.factual_recall.planted import CONTEXT_HEAD, MEMORY_HEAD
from replib.chapters.ioi_circuit_reuse.planted import PLANTED_ROLES
from replib.chapters.successor_heads.planted import PLANTED_SUCCESSOR
from replib.interventions.generation import continuations
from replib.metrics import head_label
from replib.models.load import load_model
from replib.models.tiny import tiny_parts

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
IOI, SUCCESSOR = "ioi-circuit-reuse", "successor-heads"
FACTS, KNOB, COPYING = "factual-recall", "context-knob", "copying-mamba"


def run(paper, model, out, profile="smoke", **settings):
    chapter = find_chapter(ROOT, paper)
    return read_record(execute(plan(chapter, model, profile, settings, out=out)) / "record.json")


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """`control(paper, model)`: the record that `make book` left, if it is current, else one made
    here."""

    @cache
    def find(paper, model):
        path = ROOT / "build/runs" / paper / model / "record.json"
        record = read_record(path) if path.is_file() else {"profile": None}
        if record["profile"] == "laptop" and not changed_since(record, find_chapter(ROOT, paper)):
            return record
        profile = "laptop" if model in ("planted-facts", "planted-gate") else "smoke"
        return run(paper, model, tmp_path_factory.mktemp("control"), profile)

    return find


def by_id(record):
    return {claim["id"]: claim for claim in record["claims"]}


def outcomes(record, *ids):
    """The outcomes of these claims, or of all."""
    return {claim["outcome"] for id_, claim in by_id(record).items() if not ids or id_ in ids}


def said(record, id_):
    """What a claim's note says: `name: what; name: what`."""
    note = by_id(record)[id_]["measured"]["note"]
    return dict(part.split(": ") for part in note.split("; "))


def test_the_planted_circuit_is_found_head_by_head(control):
    record = control(IOI, "planted-ioi")
    for role, planted in (
        ("movers", "name_movers"),
        ("inhibition heads", "inhibition_heads"),
        ("duplicate-token heads", "duplicate_token_heads"),
        ("induction heads", "induction_heads"),
    ):
        found = set(said(record, "1.1")[role].split(", "))
        assert found == set(map(head_label, PLANTED_ROLES[planted]))
    negative = by_id(record)["1.2"]["measured"]["note"]
    assert negative == head_label(PLANTED_ROLES["negative_movers"][0])
    assert outcomes(record, "1.1", "1.2") == {"holds"}
    # It knows nothing of colours: that is neither a success nor a failure of the other claims.
    assert outcomes(record, *(f"1.{i}" for i in range(3, 13))) == {"not_testable"}


def test_the_planted_successor_head_is_found_piece_by_piece(control):
    record = control(SUCCESSOR, "planted-successor")
    pieces = (1, 3, 4, 5, 6, 8, 9, 10, 11, 12, 14)
    assert outcomes(record, *(f"2.{i}" for i in pieces)) == {"holds"}
    assert outcomes(record, "2.2") == {"not_testable"}  # one model says nothing about many
    label, claims = head_label(PLANTED_SUCCESSOR), by_id(record)
    chosen = f"best {label}; chosen on half of the tokens: {label}"
    assert claims["2.1"]["measured"]["note"] == chosen
    assert claims["2.14"]["measured"]["note"] == f"most wins: {label}"


def test_the_two_planted_heads_are_found_and_turn_the_answers(control):
    record = control(FACTS, "planted-facts")
    measured = {id_: claim["measured"] for id_, claim in by_id(record).items()}
    memory, context = map(head_label, (MEMORY_HEAD, CONTEXT_HEAD))
    assert said(record, "3.4")["memory"].split(", ")[0] == memory
    assert said(record, "3.4")["in-context"].split(", ")[0] == context
    assert outcomes(record, "3.1", "3.4", "3.5", "3.6") == {"holds"}
    towards_context, towards_memory = measured["3.5"], measured["3.6"]
    assert towards_context["note"].startswith(f"memory head {memory}")
    assert towards_context["alpha"] < 1 and towards_context["after"] > 0.9
    assert towards_memory["after"] > 0.9
    if towards_memory["note"].startswith("memory head"):
        assert towards_memory["alpha"] > 1
    else:
        assert context in towards_memory["note"] and towards_memory["alpha"] < 1
    assert memory in measured["3.7"]["note"] and context in measured["3.7"]["note"]
    # Planted: memory is stronger for frequent countries, copying weaker for frequent cities.
    assert measured["3.3"]["value"] > 0 and measured["3.3"]["city_low"] > 0
    # The same two heads work on chemical symbols, but one other relation is too little.
    assert measured["3.9"]["value"] > 0.5
    assert outcomes(record, "3.2", "3.9") == {"not_testable"}


def test_the_planted_layers_and_the_planted_direction_are_found(control):
    record = control(KNOB, "planted-gate")
    measured = {id_: claim["measured"] for id_, claim in by_id(record).items()}
    assert measured["4.5"]["note"] == (
        "intent: to the context: layers 1; intent: to memory: layers 1; "
        "memory: another question: layers 2; context: another question: layers 3"
    )
    knob, steered = measured["4.6"], measured["4.7"]
    assert knob["layer"] == 1 and knob["value"] > 0.9 and knob["wrong_layer"] < 0.2
    assert outcomes(record, "4.5", "4.6") == {"holds"}
    assert steered["steered"] > 0.9 and steered["unsteered_context"] < 0.1
    # It follows instructions already, and it has no adapter.
    assert outcomes(record, *(f"4.{i}" for i in (1, 2, 3, 4, 7, 8))) == {"not_testable"}


@pytest.mark.parametrize("paper", [IOI, SUCCESSOR, FACTS, KNOB])
def test_nothing_is_claimed_on_random_weights(control, paper):
    record = control(paper, "tiny")
    assert outcomes(record) == {"not_testable"}
    assert all(claim["reason"] for claim in record["claims"])
    if paper == KNOB:
        assert by_id(record)["4.6"]["measured"]["value"] == 0


def test_nothing_is_claimed_on_random_weights_of_the_copying_chapter(tmp_path):
    """Its planted model is a part of it. Here it has a second model: a Mamba of another tokenizer,
    which no other test has."""
    _, tokenizer = tiny_parts("llama", seed=0)
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2}
    for part in (MambaForCausalLM(MambaConfig(**size, pad_token_id=0)), tokenizer):
        part.save_pretrained(tmp_path / "mamba")
    record = run(COPYING, "tiny", tmp_path / "runs", against=str(tmp_path / "mamba"))
    assert len(record["claims"]) == 13 and "not_attempted" not in outcomes(record)
    assert outcomes(record, *(f"5.{i}" for i in (8, 9, 10, 11))) == {"not_testable"}
    assert "holds" not in outcomes(record, "5.12")
    measured = {name: one["value"] for name, one in record["measurements"].items()}
    n = sum(len(study.architectures) * len(study.seeds) for study in STUDIES.values())
    assert (measured["live_networks"], measured["stored"], measured["stale"]) == (2, n, 0)
    assert sum(name.startswith("training ") for name in record["hashes"]["inputs"]) == n


def test_a_file_of_200_mixed_facts_runs_through(tmp_path):
    """Two relations with prompts of their own, as a reader might bring them."""
    rows = []
    for relation, prompt in (
        ("capital", "The capital of {subject} is"),
        ("chemical symbol", "Q: What is the chemical symbol of {subject}?\nA:"),
    ):
        some = [f for f in relations()[relation] if f.subject.isalpha() and f.answer.isalpha()]
        for i, fact in enumerate(some[:100]):
            row = {"subject": fact.subject, "prompt": prompt, "answer": fact.answer}
            rows.append(row | {"foil": some[i ^ 1].answer, "relation": relation})
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(rows))
    record = run(FACTS, "planted-facts", tmp_path / "runs", facts_file=str(path))
    assert "facts_file" in record["hashes"]["inputs"]  # so a bad row stops it before it starts
    assert record["measurements"]["facts"]["value"] == 200
    assert record["measurements"]["names_in_both_splits"]["value"] == 0
    assert outcomes(record, "3.4", "3.5") == {"holds"}


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
