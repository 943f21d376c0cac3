"""A planted model with a knob: one direction, set by hand, decides between context and memory.

`planted_gate` builds a GPT-2 of the size and in the manner of `replib.models.planted` (named slots
of the residual stream, heads as lists of scores and moves, small noise everywhere else; see there).
Nothing is trained. It reads the prompts of `intents`, without chat turns:

1. The embedding of a subject (" France") holds in its slot `fact` the code of its answer; that of
   an answer (" French") holds its own code in the slot `answer`. A subject has one fact, of one
   relation; asked for another, the model does not know it.
2. At a token after which an answer is wanted (" is", " of"), the *intent head* of layer 1 looks for
   the word that states the intent and writes +1 (context) or -1 (memory) to the slot `gate`, which
   is one direction. Without an intent line it writes nothing.
3. The *memory head* of layer 2 moves the subject's `fact` to `output` unless the gate is positive;
   the *context head* of layer 3 moves the answer named in the context if it is close to 1.

The scores of the memory head are small enough that gradients pass, those of the context head sharp
enough that a direction only near the gate's does not do. So the gate's direction, at the output of
layer 1, is what decides the answer: this is what the layer search and the learned direction must
find. Much longer is what the *reading head*, beside the intent head, writes into the slot `word`:
the code of the word that states the intent, whether it is obeyed or not. A random direction sees
that, and not whether the model obeys.

The plain model hardly looks at the intent's words. `planted_adapters` make it look: those trained
with instructions at the words of instructions, those trained with weights at both. Where prompts
are long, words are looked at the more the later they come (slot `late`), so that demonstrations
make the plain model follow the last intent; but half of the answers are too dim for its weaker gate
(half of `is_answer`). Subjects hold their facts with three strengths, so that with two hops the
other subject's fact is often the stronger one.
"""

from collections import Counter
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replib.chapters.context_knob import intents
from replib.chapters.context_knob.adapters import Adapter
from replib.chapters.factual_recall.facts import TEMPLATES, Conflict, Fact, of_single_words
from replib.models.planted import D_MODEL, LOGIT, Head, knowing, make_slots
from replib.prompts.vocabulary import word_tokenizer

NOTE = "A small transformer in which one direction decides between context and memory."

INTENT_HEAD, READING_HEAD, MEMORY_HEAD, CONTEXT_HEAD = (1, 2), (1, 0), (2, 1), (3, 2)
PLANTED_RELATIONS = ("capital", "chemical symbol", "continent", "official language")
WIDTHS = {
    "fact": 48,  # by the embedding of a subject: the code of its answer
    "answer": 48,  # by the embedding of an answer: its own code
    "output": 48,  # by the memory and context heads: what to say
    "word": 16,  # by the embedding: the code of the token
    # One number each:
    "intent": 1,  # by the embedding, at the words that state it
    "is_intent": 1,
    "states": 1,  # by the embedding, at the same words
    "gate": 1,  # by the intent head: 1 context, -1 memory
    "is_subject": 1,
    "is_answer": 1,
    "wants_answer": 1,  # by the embedding, at " is" and " of"
    "idle": 1,  # by the embedding, at all other tokens
    "is_first": 1,  # by the position embedding
    "late": 1,  # by the position embedding, from `_LATE` on, growing
    "ballast": 1,
}
_STRENGTHS = (0.5, 1.0, 2.0)  # of facts
_POSITIONS = 1024  # more than other planted models have: demonstrations are long
_RECENT = 25.0  # what a position counts that is later by 1 in `late`
_LATE, _LATER = 130, 400  # where `late` begins, and how many positions it grows by 1
_HEADS = {
    INTENT_HEAD: Head(
        scores=(
            ("wants_answer", "is_intent", 30.0),
            ("wants_answer", "late", _RECENT),
            ("always", "is_first", 10.0),
        ),
        moves=(("intent", "gate", 1.0),),
    ),
    READING_HEAD: Head(
        scores=(("wants_answer", "states", 30.0), ("always", "is_first", 10.0)),
        moves=(("word", "word", 0.4),),
    ),
    MEMORY_HEAD: Head(
        scores=(
            ("wants_answer", "is_subject", 9.0),
            ("gate", "is_subject", -7.0),
            ("wants_answer", "late", _RECENT),
            ("late", "is_first", _RECENT),
            ("always", "is_first", 8.0),
        ),
        moves=(("fact", "output", 0.6),),
    ),
    CONTEXT_HEAD: Head(
        scores=(
            ("gate", "is_answer", 7.0),
            ("wants_answer", "late", _RECENT),
            ("late", "is_first", _RECENT),
            ("always", "is_first", 5.0),
        ),
        moves=(("answer", "output", 0.5),),
    ),
}
# What a word says, and how strongly it is looked at: of "1.00" the 1 counts, not the zeros.
_INTENT_WORDS = {" Only": (1.0, 0.2), " Ignore": (-1.0, 0.2), "1": (1.0, 0.3), "0": (-1.0, 0.2)}


