"""How long a string a network copies whose state holds an exact number of bits (Jelassi et al.,
2402.01032, Sec. 2; Thm 2.7).

All that Mamba-2 knows of the string, before it reads `|`, is its recurrent and convolution states.
They are replaced by what is left of them in so many bits, and the copy goes on from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba.lengths import reach_of
from replib.chapters.copying_mamba.planted import Register
from replib.chapters.copying_mamba.strings import Strings

BITS = tuple(2**k for k in range(4, 11))
EACH = 4  # bits of a component: 16 levels
LENGTHS = (5, 10, 15, 20)
N_LEARNT = 320  # strings that the components are found on
_WIDEST = 2.5  # standard deviations between the middle and the outermost level


@torch.no_grad()
def state_before_bar(network: nn.Module, strings: Strings) -> Float[Tensor, "string feature"]:
    """The whole state of Mamba-2, or of a planted register, when the string has been read."""
    read = strings.tokens[:, : strings.n_answer]
    if isinstance(network, Register):
        return network.state(read)
    cache = network(read, use_cache=True).cache_params
    return torch.cat([part.flatten(1) for part in _parts(cache)], 1)


def _parts(cache: object) -> list[Tensor]:
    """The recurrent and convolution states of all layers."""
    return [
        get(layer, state_idx=0)
        for layer in range(len(cache.layers))
        for get in (cache.get_recurrent_state, cache.get_conv_state)
    ]


@torch.no_grad()
def copied_from(
    network: nn.Module, strings: Strings, state: Float[Tensor, "string feature"]
) -> Bool[Tensor, "string answer"]:
    """Is each token of the answer right, given the true ones before, when the network has this
    state before it reads `|`?"""
    start = strings.n_answer
    if isinstance(network, Register):
        return network.said(state, start) == strings.answers
    cache = network(strings.tokens[:, :start], use_cache=True).cache_params
    parts = _parts(cache)
    for part, value in zip(parts, state.split([p[0].numel() for p in parts], 1), strict=True):
        part.copy_(value.view_as(part))
    said = [
        network(strings.tokens[:, at : at + 1], cache_params=cache, use_cache=True).logits[:, -1]
        for at in range(start, strings.tokens.shape[1] - 1)
    ]
    return torch.stack(said, 1).argmax(-1) == strings.answers


@dataclass(frozen=True)
class Components:
    """Principal components of states, the leading first."""

    middle: Float[Tensor, " feature"]
    axes: Float[Tensor, "feature component"]  # of length 1
    spread: Float[Tensor, " component"]  # standard deviation along each


def components(states: Float[Tensor, "string feature"], n: int) -> Components:
    """The `n` leading components of states, fewer if there are fewer strings."""
    middle = states.mean(0)
    apart = states - middle
    # From the matrix of products of strings: there are more features than strings.
    values, vectors = torch.linalg.eigh((apart @ apart.T).double())
    kept = values.flip(0)[:n].clamp_min(1e-9)
    axes = apart.T @ (vectors.flip(1)[:, : len(kept)] / kept.sqrt()).float()
    return Components(middle, axes, (kept / len(states)).sqrt().float())


def in_bits(
    state: Float[Tensor, "string feature"], of: Components, bits: int
) -> Float[Tensor, "string feature"]:
    """What is left of states in so many bits: as many leading components (of other strings) as fit
    at `EACH` bits, each on the nearest of 2^`EACH` levels. What is left differs in at most 2^bits
    ways."""
    axes, spread = of.axes[:, : bits // EACH], of.spread[: bits // EACH]
    step = 2 * _WIDEST / (2**EACH - 1)
    where = ((state - of.middle) @ axes / spread).clamp(-_WIDEST, _WIDEST)
    levels = ((where + _WIDEST) / step).round() * step - _WIDEST
    return (levels * spread) @ axes.T + of.middle


def reach_by_bits(
    network: nn.Module, n_strings: int, bits: Sequence[int] = BITS
) -> Float[np.ndarray, " bits"]:
    """L50 of a network with each number of bits at `|`; the longest strings have 20 letters."""
    accuracy = np.zeros((len(bits), len(LENGTHS)))
    for column, length in enumerate(LENGTHS):
        made = [
            copying.copy(n, length, torch.Generator().manual_seed(seed + length))
            for n, seed in ((N_LEARNT, 8000), (n_strings, 8100))
        ]
        learn, state = (state_before_bar(network, some) for some in made)
        of = components(learn, max(bits) // EACH)
        for row, number in enumerate(bits):
            right = copied_from(network, made[1], in_bits(state, of, number))
            accuracy[row, column] = right.all(1).double().mean()
    return np.array([reach_of(LENGTHS, row, 0.5) for row in accuracy])
