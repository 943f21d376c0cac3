"""Small networks of eight architectures with about 0.1 million parameters each.

Transformers are Llama modules that differ only in how they know positions; Mamba, Mamba-2 are the
modules of Hugging Face, so that TransformerLens' bridge can wrap what was trained (Jelassi et al.,
2402.01032, Sec. 3.1; there 160 million parameters, GPT-NeoX and an LSTM of 40 million).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from replib.chapters.copying_mamba.strings import ALPHABET, BOS, EOS, PAD
from replib.errors import UsageError

WIDTH = 64  # d_model; but for these two
LSTM_WIDTH = 80
MAMBA_WIDTH = 96  # wide and not deep (Okpekpe and Orvieto, 2508.19029, Table 1)
N_HEADS = 8  # of an attention layer
TRANSFORMERS = ("rope", "nope", "alibi", "hard-alibi")
# Names with a number are Mamba-2 with so many state dimensions.
ARCHITECTURES = (*TRANSFORMERS, "mamba", "mamba2", "lstm", "hybrid")
WITH_STATE = ARCHITECTURES[len(TRANSFORMERS) :]  # one of fixed size, but for the hybrid
SMALL_STATES = ("mamba2-16", "mamba2-4")
LABELS: Mapping[str, str] = {
    "rope": "Transformer, RoPE",
    "nope": "Transformer, NoPE",
    "alibi": "Transformer, ALiBi",
    "hard-alibi": "Transformer, Hard-ALiBi",
    "mamba": "Mamba",
    "mamba2": "Mamba-2",
    "mamba2-16": "Mamba-2, N = 16",
    "mamba2-4": "Mamba-2, N = 4",
    "lstm": "LSTM",
    "hybrid": "hybrid",
}
# How weights are drawn to begin with. The scale is the standard deviation of embeddings and of what
# reads the residual stream: 0.02 is the library's for Transformers, made for widths near 1000, and
# 0.1 its scale for Mamba, about 1 / sqrt(width) here. A mimetic start (Trockman et al., 2410.11135)
# makes a state-space layer begin as linear attention: its state is kept, and read as it is written.
STARTS: Mapping[str, tuple[float, bool]] = {
    "s02": (0.02, False),
    "s10": (0.1, False),
    "m02": (0.02, True),
    "m10": (0.1, True),
}
_KEPT = 0.99  # of a state, from one token to the next, at a mimetic start
# Settings of every network of the library.
SPECIAL = {"vocab_size": len(ALPHABET), "bos_token_id": BOS, "eos_token_id": EOS}
SPECIAL |= {"pad_token_id": PAD, "use_cache": False}


def build(name: str, seed: int, start: str = "s10") -> nn.Module:
    """An untrained network, its weights drawn as `start` says (`STARTS`). Called with tokens
    [string pos] it gives logits [string pos 30], or an object with `logits`. Raises UsageError for
    an architecture or a start that does not exist, and a mimetic start without a state-space
    layer."""
    known = (*ARCHITECTURES, *SMALL_STATES)
    if name not in known:
        raise UsageError(f"architecture {name!r}: choose one of: {', '.join(known)}")
    if start not in STARTS:
        raise UsageError(f"start {start!r}: choose one of: {', '.join(STARTS)}")
    scale, is_mimetic = STARTS[start]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in TRANSFORMERS:
            network = _transformer(name, scale=scale)
        elif name == "mamba":
            network = transformers.MambaForCausalLM(_mamba_config(scale))
        elif name == "lstm":
            network = LSTM(scale)
        elif name == "hybrid":
            network = _hybrid(scale)
        else:
            config = _mamba2_config(int(name.partition("-")[2] or 64), scale)
            network = transformers.Mamba2ForCausalLM(config)
    if is_mimetic:
        _make_mimetic(network)
    return network


@torch.no_grad()
def _make_mimetic(network: nn.Module) -> None:
    """Steps of 1, a state of which `_KEPT` is left after each, and C = B, its convolution too."""
    mixers = [m for m in network.modules() if isinstance(m, MambaMixer | Mamba2Mixer)]
    if not mixers:
        raise UsageError("a mimetic start is for networks with state-space layers")
    for mixer in mixers:
        mixer.A_log.fill_(math.log(-math.log(_KEPT)))
        bias = mixer.dt_proj.bias if isinstance(mixer, MambaMixer) else mixer.dt_bias
        bias.fill_(math.log(math.e - 1))  # softplus gives 1
        n = mixer.ssm_state_size
        if isinstance(mixer, MambaMixer):
            mixer.x_proj.weight[-n:] = mixer.x_proj.weight[-2 * n : -n]
            continue
        n, inner = mixer.n_groups * n, mixer.intermediate_size
        reads = mixer.in_proj.weight  # rows: gate, x, B, C, steps
        reads[2 * inner + n : 2 * inner + 2 * n] = reads[2 * inner : 2 * inner + n]
        for mixed in (mixer.conv1d.weight, mixer.conv1d.bias):
            mixed[inner + n :] = mixed[inner : inner + n]


def _transformer(name: str, n_layers: int = 2, scale: float = 0.1) -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=176,
        num_hidden_layers=n_layers,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        max_position_embeddings=2048,
        initializer_range=scale,
        attn_implementation="eager" if name in ("alibi", "hard-alibi") else "sdpa",
        **SPECIAL,
    )
    network = transformers.LlamaForCausalLM(config)
    set_positions(network, name)
    return network


def set_positions(network: transformers.LlamaForCausalLM, name: str) -> None:
    """Give a Llama one of the four ways to know positions; with "rope" it stays as it is. ALiBi
    adds -slope · distance to the scores of a head, Hard-ALiBi lets head i of the first half see the
    last i + 1 tokens only (Sec. 3.1; hard_alibi_model.py of the released code)."""
    if name == "rope":
        return
    network.model.rotary_emb = NoRotation()
    if name == "nope":
        return
    n_heads = network.config.num_attention_heads
    bias = alibi if name == "alibi" else hard_alibi

    def add_bias(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        given = args[0] if args else kwargs.get("input_ids")
        given = kwargs["inputs_embeds"] if given is None else given
        kwargs["attention_mask"] = bias(n_heads, given.shape[1]).to(given.device)[None]
        return args, kwargs

    network.model.register_forward_pre_hook(add_bias, with_kwargs=True)


class NoRotation(nn.Module):
    """Stands in the place of rotary position embeddings and turns nothing."""

    def forward(self, x: Tensor, position_ids: Int[Tensor, "..."]) -> tuple[Tensor, Tensor]:
        angle = torch.zeros(1, position_ids.shape[-1], 1, dtype=x.dtype, device=x.device)
        return angle.cos(), angle.sin()


def _distance(length: int) -> Int[Tensor, "dest src"]:
    places = torch.arange(length)
    return places[:, None] - places[None]


def _causal(score: Tensor, allowed: Tensor) -> Tensor:
    return score.masked_fill(~allowed, torch.finfo(score.dtype).min)


def alibi(n_heads: int, length: int) -> Float[Tensor, "head dest src"]:
    """What ALiBi adds to attention scores, slopes 2^(-8 i / n_heads) for head i = 1, 2, ..."""
    distance = _distance(length)
    slopes = 2.0 ** (-8 * torch.arange(1, n_heads + 1) / n_heads)
    return _causal(-slopes[:, None, None] * distance, (distance >= 0).expand(n_heads, -1, -1))


def hard_alibi(n_heads: int, length: int) -> Float[Tensor, "head dest src"]:
    """What Hard-ALiBi adds: 0 where a head may look, the smallest number elsewhere."""
    distance = _distance(length)
    reach = torch.full((n_heads,), length)
    reach[: n_heads // 2] = torch.arange(1, n_heads // 2 + 1)
    allowed = (distance >= 0) & (distance < reach[:, None, None])
    return _causal(torch.zeros(n_heads, length, length), allowed)


def _mamba_config(scale: float = 0.1) -> transformers.MambaConfig:
    shape = {"hidden_size": MAMBA_WIDTH, "num_hidden_layers": 2, "state_size": 32}
    return transformers.MambaConfig(**shape, initializer_range=scale, **SPECIAL)


def _mamba2_config(n_state: int = 64, scale: float = 0.1) -> transformers.Mamba2Config:
    return transformers.Mamba2Config(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        state_size=n_state,
        num_heads=8,
        head_dim=16,
        n_groups=1,
        chunk_size=64,
        initializer_range=scale,
        **SPECIAL,
    )


class LSTM(nn.Module):
    """Two LSTM layers between an embedding and a linear read-out."""

    def __init__(self, scale: float = 0.1):
        super().__init__()
        self.embed = nn.Embedding(len(ALPHABET), LSTM_WIDTH)
        self.lstm = nn.LSTM(LSTM_WIDTH, LSTM_WIDTH, num_layers=2, batch_first=True)
        self.unembed = nn.Linear(LSTM_WIDTH, len(ALPHABET))
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=scale)

    def forward(self, tokens: Int[Tensor, "string pos"]) -> Float[Tensor, "string pos v"]:
        return self.unembed(self.lstm(self.embed(tokens))[0])


class Attention(nn.Module):
    """Causal attention without positions, in the place of a Mamba-2 mixer."""

    def __init__(self, scale: float = 0.1):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.o = nn.Linear(WIDTH, WIDTH, bias=False)
        for layer in (self.qkv, self.o):
            nn.init.normal_(layer.weight, std=scale)

    def forward(self, hidden: Float[Tensor, "string pos d_model"], **kwargs) -> Tensor:
        q, k, v = self.qkv(hidden).unflatten(-1, (3, N_HEADS, -1)).permute(2, 0, 3, 1, 4)
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(z.transpose(1, 2).flatten(2))


def _hybrid(scale: float = 0.1) -> transformers.Mamba2ForCausalLM:
    """Mamba-2 whose middle layer is attention (Waleffe et al., 2406.07887, Sec. 2)."""
    network = transformers.Mamba2ForCausalLM(_mamba2_config(scale=scale))
    network.backbone.layers[1].mixer = Attention(scale)
    return network


@dataclass(frozen=True)
class Size:
    """A network's size: what it can compute and remember with."""

    parameters: int
    state_bits: int  # carried from one token to the next, float32; at `length` tokens for attention
    grows: bool  # does the state grow with the length?


def size(name: str, length: int) -> Size:
    """Parameters, and bits of state after `length` tokens: keys and values of attention layers;
    recurrent and convolution states of Mamba; h and c of an LSTM."""
    network = build(name, seed=0)
    n = sum(p.numel() for p in network.parameters())
    attention = 2 * WIDTH * length  # of one layer
    if name in TRANSFORMERS:
        return Size(n, 32 * attention * network.config.num_hidden_layers, True)
    if name == "lstm":
        return Size(n, 32 * 2 * LSTM_WIDTH * network.lstm.num_layers, False)
    config, hybrid = network.config, name == "hybrid"
    inner = config.expand * config.hidden_size
    mixed = inner if name == "mamba" else inner + 2 * config.n_groups * config.state_size
    layer = inner * config.state_size + mixed * config.conv_kernel
    recurrent = layer * (config.num_hidden_layers - hybrid)
    return Size(n, 32 * (recurrent + attention * hybrid), hybrid)


def longest_copy(state_bits: int) -> float:
    """How many random letters a state can hold at most: bits / log2 26 (Thm 2.7, Cor. 2.8)."""
    return state_bits / math.log2(26)
