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

What the two heads write has a length of its own for every name, and the lengths decide what each
claim of the chapter must find:

- Memory is stronger for subjects that are frequent in English, copying weaker for answers that are
  frequent; both have a part drawn at random. So either answer occurs, and both frequencies matter.
- The most frequent third of the subjects is *firm*: memory is so strong there that copying does
  not win even ten times as strong. Taking the memory head out does: it is the better knob.
- The most frequent sixth of the answers is *faint*: copied so weakly that without memory noise
  wins. Only both together, no memory and copying ten times as strong, say these.
"""

from collections.abc import Sequence

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replib.chapters.factual_recall.facts import TEMPLATES, of_single_words, relations, zipf
from replib.models.planted import LOGIT, Head, knowing

NOTE = "A small transformer that recalls facts with one head and copies with another."

MEMORY_HEAD, CONTEXT_HEAD = (2, 1), (3, 2)
PLANTED_RELATIONS = ("capital", "chemical symbol")
FIRM, FAINT = (1 / 3, 10.0), (1 / 6, 0.08)  # share of the subjects, of the answers; their strength
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
        moves=(("fact", "output", 0.35),),
    ),
    CONTEXT_HEAD: Head(
        scores=(("wants_answer", "is_answer", 30.0), ("always", "is_first", 10.0)),
        moves=(("answer", "output", 0.35),),
    ),
}


def _strengths(
    names: Sequence[str], sign: float, special: tuple[float, float], generator: torch.Generator
) -> dict[str, float]:
    """A strength for each name: about 0.45, times or over 1.35 for a standard deviation of its
    frequency and by chance; `special`: a share of the names, the most frequent ones, and theirs."""
    seen = torch.tensor([zipf(name) for name in names])
    standard = (seen - seen.mean()) / seen.std()
    chance = torch.randn(len(names), generator=generator).clamp(-2, 2)
    strength = 0.45 * (0.3 * (sign * standard + chance)).exp()
    share, its = special
    strength[seen.argsort(descending=True, stable=True)[: round(share * len(names))]] = its
    return dict(zip(names, strength.tolist(), strict=True))


def planted_facts() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The hand-set model described above and its tokenizer, the same at every call."""
    known = [f for name in PLANTED_RELATIONS for f in relations()[name] if of_single_words(f)]
    texts = [t.conflict(known[i], "") for t in TEMPLATES for i in (0, -1)]
    pairs = [(fact.subject, fact.answer) for fact in known]
    generator = torch.Generator().manual_seed(0)
    memory = _strengths([subject for subject, _ in pairs], +1.0, FIRM, generator)
    copying = _strengths(sorted({answer for _, answer in pairs}), -1.0, FAINT, generator)
    strengths = memory, copying
    return knowing(
        pairs,
        texts,
        _WIDTHS,
        _HEADS,
        asking=(":", " is"),
        logit=3 * LOGIT,
        strengths=strengths,
        noise=0.1,
    )
