"""A model with the IOI circuit set by hand, of the parts in `replib.models.planted`.

`planted_ioi` builds a GPT-2 (5 layers of 4 heads, LayerNorm, learned positions; its MLPs write
nothing) that does indirect object identification with the circuit of Wang et al. (2211.00593) as
Merullo et al. (2310.08744, Sec. 3) find it in GPT2-medium. Nothing is trained. Which tokens are
names is part of the embedding.

Take "When Mary and John arrived at the park, John handed the lemon to" (S = John, IO = Mary):

1. The *previous-token head* writes at every position the name that stands just before it, to
   `previous`. At " arrived" (S1+1) that is John.
2. The *duplicate-token head* looks for an earlier position with the same name. At the second
   " John" (S2) it finds the first, and writes John to `duplicated`.
3. The *induction head* looks for a position whose `previous` is this name. At S2 it finds
   " arrived" (S1+1), and adds John to `duplicated` too. Each of the two heads writes half of the
   signal "John is the one named twice", by ways of its own.
4. The *inhibition heads* look, from a token that wants a name next (" to"), for a position where
   something is duplicated. At END they find S2, and write John to `inhibited`: each half.
5. The *name movers* look for names (wanted by step 4's signal), but not for the name in
   `inhibited`. At END they find Mary, and copy it to `output`, which the unembedding reads.
6. The *negative mover* looks for the position where something is duplicated, finds S2, and
   subtracts a part of John from `output`.

The remaining heads are small seeded noise: they attend and write, and hardly matter. With S2
replaced by the IO name (this book's corrupted prompts) every step from 2 on is about Mary, and the
answer becomes John. The previous-token head sees no difference: S2 comes after S1+1. Its part shows
when it is ablated, or given the activations of a prompt with other names.
"""

import math

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replib.models import planted as parts
from replib.models.planted import BALLAST, D_MODEL, LOGIT, Head
from replib.prompts.vocabulary import word_tokenizer
from replib.prompts.words import NAMES

NOTE = "A small transformer that does IOI by a circuit known in advance."

PLANTED_ROLES: dict[str, tuple[tuple[int, int], ...]] = {
    "previous_token_heads": ((0, 1),),
    "duplicate_token_heads": ((0, 3),),
    "induction_heads": ((1, 2),),
    "inhibition_heads": ((2, 0), (2, 3)),
    "name_movers": ((3, 1), (3, 2)),
    "negative_movers": ((4, 1),),
}
# The slots of the residual stream and their widths; all directions are orthonormal.
WIDTHS = {
    "name": 32,  # filled by the embedding: the code of the name at this position
    "word": 16,  # by the embedding: the code of any other token
    "position": 40,  # by the position embedding
    "previous": 32,  # by the previous-token head: the name one position back
    "duplicated": 32,  # by the duplicate-token and induction heads: the name seen before
    "inhibited": 32,  # by the inhibition heads: the name not to attend to
    "output": 32,  # by the movers: the name to say
    # One number each:
    "is_name": 1,
    "wants_name": 1,  # by the embedding, at " to"
    "is_first": 1,  # by the position embedding, at the first position
    "previous_is_name": 1,
    "is_duplicated": 1,
    "inhibits": 1,
    "ballast": 1,  # by the embedding, constant
}
_PLANS = {
    "previous_token_heads": Head(
        scores=(("position before", "position", 30.0), ("always", "is_first", 15.0)),
        moves=(("name", "previous", 1.0), ("is_name", "previous_is_name", 1.0)),
    ),
    "duplicate_token_heads": Head(
        scores=(
            ("name", "name", 60.0),  # the same name ...
            ("position", "position", -30.0),  # ... but not this very position
            ("always", "is_first", 42.0),
        ),
        moves=(("name", "duplicated", 0.5), ("is_name", "is_duplicated", 0.5)),
    ),
    "induction_heads": Head(
        scores=(("name", "previous", 40.0), ("always", "is_first", 25.0)),
        moves=(("previous", "duplicated", 0.5), ("previous_is_name", "is_duplicated", 0.5)),
    ),
    "inhibition_heads": Head(
        scores=(("wants_name", "is_duplicated", 30.0), ("always", "is_first", 8.0)),
        moves=(("duplicated", "inhibited", 0.5), ("is_duplicated", "inhibits", 0.5)),
    ),
    "name_movers": Head(
        scores=(
            ("inhibits", "is_name", 24.0),  # a name ...
            ("inhibited", "name", -6.0),  # ... but not this one
            ("always", "is_first", 6.0),
        ),
        moves=(("name", "output", 0.5),),
    ),
    "negative_movers": Head(
        scores=(("inhibits", "is_duplicated", 30.0), ("always", "is_first", 8.0)),
        moves=(("name", "output", -0.25),),
    ),
}
_HEADS = {head: _PLANS[role] for role, heads in PLANTED_ROLES.items() for head in heads}


def planted_ioi() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The hand-set model described above and its tokenizer, the same at every call. `PLANTED_ROLES`
    says which heads (layer, head) do what."""
    tokenizer = word_tokenizer()
    generator = torch.Generator().manual_seed(0)
    model = parts.blank_model(tokenizer)
    slots = parts.make_slots(WIDTHS)
    # LayerNorm multiplies by about sqrt(d_model) / length; reading matrices undo it.
    scale = math.sqrt((BALLAST**2 + 3) / D_MODEL)
    codes = parts.make_codes(len(NAMES), WIDTHS["name"], generator)
    words = torch.randn(len(tokenizer), WIDTHS["word"], generator=generator)
    names = tokenizer.convert_tokens_to_ids([f" {name}" for name in NAMES])
    positions, step_back = parts.position_codes(WIDTHS["position"])

    with torch.no_grad():
        embedding = words / words.norm(dim=1, keepdim=True) @ slots["word"].T
        embedding[names] = codes @ slots["name"].T + slots["is_name"][:, 0]
        embedding[tokenizer.convert_tokens_to_ids(" to")] += slots["wants_name"][:, 0]
        model.transformer.wte.weight.copy_(embedding + BALLAST * slots["ballast"][:, 0])
        model.transformer.wpe.weight.copy_(positions @ slots["position"].T)
        model.transformer.wpe.weight[0] += slots["is_first"][:, 0]

        unembedding = torch.randn(len(tokenizer), D_MODEL, generator=generator) * 0.02
        unembedding[names] += LOGIT * scale * codes @ slots["output"].T
        model.lm_head.weight.copy_(unembedding)

        readers = slots | {"position before": slots["position"] @ step_back}
        parts.set_heads(model, _HEADS, readers, scale, generator)
    return model, tokenizer
