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
from replib.chapters.factual_recall.facts import relations
from replib.chapters.factual_recall.planted import CONTEXT_HEAD, MEMORY_HEAD
from replib.chapters.ioi_circuit_reuse.planted import PLANTED_ROLES
from replib.chapters.successor_heads.planted import PLANTED_SUCCESSOR
from replib.interventions.generation import continuations
from replib.metrics import head_label
from replib.models.load import load_model
from replib.models.tiny import tiny_parts
from replib.prompts.colored_objects import colored_objects_pairs

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
        profile = "laptop" if model in ("planted-ioi", "planted-facts", "planted-gate") else "smoke"
        if record["profile"] in (profile, "laptop"):
            if not changed_since(record, find_chapter(ROOT, paper)):
                return record
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


def test_the_planted_circuits_are_found_head_by_head(control):
    record = control(IOI, "planted-ioi")
    labels = {role: ", ".join(map(head_label, heads)) for role, heads in PLANTED_ROLES.items()}
    for role, planted in (
        ("movers", "name_movers"),
        ("inhibition heads", "inhibition_heads"),
        ("duplicate-token heads", "duplicate_token_heads"),
        ("induction heads", "induction_heads"),
    ):
        assert set(said(record, "1.1")[role].split(", ")) == set(labels[planted].split(", "))
    measured = {id_: claim["measured"] for id_, claim in by_id(record).items()}
    assert measured["1.2"]["note"] == labels["negative_movers"]
    assert set(measured["1.5"]["note"].split(", ")) == set(labels["name_movers"].split(", "))
    assert set(measured["1.6"]["note"].split(", ")) == set(labels["content_gatherers"].split(", "))
    both = f"{labels['inhibition_heads']}, {labels['negative_movers']}"
    assert set(measured["1.8"]["note"].split(", ")) == set(both.split(", "))
    # All that the paper says was planted; 1.13 compares models.
    assert outcomes(record, *(f"1.{i}" for i in range(1, 13))) == {"holds"}
    assert outcomes(record, "1.13") == {"not_attempted"}


@pytest.mark.parametrize("n_objects", [2, 3])
def test_a_readers_colored_objects_are_a_page(tmp_path, n_objects):
    """In the format of the paper authors' file; with two objects the chance is that of two."""
    tokenizer = load_model("planted-ioi").tokenizer
    pairs = colored_objects_pairs(tokenizer, 200, 7, n_objects)
    answers = tokenizer.batch_decode(pairs.answer[:, None])
    path = tmp_path / "cobjs.json"
    path.write_text(json.dumps([list(row) for row in zip(pairs.text, answers, strict=True)]))
    record = run(IOI, "planted-ioi", tmp_path / "runs", colored_objects_file=str(path))
    numbers = {name: one["value"] for name, one in record["measurements"].items()}
    assert numbers["chance"] == pytest.approx(1 / n_objects)
    assert (numbers["cobj_objects"], numbers["cobj_shots"]) == (n_objects, 1)
    assert numbers["cobj_variants_tried"] == 1 and numbers["cobj_gap"] > 0
    assert outcomes(record, "1.1", "1.5", "1.6") == {"holds"}
    assert by_id(record)["1.8"]["measured"]["value"] > 0


def test_the_planted_successor_head_is_found_piece_by_piece(control):
    record = control(SUCCESSOR, "planted-successor")
    claims = by_id(record)
    assert {id_ for id_, claim in claims.items() if claim["outcome"] != "holds"} == {"2.2"}
    assert outcomes(record, "2.2") == {"not_attempted"}  # it is decided across models
    assert record["measurements"]["successor_score"]["interval"][0] > 0.5
    label = head_label(PLANTED_SUCCESSOR)
    chosen = f"input MLP0: best {label}; chosen by either half: {label}, {label}"
    assert claims["2.1"]["measured"]["note"] == chosen
    assert claims["2.14"]["measured"]["note"] == f"most wins: {label}"


