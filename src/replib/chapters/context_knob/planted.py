"""A planted model with a knob: one direction, set by hand, decides between context and memory.

`planted_gate` builds a GPT-2 of the size and in the manner of `replib.models.planted` (named slots
of the residual stream, heads as lists of scores and moves, small noise everywhere else; see there).
Nothing is trained. It reads the prompts of `intents`, without chat turns:

1. The embedding of a subject (" France") holds in its slot `fact` the code of its answer; that of
   an answer (" French") holds its own code in the slot `answer`. A subject has one fact, of one
   relation; asked for another, the model does not know it.
2. At a token after which an answer is wanted (" is", " of"), the *intent head* of layer 1 looks for
   the word that states the intent and writes +`GATE` (context) or -`GATE` (memory) to the slot
   `gate`, which is one direction. Where it does not look it writes nothing.
3. The *memory head* of layer 2 moves the subject's `fact` to `output`: 0.9 of it with the gate at
   -`GATE`, about a third at 0, a fiftieth at `GATE`.
4. The *context head* of layer 3 moves the answer named in the context: hardly any of it with the
   gate at 0, from half of `GATE` on where the answer is well noted (`is_answer`), a little less
   than all of it at `GATE`.

Nothing in layers 2 and 3 asks the last token for anything but the gate and that an answer is
wanted. So the gate's direction, at the output of layer 1, decides the answer, and it is the
direction along which the loss falls fastest: this is what the layer search and the learned
direction must find. No head is quite sure at either end, since from there a direction could not be
learned.

There is a trap. The *hearing head* of layer 0 writes by which word the intent is stated, to
everybody, and by it the *reading head* of layer 1, beside the intent head, reads the subject's name
or the one in the context, and writes its code into the slot `word`, nearly three times as long as
the gate. So the outputs under the two intents also differ in directions that have nothing to do
with what is said, otherwise in every case. A random direction sees mostly these.

The plain model hardly looks at the intent's words. `planted_adapters` make it look: those trained
with instructions at the words of instructions, those trained with weights at both. Where prompts
are long, words are looked at the more the later they come (slot `late`), so that demonstrations
make the plain model follow the last intent, at two thirds of the gate, and the last answers before
the question are in the way. Subjects hold their facts with three strengths, so that with two hops
the other subject's fact is often the stronger one; and " same" draws the context head away from
answers that are less well noted.
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

HEARING_HEAD, READING_HEAD, INTENT_HEAD = (0, 1), (1, 0), (1, 2)
MEMORY_HEAD, CONTEXT_HEAD = (2, 1), (3, 2)
PLANTED_RELATIONS = ("capital", "chemical symbol", "continent", "official language")
WIDTHS = {
    "fact": 48,  # by the embedding of a subject: the code of its answer
    "answer": 48,  # by the embedding of an answer: its own code
    "output": 48,  # by the memory and context heads: what to say
    "word": 32,  # by the embedding: the code of the token; more by the reading head
    # One number each:
    "intent": 1,  # by the embedding, at the words that state it
    "is_intent": 1,
    "states": 1,  # by the embedding, at the same words
    "sound": 1,  # and there: 1 at " Only" and "0", -1 at " Ignore" and "1"
    "heard": 1,  # by the hearing head: `_HEARD` times the word's sound
    "gate": 1,  # by the intent head: `GATE` context, -`GATE` memory
    "is_subject": 1,
    "is_answer": 1,
    "wants_answer": 1,  # by the embedding, at " is" and " of"
    "idle": 1,  # by the embedding, at all other tokens
    "is_first": 1,  # by the position embedding
    "late": 1,  # by the position embedding, from `_LATE` on, growing
    "ballast": 1,
}
_ASKING = (" is", " of")
GATE, _HEARD = 0.3, 0.05
_STRENGTHS = (0.6, 1.2, 2.4)  # of facts
_SAME = 0.8  # `is_answer` of " same", which has no code: two hops say "the same as that of"
_NOTED = (1.0, 0.8, 0.6)  # `is_answer` of answers
_POSITIONS = 1024  # more than other planted models have: demonstrations are long
_LATE, _LATER = 130, 400  # where `late` begins, and how many positions it grows by 1
_HEADS = {
    HEARING_HEAD: Head(
        scores=(
            ("wants_answer", "states", 30.0),
            ("wants_answer", "late", 25.0),
            ("always", "is_first", 10.0),
        ),
        moves=(("sound", "heard", _HEARD),),
    ),
    READING_HEAD: Head(
        scores=(
            ("heard", "is_subject", 8.0 / _HEARD),
            ("heard", "is_answer", -8.0 / _HEARD),
            ("always", "wants_answer", 2.0),
        ),
        moves=(("word", "word", 0.8),),
    ),
    INTENT_HEAD: Head(
        scores=(
            ("wants_answer", "is_intent", 30.0),
            ("wants_answer", "late", 18.0),
            ("always", "is_first", 10.0),
        ),
        moves=(("intent", "gate", GATE),),
    ),
    MEMORY_HEAD: Head(
        scores=(
            ("wants_answer", "is_subject", 5.0),
            ("gate", "is_subject", -3.0 / GATE),
            ("wants_answer", "late", 25.0),
            ("always", "wants_answer", 5.0),
        ),
        moves=(("fact", "output", 0.8),),
    ),
    CONTEXT_HEAD: Head(
        scores=(
            ("gate", "is_answer", 10.0 / GATE),
            ("wants_answer", "late", 25.0),
            ("always", "wants_answer", 1.5),
        ),
        moves=(("answer", "output", 0.6),),
    ),
}
# What a word says, and how strongly it is looked at: of "1.00" the 1 counts, not the zeros.
_INTENT_WORDS = {" Only": (1.0, 0.2), " Ignore": (-1.0, 0.2), "1": (1.0, 0.25), "0": (-1.0, 0.2)}
_SOUNDS = {" Only": 1.0, " Ignore": -1.0, "1": -1.0, "0": 1.0}


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
    texts += ["is the same as that of"]
    model, tokenizer = knowing(
        [(fact.subject, fact.answer) for fact in known],
        texts,
        WIDTHS,
        _HEADS,
        asking=_ASKING,
        logit=5 * LOGIT,
        intents=_INTENT_WORDS,
        noise=0.1,
    )
    slots = make_slots(WIDTHS)
    token = tokenizer.convert_tokens_to_ids
    with torch.no_grad():
        embedding = model.transformer.wte.weight
        for word in _ASKING:  # no code of their own, by which relations would differ
            row = embedding[token(word)]
            row -= slots["word"] @ (slots["word"].T @ row)
        for word, sound in _SOUNDS.items():
            embedding[token(word)] += (1.3 if word == "1" else 1.0) * slots["states"][:, 0]
            embedding[token(word)] += sound * slots["sound"][:, 0]
        turn = Counter()
        for fact in known:
            strength = _STRENGTHS[turn[fact.relation] % 3]
            row = embedding[token(f" {fact.subject}")]
            row += (strength - 1) * slots["fact"] @ (slots["fact"].T @ row)
            turn[fact.relation] += 1
        for relation in PLANTED_RELATIONS:
            some = sorted({fact.answer for fact in known if fact.relation == relation})
            for i, answer in enumerate(some):
                embedding[token(f" {answer}")] += (_NOTED[i % 3] - 1) * slots["is_answer"][:, 0]
        embedding[token(" same")] += _SAME * slots["is_answer"][:, 0]
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
        for seed, strength in enumerate((0.22, 0.24, 0.26), start=1):
            rows = torch.zeros(len(tokenizer), 1)
            for word in some:
                more = 1.5 if word == "1" else 1.0  # of "1.00" the 1 counts, not the zeros
                rows[tokenizer.convert_tokens_to_ids(word)] = more * strength
            weights = {"transformer.wte": (mark[None], rows)}
            card = {"intent_format": name, "seed": seed}
            found.setdefault(name, []).append(Adapter(Path(f"planted-{seed}"), card, weights, 1.0))
    return found


def _facts() -> list[Fact]:
    """One fact for each subject, of the relation and with the answer that fewest have so far. Names
    are single words, and no subject is an answer."""
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
    found, n = [], Counter()
    for theirs in of.values():
        found.append(min(theirs, key=lambda f: n[f.relation] + n[f.relation, f.answer]))
        n.update([found[-1].relation, (found[-1].relation, found[-1].answer)])
    return found
