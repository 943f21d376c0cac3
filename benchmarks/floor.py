"""Floating-point operations that no exact method can avoid, for the interventions of replib.

Counted are products of activations with weight matrices only, two operations a weight and row:
not attention scores, norms, activation functions or the embedding. So the true minimum is higher.

One intervention's rows are positions of prompts. What the unedited runs hold is counted once, what
an edit changes once for every edit:

* the clean run at every position (in the last layer, keys and values only, but for END), the
  corrupted run from the first token that differs on;
* pass 1 of path patching: the MLPs between sender and receiver, at the patched positions;
* pass 2: everything above the receiver, from the first patched position on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from replib.interventions.head_edits import HeadEdit
from replib.interventions.network import Head, Network
from replib.prompts.pairs import PromptPairs


@dataclass(frozen=True)
class Weights:
    """Sizes of one block's matrices, in weights."""

    head: int  # one head's slice of W_Q, or of W_O
    qo: int
    kv: int
    mlp: int
    parallel: bool


def weights_of(net: Network) -> Weights:
    """Sizes of a block's matrices (all blocks are alike)."""
    block = net.blocks[0]
    d_model = block.W_O.shape[-1]
    kv_heads = block.k(block.W_O.new_zeros(1, d_model)).shape[-1] // block.d_head
    head = d_model * block.d_head
    mlp = sum(p.numel() for p in block.mlp.parameters() if p.ndim == 2)
    return Weights(head, 2 * block.n_heads * head, 2 * kv_heads * head, mlp, block.parallel)


def _rows_above(net: Network, w: Weights, first: int, rows: int, end_rows: int) -> int:
    """Weights × rows of whole layers from `first` on; only END needs more than k and v at last."""
    if first >= net.n_layers:
        return 0
    whole = net.n_layers - 1 - first
    layer = w.qo + w.kv + w.mlp
    return whole * layer * rows + w.kv * rows + (w.qo + w.mlp) * end_rows


def unedited(net: Network, pairs: PromptPairs, corrupted: bool) -> int:
    """Operations of the clean run and, if asked for, the corrupted one."""
    w, n = weights_of(net), len(pairs)
    work = _rows_above(net, w, 0, int(pairs.length.sum()), n)
    if corrupted:
        first = (pairs.clean != pairs.corrupted).int().argmax(-1)
        work += _rows_above(net, w, 0, int((pairs.length - first).sum()), n)
    return 2 * work


def path_patch(
    net: Network,
    pairs: PromptPairs,
    receivers: Sequence[Head] | str | tuple[str, int],
    component: str,
    at: torch.Tensor,
    senders: Sequence[Head],
    freeze_mlps: bool = False,
) -> int:
    """Operations of `replib.interventions.path_patch`; `at` [prompt, k] are the patched positions,
    −1 where a prompt has fewer."""
    w, n = weights_of(net), len(pairs)
    if receivers == "logits":
        receivers = ("resid_post", net.n_layers - 1)
    to_resid = receivers[0] == "resid_post"
    patched = int((at >= 0).sum())
    start = torch.where(at >= 0, at, pairs.clean.shape[1]).min(-1).values
    window = int((pairs.length - start).sum())
    work = 0
    for layer, _ in senders:
        above = [] if to_resid else [head for head in receivers if head[0] > layer]
        top = receivers[1] + 1 if to_resid else max(at_layer for at_layer, _ in above)
        work += w.head * patched  # what the sender's change writes
        if not freeze_mlps:
            work += (top - layer - w.parallel) * w.mlp * patched
        if to_resid:
            work += _rows_above(net, w, top, window, n)
            continue
        shared = {head if component == "q" else at_layer for at_layer, head in above}
        work += len(shared) * w.head * patched  # the receivers' new inputs
        lowest = min(at_layer for at_layer, _ in above)
        rows = patched if component == "q" else window
        if lowest == net.n_layers - 1:
            rows = n
        work += sum(at_layer == lowest for at_layer, _ in above) * w.head * rows
        work += 0 if w.parallel else w.mlp * rows
        work += _rows_above(net, w, lowest + 1, window, n)
    return 2 * work + unedited(net, pairs, corrupted=True)


def edits_at_end(net: Network, pairs: PromptPairs, edits: Sequence[HeadEdit]) -> int:
    """Operations of `replib.interventions.read` with edits at END, read out in a few logits."""
    w, n = weights_of(net), len(pairs)
    work = 0
    for edit in edits:
        lowest = min(layer for layer, _ in edit.heads)
        work += sum(layer == lowest for layer, _ in edit.heads) * w.head * n
        work += 0 if w.parallel else w.mlp * n
        work += _rows_above(net, w, lowest + 1, n, n)
    corrupted = any(edit.needs_corrupted for edit in edits)
    return 2 * work + unedited(net, pairs, corrupted)
