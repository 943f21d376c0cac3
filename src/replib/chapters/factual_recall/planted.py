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

from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replib.chapters.factual_recall.facts import TEMPLATES, of_single_words, relations, zipf
from replib.models.planted import LOGIT, Head, knowing

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
    pairs = [(fact.subject, fact.answer) for fact in known]
    return knowing(pairs, texts, _WIDTHS, _HEADS, asking=(":", " is"), logit=LOGIT, frequency=zipf)
