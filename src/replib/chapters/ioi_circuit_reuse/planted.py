"""A model with the circuits of two tasks set by hand, of the parts in `replib.models.planted`.

`planted_ioi` builds a GPT-2 (7 layers of 6 heads, LayerNorm, learned positions; its MLPs write
nothing). It does indirect object identification with the circuit of Wang et al. (2211.00593) as
Merullo et al. (2310.08744, Sec. 3) find it in GPT2-medium, Colored Objects with the same movers and
early heads (Sec. 4), about half of it right, and world capitals with one head of its own. Nothing
is trained. Which tokens are names, objects and colours (*items*) is part of the embedding.

**IOI.** Take "When Mary and John arrived at the park, John handed the lemon to" (S = John, IO =
Mary):

1. The *previous-token head* writes at every position the item that stands just before it, to
   `previous`. At " arrived" (S1+1) that is John.
2. The *duplicate-token head* looks for an earlier position with the same item. At the second
   " John" (S2) it finds the first, and writes John to `duplicated`.
3. The *early head* writes the item at its own position to `asked`. The *induction head* looks for a
   position whose `previous` is what was `asked`. At S2 it finds " arrived" (S1+1), and adds John to
   `duplicated` too: 0.6 of the signal "John is the one named twice" comes from step 2, 0.4 from
   here.
4. The *inhibition heads* look, from a token that wants a name next (" to"), for a position where
   something is duplicated. At END they find S2, and write John to `inhibited`: each half.
5. The *name movers* look for names (wanted by step 4's signal), but not for the name in
   `inhibited`. At END they find Mary, and copy it to `output`, which the unembedding reads: five
   heads, the first as much as all others.
6. The *negative mover* looks for the position where something is duplicated, finds S2, and
   subtracts a good part of John from `output`.

**Colored Objects.** Take "... an orange jug. What color is the jug?\\nA:". At the second " jug",
steps 2 and 3 find the first one, and also write to `place` where the token before it stands: the
colour. The *content gatherers* look from END for a duplicated item of the last question (an
*answer-seen head* marks what follows an "A:"), and copy its `place` to `where`. The movers look for
colours of the last question, at the place in `where` a little more than elsewhere; but some colours
are *louder* than others, and where a wrong one is much louder the model says that. Here the
inhibition heads attend to all colours alike, and nothing is duplicated there: they write a little
of each colour, which blocks none in particular. The negative mover rests. Sent to the wrong
colours, the former block them, the latter subtracts them.

**Capitals.** The embedding of a country knows its capital; the *recall head* copies it to `output`.

The remaining heads are small seeded noise: they attend and write, and hardly matter. With S2
replaced by the IO name (this book's corrupted prompts) every step from 2 on is about Mary, and the
answer becomes John. The previous-token head sees no difference: S2 comes after S1+1. Its part shows
when it is ablated, or given the activations of a prompt with other names.
"""

import math

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replib.models import planted as parts
from replib.models.planted import BALLAST, D_HEAD, LOGIT, Head
from replib.prompts.vocabulary import word_tokenizer
from replib.prompts.words import CAPITALS, COLORED_OBJECTS, COLORS, NAMES

NOTE = "A small transformer that does IOI and Colored Objects by circuits known in advance."