def planted_gate() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The hand-set model described above and its tokenizer, the same at every call."""
    known, base = _facts(), word_tokenizer()
    texts = [template.conflict(known[0], "") for template in TEMPLATES]
    texts += [
        intents.prompt(base, intents.sentence_case(Conflict(fact, "")), intent, intent_format)
        for fact in {fact.relation: fact for fact in known}.values()
        for intent_format in intents.FORMATS
        for intent in intents.INTENTS
    ]
    model, tokenizer = knowing(
        [(fact.subject, fact.answer) for fact in known],
        texts,
        WIDTHS,
        _HEADS,
        asking=(" is", " of"),
        logit=3 * LOGIT,  # sure of its answers, so that learning ends at the gate
        intents=_INTENT_WORDS,
    )
    slots = make_slots(WIDTHS)
    token = tokenizer.convert_tokens_to_ids
    with torch.no_grad():
        embedding = model.transformer.wte.weight
        embedding[token(list(_INTENT_WORDS))] += slots["states"][:, 0]
        turn = Counter()
        for fact in known:
            row, strength = (
                embedding[token(f" {fact.subject}")],
                _STRENGTHS[turn[fact.relation] % 3],
            )
            row += (strength - 1) * slots["fact"] @ (slots["fact"].T @ row)
            turn[fact.relation] += 1
        for answer in sorted({fact.answer for fact in known})[::2]:
            embedding[token(f" {answer}")] -= 0.1 * slots["is_answer"][:, 0]
        _lengthen(model, slots["late"][:, 0])
    return model, tokenizer


def _lengthen(model: GPT2LMHeadModel, late: torch.Tensor) -> None:
    """Give the model `_POSITIONS` positions, the later ones marked."""
    old = model.transformer.wpe
    new = torch.nn.Embedding(_POSITIONS, D_MODEL)
    grown = (torch.arange(_POSITIONS) - _LATE).clamp_min(0)[:, None] / _LATER
    new.weight.copy_(grown * late)
    new.weight[: len(old.weight)] += old.weight
    model.transformer.wpe = new.requires_grad_(False)
    model.config.n_positions = _POSITIONS


def planted_adapters(tokenizer: PreTrainedTokenizerFast) -> dict[str, list[Adapter]]:
    """For each intent format three adapters, which make the model look at the intent's words: those
    of instructions only, or both."""
    mark = make_slots(WIDTHS)["is_intent"][:, 0]
    words = {"instruction": [" Only", " Ignore"], "weight": list(_INTENT_WORDS)}
    found: dict[str, list[Adapter]] = {}
    for name, some in words.items():
        for seed, strength in enumerate((0.8, 0.9, 1.0), start=1):
            rows = torch.zeros(len(tokenizer), 1)
            for word in some:
                more = 1.5 if word == "1" else 1.0  # of "1.00" the 1 counts, not the zeros
                rows[tokenizer.convert_tokens_to_ids(word)] = more * strength
            weights = {"transformer.wte": (mark[None], rows)}
            card = {"intent_format": name, "seed": seed}
            found.setdefault(name, []).append(Adapter(Path(f"planted-{seed}"), card, weights, 1.0))
    return found


def _facts() -> list[Fact]:
    """One fact for each subject, of each relation in turn. Names are single words, and no subject
    is an answer."""
    some = [
        fact
        for split in intents.SPLITS
        for name, facts in intents.relations(split).items()
        for fact in facts
        if name in PLANTED_RELATIONS and of_single_words(fact)
    ]
    answers = {fact.answer for fact in some}
    of: dict[str, list[Fact]] = {}
    for fact in some:
        if fact.subject not in answers:
            of.setdefault(fact.subject, []).append(fact)
    return [theirs[i % len(theirs)] for i, theirs in enumerate(of.values())]
