"""Path patching (Wang et al. 2211.00593, Sec. 3.1; Goldowsky-Dill et al. 2304.05969)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replib.errors import UsageError
from replib.interventions.forward import (
    MAX_ROWS,
    Run,
    chunks,
    keep_past,
    positions_of,
    resid_logit_diff,
    run_batches,
    run_forward,
)
from replib.interventions.network import Component, Head, Network, Residual
from replib.prompts.pairs import PromptPairs


@dataclass(frozen=True)
class PathPatch:
    """Logit differences after noising path patching of every sender into one set of receivers."""

    logit_diff: Float[Tensor, "layer head prompt"]  # NaN for heads that were not senders
    clean: Float[Tensor, " prompt"]  # of the unpatched runs, like the next
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


class Receive:
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

    def wants(self, name: str, layer: int) -> bool:
        return name == self.component and any(at == layer for at, _ in self.recorded)

    def __call__(self, name: str, layer: int, value: Tensor) -> Tensor:
        if not self.wants(name, layer):
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

    UsageError for no receivers, a head, layer or position that does not exist, or a sender that no
    receiver can see.
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
        every = positions_of(pairs, position)
        real = every >= 0
        every = torch.where(real, every, every[:, :1])  # padding repeats the first member
        for prompts, chunk in chunks(pairs, every.min(-1).values):
            prompt = torch.arange(len(chunk), device=chunk.clean.device)
            at = every[prompts][:, real[prompts].any(0)]
            dest = window(at.min(-1).values, chunk.length - 1)
            index = at - dest[:, :1]
            past = keep_past(net, pairs, prompts)
            clean = run_batches(net, pairs, "clean", prompts, past, dest)
            corrupted = run_batches(net, pairs, "corrupted", prompts, past, dest)
            clean_diff[prompts] = resid_logit_diff(net, clean.final[:, -1], chunk)
            corrupted_diff[prompts] = resid_logit_diff(net, corrupted.final[:, -1], chunk)
            batch = max(1, MAX_ROWS // dest.numel())
            for start in range(0, len(senders), batch):
                some = senders[start : start + batch]
                recorded, sent = _send(
                    net, clean, corrupted, some, index, heads, component, top, freeze_mlps
                )
                editor, begin = None, top
                if heads:
                    editor = Receive(component, recorded, index)
                    begin = editor.start
                resid = clean.resid_pre[begin].repeat(len(some), 1, 1, 1)
                if not heads:
                    resid[:, prompt[:, None], index] = sent
                for layer in range(begin, net.n_layers):
                    resid = run_forward(net, past, resid, dest, layer, editor)
                if heads and editor.fired != set(recorded):
                    raise RuntimeError("a receiver was not patched")
                at_layer, at_head = torch.tensor(some).T[..., None]
                patched[at_layer, at_head, prompts] = resid_logit_diff(net, resid[:, :, -1], chunk)
    return PathPatch(patched, clean_diff, corrupted_diff)


def window(
    first: Int[Tensor, " prompt"], last: Int[Tensor, " prompt"]
) -> Int[Tensor, "prompt dest"]:
    """The positions from `first` to `last`, as many in each prompt (see `chunks`)."""
    n_dest = (last - first).unique()
    if len(n_dest) != 1:
        raise RuntimeError(f"windows of unequal lengths in one piece: {n_dest.tolist()}")
    return first[:, None] + torch.arange(int(n_dest) + 1, device=first.device)
