"""Successor heads read from the weights, and what single heads do to the logits directly.

The effective OV circuit of a head (Gould et al., arXiv 2312.09230, Sec. 2) says which tokens it
favours when it attends to a token: W_U W_O W_V v(t). Its *successor score* is the share of tokens
t of a class for which, among the tokens of that class, the successor of t comes out first.

How norms are treated. The head's input passes through the norm in front of its layer. What it
writes passes through the norm after attention, where there is one (Gemma), and the final norm,
both without their division and bias: a positive factor does not change which token comes first,
and the map stays linear. Biases of values and outputs are left out. Under grouped-query attention
a query head uses the value projection of its group.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from replib.chapters.successor_heads.direct_effects import observe
from replib.chapters.successor_heads.ordinals import AllTokens, OrdinalClass, all_tokens
from replib.interventions.network import Head, Network
from replib.metrics import Estimate, bootstrap
from replib.models.finite import check_logits

# --- From tokens to a head's input ----------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What a head is given for each token: the same for all layers (one row), or a layer's own.
    `normed`: the head's norms are applied; without them its bare matrices are."""

    x: Float[Tensor, "layer token d_model"]
    normed: bool

    def at(self, layer: int) -> Float[Tensor, "token d_model"]:
        """What the heads of a layer are given."""
        return self.x[layer if len(self.x) > 1 else 0]


def embed(net: Network, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
    """Token embeddings as the first block gets them, without positions, on the model's device."""
    with torch.no_grad():
        return net.model.original_model.get_input_embeddings()(tokens.to(net.W_U.device))


def mlp0(
    net: Network, tokens: Int[Tensor, " token"], normed: bool = True
) -> Float[Tensor, "token d_model"]:
    """MLP0(embedding): the first block's MLP on the bare embedding, no attention before it."""
    block, x = net.blocks[0], embed(net, tokens)
    with torch.no_grad():
        return block.mlp_write(x) if normed else block.mlp(x)


def mlp0_neurons(net: Network, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token neuron"]:
    """The neurons of the first block's MLP (what its last matrix reads) on the bare embedding."""
    seen: list[Tensor] = []
    last = net.model.blocks[0].mlp.out.original_component
    with last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone())):
        mlp0(net, tokens)
    (neurons,) = seen  # of one pass
    return neurons


def sources(net: Network, tokens: Int[Tensor, " token"]) -> dict[str, Source]:
    """Five ways to give a head a token in isolation; the first is the paper's. "own residual": what
    the head's layer receives when the model reads the token after the tokenizer's own first token
    (or a beginning-of-text token, or end-of-text, or nothing, if it has no other)."""
    x = embed(net, tokens)
    tokenizer = net.model.tokenizer
    found = {
        "MLP0": Source(mlp0(net, tokens)[None], True),
        "MLP0, no norms": Source(mlp0(net, tokens, False)[None], False),
        "embedding + MLP0": Source((x + mlp0(net, tokens))[None], True),
        "embedding + MLP0, no norms": Source((x + mlp0(net, tokens, False))[None], False),
    }
    ids = (*tokenizer("").input_ids[:1], tokenizer.bos_token_id, tokenizer.eos_token_id)
    first = next((torch.tensor([t]) for t in ids if t is not None), torch.tensor([]).long())
    rows = torch.stack([torch.cat([first.to(tokens), t[None]]) for t in tokens])
    found["own residual"] = Source(observe(net, rows).resid_pre[:, :, -1], True)
    return found


# --- The effective OV circuit ---------------------------------------------------------------------


def _linear(norm: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """The norm without its division and its bias: the weights, and the centring of LayerNorm. It
    is given u at length 1 (root mean square), and what it says is multiplied by that length."""
    if isinstance(norm, torch.nn.LayerNorm):
        u = u - u.mean(-1, keepdim=True)
    size = u.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-30)
    return (norm(u / size) - norm(torch.zeros_like(u[..., :1, :]))) * size


