"""Edits of single attention heads, and what the model then says."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replib.errors import UsageError
from replib.interventions.forward import (
    MAX_ROWS,
    Past,
    Run,
    chunks,
    keep_past,
    positions_of,
    resid_logit_diff,
    run_batches,
    run_forward,
)
from replib.interventions.network import Head, Network
from replib.interventions.path_patching import window
from replib.prompts.pairs import PromptPairs


@dataclass(frozen=True)
class Site:
    """Where an edit is applied: which head, which prompts of the set."""

    head: Head
    prompts: slice | Int[Tensor, " prompt"]
    corrupted: Run | None


@dataclass(frozen=True)
class HeadEdit:
    """What becomes of some heads' attention rows (`pattern`) or outputs (`z`). `apply` maps the
    value the head would have, [prompt, dest, src] or [prompt, dest, d_head], to the one it is
    given. No heads: an edit that changes nothing, the baseline."""

    heads: tuple[Head, ...] = ()
    at: Literal["pattern", "z"] = "z"
    apply: Callable[[Tensor, Site], Tensor] | None = None
    needs_corrupted: bool = False


def attention_row(heads: Iterable[Head], row: Float[Tensor, "prompt src"]) -> HeadEdit:
    """The heads attend as `row` says, whatever their queries and keys (Merullo et al., Sec. 5).
    UsageError if a row is negative somewhere or does not sum to 1."""
    sums = row.sum(-1)
    if (row < 0).any() or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        raise UsageError("attention rows must be non-negative and sum to 1 for every prompt")

    def apply(old: Tensor, site: Site) -> Tensor:
        return row[site.prompts, None, : old.shape[-1]].to(old).expand_as(old)

    return HeadEdit(tuple(heads), "pattern", apply)


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


def resample_ablate(heads: Iterable[Head]) -> HeadEdit:
    """The heads write what they wrote on the corrupted prompt, at the same position."""

    def apply(old: Tensor, site: Site) -> Tensor:
        return site.corrupted.z[site.head[0]][:, :, site.head[1]]  # kept at the same positions

    return HeadEdit(tuple(heads), "z", apply, needs_corrupted=True)


def scale_head(head: Head, alpha: float) -> HeadEdit:
    """One head's output times `alpha`: its `z`, since a value vector may serve several heads."""
    return HeadEdit((head,), "z", lambda old, site: alpha * old)


# What passed at one position, layer by layer: "pattern" [edit, prompt, head, src] and "z" [edit,
# prompt, head, d_head].
Seen = dict[str, list[Tensor]]


class EditHeads:
    """Applies each edit to its own row; with `capture`, keeps what passes at the last position."""

    def __init__(self, edits: Sequence[HeadEdit], site: Callable[[Head], Site], capture: bool):
        edited = [layer for edit in edits for layer, _ in edit.heads]
        self.start = 0 if capture or not edited else min(edited)
        self.site = site
        self.seen: Seen | None = {"pattern": [], "z": []} if capture else None
        self.todo: dict[tuple[str, int], list[tuple[int, int, HeadEdit]]] = {}
        for row, edit in enumerate(edits):
            for layer, head in edit.heads:
                self.todo.setdefault((edit.at, layer), []).append((row, head, edit))

    def wants(self, name: str, layer: int) -> bool:
        return name in (self.seen or ()) or (name, layer) in self.todo

    def __call__(self, name: str, layer: int, value: Tensor) -> Tensor:
        todo = self.todo.pop((name, layer), None)  # what is left at the end did not fire
        if todo is not None:
            value = value.clone()
        for row, head, edit in todo or ():
            here = (row, slice(None), head) if name == "pattern" else (row, ..., head, slice(None))
            value[here] = edit.apply(value[here], self.site((layer, head)))
        if name in (self.seen or ()):
            self.seen[name].append(value[..., -1, :] if name == "pattern" else value[:, :, -1])
        return value


