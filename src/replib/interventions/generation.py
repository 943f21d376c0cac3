"""Greedy continuation of prompts while some heads are scaled, and the loss on a neutral text.

Scaling acts at *every* position, of the prompt and of what is generated, as in Yu et al.
(2310.15910; scale_graph.py of the released code). There a head's value vectors are multiplied;
with grouped-query attention a value vector serves several query heads, so here the head's output z
is multiplied instead, which is the same thing for a head with values of its own.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from replib.errors import UsageError
from replib.interventions.budget import at_once
from replib.interventions.network import Head

MAX_TOKENS = at_once(8_192)  # prompts × positions of one batch
MIN_COMMON = 16  # tokens of a common beginning that are worth a pass of their own
# Our own words on nothing in particular: no country, no question, nothing to recall.
NEUTRAL_TEXT = (
    "The path along the stream was still wet from the rain of the night before. Two children had "
    "left their shoes on a flat stone and were building a small wall out of gravel, which the "
    "water took apart as fast as they could add to it. An old man watched them for a while, then "
    "sat down on the bench and opened his newspaper. It was warm enough to sit without a coat. "
    "From the mill came the slow sound of the wheel, and now and then a door that nobody had "
    "closed was moved by the wind. When the bell rang for lunch the children put on their shoes, "
    "threw the last handful of stones into the stream, and ran up the hill to the house."
)


@contextmanager
def scaled_heads(model: TransformerBridge, scales: Mapping[Head, float]) -> Iterator[None]:
    """While it is open, every forward pass has the outputs z of these heads times their factor.

    A hook in front of the output projection multiplies one query head's slice of its input: other
    heads, also those that share a value vector, keep theirs. No weight is touched, and the hooks
    are gone afterwards, whatever happened. UsageError for a head that does not exist, RuntimeError
    if one that was to be scaled saw no forward pass.
    """
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    by_layer: dict[int, dict[int, float]] = {}
    for (layer, head), alpha in scales.items():
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise UsageError(
                f"no head L{layer}H{head}: this model has {n_layers} layers of {n_heads} heads"
            )
        by_layer.setdefault(layer, {})[head] = alpha
    fired: set[int] = set()

    def scale_of(layer: int) -> Callable:
        def scale(module: torch.nn.Module, args: tuple) -> tuple:
            z = args[0].unflatten(-1, (n_heads, -1)).clone()
            for head, alpha in by_layer[layer].items():
                z[..., head, :] *= alpha
            fired.add(layer)
            return (z.flatten(-2), *args[1:])

        return scale

    hooks = [
        model.blocks[layer].attn.o.original_component.register_forward_pre_hook(scale_of(layer))
        for layer in by_layer
    ]
    try:
        yield
        if fired != set(by_layer):
            missed = sorted(set(by_layer) - fired)
            raise RuntimeError(f"scaled heads of layers {missed} saw no forward pass")
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def one_readout(network: torch.nn.Module) -> Iterator[None]:
    """While it is open, the logits of all rows come out of one matrix product. Of a strided slice
    torch makes one product a row, and each of them reads the whole vocabulary matrix (half of the
    time, in gemma3-270m)."""
    hook = network.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: (args[0].contiguous(), *args[1:])
    )
    try:
        yield
    finally:
        hook.remove()


def check_cache(network: torch.nn.Module) -> None:
    """UsageError unless the model keeps keys and values of all layers, as continuing needs."""
    reads = inspect.signature(network.forward).parameters
    kinds = set(getattr(network.config, "layer_types", None) or ())
    other = kinds - {"full_attention", "sliding_attention", "chunked_attention"}  # LFM2: conv
    if "past_key_values" not in reads or network._is_stateful or other:
        what = "keeps no keys and values in every layer, which continuing a prompt needs"
        raise UsageError(f"this model ({type(network).__name__}) {what}")


class Prefilled:
    """Prompts read up to their last token, with keys and values kept: what comes after that costs
    one token a prompt, however often it is asked for.

    What all prompts begin with alike (a system message, demonstrations) is read once. The rest is
    padded in front, out of sight; beyond a model's sliding window the padding counts as distance.
    Everything stays in the order of the prompts.
    """

    def __init__(self, model: TransformerBridge, prompts: Sequence[str]):
        self.model, self.network = model, model.original_model
        self.device = next(self.network.parameters()).device
        ids = [model.tokenizer(prompt).input_ids for prompt in prompts]
        common = _n_common(ids)
        width = max(map(len, ids)) - common - 1
        gaps = [common + width + 1 - len(row) for row in ids]
        self.gap = torch.tensor(gaps, device=self.device)
        self.common, self.width = common, common + width  # tokens kept, padding included
        self.last = torch.tensor([[row[-1]] for row in ids], device=self.device)
        cache = DynamicCache()
        with torch.no_grad(), one_readout(self.network):
            if common:
                cache = self._read([ids[0][:common]], cache, 0, torch.zeros_like(self.gap[:1]))
                cache.batch_repeat_interleave(len(ids))
            if width:
                rest = [[0] * gap + row[common:-1] for gap, row in zip(gaps, ids, strict=True)]
                cache = self._read(rest, cache, common, self.gap)
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]

    def __len__(self) -> int:
        return len(self.last)

    def _read(
        self, rows: list[list[int]], cache: DynamicCache, begun: int, gap: Int[Tensor, " row"]
    ) -> DynamicCache:
        step = torch.tensor(rows, device=self.device)
        mask, places = self._places(begun + step.shape[1], gap)
        return self.network(
            step,
            attention_mask=mask,
            position_ids=places[:, begun:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values

    def _places(self, n: int, gap: Int[Tensor, " row"]) -> tuple[Tensor, Tensor]:
        """Attention mask and positions of the first `n` kept tokens of rows with these gaps."""
        index = torch.arange(n, device=self.device).expand(len(gap), n)
        padded = (index >= self.common) & (index < self.common + gap[:, None])
        places = torch.where(index < self.common, index, index - gap[:, None])
        return (~padded).long(), places.clamp_min(0)

    def past(self, rows: Int[Tensor, " row"] | slice = slice(None)) -> DynamicCache:
        """A fresh cache for these prompts."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._layers):
            cache.update(keys[rows], values[rows], layer)
        return cache

    def step(self, rows: Int[Tensor, " row"] | slice = slice(None)) -> Float[Tensor, "row d_vocab"]:
        """Logits at END of these prompts (a prompt may come several times). Hooks see one position;
        gradients flow to whatever a hook writes."""
        gap, tokens = self.gap[rows], self.last[rows]
        mask, places = self._places(self.width + 1, gap)
        with one_readout(self.network):
            out = self.network(
                tokens,
                attention_mask=mask,
                position_ids=places[:, -1:],
                past_key_values=self.past(rows),
                use_cache=True,
                logits_to_keep=1,
            )
        return out.logits[:, -1].float()

    def continuations(
        self, n_new: int, settled: Callable[[int, str], bool] = lambda index, text: False
    ) -> list[str]:
        """The greedy continuation of each prompt, at most `n_new` tokens. `settled(index, text)`
        says that prompt `index` needs no more than `text`; its row leaves the batch, as it does
        after an end-of-text token."""
        tokenizer = self.model.tokenizer
        rows = list(range(len(self)))
        texts, new = [""] * len(rows), {i: [] for i in rows}
        gap, step, past = self.gap, self.last, self.past()
        with torch.inference_mode(), one_readout(self.network):
            for n in range(n_new):
                mask, places = self._places(self.width + 1 + n, gap)
                out = self.network(
                    step,
                    attention_mask=mask,
                    position_ids=places[:, -1:],
                    past_key_values=past,
                    use_cache=True,
                    logits_to_keep=1,
                )
                chosen = out.logits[:, -1].argmax(-1).tolist()
                stay = []
                for at, (i, token) in enumerate(zip(rows, chosen, strict=True)):
                    if token == tokenizer.eos_token_id:
                        continue
                    new[i].append(token)
                    texts[i] = tokenizer.decode(new[i])
                    if not settled(i, texts[i]):
                        stay.append(at)
                if not stay:
                    break
                if len(stay) < len(rows):
                    kept = torch.tensor(stay, device=self.device)
                    past.batch_select_indices(kept)
                    rows, gap = [rows[at] for at in stay], gap[kept]
                step = torch.tensor([[new[i][-1]] for i in rows], device=self.device)
        return texts


