"""A transformer whose weights are set by hand, so that what a method should find is known.

`planted_ioi` builds a GPT-2 (5 layers of 4 heads, LayerNorm, learned positions; its MLPs write
nothing) that does indirect object identification with the circuit of Wang et al. (2211.00593) as
Merullo et al. (2310.08744, Sec. 3) find it in GPT2-medium. Nothing is trained.

**The residual stream is a row of named slots** (`_WIDTHS`), each a set of directions of its own,
orthogonal to every other slot. A slot holds a vector: `name` the code of the name at this
position, `position` the code of the place, `is_name` a one if the token is a name. Attention heads
copy what is in a slot at one position to another slot at another position. How the model knows
which tokens are names is part of the embedding: the slots `name` and `is_name` are filled for the
names of the task only. Codes of different names are nearly orthogonal.

**A head is two short lists** (`_HEADS`). Its scores: the attention score of a position is the sum,
over (query slot, key slot, weight), of weight times the dot product of the query slot at the
reading position and the key slot at the position looked at. Its moves: for (from, to, weight) it
adds weight times what it finds in the slot `from` to the slot `to` of the reading position. A head
that finds nothing rests on the first token, where no name ever stands, and so writes nothing.

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

The remaining heads are small seeded noise: they attend and write, and hardly matter.

LayerNorm is harmless by two choices: all slots are orthogonal to the all-ones vector, so that
subtracting the mean does nothing, and a constant `ballast` much longer than everything else keeps
the length of the stream nearly the same, so that dividing by it is nearly a constant factor.

With S2 replaced by the IO name (this book's corrupted prompts) every step from 2 on is about Mary,
and the answer becomes John. The previous-token head sees no difference: S2 comes after S1+1. Its
part shows when it is ablated, or given the activations of a prompt with other names.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from replib.prompts import NAMES, word_tokenizer

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


class _Head(NamedTuple):
    """What a head looks for and what it copies; slots by name. A query slot "always" is a one."""

    scores: tuple[tuple[str, str, float], ...]  # (query slot, key slot, weight)
    moves: tuple[tuple[str, str, float], ...]  # (from slot, to slot, weight)


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

_BALLAST = 8.0
_LOGIT = 6.0  # logit of a name whose code fills `output`
_NOISE = 0.3  # length of what a noise head writes, beside codes of length 1


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


def make_slots(
    widths: Mapping[str, int] = _WIDTHS, d_model: int = D_MODEL
) -> dict[str, Float[Tensor, "d_model width"]]:
    """Orthonormal directions for every slot, all orthogonal to the all-ones vector.

    They are columns of the discrete cosine transform, whose first column, left out, is constant.
    """
    row, column = torch.arange(d_model, dtype=torch.float64), torch.arange(1, d_model)
    basis = (math.pi / d_model * (row[:, None] + 0.5) * column).cos() * math.sqrt(2 / d_model)
    starts = [sum(list(widths.values())[:i]) for i in range(len(widths))]
    return {
        slot: basis[:, start : start + width].float()
        for (slot, width), start in zip(widths.items(), starts, strict=True)
    }


def _codes(n: int, width: int, generator: torch.Generator) -> Float[Tensor, "n width"]:
    """Unit vectors, no two with a cosine beyond 0.45: drawn at random, kept if they fit."""
    codes = torch.empty(0, width)
    while len(codes) < n:
        code = torch.randn(width, generator=generator)
        code = code / code.norm()
        if not bool(((codes @ code).abs() > 0.45).any()):
            codes = torch.cat([codes, code[None]])
    return codes


def position_codes(
    width: int,
) -> tuple[Float[Tensor, "pos width"], Float[Tensor, "width width"]]:
    """Unit position codes (sines and cosines) and the matrix that steps one position back.

    With `back` the second, `codes[i] @ back == codes[i - 1]`: each frequency's pair is turned by
    one step. The codes of different positions have dot products below 0.4.
    """
    n = width // 2
    frequency = math.pi * ((torch.arange(n, dtype=torch.float64) + 0.5) / n) ** 1.25
    angle = torch.arange(N_POSITIONS)[:, None] * frequency
    codes = torch.cat([angle.cos(), angle.sin()], dim=1) / math.sqrt(n)
    cos, sin = frequency.cos().diag(), frequency.sin().diag()
    back = torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])
    return codes.float(), back.float()


def _head(
    plan: _Head, slots: Mapping[str, Float[Tensor, "d_model width"]], scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """W_Q, W_K, W_V [d_model, d_head], W_O [d_head, d_model] and b_Q [d_head] of a plan."""
    w_q, w_k, w_v = torch.zeros(3, D_MODEL, D_HEAD)
    w_o, b_q = torch.zeros(D_HEAD, D_MODEL), torch.zeros(D_HEAD)
    at = 0
    for query, key, weight in plan.scores:
        width = slots[key].shape[1]
        gain = weight * math.sqrt(D_HEAD)  # attention divides by it
        if query == "always":
            b_q[at] = gain
        else:
            w_q[:, at : at + width] = gain * scale * slots[query]
        w_k[:, at : at + width] = scale * slots[key]
        at += width
    at = 0
    for source, target, weight in plan.moves:
        width = slots[source].shape[1]
        w_v[:, at : at + width] = scale * slots[source]
        w_o[at : at + width] = weight * slots[target].T
        at += width
    return w_q, w_k, w_v, w_o, b_q


def noise_head(
    generator: torch.Generator, d_model: int = D_MODEL, d_head: int = D_HEAD, size: float = _NOISE
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random weights, in the order of `_head`: scores of about 1, output of about `size` long."""
    w_q, w_k, w_v = torch.randn(3, d_model, d_head, generator=generator) / math.sqrt(d_model)
    w_o = torch.randn(d_head, d_model, generator=generator)
    return w_q, w_k, w_v, w_o * size / math.sqrt(d_head * d_model), torch.zeros(d_head)