@dataclass(frozen=True)
class Readout:
    """What the model says at END after each edit; None: not asked for."""

    logit_diff: Float[Tensor, "edit prompt"]
    tokens: Int[Tensor, "prompt token"]  # the candidates, or (answer, foil) where there are none
    logits: Float[Tensor, "edit prompt token"]  # of `tokens`
    # Of the full vocabulary: the most probable token, the log-sum-exp of the logits (log p(token)
    # is its logit less that), and whether the answer is the most probable.
    top1: Int[Tensor, "edit prompt"] | None = None
    logsumexp: Float[Tensor, "edit prompt"] | None = None
    correct: Bool[Tensor, "edit prompt"] | None = None
    pattern: Float[Tensor, "edit prompt layer head src"] | None = None  # attention from END
    # Direct effect of each head on the logits of `tokens`, the norms frozen at their scale in
    # that run.
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
    """Run the clean prompts under each edit and read the next token at END. The edits act at END
    (or at every position); later heads and MLPs are free. UsageError for a head that does not
    exist."""
    net.check_heads(head for edit in edits for head in edit.heads)
    tokens = pairs.candidates
    if tokens is None:
        tokens = torch.stack([pairs.answer, pairs.foil], dim=-1)
    needs_corrupted = any(edit.needs_corrupted for edit in edits)
    parts: list[dict[str, Tensor]] = []
    order: list[Tensor] = []
    starts = torch.zeros_like(pairs.length) if everywhere else pairs.length - 1
    with torch.inference_mode():
        for prompts, chunk in chunks(pairs, starts):
            order.append(prompts)
            dest = window(starts[prompts], chunk.length - 1)
            past = keep_past(net, pairs, prompts)
            clean, corrupted = run_batches(net, pairs, "clean", prompts, past, dest), None
            if needs_corrupted:
                corrupted = run_batches(net, pairs, "corrupted", prompts, past, dest)
            site = partial(Site, prompts=prompts, corrupted=corrupted)
            batch = max(1, MAX_ROWS // dest.numel())
            outs = []
            for start in range(0, len(edits), batch):
                some = edits[start : start + batch]
                resid, seen = _edited(net, past, clean, some, site, capture)
                out = {"logits": net.logits(resid, tokens[prompts].expand(len(some), -1, -1))}
                out["logit_diff"] = resid_logit_diff(net, resid, chunk)
                if correct:
                    out["correct"] = net.is_top1(resid, chunk.answer.expand(resid.shape[:-1]))
                if full_vocabulary:
                    out["top1"], out["logsumexp"] = net.vocabulary(resid)
                if capture:
                    out["pattern"] = torch.stack(seen["pattern"], dim=2).float()
                    out["attribution"] = _attribution(net, seen, resid, tokens[prompts])
                outs.append(out)
            parts.append({name: torch.cat([out[name] for out in outs]) for name in outs[0]})
    back = torch.cat(order).argsort()
    whole = {name: torch.cat([part[name] for part in parts], dim=1)[:, back] for name in parts[0]}
    return Readout(tokens=tokens, **whole)


def _edited(
    net: Network,
    past: Past,
    clean: Run,
    edits: Sequence[HeadEdit],
    site: Callable[[Head], Site],
    capture: bool,
) -> tuple[Float[Tensor, "edit prompt d_model"], Seen | None]:
    """The final residual stream at END under each edit, and what `capture` asks for."""
    editor = EditHeads(edits, site, capture)
    resid = clean.resid_pre[editor.start].expand(len(edits), -1, -1, -1)
    for layer in range(editor.start, net.n_layers):
        resid = run_forward(net, past, resid, clean.dest, layer, editor)
    if editor.todo:
        raise RuntimeError(f"edits that did not fire: {sorted(editor.todo)}")
    return resid[:, :, -1], editor.seen


def frozen_norm(
    norm: Callable[[Tensor], Tensor], at: Float[Tensor, "*batch d_model"]
) -> Callable[[Tensor], Tensor]:
    """The norm as the linear map that it is while its scale stays what it is at `at`. For y = (x −
    mean) · s · w + b or y = x · s · w, the map u ↦ (u − mean) · s · w or u · s · w: applied to the
    terms of a sum it gives terms that add up to y (less b)."""
    no_weight = type(norm).__name__ == "OlmoLayerNorm"
    centred = isinstance(norm, torch.nn.LayerNorm) or no_weight
    bias = getattr(norm, "bias", None)
    out = (norm(at) - bias if centred and bias is not None else norm(at)).float()
    exact, at = at.dtype == torch.float32, at.float()
    base = at - at.mean(-1, keepdim=True) if centred else at
    # s·w elementwise; where x is 0 the quotient is undefined, so w comes from the module.
    own = torch.ones(()) if no_weight else norm.weight.float()
    weight = own + (1.0 if "Gemma" in type(norm).__name__ else 0.0)
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
    seen: Seen,
    resid: Float[Tensor, "edit prompt d_model"],
    tokens: Int[Tensor, "prompt token"],
) -> Float[Tensor, "edit prompt layer head token"]:
    """Direct logit attribution at END (Elhage et al. 2021): each head's write through the final
    norm, frozen at its scale in this run, onto the tokens' unembedding. Where the attention output
    is normalised before it is added (Gemma), that norm is frozen in the same way."""
    final = frozen_norm(net.ln_final, resid)
    layers = []
    for block, z in zip(net.blocks, seen["z"], strict=True):
        writes = torch.einsum("ephd,hdm->ephm", z.float(), block.W_O.float())
        if block.ln1_post is not None:
            writes = frozen_norm(block.ln1_post, block.o(z.flatten(-2)))(writes)
        layers.append(torch.einsum("ephm,ptm->epht", final(writes), net.W_U[tokens].float()))
    return torch.stack(layers, dim=2)


def attention_from(
    net: Network, pairs: PromptPairs, position: str = "END"
) -> Float[Tensor, "prompt layer head src"]:
    """Attention pattern of every head from one position of the clean prompts. UsageError for a
    position that does not exist, or a set of positions."""
    if (at := positions_of(pairs, position)).shape[1] != 1:
        raise UsageError(f"attention is read from one position, {position!r} is a set of them")
    rows = []
    with torch.inference_mode():
        for prompts, _ in chunks(pairs, pairs.length - 1):
            dest = at[prompts]
            site = partial(Site, prompts=prompts, corrupted=None)
            past = keep_past(net, pairs, prompts)
            run = run_batches(net, pairs, "clean", prompts, past, dest)
            _, seen = _edited(net, past, run, [HeadEdit()], site, capture=True)
            rows.append(torch.stack(seen["pattern"], dim=2)[0].float())
    return torch.cat(rows)