def test_the_two_planted_heads_are_found_and_turn_the_answers(control):
    record = control(FACTS, "planted-facts")
    measured = {id_: claim["measured"] for id_, claim in by_id(record).items()}
    memory, context = map(head_label, (MEMORY_HEAD, CONTEXT_HEAD))
    # Everything is planted but 3.2, which compares models.
    assert outcomes(record, *(f"3.{i}" for i in (1, 3, 4, 5, 6, 7, 8, 9, 10))) == {"holds"}
    assert said(record, "3.4")["memory"].split(", ")[0] == memory
    assert said(record, "3.4")["in-context"].split(", ")[0] == context
    roles = {role: entry["heads"] for role, entry in record["heads"].items()}
    assert roles == {
        **{"memory": [list(MEMORY_HEAD)], "in-context": [list(CONTEXT_HEAD)]},
        "suppressing": [],
    }
    # Memory is stronger for frequent countries, copying weaker for frequent cities.
    assert measured["3.3"]["value"] > 0 and measured["3.3"]["city"] < 0
    for id_ in ("3.5", "3.10"):  # without the memory head, the context
        assert measured[id_]["note"] == f"{memory}, α = 0" and measured[id_]["opposite_after"] == 0
    assert measured["3.6"]["after"] > 0.9
    assert memory in measured["3.7"]["note"] and context in measured["3.7"]["note"]
    assert measured["3.9"]["moved"] == 1  # of other relations it knows one


def test_the_planted_layers_and_the_planted_direction_are_found(control):
    record = control(KNOB, "planted-gate")
    measured = {id_: claim["measured"] for id_, claim in by_id(record).items()}
    assert measured["4.5"]["note"] == (
        "intent: to memory: layers 1; intent: to the context: layers 1; "
        "memory: another question: layers 2; context: another question: layers 3"
    )
    assert measured["4.6"]["layer"] == 1 and measured["4.6"]["value"] > 0.7
    steered = measured["4.7"]
    assert steered["steered"] > 0.9 and steered["unsteered_context"] < 0.1
    assert {id_: claim["outcome"] for id_, claim in by_id(record).items()} == {
        f"4.{i}": "holds" for i in range(1, 9)
    }


@pytest.mark.parametrize("paper", [IOI, SUCCESSOR, FACTS, KNOB])
def test_nothing_is_claimed_on_random_weights(control, paper):
    record = control(paper, "tiny")
    assert "holds" not in outcomes(record)
    assert all(claim["reason"] or claim["outcome"] == "fails" for claim in record["claims"])
    if paper == KNOB:
        assert by_id(record)["4.6"]["measured"]["value"] == 0


def test_every_claim_of_the_copying_chapter_has_its_planted_outcome(tmp_path):
    record = run(COPYING, "planted-copying", tmp_path)
    found = {id_: claim["outcome"] for id_, claim in by_id(record).items()}
    assert found == dict.fromkeys(found, "holds") and len(found) == 8


def test_nothing_is_claimed_on_untrained_networks(tmp_path):
    record = run(COPYING, "untrained-copying", tmp_path)
    assert outcomes(record) == {"not_testable"}
    assert record["hashes"]["inputs"] == {} and record["model"]["sha256"] is None


def test_nothing_is_claimed_of_pretrained_models_without_weights(tmp_path):
    """Here it has a second model: a Mamba of another tokenizer, which no other test has."""
    _, tokenizer = tiny_parts("llama", seed=0)
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2}
    for part in (MambaForCausalLM(MambaConfig(**size, pad_token_id=0)), tokenizer):
        part.save_pretrained(tmp_path / "mamba")
    record = run("copying-pretrained", "tiny", tmp_path / "runs", against=str(tmp_path / "mamba"))
    assert len(record["claims"]) == 5 and outcomes(record) == {"not_testable"}
    pairs = {"copy_lead", "shuffling_lead", "phone_lead", "loss_behind"}
    assert not pairs & set(record["measurements"])  # neither of the two can repeat anything


def test_a_file_of_200_mixed_facts_runs_through(tmp_path):
    """Four relations with prompts of their own, as a reader might bring them."""
    rows = []
    for relation, name, prompt in (
        ("capital", "capital", "The capital of {subject} is"),
        ("capital", "seat", "Q: What is the capital of {subject}?\nA:"),
        ("chemical symbol", "symbol", "Q: What is the chemical symbol of {subject}?\nA:"),
        ("chemical symbol", "sign", "The chemical symbol of {subject} is"),
    ):
        some = [f for f in relations()[relation] if f.subject.isalpha() and f.answer.isalpha()]
        start = 50 * (name in ("seat", "sign"))
        for i, fact in enumerate(some[start : start + 50]):
            row = {"subject": fact.subject, "prompt": prompt, "answer": fact.answer}
            rows.append(row | {"foil": some[(i ^ 1) + start].answer, "relation": name})
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
    assert by_id(record)["4.7"]["measured"]["steered"] > 0.5  # nothing steered: 0
    assert "conflicts_file" in record["hashes"]["inputs"]
