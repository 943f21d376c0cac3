"""Prompts with an intent, their scoring and splits, and the other kinds of contexts."""

import json

import pytest

from replib.chapters.context_knob import contexts, intents
from replib.chapters.context_knob.intents import FORMATS, INTENTS, SPLITS, Case, prompt
from replib.chapters.factual_recall.facts import Conflict, Fact
from replib.errors import UsageError
from replib.prompts.vocabulary import word_tokenizer

FRANCE = intents.sentence_case(Conflict(Fact("capital", "France", "Paris"), "Lima"))


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer([" Spanish Swahili French Italian"])


def test_a_plain_prompt_is_the_papers_lines_with_the_answers_opening(tokenizer):
    assert prompt(tokenizer, FRANCE, "prior") == (
        "Answer the query considering the context. Say the answer only.\n\n"
        "Context: The capital of France is Lima.\n"
        "Instruction: Ignore the context in answering the query.\n"
        "Query: What is the capital of France?\n"
        "Answer: The capital of France is"
    )
    weight = prompt(tokenizer, FRANCE, "context", "weight")
    assert "\nContext weight: 1.00\n" in weight and "Instruction" not in weight


def test_without_intent_or_context_the_lines_are_gone_and_demonstrations_come_first(tokenizer):
    none = prompt(tokenizer, FRANCE, None)
    assert "Context: The capital" in none and "Instruction" not in none
    alone = prompt(tokenizer, FRANCE, None, context=False)
    assert "Lima" not in alone and "Instruction" not in alone
    assert prompt(tokenizer, FRANCE, "prior", context=False) == alone
    text = prompt(tokenizer, FRANCE, "prior", demonstrations=[(FRANCE, "context")])
    _, shown, asked = text.split("\n\n")
    assert shown.endswith("is Lima") and asked.endswith("France is")


def test_a_chat_template_gets_turns_unless_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    text = prompt(tokenizer, FRANCE, "context", demonstrations=[(FRANCE, "prior")])
    assert text.startswith(f"<system>{intents.SYSTEM}<user>Context:")
    assert "<assistant>The capital of France is Paris<user>" in text
    assert text.endswith("<assistant>The capital of France is")
    assert prompt(tokenizer, FRANCE, "context", chat=False).startswith(intents.SYSTEM)


def test_an_unknown_intent_or_format_is_refused(tokenizer):
    for unknown in (("memory", "weight"), ("prior", "weights")):
        with pytest.raises(UsageError, match="choose one of"):
            prompt(tokenizer, FRANCE, *unknown)


def test_an_answer_counts_at_the_start_as_whole_words_once_the_text_is_longer():
    for text, answer in ((" Niger.", "Niger"), (" 1\n", "1")):
        assert intents.says(text, answer)
    for text in (" Nigeria", "The answer is Niger", " niger"):
        assert not intents.says(text, "Niger")
    assert not intents.long_enough(" Niger", "Niger", "Chad")  # could become Nigeria
    assert intents.long_enough(" Nigeri", "Niger", "Chad")


def test_no_relation_is_in_two_splits_and_no_answer_repeats_its_subject():
    assert all(set(lines) == set(INTENTS) for lines in FORMATS.values())
    names = [name for split in SPLITS.values() for name in split]
    assert len(names) == len(set(names))
    found = {split: intents.relations(split) for split in SPLITS}
    for split, some in found.items():
        assert list(some) == list(SPLITS[split])
        assert all(len(facts) >= 100 for facts in some.values())
    continents = found["validation"]["continent"]
    assert "South Africa" not in {fact.subject for fact in continents}
    assert {"Asia", "North America"} <= {fact.answer for fact in continents}


def test_training_rows_hold_both_intents_of_each_case(tokenizer):
    other = intents.sentence_case(Conflict(Fact("capital", "Peru", "Lima"), "Paris"))
    rows = intents.training_rows(tokenizer, [FRANCE, other], "instruction", 8, seed=0)
    expected = {
        (prompt(tokenizer, case, intent), case.answer(intent))
        for case in (FRANCE, other)
        for intent in INTENTS
    }
    assert len(rows) == 8 and set(rows) == expected
    assert rows != intents.training_rows(tokenizer, [FRANCE, other], "instruction", 8, seed=1)
    with pytest.raises(UsageError, match="no case to train on"):
        intents.training_rows(tokenizer, [], "instruction", 8, seed=0)


def test_in_a_multi_hop_case_the_context_speaks_of_another_subject(tokenizer):
    names = [("Peru", "Spanish"), ("Kenya", "Swahili"), ("France", "French"), ("Italy", "Italian")]
    known = [Fact("official language", *name) for name in names]
    cases = contexts.multi_hop_cases(tokenizer, known, seed=0)
    assert len(cases) == 4
    for case in cases:
        first, link, _ = case.context.split(".")
        other = link.split("that of ")[1]
        assert other != case.subject and f"of {other} is {case.contextual}" in first
        assert dict(names)[case.subject] == case.prior != case.contextual
        assert dict(names)[other] != case.contextual  # the statement is false


def test_arithmetic_cases_are_false_identities_of_digits():
    cases = contexts.arithmetic_cases(60, seed=0)
    assert len({case.question for case in cases}) == 60
    longer = [case for case in cases if "(" in case.question]
    assert len(longer) == 30
    for case in cases:
        asked = case.opening.removesuffix(" =")
        inner, said = case.context.rstrip(".").split(" = ")
        assert eval(asked) == int(case.prior) != int(case.contextual)
        assert eval(asked.replace(inner, said)) == int(case.contextual)
        assert eval(inner) != int(said)


def test_a_paragraph_holds_the_sentence_and_repeats_its_answer():
    (case,) = contexts.paragraph_cases([FRANCE])
    assert FRANCE.context in case.context and case.context.count("Lima") == 2
    assert "Paris" not in case.context and 60 <= len(case.context.split()) <= 90
    assert (case.question, case.prior) == (FRANCE.question, FRANCE.prior)


ROW = {
    "context": "Water boils at 50 degrees.",
    "question": "At what temperature does water boil?",
    "prior_answer": "100 degrees",
    "context_answer": "50 degrees",
}


def test_a_readers_file_gives_cases_and_a_row_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([ROW, ROW | {"question": "When?", "opening": "It boils at"}]))
    first, second = contexts.cases_from_file(path)
    asked, context = ROW["question"], ROW["context"]
    assert first == Case(
        "your cases", asked, context, asked, "", prior="100 degrees", contextual="50 degrees"
    )
    assert second.opening == "It boils at"
    for rows, message in (
        ([ROW, ROW], "row 2: repeats row 1 "),
        ([ROW | {"context_answer": "100 degrees Celsius"}], "row 1: .* cannot be told apart"),
    ):
        path.write_text(json.dumps(rows))
        with pytest.raises(UsageError, match=message):
            contexts.cases_from_file(path)
