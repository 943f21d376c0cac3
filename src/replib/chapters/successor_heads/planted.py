"""A transformer with a successor head, a category booster and mod-10 features, set by hand.

`planted_successor` builds a GPT-2 (3 layers of 4 heads) whose residual stream is a row of named
slots, as in `models.planted`. The embedding says of every ordinal token its residue (index modulo
10), the decade of its successor, and its class. MLP0 copies these three into slots of their own,
`f_residue`, `f_decade` and `f_class`, two neurons for each residue: so its neurons are periodic
over the numbers with period 10, and its output is index and class side by side. Then:

- the *successor head* L1H2 looks at the ordinal token just before, or at the one three places back
  (the number of the line, in a numbered list), or else at any that it has read; it turns its
  residue by one and copies the rest to what is said, with a small preference for whatever comes
  later (a greater-than bias);
- the *category booster* L2H1 looks at the same token and favours its whole class: it helps every
  list, and knows no successor. A method that takes it for a successor head is wrong;
- the *text heads* L2H2 and L2H3 look at the token itself and favour all plain words and marks: the
  one after a plain word, the other after anything else. So in running text there is something else
  for a head to do, and the successor head wins only where something is counted.

The head cannot wrap: what comes after Sunday or December it does not know. Roman numerals have
features too, but " I", " V" and " X" are letters here, as each token has one meaning only. All
other heads are small noise, and the MLPs of later layers write nothing. Nothing is trained.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from replib.chapters.successor_heads.ordinals import ITEMS, WORDS
from replib.models.planted import blank_model, make_slots, noise_head, position_codes, set_head
from replib.prompts.vocabulary import whole_words

NOTE = "A small transformer with a successor head and mod-10 features."

N_LAYERS, N_HEADS, D_HEAD = 3, 4, 84
D_MODEL = N_HEADS * D_HEAD
PLANTED_SUCCESSOR = (1, 2)
PLANTED_BOOSTER = (2, 1)
PLANTED_TEXT = {"is_plain": (2, 2), "is_other": (2, 3)}  # by the kind of token that each follows
_CLASSES = ("bare digits", *WORDS)  # numbers without a leading space count as a class of their own
_N = {"residue": 10, "decade": 21, "class": len(_CLASSES)}
_STRENGTH = {"residue": 1.0, "decade": 0.6, "class": 0.6}  # in the output of MLP0
_WIDTHS = {
    **_N,  # filled by the embedding
    **{f"f_{slot}": width for slot, width in _N.items()},  # by MLP0
    **{f"o_{slot}": width for slot, width in _N.items()},  # by the heads: what to say
    "word": 24,
    "position": 40,
    "o_plain": 1,
    "is_ordinal": 1,
    "is_plain": 1,  # a word or mark that the tokenizer knows and that has no place in a class
    "is_other": 1,
    "is_first": 1,
    "ballast": 1,
}
_D_MLP = 2 * _N["residue"] + _N["decade"] + _N["class"]
_BALLAST = 12.0
_LOGIT = 8.0
_UP = 0.4  # the bias towards whatever comes later
_PLAIN = 0.2  # what the text heads add
_NOISE = 0.2
_COMMON = """
    the of and to in a he that they was for his you with is not it said as on from be at them day
    days year years or month which who were have will son sons people Lord God
