"""One direction of the residual stream at the last token: set, exchanged, learned; and the search
for the attention layers that matter (Minder et al., 2411.07404, Sec. 5 and 6).

Prompts are `generation.Prefilled`: whatever is done at the last token costs one token a prompt.
Interchange is TransformerLens' own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.interchange import (
    SubspaceInterchange,
    intervened_logits,
)

from replib.chapters.context_knob import last_token
from replib.errors import UsageError
from replib.interventions.budget import at_once
from replib.interventions.generation import Prefilled

# The released code's prompt (das.py): whatever the last position holds is repeated.
IDENTITY_PROMPT = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"
ROWS = at_once(512)  # of one batch


def resid_name(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def _attn(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_out"


@contextmanager
def edited(
    model: TransformerBridge,
    layer: int,
    change: Callable[..., Tensor],
    *arguments: Any,
    everywhere: bool = False,
) -> Iterator[None]:
    """While it is open, `change(h, *arguments)` takes the place of a layer's output h at the last
    position of every forward pass: h is [row d_model], in float32. With `everywhere` all positions
    are changed, and h is [row pos d_model].

    Around `Prefilled.step` and `.continuations` this is every decoding step. Tensors among the
    arguments go where h is. Raises UsageError for a layer that does not exist, RuntimeError where
    no forward pass went through.
    """
    if not 0 <= layer < model.cfg.n_layers:
        raise UsageError(f"no layer {layer}: this model has layers 0 to {model.cfg.n_layers - 1}")
    fired = 0

    def write(h: Float[Tensor, "row pos d_model"], hook: object) -> Tensor:
        nonlocal fired
        fired += 1
        out, here = h.clone(), slice(None) if everywhere else -1
        given = [x.to(h.device) if isinstance(x, Tensor) else x for x in arguments]
        out[:, here] = change(h[:, here].float(), *given).to(h.dtype)
        return out

    with model.hooks(fwd_hooks=[(resid_name(layer), write)]):
        yield
    if not fired:
        raise RuntimeError(f"the edit of layer {layer} saw no forward pass")


def steered(
    model: TransformerBridge,
    layer: int,
    direction: Float[Tensor, " d_model"],
    c: float | Float[Tensor, " row"],
    everywhere: bool = False,
) -> AbstractContextManager[None]:
    """`edited` with h <- h - u (u·h) + c u, u the unit `direction`; `c` is one number, or one for
    each row."""
    u = direction / direction.norm()
    values = torch.as_tensor(c).float().reshape(-1, *[1] * everywhere)  # row, or row pos

    def set_coordinate(h: Tensor, u: Tensor, values: Tensor) -> Tensor:
        return h + (values - h @ u)[..., None] * u

    return edited(model, layer, set_coordinate, u, values, everywhere=everywhere)


def swept(
    prompts: Prefilled,
    direction: Float[Tensor, " d_model"],
    values: Sequence[float],
    *,
    layer: int,
    states: Float[Tensor, "row d_model"],
    change: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Float[Tensor, "row value d_model"]:
    """Final states of all prompts under change(h, direction, c) at a layer, for c each of the
    values; `states` are the layer's outputs at the last token."""
    c, found = torch.as_tensor(values).float(), []
    for rows in last_token.chunks(torch.arange(len(prompts)), len(c)):
        start = layer, states[rows, None].expand(-1, len(c), -1)
        edit = edited(prompts.model, layer, change, direction, c, everywhere=True)
        with torch.no_grad(), edit:
            found.append(last_token.final_states(prompts, rows, len(c), start))
    return torch.cat(found)


def changed_logits(
    prompts: Prefilled,
    layer: int,
    change: Callable[[Tensor, Tensor], Tensor],
    base: Int[Tensor, " row"],
    given: Float[Tensor, "row d_model"],
) -> Float[Tensor, "row d_vocab"]:
    """Logits at END of the prompts `base` when a layer's output h at the last token, [row d_model]
    in the model's dtype, becomes change(h, given): `given` are `residuals` of other prompts."""
    return intervened_logits(
        prompts.model,
        resid_name(layer),
        change,
        base,
        given,
        prompts.step,
        positions=torch.zeros_like(base),
        batch_size=ROWS,
    )


def interchange(
    prompts: Prefilled,
    layer: int,
    direction: Float[Tensor, " d_model"],
    base: Int[Tensor, " row"],
    given: Float[Tensor, "row d_model"],
) -> Float[Tensor, "row d_vocab"]:
    """`changed_logits` where only the component along the direction becomes that of `given`."""
    u = direction / direction.norm()
    return changed_logits(prompts, layer, SubspaceInterchange(u[:, None]), base, given)


def attention_outputs(
    prompts: Prefilled, rows: Int[Tensor, " row"]
) -> Float[Tensor, "layer row d_model"]:
    """The output of every attention layer at the last token."""
    return _observe(prompts, rows, _attn)


def residuals(
    prompts: Prefilled, rows: Int[Tensor, " row"] | None = None
) -> Float[Tensor, "layer row d_model"]:
    """The output of every layer at the last token."""
    return _observe(prompts, torch.arange(len(prompts)) if rows is None else rows, resid_name)


