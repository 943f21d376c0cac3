"""Forward passes of a network whose parts are at hand, in batches that fit the memory."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replib.errors import UsageError
from replib.interventions.budget import at_once
from replib.interventions.network import Network, activations
from replib.prompts.pairs import PromptPairs

# Largest number of residual-stream rows (edit × prompt × dest) computed at once. A row costs about
# 4 × d_mlp floats on the way through an MLP: with 2,048 rows what one step writes is still in the
# processor's cache when the next reads it (14% faster than 4,096 in smollm2-135m's MLP).
MAX_ROWS = at_once(2_048)
# Prompts × positions of one unedited run computed at once.
MAX_TOKENS = at_once(2_048)
# Unedited runs kept for the next edit of the same prompts (keys and values, mostly).
MAX_KEPT_BYTES = at_once(1_500_000_000)
EDITABLE = ("q", "k", "v", "pattern", "z")


@runtime_checkable
class Edit(Protocol):
    """What changes a forward pass on its way: `path_patching.Receive`, `head_edits.EditHeads`.
    `wants` says which of EDITABLE it changes or keeps in a layer."""

    start: int  # the first layer that it changes

    def wants(self, name: str, layer: int) -> bool: ...

    def __call__(self, name: str, layer: int, value: Tensor) -> Tensor: ...


@dataclass
class Past:
    """Keys and values of the clean prompts at every position, layer by layer."""

    tokens: Int[Tensor, "prompt pos"]
    k: list[Float[Tensor, "prompt pos kv_head d_head"]]
    v: list[Float[Tensor, "prompt pos kv_head d_head"]]


@dataclass
class Run:
    """Activations of some prompts' unedited forward pass at the positions `dest`, layer by layer.
    `resid_pre` has n_layers + 1 entries, the last being what the final norm reads."""

    dest: Int[Tensor, "prompt dest"]
    resid_pre: list[Float[Tensor, "prompt dest d_model"]] = field(default_factory=list)
    z: list[Float[Tensor, "prompt dest head d_head"]] = field(default_factory=list)
    o_out: list[Float[Tensor, "prompt dest d_model"]] = field(default_factory=list)
    mlp_out: list[Float[Tensor, "prompt dest d_model"]] = field(default_factory=list)

    @property
    def final(self) -> Float[Tensor, "prompt dest d_model"]:
        return self.resid_pre[-1]


def run_forward(
    net: Network,
    past: Past,
    resid: Float[Tensor, "edit prompt dest d_model"],
    dest: Int[Tensor, "prompt dest"],
    layer: int,
    edit: Edit | None = None,
    keep: Callable[[str, Tensor], None] | None = None,
) -> Float[Tensor, "edit prompt out d_model"]:
    """One block at the consecutive positions `dest`; keys and values before them are in `past`.

    `edit` is called at q, k, v, pattern and z and returns what takes their place; `keep` is shown
    the block's activations. Where `dest` begins at the first position, `past` is not looked at.
    Nothing reads the last layer but at END, the last of `dest`: there it is computed at END only,
    unless someone edits or keeps what it does elsewhere.
    """
    block, geometry = net.blocks[layer], net.geometry(past.tokens)
    wanted = [name for name in EDITABLE if edit is not None and edit.wants(name, layer)]
    at_end = layer == net.n_layers - 1 and keep is None and not wanted
    x = block.ln1(resid)
    k, v = block.heads_of(block.k(x)), block.heads_of(block.v(x))
    n_kv, src = k.shape[-2], dest
    if at_end:
        resid, x, dest = resid[:, :, -1:], x[:, :, -1:], dest[:, -1:]
    q = block.heads_of(block.q(x))

    if edit is not None:
        if "k" in wanted or "v" in wanted:
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
    if "pattern" in wanted:
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


def keep_past(net: Network, pairs: PromptPairs, prompts: Int[Tensor, " prompt"]) -> Past:
    """Keys and values of some clean prompts. The model is run once for a set of prompts. The first
    prompt is checked against the model's own forward pass: UsageError if the model computes
    something that this module does not know (an unusual block layout)."""
    kept = net.kept.setdefault(pairs.clean, {})
    if "past" not in kept:
        whole = Past(pairs.clean, [], [])
        for some, chunk in chunks(pairs, torch.zeros_like(pairs.length)):
            tokens = chunk.clean[:, : int(chunk.length[0])]  # a piece's prompts are equally long
            every = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
            past = Past(tokens, [], [])
            resid = net.model(tokens, stop_at_layer=0)[None]  # embeddings
            for layer in range(net.n_layers):
                new: dict[str, Tensor] = {}
                resid = run_forward(net, past, resid, every, layer, keep=new.__setitem__)
                past.k.append(new["k"])
                past.v.append(new["v"])
            if not whole.k:
                _check(net, tokens[:1], resid[0, :1])
                whole.k, whole.v = (
                    [t.new_zeros(*pairs.clean.shape, *t.shape[2:]) for t in side]
                    for side in (past.k, past.v)
                )
            for all_, part in zip(whole.k + whole.v, past.k + past.v, strict=True):
                all_[some, : tokens.shape[1]] = part
        _make_room(net, whole)
        net.kept.setdefault(pairs.clean, kept)["past"] = whole
    whole = kept["past"]
    if torch.equal(prompts, torch.arange(len(pairs), device=prompts.device)):
        return whole
    return Past(pairs.clean[prompts], [k[prompts] for k in whole.k], [v[prompts] for v in whole.v])


def _check(
    net: Network, tokens: Int[Tensor, "1 pos"], resid: Float[Tensor, "1 pos d_model"]
) -> None:
    """Refuses a model whose own final residual stream is not the one computed here."""
    seen = activations(net.model, tokens, lambda name: name == "ln_final.hook_in")
    expected = seen["ln_final.hook_in"]
    error = (resid - expected).norm() / expected.norm()
    if not error < (1e-4 if resid.dtype == torch.float32 else 5e-2):
        raise UsageError(
            f"this model's blocks ({type(net.model.original_model).__name__}) are not of a known "
            f"layout (recomputed residual stream off by {float(error):.1e} of its norm): exact "
            "path patching refuses it"
        )


def _make_room(net: Network, new: Past | Run) -> None:
    """Forgets what is kept if it would be too much with `new`."""
    every = [new, *(one for kept in net.kept.values() for one in kept.values())]
    lists = (value for one in every for value in vars(one).values() if isinstance(value, list))
    if sum(t.nbytes for tensors in lists for t in tensors) > MAX_KEPT_BYTES:
        for kept in net.kept.values():
            kept.clear()


def run_batches(
    net: Network,
    pairs: PromptPairs,
    which: Literal["clean", "corrupted"],
    prompts: Int[Tensor, " prompt"],
    past: Past,
    dest: Int[Tensor, "prompt dest"],
) -> Run:
    """The unedited run of some prompts at `dest`, kept for the next edit of them. The corrupted run
    is the clean one up to the first token that differs: only positions from there on are computed,
    `past` serves the others."""
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
        resid = run_forward(net, past, resid[None], at, layer, keep=keep)[0]
    run.resid_pre.append(resid[prompt, index])
    _make_room(net, run)
    kept[key] = run
    return run


def chunks(
    pairs: PromptPairs, first: Int[Tensor, " prompt"]
) -> Iterable[tuple[Int[Tensor, " prompt"], PromptPairs]]:
    """Pieces of at most MAX_TOKENS tokens, each with its places in the whole. A batch holds prompts
    whose window, from `first` to END, has the same length, so that no prompt is computed at more
    positions than it needs."""
    size = max(1, MAX_TOKENS // pairs.clean.shape[1])
    window = pairs.length - 1 - first
    for n in window.unique().tolist():
        for prompts in (window == n).nonzero()[:, 0].split(size):
            yield prompts, pairs[prompts]


def positions_of(pairs: PromptPairs, name: str) -> Int[Tensor, "prompt k"]:
    """Position(s) of each prompt, −1 where a prompt has fewer than others. "all" is every token."""
    if name == "all":
        every = torch.arange(pairs.clean.shape[1], device=pairs.clean.device).expand_as(pairs.clean)
        return torch.where(every < pairs.length[:, None], every, -1)
    if name not in pairs.positions:
        names = f"they have {', '.join(pairs.positions)}, all"
        raise UsageError(f"no position {name!r} in these {pairs.task} prompts; {names}")
    at = pairs.positions[name]
    return at[:, None] if at.ndim == 1 else at


def resid_logit_diff(
    net: Network, resid: Float[Tensor, "*edit prompt d_model"], pairs: PromptPairs
) -> Float[Tensor, "*edit prompt"]:
    """`logit[answer] − logit[foil]`, one value per prompt, from the residual stream at END."""
    tokens = torch.stack([pairs.answer, pairs.foil], dim=-1)
    logits = net.logits(resid, tokens.expand(*resid.shape[:-1], 2))
    return logits[..., 0] - logits[..., 1]
