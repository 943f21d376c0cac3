"""What a head adds to the logits directly, and what is lost without it (Gould et al., App. J)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from replib.interventions.head_edits import Readout
from replib.interventions.network import Head, Network, activations
from replib.metrics import Estimate, bootstrap, head_label, proportion, rng
from replib.models.finite import check_logits
from replib.prompts.pairs import PromptPairs


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

    def ends(self) -> Rows:
        """The last position of every prompt."""
        prompt = torch.arange(len(self.final))
        return self.rows(prompt, torch.full_like(prompt, self.final.shape[1] - 1))


def observe(
    net: Network, tokens: Int[Tensor, "prompt pos"], pattern: bool = False, batch: int = 32
) -> Observed:
    """Run prompts of equal length; keep what heads write and the residual streams."""
    kept = ["hook_in", "attn.o.hook_in", "attn.o.hook_out"] + ["attn.hook_pattern"] * pattern
    wanted = {f"blocks.{layer}.{name}" for layer in range(net.n_layers) for name in kept}
    wanted.add("ln_final.hook_in")
    pieces: dict[str, list[Tensor]] = {}
    for some in tokens.split(batch):
        seen = activations(net.model, some.to(net.W_U.device), wanted.__contains__)
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
    out = torch.empty(net.n_layers, net.n_heads, len(tokens), dtype=wide, device=net.W_U.device)
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
    return out.cpu()


@dataclass(frozen=True)
class Effects:
    """The direct effect of every head at some positions, against the head's mean over them."""

    rows: Rows
    mean_z: Float[Tensor, "layer head d_head"]
    tokens: Int[Tensor, " row"]  # the right next token
    drop: Float[Tensor, "layer head row"]  # of its logit, when the head writes its mean instead

    @property
    def winner(self) -> Int[Tensor, " row"]:
        """The head with the largest drop, counted layer by layer."""
        return self.drop.flatten(0, 1).argmax(0)

    def __getitem__(self, some: Tensor) -> "Effects":
        """At some of the rows; the mean stays that over all."""
        return Effects(self.rows[some], self.mean_z, self.tokens[some], self.drop[..., some])


def effects_at(net: Network, rows: Rows, tokens: Int[Tensor, " row"]) -> Effects:
    """Mean-ablate the direct effect of each head in turn, at all rows (`direct_drop`)."""
    mean_z = rows.z.mean(1)
    return Effects(rows, mean_z, tokens, direct_drop(net, rows, mean_z, tokens))