N_LAYERS, N_HEADS = 7, 6
D_MODEL = N_HEADS * D_HEAD
# How much of what it reads each mover copies, strongest first.
MOVER_WEIGHTS = (0.57, 0.12, 0.11, 0.105, 0.095)
PLANTED_ROLES: dict[str, tuple[tuple[int, int], ...]] = {
    "previous_token_heads": ((0, 1),),
    "duplicate_token_heads": ((0, 3),),
    "early_heads": ((0, 5),),
    "answer_seen_heads": ((0, 0),),
    "induction_heads": ((1, 2),),
    "inhibition_heads": ((2, 0), (2, 3)),
    "content_gatherers": ((2, 1), (2, 5)),
    "name_movers": ((3, 1), (3, 2), (4, 0), (4, 3), (5, 2)),
    "recall_heads": ((3, 5),),
    "negative_movers": ((6, 1),),
}
# The slots of the residual stream and their widths; all directions are orthonormal.
WIDTHS = {
    "item": 32,  # filled by the embedding: the code of the name, object or colour at this position
    "word": 16,  # by the embedding: the code of any other token
    "position": 36,  # by the position embedding
    "fact": 32,  # by the embedding: the code of a country's capital
    "previous": 32,  # by the previous-token head: the item one position back
    "asked": 32,  # by the early head: the item at this position once more
    "duplicated": 32,  # by the duplicate-token and induction heads: the item seen before
    "place": 36,  # by the same: the position before the one where it was seen
    "inhibited": 32,  # by the inhibition heads: the item not to attend to
    "where": 36,  # by the content gatherers: the position to attend to
    "output": 32,  # by the movers: the item to say
    # One number each:
    "is_item": 1,
    "is_name": 1,
    "is_color": 1,
    "is_country": 1,
    "loud": 1,  # by the embedding, of colours: from -1 to 1
    "wants_name": 1,  # by the embedding, at " to"
    "wants_color": 1,  # by the embedding, at ":"
    "wants_fact": 1,  # by the embedding, where the capital prompts end
    "is_a": 1,  # by the embedding, at the "A" of "A:"
    "is_first": 1,  # by the position embedding, at the first position
    "after_answer": 1,  # by the answer-seen head
    "previous_is_item": 1,
    "is_duplicated": 1,
    "inhibits": 1,
    "ballast": 1,  # by the embedding, constant
}


def _mover(weight: float) -> Head:
    return Head(
        scores=(
            ("inhibits", "is_name", 24.0),  # a name ...
            ("wants_color", "is_color", 14.0),  # ... or a colour ...
            ("wants_color", "after_answer", 10.0),  # ... of the last question, ...
            ("wants_color", "loud", 2.2),  # ... rather a loud one, ...
            ("where", "position", 1.2),  # ... or the one asked for, ...
            ("inhibited", "item", -6.0),  # ... but not this one
            ("always", "is_first", 6.0),
        ),
        moves=(("item", "output", weight),),
    )


_PLANS = {
    "previous_token_heads": Head(
        scores=(("position before", "position", 30.0), ("always", "is_first", 15.0)),
        moves=(("item", "previous", 1.0), ("is_item", "previous_is_item", 1.0)),
    ),
    "duplicate_token_heads": Head(
        scores=(
            ("item", "item", 60.0),  # the same item ...
            ("position", "position", -30.0),  # ... but not this very position
            ("always", "is_first", 42.0),
        ),
        moves=(
            ("item", "duplicated", 0.6),
            ("is_item", "is_duplicated", 0.6),
            ("position before", "place", 0.6),
        ),
    ),
    "early_heads": Head(
        scores=(
            ("item", "item", 60.0),  # an item: ...
            ("position", "position", 30.0),  # ... this very position
            ("always", "is_first", 42.0),
        ),
        moves=(("item", "asked", 1.0),),
    ),
    "answer_seen_heads": Head(
        scores=(("always", "is_a", 30.0), ("always", "is_first", 15.0)),
        moves=(("is_a", "after_answer", 1.0),),
    ),
    "induction_heads": Head(
        scores=(("asked", "previous", 40.0), ("always", "is_first", 25.0)),
        moves=(
            ("previous", "duplicated", 0.4),
            ("previous_is_item", "is_duplicated", 0.4),
            ("position two before", "place", 0.4),
        ),
    ),
    "inhibition_heads": Head(
        scores=(
            ("wants_name", "is_duplicated", 30.0),
            ("wants_color", "is_color", 8.0),  # all alike
            ("always", "is_first", 8.0),
        ),
        moves=(
            ("duplicated", "inhibited", 0.39),
            ("item", "inhibited", 0.11),
            ("is_duplicated", "inhibits", 0.5),
        ),
    ),
    "content_gatherers": Head(
        scores=(
            ("wants_color", "is_duplicated", 30.0),
            ("wants_color", "after_answer", 15.0),
            ("always", "is_first", 25.0),
        ),
        moves=(("place", "where", 0.5),),
    ),
    "recall_heads": Head(
        scores=(("wants_fact", "is_country", 30.0), ("always", "is_first", 15.0)),
        moves=(("fact", "output", 1.0),),
    ),
    "negative_movers": Head(
        scores=(("inhibits", "is_duplicated", 30.0), ("always", "is_first", 8.0)),
        moves=(("item", "output", -0.55),),
    ),
}
_HEADS = {head: plan for role, plan in _PLANS.items() for head in PLANTED_ROLES[role]} | dict(
    zip(PLANTED_ROLES["name_movers"], map(_mover, MOVER_WEIGHTS), strict=True)
)


