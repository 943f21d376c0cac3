"""A model with the IOI circuit set by hand."""

import math

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replib.models.planted import (
    _BALLAST,
    _LOGIT,
    _codes,
    _Head,
    blank_model,
    make_slots,
    position_codes,
    set_heads,
)
from replib.prompts.tokens import word_tokenizer
from replib.prompts.words import NAMES

N_LAYERS, N_HEADS, D_HEAD, N_POSITIONS = 5, 4, 74, 256


D_MODEL = N_HEADS * D_HEAD


PLANTED_ROLES: dict[str, tuple[tuple[int, int], ...]] = {
    "previous_token_heads": ((0, 1),),
    "duplicate_token_heads": ((0, 3),),
    "induction_heads": ((1, 2),),
    "inhibition_heads": ((2, 0), (2, 3)),
    "name_movers": ((3, 1), (3, 2)),
    "negative_movers": ((4, 1),),
}


# The slots of the residual stream and their widths; all directions are orthonormal.
_WIDTHS = {
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


_DUPLICATE = _Head(
    scores=(
        ("name", "name", 60.0),  # the same name ...
        ("position", "position", -30.0),  # ... but not this very position
        ("always", "is_first", 42.0),
    ),
    moves=(("name", "duplicated", 0.5), ("is_name", "is_duplicated", 0.5)),
)


_INDUCTION = _Head(
    scores=(("name", "previous", 40.0), ("always", "is_first", 25.0)),
    moves=(("previous", "duplicated", 0.5), ("previous_is_name", "is_duplicated", 0.5)),
)


_INHIBITION = _Head(
    scores=(("wants_name", "is_duplicated", 30.0), ("always", "is_first", 8.0)),
    moves=(("duplicated", "inhibited", 0.5), ("is_duplicated", "inhibits", 0.5)),
)


_MOVER = _Head(
    scores=(
        ("inhibits", "is_name", 24.0),  # a name ...
        ("inhibited", "name", -6.0),  # ... but not this one
        ("always", "is_first", 6.0),
    ),
    moves=(("name", "output", 0.5),),
)


_NEGATIVE = _Head(
    scores=(("inhibits", "is_duplicated", 30.0), ("always", "is_first", 8.0)),
    moves=(("name", "output", -0.25),),
)


_HEADS: dict[tuple[int, int], _Head] = {
    (0, 1): _Head(
        scores=(("position before", "position", 30.0), ("always", "is_first", 15.0)),
        moves=(("name", "previous", 1.0), ("is_name", "previous_is_name", 1.0)),
    ),
    (0, 3): _DUPLICATE,
    (1, 2): _INDUCTION,
    (2, 0): _INHIBITION,
    (2, 3): _INHIBITION,
    (3, 1): _MOVER,
    (3, 2): _MOVER,
    (4, 1): _NEGATIVE,
}


def planted_ioi() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The hand-set model described above and its tokenizer, the same at every call.

    `PLANTED_ROLES` says which heads (layer, head) do what.
    """
    tokenizer = word_tokenizer()
    generator = torch.Generator().manual_seed(0)
    model = blank_model(tokenizer)
    slots = make_slots()
    # LayerNorm multiplies by about sqrt(d_model) / length; reading matrices undo it.
    scale = math.sqrt((_BALLAST**2 + 3) / D_MODEL)
    codes = _codes(len(NAMES), _WIDTHS["name"], generator)
    words = torch.randn(len(tokenizer), _WIDTHS["word"], generator=generator)
    names = tokenizer.convert_tokens_to_ids([f" {name}" for name in NAMES])
    positions, step_back = position_codes(_WIDTHS["position"])

    with torch.no_grad():
        embedding = words / words.norm(dim=1, keepdim=True) @ slots["word"].T
        embedding[names] = codes @ slots["name"].T + slots["is_name"][:, 0]
        embedding[tokenizer.convert_tokens_to_ids(" to")] += slots["wants_name"][:, 0]
        model.transformer.wte.weight.copy_(embedding + _BALLAST * slots["ballast"][:, 0])
        model.transformer.wpe.weight.copy_(positions @ slots["position"].T)
        model.transformer.wpe.weight[0] += slots["is_first"][:, 0]

        unembedding = torch.randn(len(tokenizer), D_MODEL, generator=generator) * 0.02
        unembedding[names] += _LOGIT * scale * codes @ slots["output"].T
        model.lm_head.weight.copy_(unembedding)

        readers = slots | {"position before": slots["position"] @ step_back}
        set_heads(model, _HEADS, readers, scale, generator)
    return model, tokenizer
