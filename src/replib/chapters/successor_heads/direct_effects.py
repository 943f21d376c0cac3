"""What a head adds to the logits directly, and what is lost without it (Gould et al., App. J)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replib.interventions.network import Network, activations
from replib.models.finite import check_logits


@dataclass(frozen=True)
class Rows:
    """Activations at single positions, one position a row."""

    z: Float[Tensor, "layer row head d_head"]
    o_out: Float[Tensor, "layer row d_model"]
    final: Float[Tensor, "row d_model"]

    def __getitem__(self, some: Tensor) -> "Rows":
        """Some of the rows, by number or by a mask."""
        return Rows(self.z[:, some], self.o_out[:, some], self.final[some])


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


def changed_stream(
    net: Network, rows: Rows, layer: int, change: Float[Tensor, "row head d_model"]
) -> Float[Tensor, "row head d_model"]:
    """The final residual stream if one head of a layer had written that much more and no later
    layer had reacted to it; for each of some heads by itself."""
    block = net.blocks[layer]
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
            some = rows[at]
            unembed = net.W_U[tokens[at]].to(wide)
            clean = (net.ln_final(some.final).to(wide) * unembed).sum(-1)
            for layer in range(net.n_layers):
                more, W_O = mean_z[layer] - some.z[layer], net.blocks[layer].W_O
                change = torch.einsum("rhd,hdm->rhm", more, W_O)
                resid = changed_stream(net, some, layer, change)
                logit = torch.einsum("rhm,rm->hr", net.ln_final(resid).to(wide), unembed)
                out[layer, :, at] = clean - logit
    check_logits(out, "the direct effects of heads", net.W_U.dtype)
    return out