def set_heads(
    model: GPT2LMHeadModel,
    plans: Mapping[tuple[int, int], _Head],
    slots: Mapping[str, Float[Tensor, "d_model width"]],
    scale: float,
    generator: torch.Generator,
) -> None:
    """Every head of a model of this module's shape: as planned, the others small noise."""
    for layer in range(N_LAYERS):
        for head in range(N_HEADS):
            plan = plans.get((layer, head))
            parts = noise_head(generator) if plan is None else _head(plan, slots, scale)
            set_head(model, layer, head, *parts)


def blank_model(
    tokenizer: PreTrainedTokenizerFast,
    n_layers: int = N_LAYERS,
    n_heads: int = N_HEADS,
    d_model: int = D_MODEL,
    d_mlp: int = 4,
) -> GPT2LMHeadModel:
    """A GPT-2 over a tokenizer's vocabulary, the matrices of its blocks 0."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=N_POSITIONS,
        n_embd=d_model,
        n_layer=n_layers,
        n_head=n_heads,
        n_inner=d_mlp,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # the library's own initialisation leaves no trace
        model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for parameter in model.transformer.h.parameters():
        if parameter.ndim > 1:
            parameter.zero_()
    return model


def set_head(
    model: GPT2LMHeadModel,
    layer: int,
    head: int,
    w_q: Float[Tensor, "d_model d_head"],
    w_k: Float[Tensor, "d_model d_head"],
    w_v: Float[Tensor, "d_model d_head"],
    w_o: Float[Tensor, "d_head d_model"],
    b_q: Float[Tensor, " d_head"],
) -> None:
    """Put a head's matrices where GPT-2 keeps them: [query | key | value], heads side by side."""
    attention = model.transformer.h[layer].attn
    d_model, d_head = w_q.shape
    own = slice(head * d_head, (head + 1) * d_head)
    for i, matrix in enumerate((w_q, w_k, w_v)):
        attention.c_attn.weight[:, i * d_model :][:, own] = matrix
    attention.c_attn.bias[own] = b_q
    attention.c_proj.weight[own] = w_o
