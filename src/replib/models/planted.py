"""The parts that planted models are made of: a transformer whose weights are set by hand, so that
what a method should find is known. Nothing is trained.

**The residual stream is a row of named slots**, each a set of directions of its own, orthogonal to
every other slot. A slot holds a vector, such as the code of the token at this position; codes of
different words are nearly orthogonal.

**A head is two short lists**. Its scores: the attention score of a position is the sum, over
(query slot, key slot, weight), of weight times the dot product of the query slot at the reading
position and the key slot at the position looked at. Its moves: for (from, to, weight) it adds
weight times what it finds in the slot `from` to the slot `to` of the reading position. A head that
finds nothing rests on the first token, where nothing is to be found, and so writes nothing.

LayerNorm is harmless: all slots are orthogonal to the all-ones vector, so that subtracting the mean
does nothing, and a constant `ballast` much longer than everything else makes dividing by the length
nearly a constant factor.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from replib.prompts.vocabulary import word_tokenizer


class Head(NamedTuple):
    """What a head looks for and what it copies; slots by name. A query slot "always" is a one."""

    scores: tuple[tuple[str, str, float], ...]  # (query slot, key slot, weight)
    moves: tuple[tuple[str, str, float], ...]  # (from slot, to slot, weight)


N_LAYERS, N_HEADS, D_HEAD, N_POSITIONS = 5, 4, 74, 256
D_MODEL = N_HEADS * D_HEAD
BALLAST = 8.0
LOGIT = 6.0  # logit of a name whose code fills `output`
NOISE = 0.3  # length of what a noise head writes, beside codes of length 1


def make_slots(
    widths: Mapping[str, int], d_model: int = D_MODEL
) -> dict[str, Float[Tensor, "d_model width"]]:
    """Orthonormal directions for every slot, all orthogonal to the all-ones vector. They are
    columns of the discrete cosine transform, whose first column, left out, is constant."""
    row, column = torch.arange(d_model, dtype=torch.float64), torch.arange(1, d_model)
    basis = (math.pi / d_model * (row[:, None] + 0.5) * column).cos() * math.sqrt(2 / d_model)
    starts = [sum(list(widths.values())[:i]) for i in range(len(widths))]
    return {
        slot: basis[:, start : start + width].float()
        for (slot, width), start in zip(widths.items(), starts, strict=True)
    }


def make_codes(n: int, width: int, generator: torch.Generator) -> Float[Tensor, "n width"]:
    """Unit vectors, no two with a cosine beyond 0.45: drawn at random, kept if they fit."""
    codes = torch.empty(0, width)
    while len(codes) < n:
        code = torch.randn(width, generator=generator)
        code = code / code.norm()
        if not bool(((codes @ code).abs() > 0.45).any()):
            codes = torch.cat([codes, code[None]])
    return codes


def position_codes(width: int) -> tuple[Float[Tensor, "pos width"], Float[Tensor, "width width"]]:
    """Unit position codes (sines and cosines) and the matrix that steps one position back. With
    `back` the second, `codes[i] @ back == codes[i - 1]`: each frequency's pair is turned by one
    step. The codes of different positions have dot products below 0.4."""
    n = width // 2
    frequency = math.pi * ((torch.arange(n, dtype=torch.float64) + 0.5) / n) ** 1.25
    angle = torch.arange(N_POSITIONS)[:, None] * frequency
    codes = torch.cat([angle.cos(), angle.sin()], dim=1) / math.sqrt(n)
    cos, sin = frequency.cos().diag(), frequency.sin().diag()
    back = torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])
    return codes.float(), back.float()


def _head(
    plan: Head, slots: Mapping[str, Float[Tensor, "d_model width"]], scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """W_Q, W_K, W_V [d_model, d_head], W_O [d_head, d_model] and b_Q [d_head] of a plan."""
    d_model = len(next(iter(slots.values())))
    w_q, w_k, w_v = torch.zeros(3, d_model, D_HEAD)
    w_o, b_q = torch.zeros(D_HEAD, d_model), torch.zeros(D_HEAD)
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
    generator: torch.Generator, d_model: int = D_MODEL, d_head: int = D_HEAD, size: float = NOISE
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Random weights, in the order of `_head`: scores of about 1, output of about `size` long."""
    w_q, w_k, w_v = torch.randn(3, d_model, d_head, generator=generator) / math.sqrt(d_model)
    w_o = torch.randn(d_head, d_model, generator=generator)
    return w_q, w_k, w_v, w_o * size / math.sqrt(d_head * d_model), torch.zeros(d_head)


def set_heads(
    model: GPT2LMHeadModel,
    plans: Mapping[tuple[int, int], Head],
    slots: Mapping[str, Float[Tensor, "d_model width"]],
    scale: float,
    generator: torch.Generator,
    noise: float = NOISE,
) -> None:
    """Every head of a model with heads of `D_HEAD`: as planned, the others small noise."""
    config = model.config
    for layer in range(config.n_layer):
        for head in range(config.n_head):
            plan = plans.get((layer, head))
            size = config.n_embd, D_HEAD, noise
            parts = noise_head(generator, *size) if plan is None else _head(plan, slots, scale)
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


def knowing(
    known: Sequence[tuple[str, str]],
    texts: Iterable[str],
    widths: Mapping[str, int],
    heads: Mapping[tuple[int, int], Head],
    *,
    asking: Sequence[str],
    logit: float,
    strengths: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {}),
    intents: Mapping[str, tuple[float, float]] | None = None,
    noise: float = NOISE,
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """A model of these slots and heads that knows `known`, pairs of subject and answer, and its
    tokenizer, which writes `texts`.

    `asking`: the tokens after which an answer is wanted. `logit`: of an answer whose code fills
    `output`. `strengths`: how long the code of a subject's fact is, and that of an answer to be
    copied, by name; 1 where none is given. `intents`: for each token that states one, what it says,
    and how strongly it is looked at.
    """
    words = [f" {word}" for pair in known for word in pair]
    tokenizer = word_tokenizer([*words, *texts])
    generator = torch.Generator().manual_seed(0)
    model, slots = blank_model(tokenizer), make_slots(widths)
    mark = {name: slots[name][:, 0] for name, width in widths.items() if width == 1}
    scale = ((BALLAST**2 + 3) / D_MODEL) ** 0.5  # see the top
    answers = sorted({answer for _, answer in known})
    codes = dict(zip(answers, make_codes(len(answers), widths["answer"], generator), strict=True))
    memory, copying = strengths

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
        for subject, answer in known:
            recalled = memory.get(subject, 1.0) * slots["fact"] @ codes[answer]
            embedding[token(subject)] += recalled + mark["is_subject"]
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
        set_heads(model, heads, slots, scale, generator, noise)
    return model, tokenizer
