"""What the page on subspaces changes: prompts about number (is or are?), and the residual stream at
their nouns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.interchange import intervened_logits
from transformers import PreTrainedTokenizerBase

from replib.prompts.ioi import ioi_pairs
from replib.prompts.pairs import of_one_length
from replib.prompts.tokens import single_tokens

NOUNS = "dog cat boy girl book car tree house student teacher doctor friend window door horse bird"
LEAST = 8  # nouns; with fewer known ones, prompts are about names
Change = Callable[[Tensor, Tensor], Tensor]  # of streams [prompt d_model], given the sources'


@dataclass(frozen=True)
class NumberPrompts:
    """For every noun "The dog here" and "The dogs here": each a base, whose source is the other.
    All singular prompts come first, then, in the same order, all plural ones."""

    base: Int[Tensor, "prompt pos"]
    verb: Int[Tensor, "prompt 2"]  # the next token that is right: of the base, of its source
    noun: Int[Tensor, " prompt"]  # which noun, counted from 0
    number: Int[Tensor, " prompt"]  # 0 singular, 1 plural
    place: Int[Tensor, " prompt"]  # of the noun, the only token in which base and source differ
    text: tuple[str, ...]  # of the base
    verb_text: tuple[tuple[str, str], ...]
    n_known: int  # nouns that the tokenizer has as one token; below LEAST, prompts are about names

    def of_source(self, x: Tensor) -> Tensor:
        """For something of each base [prompt ...], the same of its source, which is a base too."""
        return x.roll(len(x) // 2, 0)


def number_prompts(tokenizer: PreTrainedTokenizerBase, seed: int) -> NumberPrompts:
    """A pair for every noun that is one token in both numbers. A tokenizer that knows fewer than
    LEAST such nouns gets up to LEAST pairs of the IOI task (whose two names are then the two
    "numbers"), so that a notebook runs."""
    one = single_tokens(tokenizer, NOUNS.split())
    many = single_tokens(tokenizer, [f"{noun}s" for noun in one])
    verbs = list(single_tokens(tokenizer, ["is", "are"]).values())
    nouns = [noun for noun in one if f"{noun}s" in many] if len(verbs) == 2 else []
    if len(nouns) >= LEAST:
        text = [f"The {noun} here" for noun in nouns] + [f"The {noun}s here" for noun in nouns]
        base = torch.tensor(tokenizer(text).input_ids)
        verb = torch.tensor([verbs] * len(nouns))
    else:
        pairs = of_one_length(ioi_pairs(tokenizer, 60, seed), LEAST)
        text = [*pairs.text, *pairs.corrupted_text]
        base = torch.cat([pairs.clean, pairs.corrupted])
        verb = torch.stack([pairs.answer, pairs.foil], 1)
    n = len(verb)
    index = torch.arange(2 * n)
    place = (base != base.roll(n, 0)).int().argmax(1)
    verb = torch.cat([verb, verb.flip(1)])
    words = tuple((a.strip(), b.strip()) for a, b in map(tokenizer.batch_decode, verb[:, :, None]))
    return NumberPrompts(base, verb, index % n, index // n, place, tuple(text), words, len(nouns))


def last_logits(
    model: TransformerBridge, tokens: Int[Tensor, "prompt pos"]
) -> Float[Tensor, "prompt d_vocab"]:
    """What the model says after the last token."""
    with torch.inference_mode():
        return model(tokens)[:, -1].cpu()


def streams(
    model: TransformerBridge, prompts: NumberPrompts
) -> Float[Tensor, "prompt layer d_model"]:
    """The residual stream at the noun of every base, before each layer."""
    with torch.inference_mode():
        _, cache = model.run_with_cache(prompts.base)
    at = torch.arange(len(prompts.base)), prompts.place
    each = [cache["resid_pre", layer][at] for layer in range(model.cfg.n_layers)]
    return torch.stack(each, 1).float().cpu()


def logits_after(
    model: TransformerBridge,
    prompts: NumberPrompts,
    streams: Float[Tensor, "prompt layer d_model"],
    layer: int,
    change: Change,
    rows: Bool[Tensor, " prompt"] | Int[Tensor, " some"],
) -> Float[Tensor, "some d_vocab"]:
    """Next-token logits of the base prompts `rows` when `change(x, source)` takes the place of the
    stream x at the noun, before `layer`. `streams`: of all bases, as `streams` returns them."""

    def logits(tokens: Tensor) -> Tensor:
        return model(tokens)[:, -1]

    hook, base, place = f"blocks.{layer}.hook_resid_pre", prompts.base[rows], prompts.place[rows]
    source = prompts.of_source(streams)[rows, layer]
    return intervened_logits(model, hook, change, base, source, logits, positions=place)


def verb_shares(
    prompts: NumberPrompts, rows: Sequence[int], p: Float[Tensor, "step some 2"]
) -> Mapping[str, Mapping[str, list[float]]]:
    """For `figures.slider`: of each prompt in `rows` the share of either verb in the probability of
    both, and that of both together. `p`: the probabilities of the two verbs."""
    share = p / p.sum(-1, keepdim=True).clamp_min(1e-12)
    return {
        f"{prompts.text[row]} …": {
            f"{prompts.verb_text[row][0]}, of the two verbs": share[:, i, 0].tolist(),
            f"{prompts.verb_text[row][1]}, of the two verbs": share[:, i, 1].tolist(),
            "either, of all tokens": p[:, i].sum(-1).tolist(),
        }
        for i, row in enumerate(rows)
    }
