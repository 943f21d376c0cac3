"""Mamba and Mamba-2 layers, exact and fast enough to train on a processor, in plain PyTorch.

Without its GPU kernels the library steps through time with autograd recording each step (Mamba) or
pads sequences to whole chunks (Mamba-2). Here Mamba is one loop forward and one backward over
preallocated states, and Mamba-2 the quadratic form of its duality with attention (Dao and Gu,
2405.21060, Sec. 6), which is cheap for the few hundred tokens of our strings. The short convolution
is a sum of shifted copies.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from replib.errors import UsageError

LONGEST = 1024  # tokens; the quadratic form takes as many numbers squared, for each head


@contextmanager
def fast_scans(network: nn.Module) -> Iterator[None]:
    """While it is open, the Mamba and Mamba-2 layers of a network compute whole sequences with our
    code; on a GPU with the library's kernels, which are faster, they are left alone. Calls with a
    cache, a padding mask or more than `LONGEST` tokens go to the library as before. Raises
    UsageError for another activation than silu, RuntimeError where a layer was never called."""
    mixers = [m for m in network.modules() if isinstance(m, MambaMixer | Mamba2Mixer)]
    other = next((m.activation for m in mixers if m.activation not in ("silu", "swish")), None)
    if other is not None:
        raise UsageError(f"fast scans: activation {other!r} is not supported; it must be silu")
    if any(_has_kernels(mixer) for mixer in mixers):
        yield
        return
    called: set[int] = set()
    try:
        for mixer in mixers:
            mixer.forward = partial(_forward, mixer, called)
        yield
        if missed := len(mixers) - len(called):
            raise RuntimeError(f"fast scans: {missed} of {len(mixers)} layers were never called")
    finally:
        for mixer in mixers:
            mixer.__dict__.pop("forward", None)


def _has_kernels(mixer: nn.Module) -> bool:
    return mixer.D.is_cuda and importlib.util.find_spec("mamba_ssm") is not None


def _forward(
    mixer: MambaMixer | Mamba2Mixer,
    called: set[int],
    hidden_states: Float[Tensor, "string pos d_model"],
    cache_params: Any = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Float[Tensor, "string pos d_model"]:
    called.add(id(mixer))
    if cache_params is not None or attention_mask is not None or hidden_states.shape[1] > LONGEST:
        own = type(mixer).forward
        return own(mixer, hidden_states, cache_params, attention_mask, **kwargs)
    return (mamba if isinstance(mixer, MambaMixer) else mamba2)(mixer, hidden_states)


def _convolve(mixer: nn.Module, x: Float[Tensor, "string pos d"]) -> Float[Tensor, "string pos d"]:
    """The causal depthwise convolution and silu."""
    weight, n = mixer.conv1d.weight[:, 0], x.shape[1]
    size = weight.shape[1]
    padded = nn.functional.pad(x, (0, 0, size - 1, 0))
    y = padded[:, :n] * weight[:, 0]
    for k in range(1, size):
        y = torch.addcmul(y, padded[:, k : k + n], weight[:, k])
    return nn.functional.silu(y if mixer.conv1d.bias is None else y + mixer.conv1d.bias)


def mamba(
    mixer: MambaMixer, hidden: Float[Tensor, "string pos d_model"]
) -> Float[Tensor, "string pos d_model"]:
    """One Mamba layer (Gu and Dao, 2312.00752, Alg. 2), as the library's `MambaMixer`."""
    x, gate = mixer.in_proj(hidden).chunk(2, dim=-1)
    x = _convolve(mixer, x)
    sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
    step, b, c = mixer.x_proj(x).split(sizes, dim=-1)
    step = nn.functional.softplus(mixer.dt_proj(step))
    y = SelectiveScan.apply(step, -mixer.A_log.exp(), b, c, x)
    y = (y + x * mixer.D) * nn.functional.silu(gate)
    return mixer.out_proj(y)