def planted_ioi() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The hand-set model described above and its tokenizer, the same at every call. `PLANTED_ROLES`
    says which heads (layer, head) do what."""
    tokenizer = word_tokenizer()
    generator = torch.Generator().manual_seed(0)
    model = parts.blank_model(tokenizer, N_LAYERS, N_HEADS, D_MODEL)
    slots = parts.make_slots(WIDTHS, D_MODEL)
    mark = {name: slots[name][:, 0] for name, width in WIDTHS.items() if width == 1}
    # LayerNorm multiplies by about sqrt(d_model) / length; reading matrices undo it.
    scale = math.sqrt((BALLAST**2 + 3) / D_MODEL)
    items = dict.fromkeys([*COLORS, *NAMES, *COLORED_OBJECTS])
    capitals = dict.fromkeys(capital.split()[0] for capital in CAPITALS.values())
    n = len(items) + len(capitals)
    codes = dict(zip([*items, *capitals], parts.make_codes(n, 32, generator), strict=True))
    words = torch.randn(len(tokenizer), WIDTHS["word"], generator=generator)
    positions, step_back = parts.position_codes(WIDTHS["position"])

    def at(*texts: str) -> list[int]:
        return tokenizer.convert_tokens_to_ids(list(texts))

    with torch.no_grad():
        embedding = words / words.norm(dim=1, keepdim=True) @ slots["word"].T
        for item in items:
            embedding[at(f" {item}")] = slots["item"] @ codes[item] + mark["is_item"]
        embedding[at(*(f" {name}" for name in NAMES))] += mark["is_name"]
        for i, color in enumerate(COLORS):
            loud = 2 * i / (len(COLORS) - 1) - 1
            embedding[at(f" {color}")] += mark["is_color"] + loud * mark["loud"]
        for country, capital in CAPITALS.items():
            fact = slots["fact"] @ codes[capital.split()[0]]
            embedding[at(f" {country}")] += fact + mark["is_country"]
        embedding[at(" to")] += mark["wants_name"]
        embedding[at(":")] += mark["wants_color"]
        embedding[at(" of", " called", ":", ",")] += mark["wants_fact"]
        embedding[at("A")] += mark["is_a"]
        model.transformer.wte.weight.copy_(embedding + BALLAST * mark["ballast"])
        model.transformer.wpe.weight.copy_(positions @ slots["position"].T)
        model.transformer.wpe.weight[0] += mark["is_first"]

        unembedding = torch.randn(len(tokenizer), D_MODEL, generator=generator) * 0.02
        for word in [*NAMES, *capitals, *COLORS]:
            said = word.title() if word in COLORS else word
            logit = 1.3 * LOGIT if word in COLORS else LOGIT
            unembedding[at(f" {said}")] += logit * scale * slots["output"] @ codes[word]
        model.lm_head.weight.copy_(unembedding)

        back = {"position before": step_back, "position two before": step_back @ step_back}
        readers = slots | {name: slots["position"] @ step for name, step in back.items()}
        parts.set_heads(model, _HEADS, readers, scale, generator)
    return model, tokenizer