def _observe(
    prompts: Prefilled, rows: Int[Tensor, " row"], name: Callable[[int], str]
) -> Float[Tensor, "layer row d_model"]:
    seen: dict[int, Tensor] = {}
    layers = range(prompts.model.cfg.n_layers)
    watch = [(name(layer), partial(_keep, seen, layer)) for layer in layers]
    with torch.no_grad(), prompts.model.hooks(fwd_hooks=watch):
        last_token.final_states(prompts, rows)
    return torch.stack([seen[layer][:, 0] for layer in layers])


def _keep(seen: dict[int, Tensor], layer: int, value: Tensor, hook: object) -> None:
    seen[layer] = value.detach()


def patched(
    prompts: Prefilled,
    rows: Int[Tensor, " row"],
    outputs: Float[Tensor, "layer row d_model"],
    sets: Bool[Tensor, "set layer"],
    start: last_token.Start | None = None,
) -> tuple[Float[Tensor, "layer set row d_model"], Float[Tensor, "set row d_model"]]:
    """Every layer's output at the last token, and the final states, with the attention outputs of
    the layers of each set replaced, there, by `outputs` (*denoising* or *noising*: the caller's
    `outputs` decide). The sets stand side by side. With a `start`, only layers from it on."""
    seen: dict[int, Tensor] = {}
    layers = range(sets.shape[1])

    def patch(layer: int, value: Tensor, hook: object) -> Tensor:
        here = sets[:, layer].to(value.device)
        return torch.where(here[:, None], outputs[layer][:, None].to(value), value)

    edits = [(_attn(layer), partial(patch, layer)) for layer in layers]
    watch = [(resid_name(layer), partial(_keep, seen, layer)) for layer in layers]
    with torch.no_grad(), prompts.model.hooks(fwd_hooks=[*edits, *watch]):
        final = last_token.final_states(prompts, rows, len(sets), start)
    states = torch.stack([seen[layer] for layer in sorted(seen)])
    return states.transpose(1, 2), final.transpose(0, 1)


def patchscope(
    model: TransformerBridge,
    residuals: Float[Tensor, "layer row d_model"],
    layers: Sequence[int],
    words: Int[Tensor, " word"] | None = None,
) -> Float[Tensor, "read row word"]:
    """Probabilities of `words` (of all tokens), among themselves, as a token-identity prompt reads
    them from the residuals of some layers. A residual of layer l replaces the output of layer l at
    the last position of `IDENTITY_PROMPT` (Ghandeharioun et al., 2401.06102; Minder et al., Fig.
    2)."""
    identity = Prefilled(model, [IDENTITY_PROMPT])
    found = []
    for layer in layers:
        parts = []
        for h in residuals[layer].split(ROWS):
            with torch.no_grad():
                start = layer, h[None]
                out = last_token.final_states(identity, torch.tensor([0]), len(h), start)
                parts.append(last_token.logits(identity, out[0], words).softmax(-1).cpu())
        found.append(torch.cat(parts))
    return torch.stack(found)


@dataclass(frozen=True)
class LayerSearch:
    """What the search found."""

    layers: tuple[int, ...]
    upper: int  # patched: [lower, upper), before anything was added
    lower: int
    evaluations: int


def search_layers(
    score: Callable[[list[tuple[int, ...]]], Float[np.ndarray, "set layer answer"]],
    n_layers: int,
    threshold: float,
    phi: float = 0.05,
    eps: float = 0.3,
) -> LayerSearch | None:
    """The released code's `auto_search` (das.py): which attention layers carry the source's answer?

    `score(sets)` gives, for each set of patched layers, the probability of the source's and of the
    target's answer read from every layer. 1. The smallest U such that patching [0, U) brings the
    source's answer above `threshold` at some layer. 2. The largest L such that [L, U) still does.
    3. While the last layer does not prefer the source's answer by more than `eps`, the first later
    layer at which its probability drops by more than `phi` is added. Steps 1 and 2 bisect,
    which assumes that patching more layers never hurts. None if patching all of them is not enough.
    """

    @cache
    def read(layers: tuple[int, ...]) -> Float[np.ndarray, "layer answer"]:
        return score([layers])[0]

    def enough(low: int, high: int) -> bool:
        return bool(read(tuple(range(low, high)))[:, 0].max() > threshold)

    def first(high: int, holds: Callable[[int], bool]) -> int:
        """The smallest number above 0 of which something holds, as it does of `high`."""
        low = 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        return high

    if not enough(0, n_layers):
        return None
    upper = first(n_layers, lambda layer: enough(0, layer))
    lower = first(upper, lambda layer: not enough(layer, upper)) - 1
    layers = list(range(lower, upper))
    while not (p := read(tuple(layers)))[-1, 0] > p[-1, 1] + eps:
        drops = p[:-1, 0] - p[1:, 0]
        later = [i + 1 for i in range(upper - 1, n_layers - 1) if drops[i] > phi]
        added = next((layer for layer in later if layer not in layers), None)
        if added is None:
            break
        layers.append(added)
    return LayerSearch(tuple(sorted(layers)), upper, lower, read.cache_info().misses)
