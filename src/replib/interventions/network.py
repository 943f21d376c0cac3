"""Exact interventions on attention heads: path patching, attention edits, ablation, scaling.

Everything is computed on residual streams held in memory, with the model's own norm, projection and
MLP modules; no hook is placed, so the model stays bit-identical. Attention is causal and an edit
starts at one layer and position, so what lies below or before is read from the unedited run (keys
and values included), and only the rest is computed again. No step is approximate.
`tests/reference.py` does the same slowly, with hooks and whole forward passes.

Axes: `edit` counts interventions carried out side by side (one sender head each, in path
patching), `prompt` the prompts, `dest` the positions that are computed again, `src` attended
positions, `kv_head` key/value heads (fewer than `head` under grouped-query attention).
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformer_lens.model_bridge import TransformerBridge

from replib.errors import UsageError
from replib.models.finite import check_logits

Head = tuple[int, int]
Component = Literal["q", "k", "v"]
Residual = tuple[Literal["resid_post"], int]  # the residual stream after a layer


def activations(
    model: TransformerBridge, tokens: Int[Tensor, "prompt pos"], wanted: Callable[[str], bool]
) -> dict[str, Tensor]:
    """The activations of one forward pass whose bridge names are `wanted`, by name. The readout is
    cut to one position: logits are not needed."""
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


def _far(recomputed: Tensor, own: Tensor) -> float:
    return float((recomputed - own).norm() / own.norm())


class _Block:
    """The modules of one transformer block, unwrapped from their bridge."""

    def __init__(self, block: torch.nn.Module, cfg: object):
        part = dict(block.named_children())
        attn = dict(part["attn"].named_children())
        hf_attn = part["attn"].original_component

        def module(parent: dict, name: str) -> Callable[[Tensor], Tensor] | None:
            return parent[name].original_component if name in parent else None

        self.ln1, self.ln2 = module(part, "ln1"), module(part, "ln2")
        self.ln1_post, self.ln2_post = module(part, "ln1_post"), module(part, "ln2_post")
        self.mlp = module(part, "mlp")
        self.q, self.k, self.v, self.o = (module(attn, name) for name in "qkvo")
        self.q_norm, self.k_norm = module(attn, "q_norm"), module(attn, "k_norm")
        self.W_O = part["attn"].W_O  # [head, d_head, d_model]
        self.n_heads, self.d_head = self.W_O.shape[:2]
        self.scale = float(getattr(hf_attn, "scaling", None) or self.d_head**-0.5)
        self.parallel = bool(getattr(cfg, "parallel_attn_mlp", False))

    def write(self, o_out: Tensor) -> Tensor:
        """What the attention adds to the residual: Gemma normalises it after the projection."""
        return o_out if self.ln1_post is None else self.ln1_post(o_out)

    def mlp_write(self, resid: Tensor) -> Tensor:
        out = self.mlp(self.ln2(resid))
        return out if self.ln2_post is None else self.ln2_post(out)

    def heads_of(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_head))


def check_blocks(model: TransformerBridge) -> None:
    """UsageError, with the architecture, if the model lacks what edits need. Only its modules are
    looked at, so that it may be one without weights."""
    try:
        if not (hasattr(model, "ln_final") and hasattr(model, "unembed")):  # GPT-1
            raise UsageError("path patching needs a norm before the readout")
        for block in model.blocks:
            _check_block(block, model.cfg.d_head)
    except UsageError as error:
        raise UsageError(f"{error} ({type(model.original_model).__name__})") from None


def _check_block(block: torch.nn.Module, d_head: int) -> None:
    part = dict(block.named_children())
    if "attn" not in part:
        raise UsageError("this model has no attention heads, which this chapter is about")
    needed = {"ln1", "attn", "ln2", "mlp"}
    if not needed <= part.keys():
        has = ", ".join(sorted(part.keys() & (needed | {"mixer"}))) or "none"
        needs = "path patching needs blocks with ln1, attn, ln2 and mlp"
        raise UsageError(f"{needs}; this model's have {has}")
    mlp = part["mlp"].original_component
    if mlp is block.original_component:  # OPT
        raise UsageError("path patching needs an MLP that is a module of its own")
    if any("expert" in name or "router" in name for name, _ in mlp.named_modules()):
        raise UsageError("path patching needs a plain MLP; this model's is a mixture of experts")
    if more := _more_inputs(mlp):  # BLOOM
        raise UsageError(f"path patching needs an MLP that does not read {more} too")
    attn = dict(part["attn"].named_children())
    if {"q", "k", "v", "o"} - attn.keys():
        raise UsageError("path patching needs attention with separate q, k, v and o hooks")
    norm = attn["q_norm"].original_component if "q_norm" in attn else None
    if (weight := getattr(norm, "weight", None)) is not None and weight.shape[-1] != d_head:
        raise UsageError("path patching needs queries that are normalised head by head")


def _more_inputs(mlp: torch.nn.Module) -> str:
    """What an MLP has to be given besides the residual stream; "" if nothing."""
    every = inspect.signature(mlp.forward).parameters.values()
    needed = [p.name for p in every if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return ", ".join(needed[1:])


@dataclass(frozen=True)
class _Geometry:
    """What depends on the prompt length only: rotary angles and who may attend to whom."""

    cos: list[Float[Tensor, "pos d_rotary"] | None]
    sin: list[Float[Tensor, "pos d_rotary"] | None]
    allowed: list[Bool[Tensor, "pos src"]]

    def rotate(self, x: Tensor, layer: int, at: Int[Tensor, "prompt dest"]) -> Tensor:
        """Rotary position embedding of the first d_rotary coordinates (the rest pass). `x` is
        [edit, prompt, dest, head, d_head]."""
        if self.cos[layer] is None:
            return x
        cos, sin = (t[layer][at].unsqueeze(-2) for t in (self.cos, self.sin))
        rotated, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        half = cos.shape[-1] // 2
        turned = torch.cat([-rotated[..., half:], rotated[..., :half]], dim=-1)
        return torch.cat([rotated * cos + turned * sin, rest], dim=-1)


class Network:
    """A model prepared for exact edits: its blocks, its readout, and its geometry per length.
    UsageError if the model has no attention heads, or caps its logits (Gemma 2), if an output
    projection computes something else than its weight says (an adapter, a quantised matrix), or if
    the logits are not the unembedding of the final norm's output (scaled or capped ones)."""

    def __init__(self, model: TransformerBridge):
        hf_config = model.original_model.config
        for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(hf_config, cap, None):
                raise UsageError(f"this model has {cap}, which exact path patching does not do yet")
        self.model = model
        check_blocks(model)
        self.blocks = [_Block(block, model.cfg) for block in model.blocks]
        self.n_layers, self.n_heads = len(self.blocks), self.blocks[0].n_heads
        self.ln_final = model.ln_final.original_component
        unembed = model.unembed.original_component
        self.W_U, self.b_U = unembed.weight, getattr(unembed, "bias", None)  # [d_vocab, d_model]
        self._geometry: dict[int, _Geometry] = {}
        self.kept = WeakTensorKeyDictionary()  # prompts -> their unedited runs, see `_run`
        self._check_weights()

    def _check_weights(self) -> None:
        """What is read by weight, W_O and W_U, must be what the modules compute."""
        close = 1e-4 if self.W_U.dtype in (torch.float32, torch.float64) else 1e-2
        ids = torch.arange(min(8, len(self.W_U)), device=self.W_U.device)[None]
        seen: list[Tensor] = []

        def keep(value: Tensor, hook: object) -> None:
            seen.append(value)

        numbers = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            own = self.model.run_with_hooks(ids, fwd_hooks=[("ln_final.hook_in", keep)]).float()
            for layer, block in enumerate(self.blocks):
                z = torch.randn(4, self.n_heads, block.d_head, generator=numbers).to(self.W_U)
                out = block.o(z.flatten(-2)) - block.o(torch.zeros_like(z).flatten(-2))
                said = torch.einsum("phd,hdm->pm", z.float(), block.W_O.float())
                if not _far(said, out.float()) < close:
                    raise UsageError(
                        f"the attention output of layer {layer} is computed by a module "
                        f"({type(block.o).__name__}) that does something else than its weight "
                        "says, as an adapter or a quantised matrix does; merge or dequantise it"
                    )
            x = self.ln_final(seen[0])
            far = _far(torch.nn.functional.linear(x, self.W_U, self.b_U).float(), own)
        if not far < close:
            config = self.model.original_model.config.to_dict()
            kinds = ("logit_scale", "logits_scaling", "lm_head_multiplier")
            has = "".join(f", {kind} {config[kind]}" for kind in kinds if kind in config)
            raise UsageError(
                "this model's logits are not those of its final norm and unembedding (off by "
                f"{far:.1e} of their norm{has}), which exact path patching does not do yet"
            )

    def heads(self, below: int | None = None) -> list[Head]:
        """All heads of the layers under `below` (all layers if None), in order."""
        layers = range(self.n_layers if below is None else below)
        return [(layer, head) for layer in layers for head in range(self.n_heads)]

    def check_heads(self, heads: Iterable[Head]) -> None:
        for layer, head in heads:
            if not (0 <= layer < self.n_layers and 0 <= head < self.n_heads):
                size = f"{self.n_layers} layers of {self.n_heads} heads"
                raise UsageError(f"no head L{layer}H{head}: this model has {size}")

    def geometry(self, tokens: Int[Tensor, "prompt pos"]) -> _Geometry:
        n_pos = tokens.shape[1]
        if n_pos not in self._geometry:
            ends = ("hook_cos", "hook_sin", "hook_attn_scores")
            seen = activations(self.model, tokens[:1], lambda name: name.endswith(ends))

            def each(name: str) -> list[Tensor | None]:
                found = [seen.get(f"blocks.{i}.attn.{name}") for i in range(self.n_layers)]
                return [None if value is None else value[0] for value in found]

            cos, sin, scores = map(each, ends)
            # A masked score is -inf or the dtype's minimum: far below any real one.
            allowed = [s[0] > torch.finfo(s.dtype).min / 10 for s in scores]
            self._geometry[n_pos] = _Geometry(cos, sin, allowed)
        return self._geometry[n_pos]

    def logits(
        self, resid: Float[Tensor, "*batch d_model"], tokens: Int[Tensor, "*batch token"]
    ) -> Float[Tensor, "*batch token"]:
        """Logits of chosen tokens only: the full vocabulary is most of a small model's cost. Always
        float32: two logits near 20 that differ by 0.05 are the same number in bfloat16."""
        x, W_U = self.ln_final(resid).float(), self.W_U[tokens].float()
        out = torch.einsum("...d,...td->...t", x, W_U)
        out = out if self.b_U is None else out + self.b_U[tokens]
        check_logits(out, "the recomputed logits", self.W_U.dtype)
        return out

    def vocabulary(
        self, resid: Float[Tensor, "*batch d_model"]
    ) -> tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Most probable next token over the full vocabulary, and the logits' log-sum-exp."""
        top1, logsumexp = [], []
        for rows in self.ln_final(resid).flatten(0, -2).split(256):
            logits = torch.nn.functional.linear(rows, self.W_U, self.b_U).float()
            check_logits(logits, "the recomputed logits", self.W_U.dtype)
            top1.append(logits.argmax(-1))
            logsumexp.append(logits.logsumexp(-1))
        shape = resid.shape[:-1]
        return torch.cat(top1).view(shape), torch.cat(logsumexp).view(shape)

    def is_top1(
        self, resid: Float[Tensor, "*batch d_model"], token: Int[Tensor, "*batch"]
    ) -> Bool[Tensor, "*batch"]:
        """Is `token` the most probable of the full vocabulary? Rows in which one of the usual
        winners clearly beats it are settled by those few logits; only the others are compared with
        every token. The answer is the same."""
        flat, want = resid.flatten(0, -2), token.flatten()
        usual = self.vocabulary(flat[:: max(1, len(flat) // 256)])[0].unique()
        seen = self.logits(flat, torch.cat([want[:, None], usual.expand(len(flat), -1)], dim=-1))
        rounding = 1e-2 if self.W_U.dtype == torch.float32 else 1.0  # differs between kernels
        open_ = seen[:, 0] > seen[:, 1:].max(-1).values - rounding
        best = torch.zeros_like(want, dtype=torch.bool)
        if open_.any():
            best[open_] = self.vocabulary(flat[open_])[0] == want[open_]
        return best.view(token.shape)
