"""Many variants of a prompt at once, at the last token, from the layer on that differs.

What is done at the last token leaves the keys and values of a prompt as they are (`Prefilled`). So
variants of one prompt, such as 20 directions, stand side by side as positions that see the prompt
and themselves: keys and values are read once for all of them, where a batch would copy them for
each. Layers below the first edit give what they gave before, and are not run. Logits are taken of
the tokens in question only: in gemma3-270m the whole vocabulary costs more than all layers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from replib.interventions.budget import at_once
from replib.interventions.generation import Prefilled

Start = tuple[int, Float[Tensor, "row copy d_model"]]  # a layer, and its output to go on from
POSITIONS = at_once(512)  # of one pass: prompts × variants


@contextmanager
def starting_at(model: TransformerBridge, start: Start | None) -> Iterator[None]:
    """While it is open, the output of layer `start[0]` is `start[1]`, and no layer below is run."""
    if start is None:
        yield
        return
    layer, h = start
    blocks = [model.blocks[at] for at in range(layer + 1)]
    try:
        for block in blocks[:-1]:
            vars(block)["forward"] = lambda hidden, *_, **__: hidden
        vars(blocks[-1])["forward"] = lambda hidden, *_, **__: blocks[-1].hook_out(h.to(hidden))
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward")  # the class's own is seen again


def final_states(
    prompts: Prefilled,
    rows: Int[Tensor, " row"],
    copies: int = 1,
    start: Start | None = None,
) -> Float[Tensor, "row copy d_model"]:
    """The last token's state after the final norm, of `copies` variants of each prompt. Hooks see
    [row copy d_model]; without one, all variants are the same."""
    gap, width = prompts.gap[rows], prompts.width
    index = torch.arange(width, device=prompts.device)
    hidden = (index >= prompts.common) & (index < prompts.common + gap[:, None])  # padding
    own = ~torch.eye(copies, dtype=torch.bool, device=prompts.device)  # other variants
    shape = len(rows), copies
    unseen = torch.cat([hidden[:, None].expand(*shape, width), own.expand(len(rows), -1, -1)], -1)
    with starting_at(prompts.model, start):
        return prompts.network.base_model(
            prompts.last[rows].expand(shape),
            attention_mask=_masks(prompts.network, unseen, width),
            position_ids=(width - gap)[:, None].expand(shape),
            past_key_values=prompts.past(rows),
            use_cache=True,
        ).last_hidden_state


def _masks(
    network: torch.nn.Module, unseen: Bool[Tensor, "row copy key"], width: int
) -> Tensor | dict[str, Tensor]:
    """What is added to the attention scores; for a model of layers with a window, by their kind."""
    dtype = next(network.parameters()).dtype

    def mask(unseen: Bool[Tensor, "row copy key"]) -> Float[Tensor, "row 1 copy key"]:
        zero = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device)
        return zero.masked_fill(unseen, torch.finfo(dtype).min)[:, None]

    kinds = set(getattr(network.config, "layer_types", None) or ())
    if "sliding_attention" not in kinds:
        return mask(unseen)
    far = torch.arange(unseen.shape[-1], device=unseen.device) <= width - (
        network.config.sliding_window
    )
    return {"full_attention": mask(unseen), "sliding_attention": mask(unseen | far)}


def logits(
    prompts: Prefilled,
    h: Float[Tensor, "*batch d_model"],
    tokens: Int[Tensor, " token"] | None = None,
) -> Float[Tensor, "*batch token"]:
    """Logits of some tokens, or of all, from final states."""
    head = prompts.network.get_output_embeddings()
    head = getattr(head, "original_component", head)
    at = slice(None) if tokens is None else tokens.to(h.device)
    bias = None if getattr(head, "bias", None) is None else head.bias[at]
    out = torch.nn.functional.linear(h, head.weight[at], bias).float()
    if cap := getattr(prompts.network.config, "final_logit_softcapping", None):
        out = (out / cap).tanh() * cap
    return out


def between(
    prompts: Prefilled,
    h: Float[Tensor, "row copy d_model"],
    answers: Int[Tensor, "row answer"],
) -> Float[Tensor, "row copy answer"]:
    """Logits of each row's own answers, from final states."""
    of_all = logits(prompts, h, answers.flatten().unique())
    at = torch.searchsorted(answers.flatten().unique(), answers).to(h.device)
    return of_all.gather(-1, at[:, None].expand(-1, h.shape[1], -1)).cpu()


def chunks(rows: Int[Tensor, " row"], copies: int) -> tuple[Int[Tensor, " _"], ...]:
    """The rows in parts that are run together."""
    return rows.split(max(1, POSITIONS // copies))