def head_values(
    net: Network,
    layer: int,
    x: Float[Tensor, "*token d_model"],
    normed: bool = True,
    direction: bool = False,
) -> Float[Tensor, "*token head d_head"]:
    """W_V x: what each head of a layer takes from x, before its output matrix. Grouped heads have
    the values of their group. `direction`: x is not an input but a part of one, so that the norm in
    front is linear too."""
    block = net.blocks[layer]
    with torch.no_grad():
        if normed:
            x = _linear(block.ln1, x) if direction else block.ln1(x)
        v = block.heads_of(block.v(x) - block.v(torch.zeros_like(x[..., :1, :])))
        return v.repeat_interleave(block.n_heads // v.shape[-2], dim=-2)


def before_readout(
    net: Network, layer: int, out: Float[Tensor, "*token head d_model"], normed: bool = True
) -> Float[Tensor, "*token head d_model"]:
    """What heads write, ready for the unembedding: through the norms behind them, without their
    division and bias (without the norms altogether unless `normed`)."""
    post = net.blocks[layer].ln1_post
    with torch.no_grad():
        if not normed:
            return out
        return _linear(net.ln_final, out if post is None else _linear(post, out))


def head_write(
    net: Network,
    head: Head,
    x: Float[Tensor, "*token d_model"],
    normed: bool = True,
    direction: bool = False,
) -> Float[Tensor, "*token d_model"]:
    """What one head would add, ready for the unembedding, if it attended to x alone."""
    layer, h = head
    v = head_values(net, layer, x, normed, direction)[..., h, :]
    with torch.no_grad():
        out = (v @ net.blocks[layer].W_O[h])[..., None, :]
    return before_readout(net, layer, out, normed)[..., 0, :]


def ov_writes(
    net: Network,
    layer: int,
    x: Float[Tensor, "*token d_model"],
    normed: bool = True,
    direction: bool = False,
) -> Float[Tensor, "*token head d_model"]:
    """W_O W_V x: what each head of a layer would add, ready for the unembedding, if it attended to
    x alone (`head_values`, W_O, `before_readout`)."""
    v = head_values(net, layer, x, normed, direction)
    with torch.no_grad():
        out = torch.einsum("...hd,hdm->...hm", v, net.blocks[layer].W_O)
    return before_readout(net, layer, out, normed)


def predicted(
    logits: Float[Tensor, "head token token"], classes: Mapping[str, OrdinalClass]
) -> dict[str, Int[Tensor, "head item"]]:
    """For each class, the item of it that each head favours, for each of its items, in the
    processor's memory. The logits are those of all tokens (`ordinals.all_tokens`) when each of them
    is read. Raises UsageError for logits that are not finite."""
    check_logits(logits, "the logits of ordinal tokens")
    every = all_tokens(classes)
    spans = {name: every.span(name) for name in classes}
    return {name: logits[:, own, own].argmax(-1).cpu() for name, own in spans.items()}


# --- Scores and their null ------------------------------------------------------------------------


def hits(
    pred: Mapping[str, Int[Tensor, "head item"]], classes: Mapping[str, OrdinalClass]
) -> dict[str, Bool[Tensor, "head pair"]]:
    """Did the successor come first? For each class, head and succession."""
    return {
        name: pred[name][:, ordinal.pairs[:, 0]] == ordinal.pairs[:, 1]
        for name, ordinal in classes.items()
    }


def in_class(
    logits: Float[Tensor, "token d_vocab"], classes: Mapping[str, OrdinalClass]
) -> dict[str, Bool[Tensor, "1 _"]]:
    """`hits` of logits over the whole vocabulary, given when each token is read."""
    of_classes = logits[None, :, all_tokens(classes).tokens]
    return hits(predicted(of_classes, classes), classes)


def half(values: Mapping[str, Tensor], which: int) -> dict[str, Tensor]:
    """Every other succession of each class: 0 to choose a head, 1 to report it."""
    return {name: value[..., which::2] for name, value in values.items()}


def macro(values: Mapping[str, Tensor]) -> Float[Tensor, "*head"]:
    """Mean over classes of the mean over successions: every class counts the same."""
    return torch.stack([value.double().mean(-1) for value in values.values()]).mean(0)


def micro(values: Mapping[str, Tensor]) -> Float[Tensor, "*head"]:
    """Mean over all successions: numbers, the largest class, count most."""
    return torch.cat([value.double() for value in values.values()], dim=-1).mean(-1)


def one_head(values: Mapping[str, Tensor], head: int | list[int]) -> dict[str, Tensor]:
    """The values of one head, or of a list of heads."""
    return {name: value[head] for name, value in values.items()}


def macro_interval(
    values: Mapping[str, Tensor], generator: np.random.Generator, head: int | None = None
) -> Estimate:
    """`macro` of one head (row `head` of the values, or all there is) and its 95% interval, as if
    the successions were drawn from more of a class; n counts successions. Each class has an
    interval of its own (`metrics.bootstrap`); the distances of its ends from its mean add up as
    independent errors do (MOVER: Zou and Donner 2008)."""
    score = macro(values)
    if head is not None:
        values, score = one_head(values, head), score[head]
    each = [bootstrap(value, range(len(value)), generator) for value in values.values()]
    below = math.hypot(*(e.value - e.low for e in each)) / len(each)
    above = math.hypot(*(e.high - e.value for e in each)) / len(each)
    mean = float(np.mean([e.value for e in each]))
    return Estimate(float(score), mean - below, mean + above, sum(e.n for e in each))


@dataclass(frozen=True)
class ShuffledNull:
    """Scores when every class's successors are shuffled among its tokens, whole heads kept."""

    per_class: Mapping[str, Float[np.ndarray, "draw head"]]
    macro: Float[np.ndarray, "draw head"]  # over all classes, and so
    micro: Float[np.ndarray, "draw head"]

    def best(self, what: str = "macro") -> Float[np.ndarray, " draw"]:
        """The best of all heads in each draw (max statistic); `what` is macro, micro or a class."""
        values = self.per_class[what] if what in self.per_class else getattr(self, what)
        return values.max(-1)


def shuffled_null(
    pred: Mapping[str, Int[Tensor, "head item"]],
    classes: Mapping[str, OrdinalClass],
    generator: np.random.Generator,
    draws: int = 1000,
    which: int | None = None,
) -> ShuffledNull:
    """Is a head right about successors, or does it only favour some tokens of the class? Each draw
    permutes which successor belongs to which token, within classes; what the heads favour stays as
    it is. `which`: only that half of the successions."""
    per_class, counts = {}, []
    for name, ordinal in classes.items():
        pairs = ordinal.pairs if which is None else ordinal.pairs[which::2]
        favoured = pred[name][:, pairs[:, 0]].numpy(force=True)  # head pair
        right = np.stack([generator.permutation(pairs[:, 1].numpy()) for _ in range(draws)])
        per_class[name] = np.stack([(favoured == row).mean(-1) for row in right])
        counts.append(len(pairs))
    stacked = np.stack(list(per_class.values()))
    weights = np.array(counts) / sum(counts)
    return ShuffledNull(per_class, stacked.mean(0), np.tensordot(weights, stacked, axes=1))


def table(hits: Mapping[str, Mapping[str, Bool[Tensor, "1 pair"]]]) -> pd.DataFrame:
    """Scores of one head in each class: a row for each set of successes."""
    rows = {n: {k: float(v.double().mean()) for k, v in hit.items()} for n, hit in hits.items()}
    return pd.DataFrame(rows).T


def ranks(logits: Float[Tensor, "token d_vocab"], every: AllTokens) -> Int[Tensor, " pair"]:
    """Rank of each successor among all tokens of the vocabulary, from the logits that are given
    when a token is read; 1 is the first."""
    from_, to = every.pairs.T
    own = logits[from_, every.tokens[to]]
    return (logits[from_] > own[:, None]).sum(-1).cpu() + 1


def said_instead(
    tokenizer: PreTrainedTokenizerBase,
    logits: Mapping[str, Float[Tensor, "token d_vocab"]],
    every: AllTokens,
    most: int = 3,
) -> pd.DataFrame:
    """What comes first of the whole vocabulary when a token is read, for the first few of each
    class: a row for a class, a column for each way to get logits."""
    rows = {}
    for name in every.names:
        at = every.of(name).nonzero()[:most, 0]
        rows[name] = {"read": _words(tokenizer, every.tokens[at])}
        for way, one in logits.items():
            rows[name][way] = _words(tokenizer, one[at].argmax(-1))
    return pd.DataFrame.from_dict(rows, "index")


def _words(tokenizer: PreTrainedTokenizerBase, tokens: Int[Tensor, " token"]) -> str:
    return ", ".join(repr(tokenizer.decode([t])) for t in tokens.tolist())
