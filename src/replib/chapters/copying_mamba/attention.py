"""Attention, and what stands in its place in Mamba-2: the same picture of both.

A Mamba-2 layer multiplies what it has written by a matrix of positions, as attention does its
values (Dao and Gu, 2405.21060, Sec. 6). Its entries may be negative and do not add up to 1; shown
is the share of each in the sum of the sizes in its row.
"""

from collections.abc import Mapping

import numpy as np
import torch
from IPython.display import HTML
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from replib import figures
from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba.mechanism import Spliced
from replib.chapters.copying_mamba.planted import Register
from replib.chapters.copying_mamba.scans import fast_scans, implicit_attention, read_mamba2
from replib.chapters.copying_mamba.strings import Strings
from replib.errors import UsageError
from replib.figures import Picture
from replib.interventions.network import Head
from replib.metrics import head_label


@torch.no_grad()
def patterns(
    network: nn.Module, tokens: Int[Tensor, "string pos"]
) -> Float[Tensor, "layer string head dest src"]:
    """Attention of a Transformer whose attention is computed eagerly, implicit attention of a
    Mamba-2, or that which a register would have. Raises UsageError for any other network."""
    if isinstance(network, Register):
        return network.pattern(tokens)[None, :, None]
    if isinstance(network, LlamaForCausalLM):
        found = network(tokens, output_attentions=True).attentions
        if not found or found[0] is None:
            raise UsageError("attention patterns: this Transformer does not keep them")
        return torch.stack(found)
    mixers = [part for part in network.modules() if isinstance(part, Mamba2Mixer)]
    if not mixers:
        raise UsageError(f"a network of type {type(network).__name__} has no attention to show")
    read: list[Tensor] = []
    hooks = [m.register_forward_pre_hook(lambda _, args: read.append(args[0])) for m in mixers]
    try:
        network(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for mixer, hidden in zip(mixers, read, strict=True):
        _, _, b, c, step = read_mamba2(mixer, hidden)
        size = implicit_attention(mixer.A_log, step, b, c).abs()
        found.append(size / size.sum(-1, keepdim=True).clamp_min(1e-12))
    return torch.stack(found)


def said(
    pattern: Float[Tensor, "layer string head dest src"], strings: Strings
) -> Float[Tensor, "layer string head letter src"]:
    """The rows at which the letters of a copy are said, and the columns of the string's letters."""
    n = strings.n_answer - 1
    return pattern[..., n + 1 : 2 * n + 1, 1 : n + 1]


def lookup_head(network: nn.Module, strings: Strings) -> tuple[Head, float]:
    """The head that looks most at the letter which is said next, and how much, mean over the
    letters of a copy and over strings."""
    looked = said(patterns(network, strings.tokens), strings).diagonal(dim1=-2, dim2=-1)
    mean = looked.mean((1, 3))
    layer, head = divmod(int(mean.argmax()), mean.shape[1])
    return (layer, head), float(mean.max())


def shown(
    networks: Mapping[str, nn.Module], string: Strings, many: Strings
) -> dict[str, Float[Tensor, "letter src"]]:
    """Of each network, by its label, the attention of its lookup head (found on `many` strings)
    while one string is copied."""
    found = {}
    for name, network in networks.items():
        (layer, head), _ = lookup_head(network, many)
        label = f"{name}, {head_label((layer, head))}"
        found[label] = said(patterns(network, string.tokens), string)[layer, 0, head]
    return found


def maps(shown: Mapping[str, Float[Tensor, "letter src"]], string: Strings) -> Picture:
    """Where each head looks, side by side: a row for each letter that is said, a column for each
    letter of the string."""
    letters = list(copying.to_text(string.answers[0, :-1]))
    fig = Picture(figsize=(7.5, 4))
    for axes, (name, some) in zip(fig.subplots(1, len(shown)), shown.items(), strict=True):
        axes.imshow(some, vmin=0, vmax=1, cmap="Greys")
        axes.set_xticks(range(len(letters)), letters, fontsize=8)
        axes.set_yticks(range(len(letters)), letters, fontsize=8)
        axes.set_title(name, fontsize=10)
        axes.set(xlabel="letter of the string", ylabel="letter to be said")
    each = ", ".join(f"{name}: {some.diagonal().mean():.0%}" for name, some in shown.items())
    fig.alt = f"Attention while a string of {len(letters)} letters is copied, a row for each "
    fig.alt += f"letter to be said. On the letter itself lie, on average: {each}."
    return fig


def slider(shown: Mapping[str, Float[Tensor, "letter src"]], string: Strings) -> HTML:
    """The same with a slider over the letter to be said: a bar for each letter of the string."""
    letters = copying.to_text(string.answers[0, :-1])
    steps = [f"{i}, {letter}" for i, letter in enumerate(letters, 1)]
    bars = {
        name: {steps[src]: np.asarray(some[:, src]).tolist() for src in range(len(steps))}
        for name, some in shown.items()
    }
    return figures.slider(bars, steps, "letter to be said", limits=(0, 1))


def next_letters(network: nn.Module, cut: Spliced) -> dict[str, float]:
    """Share of half-written copies with a foreign run (`mechanism.spliced`) in which a network goes
    on with what follows that run (*content*), or where the copy had arrived (*position*)."""
    with fast_scans(network):
        after = copying.next_token(network, cut.tokens)
    return {
        "content": (after == cut.content).double().mean().item(),
        "position": (after == cut.position).double().mean().item(),
    }
