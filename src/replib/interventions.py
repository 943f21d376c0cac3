"""Exact interventions on attention heads: path patching, attention edits, ablation, scaling.

Everything here is computed on residual streams held in memory, with the model's own norm,
projection and MLP modules; no hook is ever placed, so an intervention leaves the model
bit-identical by construction. The saving over running the whole model once per head: attention
is causal and an edit starts at one layer and at one position, so what lies below that layer or
before that position is read from the unedited run (keys and values included), and only the rest
is computed again. No step is approximate. `tests/reference.py` does the same with hooks and whole
forward passes, as slowly and obviously as possible; the tests hold the two together.

Axes: `edit` counts interventions carried out side by side (one sender head each, in path
patching), `prompt` the prompts, `dest` the positions that are computed again, `src` attended
positions, `kv_head` key/value heads (fewer than `head` under grouped-query attention).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformer_lens.model_bridge import TransformerBridge

from replib.errors import UsageError
from replib.prompts import PromptPairs

Head = tuple[int, int]
Component = Literal["q", "k", "v"]
Residual = tuple[Literal["resid_post"], int]  # the residual stream after a layer

# Largest number of residual-stream rows (edit × prompt × dest) computed at once. A row costs about
# 4 × d_mlp floats on the way through an MLP: with 2,048 rows what one step writes is still in the
# processor's cache when the next reads it (14% faster than 4,096 in smollm2-135m's MLP).
MAX_ROWS = 2_048
# Prompts × positions of one unedited run computed at once.
MAX_TOKENS = 2_048
# Unedited runs kept for the next edit of the same prompts (keys and values, mostly).
MAX_KEPT_BYTES = 1_500_000_000


# --- The model, seen as modules ------------------------------------------------------------------


class _Block:
    """The modules of one transformer block, unwrapped from their bridge."""

    def __init__(self, block: torch.nn.Module, cfg: object):
        part = dict(block.named_children())
        if "attn" not in part:
            raise UsageError("this model has no attention heads, which this chapter is about")
        if not {"ln1", "attn", "ln2", "mlp"} <= part.keys():
            raise UsageError(
                f"path patching needs blocks with ln1, attn, ln2 and mlp; this model's have "
                f"{', '.join(sorted(set(part) & {'ln1', 'attn', 'ln2', 'mlp', 'mixer'})) or 'none'}"
            )
        if part["mlp"].original_component is block.original_component:  # OPT
            raise UsageError("path patching needs an MLP that is a module of its own")
        attn = dict(part["attn"].named_children())
        hf_attn = part["attn"].original_component
        if {"q", "k", "v", "o"} - attn.keys():
            raise UsageError("path patching needs attention with separate q, k, v and o hooks")

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


@dataclass(frozen=True)
class _Geometry:
    """What depends on the prompt length only: rotary angles and who may attend to whom."""

    cos: list[Float[Tensor, "pos d_rotary"] | None]
    sin: list[Float[Tensor, "pos d_rotary"] | None]
    allowed: list[Bool[Tensor, "pos src"]]

    def rotate(self, x: Tensor, layer: int, at: Int[Tensor, "prompt dest"]) -> Tensor:
        """Rotary position embedding of the first d_rotary coordinates (the rest pass).

        `x` is [edit, prompt, dest, head, d_head].
        """
        if self.cos[layer] is None:
            return x
        cos, sin = (t[layer][at].unsqueeze(-2) for t in (self.cos, self.sin))
        rotated, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        half = cos.shape[-1] // 2
        turned = torch.cat([-rotated[..., half:], rotated[..., :half]], dim=-1)
        return torch.cat([rotated * cos + turned * sin, rest], dim=-1)


class Network:
    """A model prepared for exact edits: its blocks, its readout, and its geometry per length.

    Raises:
        UsageError: if the model has no attention heads, or caps its logits (Gemma 2).
    """

    def __init__(self, model: TransformerBridge):
        hf_config = model.original_model.config
        for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(hf_config, cap, None):
                raise UsageError(f"this model has {cap}, which exact path patching does not do yet")
        self.model = model
        self.blocks = [_Block(block, model.cfg) for block in model.blocks]
        self.n_layers, self.n_heads = len(self.blocks), self.blocks[0].n_heads
        self.ln_final = model.ln_final.original_component
        unembed = model.unembed.original_component
        self.W_U, self.b_U = unembed.weight, getattr(unembed, "bias", None)  # [d_vocab, d_model]
        self._geometry: dict[int, _Geometry] = {}
        self.kept = WeakTensorKeyDictionary()  # prompts -> their unedited runs, see `_run`

    def heads(self, below: int | None = None) -> list[Head]:
        """All heads of the layers under `below` (all layers if None), in order."""
        layers = range(self.n_layers if below is None else below)
        return [(layer, head) for layer in layers for head in range(self.n_heads)]

    def check_heads(self, heads: Iterable[Head]) -> None:
        for layer, head in heads:
            if not (0 <= layer < self.n_layers and 0 <= head < self.n_heads):
                raise UsageError(
                    f"no head L{layer}H{head}: this model has {self.n_layers} layers of "
                    f"{self.n_heads} heads"
                )

    def geometry(self, tokens: Int[Tensor, "prompt pos"]) -> _Geometry:
        n_pos = tokens.shape[1]
        if n_pos not in self._geometry:
            seen = _look(
                self.model,
                tokens[:1],
                lambda name: name.endswith(("hook_cos", "hook_sin", "hook_attn_scores")),
            )

            def at(layer: int, name: str) -> Tensor | None:
                value = seen.get(f"blocks.{layer}.attn.{name}")
                return None if value is None else value[0]

            layers = range(self.n_layers)
            scores = [at(layer, "hook_attn_scores") for layer in layers]
            self._geometry[n_pos] = _Geometry(
                cos=[at(layer, "hook_cos") for layer in layers],
                sin=[at(layer, "hook_sin") for layer in layers],
                # A masked score is -inf or the dtype's minimum: far below any real one.
                allowed=[s[0] > torch.finfo(s.dtype).min / 10 for s in scores],
            )
        return self._geometry[n_pos]

    def logits(
        self, resid: Float[Tensor, "*batch d_model"], tokens: Int[Tensor, "*batch token"]
    ) -> Float[Tensor, "*batch token"]:
        """Logits of chosen tokens only: the full vocabulary is most of a small model's cost.

        Always float32: two logits near 20 that differ by 0.05 are the same number in bfloat16.
        """
        x, W_U = self.ln_final(resid).float(), self.W_U[tokens].float()
        out = torch.einsum("...d,...td->...t", x, W_U)
        return out if self.b_U is None else out + self.b_U[tokens]

    def vocabulary(
        self, resid: Float[Tensor, "*batch d_model"]
    ) -> tuple[Int[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Most probable next token over the full vocabulary, and the logits' log-sum-exp."""
        top1, logsumexp = [], []
        for rows in self.ln_final(resid).flatten(0, -2).split(256):
            logits = torch.nn.functional.linear(rows, self.W_U, self.b_U).float()
            top1.append(logits.argmax(-1))
            logsumexp.append(logits.logsumexp(-1))
        shape = resid.shape[:-1]
        return torch.cat(top1).view(shape), torch.cat(logsumexp).view(shape)

    def is_top1(
        self, resid: Float[Tensor, "*batch d_model"], token: Int[Tensor, "*batch"]
    ) -> Bool[Tensor, "*batch"]:
        """Is `token` the most probable of the full vocabulary?

        Rows in which one of the usual winners clearly beats it are settled by those few logits;
        only the others are compared with every token. The answer is the same.
        """
        flat, want = resid.flatten(0, -2), token.flatten()
        usual = self.vocabulary(flat[:: max(1, len(flat) // 256)])[0].unique()
        seen = self.logits(flat, torch.cat([want[:, None], usual.expand(len(flat), -1)], dim=-1))
        rounding = 1e-2 if self.W_U.dtype == torch.float32 else 1.0  # differs between kernels
        open_ = seen[:, 0] > seen[:, 1:].max(-1).values - rounding
        best = torch.zeros_like(want, dtype=torch.bool)
        if open_.any():
            best[open_] = self.vocabulary(flat[open_])[0] == want[open_]
        return best.view(token.shape)


def _look(
    model: TransformerBridge, tokens: Int[Tensor, "prompt pos"], wanted: Callable[[str], bool]
) -> dict[str, Tensor]:
    """Activations by bridge name. The readout is cut to one position: logits are not needed."""
    seen: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: object) -> None:
        seen[hook.name] = value

    def last_only(value: Tensor, hook: object) -> Tensor:
        return value[:, -1:]

    with torch.inference_mode():
        model.run_with_hooks(
            tokens,
            return_type=None,
            fwd_hooks=[(wanted, keep), ("unembed.hook_in", last_only)],
        )
    if not seen:
        raise RuntimeError("no activation matched: a name filter that matches nothing is silent")
    return seen


# --- The unedited run ----------------------------------------------------------------------------


@dataclass
class _Past:
    """Keys and values of the clean prompts at every position, layer by layer."""

    tokens: Int[Tensor, "prompt pos"]
    k: list[Float[Tensor, "prompt pos kv_head d_head"]]
    v: list[Float[Tensor, "prompt pos kv_head d_head"]]

    def n_bytes(self) -> int:
        return sum(t.nbytes for t in self.k + self.v)


@dataclass
class Run:
    """Activations of some prompts' unedited forward pass at the positions `dest`, layer by layer.

    `resid_pre` has n_layers + 1 entries, the last being what the final norm reads.
    """

    dest: Int[Tensor, "prompt dest"]
    resid_pre: list[Float[Tensor, "prompt dest d_model"]] = field(default_factory=list)
    z: list[Float[Tensor, "prompt dest head d_head"]] = field(default_factory=list)
    o_out: list[Float[Tensor, "prompt dest d_model"]] = field(default_factory=list)
    mlp_out: list[Float[Tensor, "prompt dest d_model"]] = field(default_factory=list)

    @property
    def final(self) -> Float[Tensor, "prompt dest d_model"]:
        return self.resid_pre[-1]

    def n_bytes(self) -> int:
        lists = (self.resid_pre, self.z, self.o_out, self.mlp_out)
        return sum(t.nbytes for tensors in lists for t in tensors)


def _forward(
    net: Network,
    past: _Past,
    resid: Float[Tensor, "edit prompt dest d_model"],
    dest: Int[Tensor, "prompt dest"],
    layer: int,
    edit: _Receive | _EditHeads | None = None,
    keep: Callable[[str, Tensor], None] | None = None,
) -> Float[Tensor, "edit prompt out d_model"]:
    """One block at the consecutive positions `dest`; keys and values before them are in `past`.

    `edit` is called at q, k, v, pattern and z and returns what takes their place; `keep` is shown
    the block's activations. Where `dest` begins at the first position, `past` is not looked at.
    Nothing reads the last layer but at END, the last of `dest`: there it is computed at END only,
    unless someone edits or keeps what it does elsewhere.
    """
    block, geometry = net.blocks[layer], net.geometry(past.tokens)
    at_end = layer == net.n_layers - 1 and keep is None and not (edit and edit.acts_at(layer))
    x = block.ln1(resid)
    k, v = block.heads_of(block.k(x)), block.heads_of(block.v(x))
    n_kv, src = k.shape[-2], dest
    if at_end:
        resid, x, dest = resid[:, :, -1:], x[:, :, -1:], dest[:, -1:]
    q = block.heads_of(block.q(x))

    if edit is not None:
        if edit.k_or_v_per_head(layer):
            # One query head's key or value is edited: undo the sharing within its group.
            k, v = (t.repeat_interleave(block.n_heads // n_kv, dim=-2) for t in (k, v))
        q, k, v = edit("q", layer, q), edit("k", layer, k), edit("v", layer, v)
    if block.q_norm is not None:
        q, k = block.q_norm(q), block.k_norm(k)
    q, k = geometry.rotate(q, layer, dest) * block.scale, geometry.rotate(k, layer, src)

    # Attention to the n_old positions that the clean run has, then to those computed here. Prompts
    # may begin at different positions: what one has among the new is masked among the old.
    groups = k.shape[-2]  # key/value heads, or query heads once a key or value is edited
    q = q.unflatten(-2, (groups, -1))  # edit prompt dest group member d_head
    n_old = int(src[:, 0].max())
    old = torch.arange(n_old, device=dest.device) < src[:, :1]  # prompt old
    column = src[:, None].expand(-1, dest.shape[1], -1)  # prompt dest new
    allowed = geometry.allowed[layer][dest]  # prompt dest src
    allowed = torch.cat([allowed[..., :n_old] & old[:, None], allowed.gather(-1, column)], dim=-1)
    scores = torch.einsum("epngmd,epsgd->epgmns", q, k)
    if n_old:
        k_old, v_old = past.k[layer][:, :n_old], past.v[layer][:, :n_old]
        if groups != n_kv:
            k_old, v_old = (t.repeat_interleave(groups // n_kv, dim=-2) for t in (k_old, v_old))
        scores = torch.cat([torch.einsum("epngmd,psgd->epgmns", q, k_old), scores], dim=-1)
    scores = scores.masked_fill(~allowed[:, None, None], torch.finfo(scores.dtype).min)
    pattern = scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    if edit is not None and edit.wants_pattern(layer):
        # by source position, as an edit reads and writes it
        here = column[:, None].expand(*pattern.shape[:1], -1, block.n_heads, -1, -1)
        pattern = pattern.flatten(2, 3)  # edit prompt head dest src
        by_src = pattern.new_zeros(*pattern.shape[:-1], past.tokens.shape[1])
        by_src[..., :n_old] = pattern[..., :n_old]
        by_src = edit("pattern", layer, by_src.scatter(-1, here, pattern[..., n_old:]))
        pattern = torch.cat([by_src[..., :n_old] * old[:, None, None], by_src.gather(-1, here)], -1)
        pattern = pattern.unflatten(2, (groups, -1))
    z = torch.einsum("epgmns,epsgd->epngmd", pattern[..., n_old:], v)
    if n_old:
        z = z + torch.einsum("epgmns,psgd->epngmd", pattern[..., :n_old], v_old)
    z = z.flatten(3, 4)  # edit prompt dest head d_head
    if edit is not None:
        z = edit("z", layer, z)
    o_out = block.o(z.flatten(-2))
    mid = resid + block.write(o_out)
    mlp_out = block.mlp_write(resid if block.parallel else mid)
    if keep is not None:
        for name, value in (("k", k), ("v", v), ("z", z), ("o_out", o_out), ("mlp_out", mlp_out)):
            keep(name, value[0])
    return mid + mlp_out


def _past(net: Network, pairs: PromptPairs, prompts: Int[Tensor, " prompt"]) -> _Past:
    """Keys and values of some clean prompts. The model is run once for a set of prompts.

    The first prompt is checked against the model's own forward pass.

    Raises:
        UsageError: if the model computes something that this module does not know (an unusual
            block layout), rather than edit a network that is not the model.
    """
    kept = net.kept.setdefault(pairs.clean, {})
    if "past" not in kept:
        whole = _Past(pairs.clean, [], [])
        for some, chunk in _chunks(pairs, torch.zeros_like(pairs.length)):
            tokens = chunk.clean[:, : int(chunk.length[0])]  # a piece's prompts are equally long
            every = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
            past = _Past(tokens, [], [])
            resid = net.model(tokens, stop_at_layer=0)[None]  # embeddings
            for layer in range(net.n_layers):
                new: dict[str, Tensor] = {}
                resid = _forward(net, past, resid, every, layer, keep=new.__setitem__)
                past.k.append(new["k"])
                past.v.append(new["v"])
            if not whole.k:
                _check(net, tokens[:1], resid[0, :1])
                whole.k, whole.v = (
                    [t.new_zeros(*pairs.clean.shape, *t.shape[2:]) for t in side]
                    for side in (past.k, past.v)
                )
            for name in ("k", "v"):
                for all_, part in zip(getattr(whole, name), getattr(past, name), strict=True):
                    all_[some, : tokens.shape[1]] = part
        _make_room(net, whole.n_bytes())
        net.kept.setdefault(pairs.clean, kept)["past"] = whole
    whole = kept["past"]
    if torch.equal(prompts, torch.arange(len(pairs), device=prompts.device)):
        return whole
    return _Past(pairs.clean[prompts], [k[prompts] for k in whole.k], [v[prompts] for v in whole.v])


def _check(
    net: Network, tokens: Int[Tensor, "1 pos"], resid: Float[Tensor, "1 pos d_model"]
) -> None:
    """Refuses a model whose own final residual stream is not the one computed here."""
    seen = _look(net.model, tokens, lambda name: name == "ln_final.hook_in")
    expected = seen["ln_final.hook_in"]
    error = (resid - expected).norm() / expected.norm()
    if not error < (1e-4 if resid.dtype == torch.float32 else 5e-2):
        raise UsageError(
            f"this model's blocks are not of a known layout (recomputed residual stream off by "
            f"{float(error):.1e} of its norm): exact path patching refuses it"
        )


def _make_room(net: Network, n_bytes: int) -> None:
    """Forgets what is kept if `n_bytes` more would be too much."""
    if n_bytes + sum(r.n_bytes() for kept in net.kept.values() for r in kept.values()) > (
        MAX_KEPT_BYTES
    ):
        for kept in net.kept.values():
            kept.clear()


def _run(
    net: Network,
    pairs: PromptPairs,
    which: Literal["clean", "corrupted"],
    prompts: Int[Tensor, " prompt"],
    past: _Past,
    dest: Int[Tensor, "prompt dest"],
) -> Run:
    """The unedited run of some prompts at `dest`, kept for the next edit of them.

    The corrupted run is the clean one up to the first token that differs: only positions from
    there on are computed, `past` serves the others.
    """
    kept = net.kept.setdefault(pairs.clean, {})
    key = (which, tuple(prompts.tolist()), tuple(dest.flatten().tolist()))
    if key in kept:
        return kept[key]
    tokens = getattr(pairs, which)[prompts]
    at = dest
    if which == "corrupted":
        differs = (pairs.clean[prompts] != tokens).int().argmax(-1)
        n_at = int((dest[:, -1] - torch.minimum(differs, dest[:, 0])).max()) + 1
        first = (dest[:, -1] - n_at + 1).clamp(min=0)  # as many positions in each prompt
        at = first[:, None] + torch.arange(n_at, device=tokens.device)
    prompt = torch.arange(len(tokens), device=tokens.device)[:, None]
    index = dest - at[:, :1]
    run = Run(dest)

    def keep(name: str, value: Tensor) -> None:
        if name not in ("k", "v"):
            getattr(run, name).append(value[prompt, index])

    resid = net.model(tokens, stop_at_layer=0)[prompt, at]
    for layer in range(net.n_layers):
        run.resid_pre.append(resid[prompt, index])
        resid = _forward(net, past, resid[None], at, layer, keep=keep)[0]
    run.resid_pre.append(resid[prompt, index])
    _make_room(net, run.n_bytes())
    kept[key] = run
    return run


def _chunks(
    pairs: PromptPairs, first: Int[Tensor, " prompt"]
) -> Iterable[tuple[Int[Tensor, " prompt"], PromptPairs]]:
    """Pieces of at most MAX_TOKENS tokens, each with its places in the whole.

    Prompts of one piece are computed again over windows of one length, from `first` to END, so
    prompts as far from END go together: none is computed at more positions than it needs.
    """
    size = max(1, MAX_TOKENS // pairs.clean.shape[1])
    window = pairs.length - 1 - first
    for n in window.unique().tolist():
        for prompts in (window == n).nonzero()[:, 0].split(size):
            yield prompts, pairs[prompts]


def _positions(pairs: PromptPairs, name: str) -> Int[Tensor, "prompt k"]:
    """Position(s) of each prompt, −1 where a prompt has fewer than others. "all" is every token."""
    if name == "all":
        every = torch.arange(pairs.clean.shape[1], device=pairs.clean.device).expand_as(pairs.clean)
        return torch.where(every < pairs.length[:, None], every, -1)
    if name not in pairs.positions:
        raise UsageError(
            f"no position {name!r} in these {pairs.task} prompts; they have "
            f"{', '.join(pairs.positions)}, all"
        )
    at = pairs.positions[name]
    return at[:, None] if at.ndim == 1 else at


def logit_diff(
    net: Network, resid: Float[Tensor, "*edit prompt d_model"], pairs: PromptPairs
) -> Float[Tensor, "*edit prompt"]:
    """`logit[answer] − logit[foil]`, one value per prompt, from the residual stream at END."""
    tokens = torch.stack([pairs.answer, pairs.foil], dim=-1)
    logits = net.logits(resid, tokens.expand(*resid.shape[:-1], 2))
    return logits[..., 0] - logits[..., 1]


# --- Path patching -------------------------------------------------------------------------------


@dataclass(frozen=True)
class PathPatch:
    """Noising path patching of every sender into one set of receivers.

    Attributes:
        logit_diff: after patching; NaN for heads that were not senders.
        clean, corrupted: of the unpatched runs.
    """

    logit_diff: Float[Tensor, "layer head prompt"]
    clean: Float[Tensor, " prompt"]
    corrupted: Float[Tensor, " prompt"]

    def effect(self) -> Float[Tensor, "layer head prompt"]:
        """Each prompt's change, in units of the mean clean−corrupted gap (one scale for all).

        The mean over prompts is the score of Merullo et al. (released code, `patching_utils.py`)
        without their factor −100: (patched − clean) / (corrupted − clean), so a head that
        supports the answer has a positive score, and 1 is as bad as full corruption.
        """
        return (self.logit_diff - self.clean) / (self.corrupted.mean() - self.clean.mean())

    def score(self) -> Float[Tensor, "layer head"]:
        return self.effect().mean(-1)


class _Receive:
    """Writes the recorded receiver inputs at their position, one sender's to each edit."""

    def __init__(
        self,
        component: Component,
        recorded: dict[Head, Float[Tensor, "edit prompt k d_head"]],
        index: Int[Tensor, "prompt k"],
    ):
        self.component, self.recorded, self.index = component, recorded, index
        self.start = min(layer for layer, _ in recorded)  # first layer to compute again
        self.fired: set[Head] = set()

    def acts_at(self, layer: int) -> bool:
        return any(at == layer for at, _ in self.recorded)

    def k_or_v_per_head(self, layer: int) -> bool:
        return self.component != "q" and self.acts_at(layer)

    def wants_pattern(self, layer: int) -> bool:
        return False

    def __call__(self, name: str, layer: int, value: Tensor) -> Tensor:
        if name != self.component or not self.acts_at(layer):
            return value
        value = value.clone()
        prompt = torch.arange(value.shape[1], device=value.device)[:, None]
        for (at, head), recorded in self.recorded.items():
            if at == layer:
                value[:, prompt, self.index, head] = recorded
                self.fired.add((at, head))
        return value


def _send(
    net: Network,
    clean: Run,
    corrupted: Run,
    senders: Sequence[Head],
    index: Int[Tensor, "prompt k"],
    receivers: Sequence[Head],
    component: Component,
    last: int,
    freeze_mlps: bool,
) -> tuple[dict[Head, Tensor], Float[Tensor, "edit prompt k d_model"]]:
    """First pass: each sender's corrupted output travels on with all other heads frozen.

    `index` are the patched positions, counted within the runs' `dest`.

    With every other head frozen there, no position can see another: the residual stream there
    changes by the sender's write and by what the MLPs (unless frozen too) make of it.
    Returns the inputs of the receiver heads that lie above a sender, and the residual stream that
    layer `last` reads.
    """
    prompt = torch.arange(len(index), device=index.device)[:, None]
    first = min(layer for layer, _ in senders)
    resid = clean.resid_pre[first][prompt, index].repeat(len(senders), 1, 1, 1)
    sent_at: dict[int, list[tuple[int, int]]] = {}
    for row, (layer, head) in enumerate(senders):
        sent_at.setdefault(layer, []).append((row, head))
    recorded: dict[Head, Tensor] = {}
    begun = 0  # senders are in layer order: rows below `begun` have already sent

    for layer in range(first, last + 1):
        block = net.blocks[layer] if layer < net.n_layers else None
        for head in [head for at_layer, head in receivers if at_layer == layer]:
            project = getattr(block, component)
            heads = block.heads_of(project(block.ln1(resid)))
            shared_by = block.n_heads // heads.shape[-2]
            recorded[layer, head] = heads[..., head // shared_by, :].clone()
        if layer == last:
            break
        active = begun + len(sent_at.get(layer, ()))
        o_out = clean.o_out[layer][prompt, index].repeat(active - begun, 1, 1, 1)
        for row, head in sent_at.get(layer, ()):
            delta = corrupted.z[layer][prompt, index, head] - clean.z[layer][prompt, index, head]
            o_out[row - begun] += delta @ block.W_O[head]
        frozen = block.write(clean.o_out[layer][prompt, index]).expand(begun, -1, -1, -1)
        attn_out = torch.cat([frozen, block.write(o_out)]) if active > begun else frozen
        before, mid = resid[:active], resid[:active] + attn_out
        if freeze_mlps:
            mlp_out = clean.mlp_out[layer][prompt, index]
        else:
            mlp_out = block.mlp_write(before if block.parallel else mid)
        resid[:active] = mid + mlp_out
        resid[active:] = clean.resid_pre[layer + 1][prompt, index]
        begun = active
    return recorded, resid


def path_patch(
    net: Network,
    pairs: PromptPairs,
    receivers: Sequence[Head] | Residual | Literal["logits"],
    component: Component = "q",
    position: str = "END",
    senders: Sequence[Head] | None = None,
    freeze_mlps: bool = False,
) -> PathPatch:
    """Noising path patching (Wang et al. 2022; Merullo et al. 2023, released code).

    For each sender head: (1) the clean prompt is run with the sender's `z` at `position` taken
    from the corrupted prompt, every other head frozen at its clean `z` there, MLPs recomputed
    (or frozen with `freeze_mlps`), and the receivers' q, k or v at `position` is recorded;
    (2) the clean prompt is run again with the recorded values written in and everything else
    free. For the residual stream the stream itself is recorded and written in. After the last
    layer that is all the logits read: "logits" takes no second pass.
    One query head's key or value is patched alone, also where heads share keys and values.

    Args:
        receivers: heads, ("resid_post", layer) for the residual stream after that layer, or
            "logits" for the one after the last.
        component: which input of receiver heads; means nothing for a residual stream.
        position: name of a position, or of a set of positions, of `pairs`; "all" for every token.
        senders: default all heads that the receivers can see.

    Raises:
        UsageError: no receivers, a head, layer or position that does not exist, or a sender that
            no receiver can see.
    """
    if not receivers:
        raise UsageError("path patching needs at least one receiver head")
    if receivers == "logits":
        if position != "END":
            raise UsageError(
                f"the logits are read at END, so the patch must be there, not {position}"
            )
        receivers = ("resid_post", net.n_layers - 1)
    if receivers[0] == "resid_post":
        heads, top = [], receivers[1] + 1
        if not 0 < top <= net.n_layers:
            raise UsageError(f"no layer {top - 1}: this model has {net.n_layers} layers")
    else:
        heads = list(receivers)
        top = max(layer for layer, _ in heads)
    senders = sorted(net.heads(below=top) if senders is None else senders)
    net.check_heads([*heads, *senders])
    late = [(layer, head) for layer, head in senders if layer >= top]
    if late or not senders:
        raise UsageError(f"senders must lie below layer {top}, given {late or 'none'}")

    shape = (net.n_layers, net.n_heads, len(pairs))
    patched = torch.full(shape, torch.nan, device=net.W_U.device)
    clean_diff, corrupted_diff = patched[0, 0].clone(), patched[0, 0].clone()
    with torch.inference_mode():
        every = _positions(pairs, position)
        real = every >= 0
        every = torch.where(real, every, every[:, :1])  # padding repeats the first member
        for prompts, chunk in _chunks(pairs, every.min(-1).values):
            prompt = torch.arange(len(chunk), device=chunk.clean.device)
            at = every[prompts][:, real[prompts].any(0)]
            dest = _window(at.min(-1).values, chunk.length - 1)
            index = at - dest[:, :1]
            past = _past(net, pairs, prompts)
            clean, corrupted = (
                _run(net, pairs, which, prompts, past, dest) for which in ("clean", "corrupted")
            )
            clean_diff[prompts] = logit_diff(net, clean.final[:, -1], chunk)
            corrupted_diff[prompts] = logit_diff(net, corrupted.final[:, -1], chunk)
            batch = max(1, MAX_ROWS // dest.numel())
            for start in range(0, len(senders), batch):
                some = senders[start : start + batch]
                recorded, sent = _send(
                    net, clean, corrupted, some, index, heads, component, top, freeze_mlps
                )
                editor, begin = None, top
                if heads:
                    editor = _Receive(component, recorded, index)
                    begin = editor.start
                resid = clean.resid_pre[begin].repeat(len(some), 1, 1, 1)
                if not heads:
                    resid[:, prompt[:, None], index] = sent
                for layer in range(begin, net.n_layers):
                    resid = _forward(net, past, resid, dest, layer, editor)
                if heads and editor.fired != set(recorded):
                    raise RuntimeError("a receiver was not patched")
                layers, head_index = torch.tensor(some).T
                patched[layers[:, None], head_index[:, None], prompts] = logit_diff(
                    net, resid[:, :, -1], chunk
                )
    return PathPatch(patched, clean_diff, corrupted_diff)


def _window(
    first: Int[Tensor, " prompt"], last: Int[Tensor, " prompt"]
) -> Int[Tensor, "prompt dest"]:
    """The positions from `first` to `last`, as many in each prompt (see `_chunks`)."""
    n_dest = (last - first).unique()
    if len(n_dest) != 1:
        raise RuntimeError(f"windows of unequal lengths in one piece: {n_dest.tolist()}")
    return first[:, None] + torch.arange(int(n_dest) + 1, device=first.device)


# --- Edits of heads at one position --------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """Where an edit is applied: which head, which prompts of the set."""

    head: Head
    prompts: slice | Int[Tensor, " prompt"]
    corrupted: Run | None


@dataclass(frozen=True)
class HeadEdit:
    """What becomes of some heads' attention rows (`pattern`) or outputs (`z`).

    `apply` maps the value the head would have, [prompt, dest, src] or [prompt, dest, d_head],
    to the one it is given. No heads: an edit that changes nothing, the baseline.
    """

    heads: tuple[Head, ...] = ()
    at: Literal["pattern", "z"] = "z"
    apply: Callable[[Tensor, Site], Tensor] | None = None
    needs_corrupted: bool = False


def attention_row(heads: Iterable[Head], row: Float[Tensor, "prompt src"]) -> HeadEdit:
    """The heads attend as `row` says, whatever their queries and keys (Merullo et al., Sec. 5).

    Raises:
        UsageError: if a row is negative somewhere or does not sum to 1.
    """
    sums = row.sum(-1)
    if (row < 0).any() or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        raise UsageError("attention rows must be non-negative and sum to 1 for every prompt")
    return HeadEdit(
        tuple(heads),
        "pattern",
        lambda old, site: row[site.prompts, None, : old.shape[-1]].to(old).expand_as(old),
    )


def attention_knockout(heads: Iterable[Head], src: Int[Tensor, "prompt k"]) -> HeadEdit:
    """The heads cannot attend to `src` (−1 pads); their rows are scaled to sum to 1 again."""

    def apply(old: Tensor, site: Site) -> Tensor:
        cut = src[site.prompts]
        kept = torch.ones(old.shape[0], old.shape[-1] + 1, dtype=old.dtype, device=old.device)
        kept = kept.scatter(-1, torch.where(cut < 0, old.shape[-1], cut), 0.0)[:, None, :-1]
        return old * kept / (old * kept).sum(-1, keepdim=True).clamp_min(1e-9)

    return HeadEdit(tuple(heads), "pattern", apply)


def zero_ablate(heads: Iterable[Head]) -> HeadEdit:
    """The heads write nothing."""
    return HeadEdit(tuple(heads), "z", lambda old, site: torch.zeros_like(old))


def mean_ablate(heads: Iterable[Head], mean_z: Float[Tensor, "layer head d_head"]) -> HeadEdit:
    """The heads write their mean output over other prompts (see `mean_z`)."""
    return HeadEdit(tuple(heads), "z", lambda old, site: mean_z[site.head].to(old).expand_as(old))


def resample_ablate(heads: Iterable[Head]) -> HeadEdit:
    """The heads write what they wrote on the corrupted prompt, at the same position."""

    def apply(old: Tensor, site: Site) -> Tensor:
        return site.corrupted.z[site.head[0]][:, :, site.head[1]]  # kept at the same positions

    return HeadEdit(tuple(heads), "z", apply, needs_corrupted=True)


def scale_head(head: Head, alpha: float) -> HeadEdit:
    """One head's output times `alpha`: its `z`, since a value vector may serve several heads."""
    return HeadEdit((head,), "z", lambda old, site: alpha * old)


@dataclass
class _Seen:
    """What passed at one position, layer by layer."""

    pattern: list[Float[Tensor, "edit prompt head src"]] = field(default_factory=list)
    z: list[Float[Tensor, "edit prompt head d_head"]] = field(default_factory=list)


class _EditHeads:
    """Applies each edit to its own row; with `capture`, keeps what passes at the last position."""

    def __init__(
        self,
        edits: Sequence[HeadEdit],
        site: Callable[[Head], Site],
        capture: bool,
    ):
        edited = [layer for edit in edits for layer, _ in edit.heads]
        self.start = 0 if capture or not edited else min(edited)
        self.site = site
        self.seen = _Seen() if capture else None
        self.todo: dict[tuple[str, int], list[tuple[int, int, HeadEdit]]] = {}
        for row, edit in enumerate(edits):
            for layer, head in edit.heads:
                self.todo.setdefault((edit.at, layer), []).append((row, head, edit))

    def acts_at(self, layer: int) -> bool:
        return self.seen is not None or any(at == layer for _, at in self.todo)

    def k_or_v_per_head(self, layer: int) -> bool:
        return False  # these edits act on what comes after

    def wants_pattern(self, layer: int) -> bool:
        return self.seen is not None or ("pattern", layer) in self.todo

    def __call__(self, name: str, layer: int, value: Tensor) -> Tensor:
        todo = self.todo.pop((name, layer), None)  # what is left at the end did not fire
        if todo is not None:
            value = value.clone()
        for row, head, edit in todo or ():
            here = (row, slice(None), head) if name == "pattern" else (row, ..., head, slice(None))
            value[here] = edit.apply(value[here], self.site((layer, head)))
        if self.seen is not None and name in ("pattern", "z"):
            at_end = value[..., -1, :] if name == "pattern" else value[:, :, -1]
            getattr(self.seen, name).append(at_end)
        return value


@dataclass(frozen=True)
class Readout:
    """What the model says at END after each edit.

    Attributes:
        tokens: the candidates of the prompts, or (answer, foil) where they have none.
        logits: of `tokens`.
        correct: is the answer the most probable token of the full vocabulary? (None unless asked)
        top1, logsumexp: most probable token, and log-sum-exp of the logits, over the full
            vocabulary (None unless asked for); log p(token) is its logit less the log-sum-exp.
        pattern: attention from END, every head (None unless captured).
        attribution: direct effect of each head on the logits of `tokens`, the norms frozen at the
            scale they have in that run (None unless captured).
    """

    logit_diff: Float[Tensor, "edit prompt"]
    tokens: Int[Tensor, "prompt token"]
    logits: Float[Tensor, "edit prompt token"]
    top1: Int[Tensor, "edit prompt"] | None = None
    logsumexp: Float[Tensor, "edit prompt"] | None = None
    correct: Bool[Tensor, "edit prompt"] | None = None
    pattern: Float[Tensor, "edit prompt layer head src"] | None = None
    attribution: Float[Tensor, "edit prompt layer head token"] | None = None


def read(
    net: Network,
    pairs: PromptPairs,
    edits: Sequence[HeadEdit] = (HeadEdit(),),
    everywhere: bool = False,
    correct: bool = False,
    full_vocabulary: bool = False,
    capture: bool = False,
) -> Readout:
    """Run the clean prompts under each edit and read the next token at END.

    The edits act at END (or at every position); later heads and MLPs are free.

    Raises:
        UsageError: a head that does not exist.
    """
    net.check_heads(head for edit in edits for head in edit.heads)
    tokens = pairs.candidates
    if tokens is None:
        tokens = torch.stack([pairs.answer, pairs.foil], dim=-1)
    needs_corrupted = any(edit.needs_corrupted for edit in edits)
    columns: list[list[dict[str, Tensor]]] = []
    order: list[Tensor] = []
    starts = torch.zeros_like(pairs.length) if everywhere else pairs.length - 1
    with torch.inference_mode():
        for prompts, chunk in _chunks(pairs, starts):
            order.append(prompts)
            dest = _window(starts[prompts], chunk.length - 1)
            past = _past(net, pairs, prompts)
            clean = _run(net, pairs, "clean", prompts, past, dest)
            corrupted = None
            if needs_corrupted:
                corrupted = _run(net, pairs, "corrupted", prompts, past, dest)
            site = partial(Site, prompts=prompts, corrupted=corrupted)
            batch = max(1, MAX_ROWS // dest.numel())
            columns.append([])
            for start in range(0, len(edits), batch):
                some = edits[start : start + batch]
                resid, seen = _edited(net, past, clean, some, site, capture)
                out = {"logits": net.logits(resid, tokens[prompts].expand(len(some), -1, -1))}
                out["logit_diff"] = logit_diff(net, resid, chunk)
                if correct:
                    out["correct"] = net.is_top1(resid, chunk.answer.expand(resid.shape[:-1]))
                if full_vocabulary:
                    out["top1"], out["logsumexp"] = net.vocabulary(resid)
                if capture:
                    out["pattern"] = torch.stack(seen.pattern, dim=2).float()
                    out["attribution"] = _attribution(net, seen, resid, tokens[prompts])
                columns[-1].append(out)

    def whole(name: str) -> Tensor | None:
        if name not in columns[0][0]:
            return None
        pieces = [torch.cat([batch[name] for batch in column]) for column in columns]
        return torch.cat(pieces, dim=1)[:, torch.cat(order).argsort()]

    return Readout(
        whole("logit_diff"),
        tokens,
        whole("logits"),
        whole("top1"),
        whole("logsumexp"),
        whole("correct"),
        whole("pattern"),
        whole("attribution"),
    )


def _edited(
    net: Network,
    past: _Past,
    clean: Run,
    edits: Sequence[HeadEdit],
    site: Callable[[Head], Site],
    capture: bool,
) -> tuple[Float[Tensor, "edit prompt d_model"], _Seen | None]:
    """The final residual stream at END under each edit, and what `capture` asks for."""
    editor = _EditHeads(edits, site, capture)
    resid = clean.resid_pre[editor.start].expand(len(edits), -1, -1, -1)
    for layer in range(editor.start, net.n_layers):
        resid = _forward(net, past, resid, clean.dest, layer, editor)
    if editor.todo:
        raise RuntimeError(f"edits that did not fire: {sorted(editor.todo)}")
    return resid[:, :, -1], editor.seen


def _frozen_norm(
    norm: Callable[[Tensor], Tensor], at: Float[Tensor, "*batch d_model"]
) -> Callable[[Tensor], Tensor]:
    """The norm as the linear map that it is while its scale stays what it is at `at`.

    For y = (x − mean) · s · w + b or y = x · s · w, the map u ↦ (u − mean) · s · w or u · s · w:
    applied to the terms of a sum it gives terms that add up to y (less b).
    """
    centred = isinstance(norm, torch.nn.LayerNorm)
    out = (norm(at) - norm.bias if centred and norm.bias is not None else norm(at)).float()
    exact, at = at.dtype == torch.float32, at.float()
    base = at - at.mean(-1, keepdim=True) if centred else at
    # s·w elementwise; where x is 0 the quotient is undefined, so w comes from the module.
    weight = norm.weight.float() + (1.0 if "Gemma" in type(norm).__name__ else 0.0)
    weighted = base * weight
    scale = (out * weighted).sum(-1, keepdim=True) / (weighted**2).sum(-1, keepdim=True)
    close = 1e-3 if exact else 2e-2
    if not torch.allclose(scale * weighted, out, rtol=close, atol=close * float(out.abs().max())):
        raise UsageError(f"direct logit attribution does not know the norm {type(norm).__name__}")

    def apply(u: Tensor) -> Tensor:
        extra = (1,) * (u.ndim - at.ndim)
        s = scale.view(*scale.shape[:-1], *extra, 1)
        return (u - u.mean(-1, keepdim=True) if centred else u) * s * weight

    return apply


def _attribution(
    net: Network,
    seen: _Seen,
    resid: Float[Tensor, "edit prompt d_model"],
    tokens: Int[Tensor, "prompt token"],
) -> Float[Tensor, "edit prompt layer head token"]:
    """Direct logit attribution at END (Elhage et al. 2021): each head's write through the final
    norm, frozen at its scale in this run, onto the tokens' unembedding. Where the attention output
    is normalised before it is added (Gemma), that norm is frozen in the same way."""
    final = _frozen_norm(net.ln_final, resid)
    layers = []
    for block, z in zip(net.blocks, seen.z, strict=True):
        writes = torch.einsum("ephd,hdm->ephm", z.float(), block.W_O.float())
        if block.ln1_post is not None:
            writes = _frozen_norm(block.ln1_post, block.o(z.flatten(-2)))(writes)
        layers.append(torch.einsum("ephm,ptm->epht", final(writes), net.W_U[tokens].float()))
    return torch.stack(layers, dim=2)


def mean_z(net: Network, pairs: PromptPairs) -> Float[Tensor, "layer head d_head"]:
    """Mean output of every head at END over the clean prompts, for `mean_ablate`."""
    total = 0.0
    with torch.inference_mode():
        for prompts, chunk in _chunks(pairs, pairs.length - 1):
            past = _past(net, pairs, prompts)
            run = _run(net, pairs, "clean", prompts, past, chunk.length[:, None] - 1)
            total = total + torch.stack([z[:, 0].float().sum(0) for z in run.z])
    return total / len(pairs)


def attention_from(
    net: Network, pairs: PromptPairs, position: str = "END"
) -> Float[Tensor, "prompt layer head src"]:
    """Attention pattern of every head from one position of the clean prompts.

    Raises:
        UsageError: a position that does not exist, or a set of positions.
    """
    if (at := _positions(pairs, position)).shape[1] != 1:
        raise UsageError(f"attention is read from one position, {position!r} is a set of them")
    rows = []
    with torch.inference_mode():
        for prompts, _ in _chunks(pairs, pairs.length - 1):
            dest = at[prompts]
            site = partial(Site, prompts=prompts, corrupted=None)
            past = _past(net, pairs, prompts)
            run = _run(net, pairs, "clean", prompts, past, dest)
            _, seen = _edited(net, past, run, [HeadEdit()], site, capture=True)
            rows.append(torch.stack(seen.pattern, dim=2)[0].float())
    return torch.cat(rows)