"""
_PIECE = r" ?[A-Za-z]+| ?[0-9]+|[^A-Za-z0-9]"


def planted_successor() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """The model described above and its tokenizer, the same at every call."""
    tokenizer, meaning = _tokenizer()
    model = blank_model(tokenizer, N_LAYERS, N_HEADS, D_MODEL, _D_MLP)
    generator = torch.Generator().manual_seed(0)
    slots = make_slots(_WIDTHS, D_MODEL)
    scale = math.sqrt((_BALLAST**2 + 7) / D_MODEL)  # what LayerNorm divides by, times nothing else

    with torch.no_grad():
        words = torch.randn(len(tokenizer), _WIDTHS["word"], generator=generator)
        embedding = words / words.norm(dim=1, keepdim=True) @ slots["word"].T
        unembedding = torch.randn(len(tokenizer), D_MODEL, generator=generator) * 0.02
        for token in range(len(tokenizer)):
            plain = token not in meaning and token != tokenizer.unk_token_id
            embedding[token] += slots["is_plain" if plain else "is_other"][:, 0]
            unembedding[token] += plain * _LOGIT * scale * slots["o_plain"][:, 0]
        for token, (name, index) in meaning.items():
            embedding[token] += slots["residue"][:, index % 10]
            embedding[token] += slots["decade"][:, (index + 1) // 10]
            embedding[token] += slots["class"][:, _CLASSES.index(name)]
            embedding[token] += slots["is_ordinal"][:, 0]
            said = slots["o_residue"][:, index % 10] + slots["o_decade"][:, index // 10]
            said = said + slots["o_class"][:, _CLASSES.index(name)]
            unembedding[token] += _LOGIT * scale * said
        model.transformer.wte.weight.copy_(embedding + _BALLAST * slots["ballast"][:, 0])
        model.lm_head.weight.copy_(unembedding)
        codes, back = position_codes(_WIDTHS["position"])
        model.transformer.wpe.weight.copy_(codes @ slots["position"].T)
        model.transformer.wpe.weight[0] += slots["is_first"][:, 0]

        _set_mlp(model, slots, scale)
        moves = {PLANTED_SUCCESSOR: _moves()}
        moves[PLANTED_BOOSTER] = {"class": moves[PLANTED_SUCCESSOR]["class"]}
        after = {head: kind for kind, head in PLANTED_TEXT.items()}
        for layer in range(N_LAYERS):
            for head in range(N_HEADS):
                if (layer, head) in after:
                    parts = _looks_here(slots, after[layer, head], scale)
                elif (layer, head) in moves:
                    parts = _looks_back(slots, back, moves[layer, head], scale)
                else:
                    parts = noise_head(generator, D_MODEL, D_HEAD, _NOISE)
                set_head(model, layer, head, *parts)
    return model, tokenizer


def _tokenizer() -> tuple[PreTrainedTokenizerFast, dict[int, tuple[str, int]]]:
    """A tokenizer with every ordinal token, and what each means: token -> (class, index)."""
    meaning: dict[str, tuple[str, int]] = {}
    for name, words in WORDS.items():
        for index, word in enumerate(words, 1):
            meaning.setdefault(f" {word}", (name, index))  # the first class that has it
    for index in range(201):
        meaning[f"{index}"] = ("bare digits", index)
        meaning.setdefault(f" {index}", ("numbers", index))
    common = _COMMON.split()
    texts = [*meaning, *(f" {word}" for word in (*ITEMS, *common)), *",.\n ;:?!'\"", "<>"]
    tokenizer = whole_words(texts, _PIECE)
    vocab = tokenizer.get_vocab()
    return tokenizer, {vocab[text]: what for text, what in meaning.items()}


def _set_mlp(model: GPT2LMHeadModel, slots: dict[str, Tensor], scale: float) -> None:
    """MLP0: a neuron for each unit of the three slots (two for each residue) copies it."""
    mlp, at = model.transformer.h[0].mlp, 0
    for slot, copies in (("residue", 2), ("decade", 1), ("class", 1)):
        for unit in range(_N[slot]):
            for _ in range(copies):
                mlp.c_fc.weight[:, at] = 8 * scale * slots[slot][:, unit]
                mlp.c_fc.bias[at] = -4.0  # 4 where the unit is on, −4 where it is off
                strength = _STRENGTH[slot] / (4 * copies)
                mlp.c_proj.weight[at] = strength * slots[f"f_{slot}"][:, unit]
                at += 1
    for bias in (mlp.c_proj.bias, *(b.mlp.c_fc.bias for b in model.transformer.h[1:])):
        bias.zero_()


def _moves() -> dict[str, Float[Tensor, "width width"]]:
    """How the successor head maps what it reads to what it says: [from, to] for each slot."""
    residue = torch.eye(10).roll(1, dims=1) + _UP * torch.ones(10, 10).triu(2)
    decade = torch.eye(_N["decade"]) + _UP * torch.ones(_N["decade"], _N["decade"]).triu(1)
    return {"residue": residue, "decade": decade, "class": torch.eye(_N["class"])}


def _looks_here(
    slots: dict[str, Tensor], kind: str, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A head that looks at its own position and favours plain tokens after tokens of a kind; its
    matrices are those of `_looks_back`."""
    w_q, w_k, w_v = torch.zeros(3, D_MODEL, D_HEAD)
    w_o, b_q = torch.zeros(D_HEAD, D_MODEL), torch.zeros(D_HEAD)
    width = _WIDTHS["position"]
    w_q[:, :width] = math.sqrt(D_HEAD) * 40.0 * scale * slots["position"]
    w_k[:, :width] = scale * slots["position"]
    w_v[:, 0] = scale * slots[kind][:, 0]
    w_o[0] = _PLAIN * slots["o_plain"][:, 0]
    return w_q, w_k, w_v, w_o, b_q


def _looks_back(
    slots: dict[str, Tensor],
    back: Float[Tensor, "width width"],
    moves: dict[str, Tensor],  # each [from, to]
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """W_Q, W_K, W_V [d_model, d_head], W_O [d_head, d_model] and b_Q of a head that looks at the
    position before, or at the one three back, where an ordinal token stands there; else at any
    ordinal token."""
    w_q, w_k, w_v = torch.zeros(3, D_MODEL, D_HEAD)
    w_o, b_q = torch.zeros(D_HEAD, D_MODEL), torch.zeros(D_HEAD)
    gain = math.sqrt(D_HEAD)  # attention divides by it
    width, at = _WIDTHS["position"], 0
    for step, weight in ((back, 36.0), (back @ back @ back, 30.0)):
        w_q[:, at : at + width] = gain * weight * scale * slots["position"] @ step
        w_k[:, at : at + width] = scale * slots["position"]
        at += width
    for key, weight in (("is_ordinal", 46.0), ("is_first", 26.0)):
        b_q[at] = gain * weight
        w_k[:, at] = scale * slots[key][:, 0]
        at += 1
    at = 0
    for slot, matrix in moves.items():
        own = slice(at, at + len(matrix))
        w_v[:, own] = scale * slots[f"f_{slot}"]
        w_o[own] = matrix @ slots[f"o_{slot}"].T
        at += len(matrix)
    return w_q, w_k, w_v, w_o, b_q
