"""What a head adds to the logits directly, and what is lost without it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replib.interventions.network import Head, Network, activations
from replib.models.finite import check_logits


@dataclass(frozen=True)
class Rows:
    """Activations at single positions, one position a row."""

    z: Float[Tensor, "layer row head d_head"]
    o_out: Float[Tensor, "layer row d_model"]
    final: Float[Tensor, "row d_model"]


@dataclass(frozen=True)
class Observed:
    """A forward pass, as far as direct effects need it. `pattern` is None unless asked for."""

    resid_pre: Float[Tensor, "layer prompt pos d_model"]
    z: Float[Tensor, "layer prompt pos head d_head"]
    o_out: Float[Tensor, "layer prompt pos d_model"]
    final: Float[Tensor, "prompt pos d_model"]
    pattern: Float[Tensor, "layer prompt head dest src"] | None = None

    def rows(self, prompt: Int[Tensor, " row"], pos: Int[Tensor, " row"]) -> Rows:
        """Some positions of some prompts, side by side."""
        return Rows(self.z[:, prompt, pos], self.o_out[:, prompt, pos], self.final[prompt, pos])


def observe(
    net: Network, tokens: Int[Tensor, "prompt pos"], pattern: bool = False, batch: int = 32
) -> Observed:
    """Run prompts of equal length; keep what heads write and the residual streams."""
    kept = ["hook_in", "attn.o.hook_in", "attn.o.hook_out"] + ["attn.hook_pattern"] * pattern
    wanted = {f"blocks.{layer}.{name}" for layer in range(net.n_layers) for name in kept}
    wanted.add("ln_final.hook_in")
    pieces: dict[str, list[Tensor]] = {}
    for some in tokens.split(batch):
        seen = activations(net.model, some, wanted.__contains__)
        if len(seen) != len(wanted):
            raise RuntimeError(f"saw {len(seen)} of {len(wanted)} activations")
        pieces.setdefault("final", []).append(seen["ln_final.hook_in"])
        for name in kept:
            layers = [seen[f"blocks.{layer}.{name}"] for layer in range(net.n_layers)]
            pieces.setdefault(name, []).append(torch.stack(layers))
    with torch.inference_mode():
        out = {name: torch.cat(part, dim=int(name != "final")) for name, part in pieces.items()}
    z = out["attn.o.hook_in"]
    return Observed(
        out["hook_in"],
        z.unflatten(-1, (net.n_heads, -1)) if z.ndim == 4 else z,
        out["attn.o.hook_out"],
        out["final"],
        out.get("attn.hook_pattern"),
    )


def _without(
    net: Network, rows: Rows, layer: int, mean_z: Float[Tensor, "head d_head"], heads: slice
) -> Float[Tensor, "row head d_model"]:
    """The final residual stream if a head had written its mean and nothing had reacted to it."""
    block = net.blocks[layer]
    change = torch.einsum("rhd,hdm->rhm", mean_z[heads] - rows.z[layer][:, heads], block.W_O[heads])
    if block.ln1_post is not None:  # Gemma: the heads' sum is normalised before it is added
        o_out = rows.o_out[layer][:, None]
        change = block.ln1_post(o_out + change) - block.ln1_post(o_out)
    return rows.final[:, None] + change


def direct_drop(
    net: Network,
    rows: Rows,
    mean_z: Float[Tensor, "layer head d_head"],
    tokens: Int[Tensor, " row"],
    batch: int = 512,
) -> Float[Tensor, "layer head row"]:
    """How far the logit of each row's token falls when one head's direct effect is mean-ablated.
    Later layers do not react; the final norm does. Every head in turn. Logits are float32, or
    float64 where the model is."""
    wide = torch.promote_types(rows.final.dtype, torch.float32)
    out = torch.empty(net.n_layers, net.n_heads, len(tokens), dtype=wide)
    with torch.inference_mode():
        for at in torch.arange(len(tokens)).split(batch):
            some = Rows(rows.z[:, at], rows.o_out[:, at], rows.final[at])
            unembed = net.W_U[tokens[at]].to(wide)
            clean = (net.ln_final(some.final).to(wide) * unembed).sum(-1)
            for layer in range(net.n_layers):
                resid = _without(net, some, layer, mean_z[layer], slice(None))
                logit = torch.einsum("rhm,rm->hr", net.ln_final(resid).to(wide), unembed)
                out[layer, :, at] = clean - logit
    check_logits(out, "the direct effects of heads", net.W_U.dtype)
    return out


def direct_loss(
    net: Network,
    rows: Rows,
    mean_z: Float[Tensor, "layer head d_head"],
    tokens: Int[Tensor, " row"],
    head: Head,
) -> Float[Tensor, " row"]:
    """How much the loss on each row's token rises (nats) under the same ablation of one head."""

    def loss(resid: Tensor) -> Tensor:
        return net.vocabulary(resid)[1] - net.logits(resid, tokens[:, None])[:, 0]

    layer, h = head
    with torch.inference_mode():
        resid = _without(net, rows, layer, mean_z[layer], slice(h, h + 1))[:, 0]
        return loss(resid) - loss(rows.final)
