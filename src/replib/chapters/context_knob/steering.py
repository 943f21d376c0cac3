"""One direction of the residual stream at the last token: set, exchanged, learned; and the search
for the attention layers that matter (Minder et al., 2411.07404, Sec. 5 and 6).

Prompts are `generation.Prefilled`: whatever is done at the last token costs one token a prompt.
Interchange and its learning (DAS) are TransformerLens' own.
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
    fit_das,
    intervened_logits,
)

from replib.errors import UsageError
from replib.interventions.budget import at_once
from replib.interventions.generation import Prefilled

# The released code's prompt (das.py): whatever the last position holds is repeated.
IDENTITY_PROMPT = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"
ROWS = at_once(512)  # of one batch


def _resid(layer: int) -> str:
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

    with model.hooks(fwd_hooks=[(_resid(layer), write)]):
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
    change: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Float[Tensor, "value row d_vocab"]:
    """Logits at END of all prompts under change(h, direction, c) at a layer, `edited`, for c each
    of the values in turn; in one batch."""
    n, k = len(prompts), len(values)
    c = torch.tensor(values).repeat_interleave(n)
    with torch.no_grad(), edited(prompts.model, layer, change, direction, c):
        return prompts.step(torch.arange(n).repeat(k)).cpu().unflatten(0, (k, n))


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
        _resid(layer),
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


def learn_direction(
    prompts: Prefilled,
    layer: int,
    base: Int[Tensor, " row"],
    source: Int[Tensor, " row"],
    target: Int[Tensor, " row"],
    *,
    epochs: int,
    seed: int,
) -> Float[Tensor, " d_model"]:
    """The unit direction whose exchange makes the prompts `base` say `target` (DAS of rank 1).
    Cross-entropy on the first token of the source's answer, as in the released code (das.py); its
    sign is arbitrary."""
    result = fit_das(
        prompts.model,
        _resid(layer),
        base,
        source,
        target,
        prompts.step,
        rank=1,
        base_positions=torch.zeros_like(base),
        source_positions=torch.zeros_like(source),
        epochs=epochs,
        batch_size=32,
        lr=1e-2,
        seed=seed,
    )
    return result.basis[:, 0].detach().float().cpu()


def attention_outputs(
    prompts: Prefilled, rows: Int[Tensor, " row"]
) -> Float[Tensor, "layer row d_model"]:
    """The output of every attention layer at the last token."""
    return _observe(prompts, rows, _attn)


def residuals(
    prompts: Prefilled, rows: Int[Tensor, " row"] | None = None
) -> Float[Tensor, "layer row d_model"]:
    """The output of every layer at the last token."""
    return _observe(prompts, torch.arange(len(prompts)) if rows is None else rows, _resid)


def _observe(
    prompts: Prefilled,
    rows: Int[Tensor, " row"],
    name: Callable[[int], str],
    edits: Sequence[tuple[str, Callable]] = (),
) -> Float[Tensor, "layer row d_model"]:
    seen: dict[int, Tensor] = {}

    def keep(layer: int, value: Tensor, hook: object) -> None:
        seen[layer] = value[:, -1].detach()

    layers = range(prompts.model.cfg.n_layers)
    watch = [(name(layer), partial(keep, layer)) for layer in layers]
    with torch.no_grad(), prompts.model.hooks(fwd_hooks=[*edits, *watch]):
        prompts.step(rows)
    return torch.stack([seen[layer] for layer in layers])


def patched_residuals(
    prompts: Prefilled,
    rows: Int[Tensor, " row"],
    outputs: Float[Tensor, "layer row d_model"],
    sets: Bool[Tensor, "set layer"],
) -> Float[Tensor, "layer set row d_model"]:
    """Every layer's output at the last token with the attention outputs of the layers of each set
    replaced, there, by `outputs` (*denoising* or *noising*: the caller's `outputs` decide)."""
    n_sets, n_rows = len(sets), len(rows)

    def patch(layer: int, value: Tensor, hook: object) -> Tensor:
        chosen = sets[:, layer].repeat_interleave(n_rows)
        out = value.clone()
        out[chosen, -1] = outputs[layer].repeat(n_sets, 1)[chosen]
        return out

    edits = [(_attn(layer), partial(patch, layer)) for layer in range(sets.shape[1])]
    found = _observe(prompts, rows.repeat(n_sets), _resid, edits)
    return found.unflatten(1, (n_sets, n_rows))


def patchscope(
    model: TransformerBridge,
    residuals: Float[Tensor, "layer row d_model"],
    tokens: Int[Tensor, "row candidate"],
    first: Int[Tensor, " row"] | None = None,
) -> Float[Tensor, "layer row candidate"]:
    """How probable are `tokens`, read from each layer's residual by a token-identity prompt? A
    residual of layer l replaces the output of layer l at the last position of `IDENTITY_PROMPT`
    (Ghandeharioun et al., 2401.06102; Minder et al., Fig. 2). Layers before a row's `first` are not
    read and get 0."""
    identity = Prefilled(model, [IDENTITY_PROMPT])
    n_layers, n_rows = residuals.shape[:2]
    found = torch.zeros(n_layers, n_rows, tokens.shape[1])
    start = torch.zeros(n_rows) if first is None else first
    jobs = (torch.arange(n_layers)[:, None] >= start).nonzero()

    def insert(some: Tensor, layer: int, value: Tensor, hook: object) -> Tensor:
        out, mine = value.clone(), some[:, 0] == layer
        out[mine, -1] = residuals[layer, some[mine, 1]].to(out)
        return out

    for some in jobs.split(ROWS):
        layers = some[:, 0].unique().tolist()
        edits = [(_resid(layer), partial(insert, some, layer)) for layer in layers]
        with torch.no_grad(), model.hooks(fwd_hooks=edits):
            logits = identity.step(torch.zeros(len(some), dtype=torch.long))
        wanted = tokens[some[:, 1]].to(logits.device)
        p = (logits.gather(1, wanted) - logits.logsumexp(-1, keepdim=True)).exp().cpu()
        found[some[:, 0], some[:, 1]] = p
    return found


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
