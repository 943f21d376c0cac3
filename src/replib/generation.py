"""Greedy continuation of prompts while some heads are scaled, and the loss on a neutral text.

Scaling acts at *every* position, of the prompt and of what is generated, as in Yu et al.
(2310.15910; scale_graph.py of the released code). There a head's value vectors are multiplied;
with grouped-query attention a value vector serves several query heads, so here the head's output z
is multiplied instead, which is the same thing for a head with values of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from replib.errors import UsageError
from replib.interventions import Head

MAX_TOKENS = 4_096  # prompts × positions of one batch

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
    are gone afterwards, whatever happened.

    Raises:
        UsageError: a head that does not exist.
        RuntimeError: a head that was to be scaled saw no forward pass.
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
    """One product for the logits of all rows: of a strided slice torch makes one product a row,
    and each of them reads the whole vocabulary matrix (half of the time, in gemma3-270m)."""
    hook = network.get_output_embeddings().register_forward_pre_hook(
        lambda module, args: (args[0].contiguous(), *args[1:])
    )
    try:
        yield
    finally:
        hook.remove()


def continuations(
    model: TransformerBridge,
    prompts: Sequence[str],
    n_new: int,
    scales: Mapping[Head, float] | None = None,
    settled: Callable[[int, str], bool] = lambda index, text: False,
) -> list[str]:
    """The greedy continuation of each prompt, at most `n_new` tokens, with some heads scaled.

    `settled(index, text)` says that prompt `index` needs no more than `text`; its row leaves the
    batch, as it does after an end-of-text token. Shorter prompts are padded on the left, out of
    sight of the others: reading the weights once for many rows is what takes least time here. Keys
    and values are kept from one token to the next.
    """
    tokenizer, network = model.tokenizer, model.original_model
    device = next(network.parameters()).device
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(ids[i]))
    texts = [""] * len(prompts)
    scaling = scaled_heads(model, scales if prompts and scales else {})
    with torch.inference_mode(), one_readout(network), scaling:
        while by_length:
            width = len(ids[by_length[-1]])
            size = max(1, MAX_TOKENS // width)
            rows, by_length = by_length[-size:], by_length[:-size]
            gap = torch.tensor([width - len(ids[i]) for i in rows], device=device)
            step = torch.tensor([[0] * (width - len(ids[i])) + ids[i] for i in rows], device=device)
            new: dict[int, list[int]] = {i: [] for i in rows}
            past = None
            for n in range(n_new):
                places = torch.arange(width + n, device=device) - gap[:, None]
                out = network(
                    step,
                    attention_mask=(places >= 0).long(),
                    position_ids=places[:, -step.shape[1] :].clamp_min(0),
                    past_key_values=past,
                    use_cache=True,
                    logits_to_keep=1,
                )
                past = out.past_key_values
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
                    kept = torch.tensor(stay, device=device)
                    past.batch_select_indices(kept)
                    rows, gap = [rows[at] for at in stay], gap[kept]
                step = torch.tensor([[new[i][-1]] for i in rows], device=device)
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