def _n_common(ids: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with alike, at least one besides the last being left to each
    row; 0 where they are too few to be worth a forward pass of their own."""
    shortest = min(map(len, ids)) - 2
    n = 0
    while n < shortest and len({row[n] for row in ids}) == 1:
        n += 1
    return n if n >= MIN_COMMON and len(ids) > 1 else 0


def continuations(
    model: TransformerBridge,
    prompts: Sequence[str],
    n_new: int,
    scales: Mapping[Head, float] | None = None,
    settled: Callable[[int, str], bool] = lambda index, text: False,
) -> list[str]:
    """The greedy continuation of each prompt, at most `n_new` tokens, with some heads scaled. See
    `Prefilled.continuations`. Prompts of about one length go together: reading the weights once for
    many rows is what takes least time here."""
    ids = [model.tokenizer(prompt).input_ids for prompt in prompts]
    common = _n_common(ids) if ids else 0
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    texts = [""] * len(prompts)
    with torch.inference_mode(), scaled_heads(model, scales if prompts and scales else {}):
        while order:
            longest = len(ids[order[-1]])  # read anew: all but the common part; kept: everything
            size = max(1, min(MAX_TOKENS // (longest - common), 4 * MAX_TOKENS // longest))
            rows, order = order[-size:], order[:-size]
            read = Prefilled(model, [prompts[i] for i in rows])
            found = read.continuations(n_new, lambda at, text, rows=rows: settled(rows[at], text))
            for i, text in zip(rows, found, strict=True):
                texts[i] = text
    return texts


def text_loss(
    model: TransformerBridge, text: str = NEUTRAL_TEXT, scales: Mapping[Head, float] | None = None
) -> Float[Tensor, " pos"]:
    """Loss in nats of each token of a text after its first, with some heads scaled at every
    position; the exponential of the mean is the perplexity."""
    device = next(model.original_model.parameters()).device
    ids = torch.tensor([model.tokenizer(text).input_ids], device=device)
    with torch.inference_mode(), scaled_heads(model, scales or {}):
        logits = model.original_model(ids).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
