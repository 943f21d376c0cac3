"""What a model computes on the way, kept."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


def activations(
    model: TransformerBridge, tokens: Int[Tensor, "prompt pos"], wanted: Callable[[str], bool]
) -> dict[str, Tensor]:
    """The activations of one forward pass whose bridge names are `wanted`, by name.

    The readout is cut to one position: logits are not needed.
    """
    seen: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: object) -> None:
        seen[hook.name] = value

    def last_only(value: Tensor, hook: object) -> Tensor:
        return value[:, -1:]

    hooks = [(wanted, keep), ("unembed.hook_in", last_only)]
    with torch.inference_mode():
        model.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks)
    if not seen:
        raise RuntimeError("no activation matched: a name filter that matches nothing is silent")
    return seen
