"""Other contexts for `intents`: two hops, arithmetic, whole paragraphs, a reader's own.

None of them is trained on. After the test sets of Minder et al. (2411.07404, Sec. 4; released code,
`preprocess_fakepedia` and `generate_arithmetic.py`), with sentences of our own.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints
from simpleeval import simple_eval
from transformers import PreTrainedTokenizerBase

from replib.chapters.context_knob.intents import (
    FORMATS,
    INTENTS,
    Case,
    gives,
    opening,
    prompt,
    sentence_case,
)
from replib.chapters.factual_recall import facts
from replib.chapters.factual_recall.facts import Fact
from replib.errors import UsageError
from replib.prompts.files import Row, Stripped, read_rows
from replib.prompts.tokens import check_text

_SIGNS = ("+", "-", "*", "/", "**")
_PARAGRAPHS = (
    "Few things about {subject} are agreed on as widely as this one. {statement} A visitor meets "
    "it on the first day, in the newspapers and on the walls of the station, and the guide books "
    "say it before they say anything else. Children in {subject} learn it at school, and {answer} "
    "is what they write when they are asked. Older books have it too.",
    "The encyclopedia has a long entry on {subject}, with maps, tables and a list of sources. "
    "{statement} The editors checked it in three ways, by letter, by telephone and on the spot, "
    "and each time the reply was {answer}. The rest of the entry is about the weather, the trains, "
    "and a museum that has been closed for repairs since the spring.",
)


def paragraph_cases(cases: Sequence[Case]) -> list[Case]:
    """The same cases, the contradicting sentence inside a paragraph that repeats its answer."""
    return [
        replace(
            case,
            context=_PARAGRAPHS[i % len(_PARAGRAPHS)].format(
                subject=case.subject, statement=case.context, answer=case.contextual
            ),
        )
        for i, case in enumerate(cases)
    ]


def multi_hop_cases(
    tokenizer: PreTrainedTokenizerBase, known: Sequence[Fact], seed: int
) -> list[Case]:
    """The context contradicts a fact about another subject, and links the one that is asked about.
    "The official language of Peru is Thai. The official language of Kenya is the same as that of
    Peru.": memory says what Kenya's is, the context says Thai."""
    rng = random.Random(seed)
    cases = []
    for conflict in facts.draw_foils(tokenizer, known, 1, seed):
        fact, foil = conflict.fact, conflict.foil
        others = [f for f in known if f.relation == fact.relation and f.answer != foil]
        others = [f for f in others if f.subject != fact.subject]
        if others:
            other = rng.choice(others)
            link = f"The {fact.relation} of {fact.subject} is the same as that of {other.subject}."
            context = f"{opening(other)} {foil}. {link}"
            cases.append(replace(sentence_case(conflict), context=context))
    return cases


def arithmetic_cases(n: int, seed: int) -> list[Case]:
    """`n` false identities of digits, half of them about a part of what is asked. "3 + 4 = 9." and
    "What is 3 + 4?", or "What is (3 + 4) - 2?". Operators are + - * / and **; both answers are
    digits, as in the released code's evaluation set."""
    rng = random.Random(seed)
    cases: dict[str, Case] = {}
    while len(cases) < n:
        a, b, c = (rng.randint(0, 9) for _ in range(3))
        inner, said = f"{a} {rng.choice(_SIGNS)} {b}", rng.randint(0, 9)
        value = _digit(inner)
        if value is None or said == value:
            continue
        asked, prior, contextual = inner, value, said
        if len(cases) % 2:
            sign = rng.choice(_SIGNS)
            asked = f"({inner}) {sign} {c}"
            prior, contextual = _digit(asked), _digit(f"{said} {sign} {c}")
        if prior is None or contextual is None or prior == contextual or asked in cases:
            continue
        cases[asked] = Case(
            relation="arithmetic",
            subject=inner,
            context=f"{inner} = {said}.",
            question=f"What is {asked}?",
            opening=f"{asked} =",
            prior=str(prior),
            contextual=str(contextual),
        )
    return list(cases.values())


def _digit(expression: str) -> int | None:
    """The value of one of our own expressions if it is a digit, else None."""
    try:
        value = simple_eval(expression)
    except ArithmeticError:
        return None
    return int(value) if value in range(10) else None


_Perhaps = Annotated[str, StringConstraints(strip_whitespace=True)]  # may be empty


class CaseRow(Row):
    context: Stripped
    question: Stripped
    prior_answer: Stripped
    context_answer: Stripped
    opening: _Perhaps = ""
    relation: _Perhaps = ""
    subject: _Perhaps = ""


def cases_from_file(
    path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, n_new: int = 0
) -> list[Case]:
    """A reader's cases, from a file that `read_rows` reads; what it refuses names the row. With a
    tokenizer also what its model cannot read with `n_new` tokens after it (`check_text`).

    Columns: context; question; prior_answer, what the model may have learnt; context_answer, what
    the context says instead; and, if you like, opening (how the answer begins), relation, and
    subject (rows with one subject are resampled together; default: the question).
    """
    cases = []
    for where, row in read_rows(Path(path), CaseRow, once=("context", "question")).items():
        prior, contextual = row.prior_answer, row.context_answer
        if gives(prior, contextual) or gives(contextual, prior):
            raise UsageError(
                f"{where}: prior_answer {prior!r} and context_answer {contextual!r} cannot be told "
                "apart by their beginning"
            )
        case = Case(
            relation=row.relation or "your cases",
            subject=row.subject or row.question,
            context=row.context,
            question=row.question,
            opening=row.opening,
            prior=prior,
            contextual=contextual,
        )
        for intent in INTENTS if tokenizer is not None else ():
            for form in FORMATS:
                text = prompt(tokenizer, case, intent, form)
                check_text(tokenizer, f"{where}: the prompt made of it", text, n_new)
        cases.append(case)
    return cases