class SelectiveScan(torch.autograd.Function):
    """h_t = exp(step_t A) h_{t-1} + step_t b_t x_t, y_t = c_t h_t, for each channel, from h = 0.
    Inputs: step and x [string pos channel], A [channel state], b and c [string pos state]. States
    are kept with time first, so that a step of the loop reads and writes whole blocks."""

    @staticmethod
    def forward(ctx: Any, step: Tensor, a: Tensor, b: Tensor, c: Tensor, x: Tensor) -> Tensor:
        step, b, c, x = (tensor.transpose(0, 1).contiguous() for tensor in (step, b, c, x))
        decay = (step[..., None] * a).exp_()
        states = (step * x)[..., None] * b[..., None, :]
        for t in range(1, len(states)):
            states[t].addcmul_(decay[t], states[t - 1])
        y = (states @ c[..., None])[..., 0]
        ctx.save_for_backward(step, a, b, c, x, decay, states)
        return y.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        step, a, b, c, x, decay, states = ctx.saved_tensors
        grad = grad.transpose(0, 1).contiguous()
        g = grad[..., None] * c[..., None, :]  # of the states
        for t in range(len(g) - 2, -1, -1):
            g[t].addcmul_(decay[t + 1], g[t + 1])
        grad_c = (grad[..., None, :] @ states)[..., 0, :]
        grad_b = ((step * x)[..., None, :] @ g)[..., 0, :]
        written = (g @ b[..., None])[..., 0]  # of step x
        # g_t h_{t-1} decay_t: of step A
        exponent = torch.zeros_like(g)
        torch.mul(g[1:], states[:-1], out=exponent[1:])
        exponent[1:] *= decay[1:]
        grad_step = written * x + (exponent * a).sum(-1)
        grad_a = torch.einsum("tsdn,tsd->dn", exponent, step)
        grads = (grad_step, grad_b, grad_c, written * step)
        grad_step, grad_b, grad_c, grad_x = (tensor.transpose(0, 1) for tensor in grads)
        return grad_step, grad_a, grad_b, grad_c, grad_x


def mamba2(
    mixer: Mamba2Mixer, hidden: Float[Tensor, "string pos d_model"]
) -> Float[Tensor, "string pos d_model"]:
    """One Mamba-2 layer as a masked quadratic form, as the library's `Mamba2Mixer`."""
    gate, x, b, c, step = read_mamba2(mixer, hidden)
    y = implicit_attention(mixer.A_log, step, b, c) @ x.transpose(1, 2)
    y = y.transpose(1, 2) + x * mixer.D[:, None]
    return mixer.out_proj(mixer.norm(y.flatten(2), gate))


def read_mamba2(
    mixer: Mamba2Mixer, hidden: Float[Tensor, "string pos d_model"]
) -> Sequence[Tensor]:
    """What a Mamba-2 layer reads from the residual stream: gate [string pos channel], x [string pos
    head channel], b and c [string group pos state], step [string pos head]."""
    n_groups, n_heads = mixer.n_groups, mixer.num_heads
    inner = mixer.intermediate_size
    gate, mixed, step = mixer.in_proj(hidden).split([inner, mixer.conv_dim, n_heads], dim=-1)
    state = n_groups * mixer.ssm_state_size
    x, b, c = _convolve(mixer, mixed).split([inner, state, state], dim=-1)
    x = x.unflatten(-1, (n_heads, -1))
    b, c = (tensor.unflatten(-1, (n_groups, -1)).transpose(1, 2) for tensor in (b, c))
    step = nn.functional.softplus(step + mixer.dt_bias)
    low, high = mixer.time_step_limit
    if low > 0 or high < float("inf"):
        step = step.clamp(low, high)
    return gate, x, b, c, step


def implicit_attention(
    a_log: Float[Tensor, " head"],
    step: Float[Tensor, "string pos head"],
    b: Float[Tensor, "string group pos state"],
    c: Float[Tensor, "string group pos state"],
) -> Float[Tensor, "string head dest src"]:
    """The matrix that Mamba-2 multiplies its inputs with, as attention does its values: at dest, of
    what was written at src, (c_dest · b_src) exp(sum of step A from src + 1 to dest) step_src."""
    decay = (step * -a_log.exp()).cumsum(1).transpose(1, 2)  # [string head pos]
    # Above the diagonal the exponent is positive and may overflow: it is masked before.
    exponent = decay[..., :, None] - decay[..., None, :]
    later = torch.ones(exponent.shape[-2:], dtype=torch.bool, device=step.device).triu(1)
    weights = exponent.masked_fill(later, -torch.inf).exp()
    scores = c @ b.transpose(-1, -2)  # [string group dest src]
    weights = (weights.unflatten(1, (b.shape[1], -1)) * scores[:, :, None]).flatten(1, 2)
    return weights * step.transpose(1, 2)[..., None, :]