def loss(
    net: Network, resid: Float[Tensor, "row d_model"], tokens: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Cross-entropy of each row's token (nats), read from the final residual stream."""
    return net.vocabulary(resid)[1] - net.logits(resid, tokens[:, None])[:, 0]


def said_instead(
    net: Network, rows: Rows, right: Bool[Tensor, " row"], most: int = 5
) -> pd.DataFrame:
    """What the model says where it does not say the right token: the most frequent answers."""
    wrong = net.vocabulary(rows.final)[0].cpu()[~right]
    tokens, count = wrong.unique(return_counts=True)
    top = count.argsort(descending=True, stable=True)[:most]
    words = [repr(net.model.tokenizer.decode([t])) for t in tokens[top].tolist()]
    return pd.DataFrame([count[top].tolist()], ["lists"], words)


def continued(
    said: Mapping[str, Readout], lists: Mapping[str, PromptPairs]
) -> dict[str, dict[str, Estimate]]:
    """Share of the lists of each class that the model continues rightly, as bars: its most probable
    token, of all or of the class."""
    bars = {}
    for name, one in said.items():
        first = one.logits[0].argmax(-1)  # of the class; 0: the successor
        bars[name.replace(" ", "\n")] = {
            "of all tokens": proportion(one.correct[0], lists[name].group),
            "within its class": proportion(first == 0, lists[name].group),
        }
    return bars or {"none": {"of all tokens": Estimate(0.0, 0.0, 0.0, 0)}}


# How the draws of each interval are labelled.
_DRAWS = {"attribution": "dla", "lift": "lift", "attention": "attends", "nats": "nats"}


def in_lists(
    key: str, values: Mapping[str, Float[Tensor, " prompt"]], group: Sequence[str], seed: int
) -> dict[str, Estimate]:
    """Means of what a head does in lists, and intervals over lists: {key_what: its estimate}."""
    return {
        f"{key}_{what}": bootstrap(value, group, rng(seed, "lists", f"{_DRAWS[what]} {key}"))
        for what, value in values.items()
    }


def table(found: Mapping[str, Estimate], named: Mapping[str, Head]) -> pd.DataFrame:
    """A row for each of the heads, a column for each thing it does: mean and interval."""
    rows: dict[str, dict[str, str]] = {}
    for key, e in found.items():
        who, what = key.rsplit("_", 1)
        row = rows.setdefault(f"{who.replace('_', ' ')}: {head_label(named[who])}", {})
        row[what] = f"{e.value:+.3f} ({e.low:+.3f} to {e.high:+.3f})"
    return pd.DataFrame(rows).T


def lifts(
    net: Network, lists: PromptPairs
) -> tuple[Effects, Float[Tensor, "layer head prompt"], Float[Tensor, " prompt"]]:
    """How much each head's direct effect raises the answer's logit after a list, less how much
    after its lines in another order: a head that raises the whole class does both alike. The means
    are over both kinds of lists. Returns the effects in the lists themselves, these lifts, and how
    much higher the model's own logit of the answer is after a list."""
    both, n = torch.cat([lists.clean, lists.corrupted]), len(lists)
    at = effects_at(net, observe(net, both).ends(), lists.answer.repeat(2))
    logit = net.logits(at.rows.final, at.tokens[:, None])[:, 0].cpu()
    lift = at.drop[..., :n] - at.drop[..., n:]
    return at[torch.arange(n)], lift, logit[:n] - logit[n:]


@dataclass(frozen=True)
class Wins:
    """Which head wins each list: the one with the largest lift."""

    winner: Int[Tensor, " prompt"]  # by row, layer by layer
    share: Float[Tensor, " head"]
    numbers: Mapping[str, object]  # what claim 2.14 is decided by


def wins(
    lift: Float[Tensor, "head prompt"],
    row: int,
    nats: Float[Tensor, " prompt"],
    gap: Float[Tensor, " prompt"],
    group: Sequence[str],
    seed: int,
) -> Wins:
    """Of one head, by its row: the share of lists it wins; its lead over the head that wins most of
    the rest on the first half of the lists, paired, on the second half; its lift, the loss without
    its direct effect (`nats`), and the `gap` that the order of a list makes, as means."""
    winner, n_heads, n = lift.argmax(0), len(lift), lift.shape[1]
    share = winner.bincount(minlength=n_heads).double() / n
    before = winner[: n // 2].bincount(minlength=n_heads)
    before[row] = -1
    rival, late = int(before.argmax()), winner[n // 2 :]
    values = {
        "lead": (late == row).double() - (late == rival).double(),
        "lift": lift[row].double(),
        "nats": nats.double(),
        "gap": gap.double(),
    }
    means = {
        name: bootstrap(one, group[n - len(one) :], rng(seed, "2.14", name))
        for name, one in values.items()
    }
    other = torch.cat([share[:row], share[row + 1 :]]).max()
    null = {"mean": 1 / n_heads, "draws": n_heads - 1}
    numbers = {"value": proportion(winner == row, group), "null": null, "other_share": other}
    return Wins(winner, share, {**numbers, **means})


def win_bars(
    wins: Float[Tensor, " head"], row: int, heads: Sequence[Head], most: int = 6
) -> dict[str, Estimate]:
    """Share of prompts that a head wins, as bars: of the heads with most, and of `row`."""
    top = wins.argsort(descending=True)[:most].tolist()
    top = top if row in top else [*top[:-1], row]
    bars = {}
    for i in top:
        name = head_label(heads[i]) + ("\n(the head)" if i == row else "")
        bars[name] = Estimate(*[float(wins[i])] * 3, 0)
    return bars
