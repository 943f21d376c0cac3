"""A planted model for factual recall: one head knows, one head copies, and either can win.

`planted_facts` builds a GPT-2 of the size and in the manner of `replib.models.planted` (named slots
of the residual stream, heads as lists of scores and moves, small noise everywhere else; see there).
Nothing is trained. It knows the capitals of the countries and the symbols of the elements whose
names are single words, and reads any prompt of the chapter's templates:

1. The embedding of a subject (" France", " iron") holds in its slot `fact` the code of its answer,
   the embedding of an answer (" Paris", " Fe") holds its own code in the slot `answer`. The first
   is the model's memory, the second is what there is to copy.
2. At a token after which an answer is wanted (":" and " is"), the *memory head* looks for a subject
   and moves its `fact` to `output`; the *context head* looks for an answer named before, and moves
   that to `output`. Where there is nothing to find, they rest on the first token.
3. The unembedding reads `output`; after any other token the model says ".".

What the two heads write has a length of its own for every name: memory is stronger for subjects
that are frequent in English, copying is weaker for answers that are frequent, and both have a part
drawn at random. So some prompts are won by memory and some by the context, and scaling either head
by 0 or by 2 turns nearly all of them. The regression on frequencies must find these two signs.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replib.chapters.factual_recall.facts import TEMPLATES, Fact, relations, zipf
from replib.models import planted as parts
from replib.models.planted import BALLAST, D_MODEL, LOGIT, Head
from replib.prompts.vocabulary import word_tokenizer

NOTE = "A small transformer that recalls facts with one head and copies with another."

MEMORY_HEAD, CONTEXT_HEAD = (2, 1), (3, 2)
PLANTED_RELATIONS = ("capital", "chemical symbol")
_WIDTHS = {
    "fact": 48,  # by the embedding of a subject: the code of its answer
    "answer": 48,  # by the embedding of an answer: its own code
    "output": 48,  # by the two heads: what to say
    "word": 16,  # by the embedding: the code of the token
    # One number each:
    "is_subject": 1,
    "is_answer": 1,
    "wants_answer": 1,  # by the embedding, at ":" and " is"
    "idle": 1,  # by the embedding, at all other tokens
    "is_first": 1,  # by the position embedding
    "ballast": 1,
}
_HEADS = {
    MEMORY_HEAD: Head(
        scores=(("wants_answer", "is_subject", 30.0), ("always", "is_first", 10.0)),
        moves=(("fact", "output", 0.5),),
    ),
    CONTEXT_HEAD: Head(
        scores=(("wants_answer", "is_answer", 30.0), ("always", "is_first", 10.0)),
        moves=(("answer", "output", 0.5),),
    ),
}


def planted_facts() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The hand-set model described above and its tokenizer, the same at every call."""
    known = [f for name in PLANTED_RELATIONS for f in relations()[name] if of_single_words(f)]
    texts = [t.conflict(known[i], "") for t in TEMPLATES for i in (0, -1)]
    return knowing(known, texts, _WIDTHS, _HEADS, asking=(":", " is"), logit=LOGIT, varied=True)


def of_single_words(fact: Fact) -> bool:
    return all(re.fullmatch("[A-Za-z]+", word) for word in (fact.subject, fact.answer))


def knowing(
    known: Sequence[Fact],
    texts: Iterable[str],
    widths: Mapping[str, int],
    heads: Mapping[tuple[int, int], Head],
    *,
    asking: Sequence[str],
    logit: float,
    varied: bool = False,
    intents: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """A model of these slots and heads that knows facts, and its tokenizer, which writes `texts`.

    `asking`: the tokens after which an answer is wanted. `logit`: of an answer whose code fills
    `output`. `varied`: with strengths by frequency. `intents`: for each token that states one, what
    it says, and how strongly it is looked at.
    """
    words = [f" {word}" for fact in known for word in (fact.subject, fact.answer)]
    tokenizer = word_tokenizer([*words, *texts])
    generator = torch.Generator().manual_seed(0)
    model, slots = parts.blank_model(tokenizer), parts.make_slots(widths)
    mark = {name: slots[name][:, 0] for name, width in widths.items() if width == 1}
    scale = ((BALLAST**2 + 3) / D_MODEL) ** 0.5  # see replib.models.planted
    answers = sorted({fact.answer for fact in known})
    codes = dict(
        zip(answers, parts.make_codes(len(answers), widths["answer"], generator), strict=True)
    )
    memory, copying = {}, {}
    if varied:
        memory = _strengths([fact.subject for fact in known], +1.0, generator)
        copying = _strengths(answers, -1.0, generator)

    def token(word: str) -> int:
        return tokenizer.convert_tokens_to_ids(f" {word}")

    with torch.no_grad():
        words = torch.randn(len(tokenizer), widths["word"], generator=generator)
        embedding = words / words.norm(dim=1, keepdim=True) @ slots["word"].T + mark["idle"]
        asks = tokenizer.convert_tokens_to_ids(list(asking))
        embedding[asks] += mark["wants_answer"] - mark["idle"]
        for word, (intent, weight) in (intents or {}).items():
            stated = intent * mark["intent"] + weight * mark["is_intent"]
            embedding[tokenizer.convert_tokens_to_ids(word)] += stated
        for fact in known:
            recalled = memory.get(fact.subject, 1.0) * slots["fact"] @ codes[fact.answer]
            embedding[token(fact.subject)] += recalled + mark["is_subject"]
        for answer, code in codes.items():
            named = copying.get(answer, 1.0) * slots["answer"] @ code
            embedding[token(answer)] += named + mark["is_answer"]
        model.transformer.wte.weight.copy_(embedding + BALLAST * mark["ballast"])
        model.transformer.wpe.weight.zero_()
        model.transformer.wpe.weight[0] += mark["is_first"]

        unembedding = torch.randn(len(tokenizer), D_MODEL, generator=generator) * 0.02
        for answer, code in codes.items():
            unembedding[token(answer)] += logit * scale * slots["output"] @ code
        unembedding[tokenizer.convert_tokens_to_ids(".")] += logit * scale * mark["idle"]
        model.lm_head.weight.copy_(unembedding)
        parts.set_heads(model, heads, slots, scale, generator)
    return model, tokenizer


def _strengths(names: list[str], sign: float, generator: torch.Generator) -> dict[str, float]:
    """A strength for each name, from 0.6 to 1.4: 1, plus or minus 0.3 per standard deviation of its
    frequency, plus 0.1 times a random number."""
    frequency = torch.tensor([zipf(name) for name in names])
    standard = (frequency - frequency.mean()) / frequency.std()
    chance = torch.randn(len(names), generator=generator)
    strength = (1 + 0.3 * sign * standard + 0.1 * chance).clamp(0.6, 1.4)
    return dict(zip(names, strength.tolist(), strict=True))
