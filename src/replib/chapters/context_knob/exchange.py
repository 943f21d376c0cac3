"""What an exchange along a direction turns, by adapter (Minder et al., 2411.07404, Sec. 6):
the learned direction, beside plain ones, shuffled ones and random ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replib.chapters.context_knob import choosing, directions
from replib.chapters.context_knob.choosing import Choices
from replib.chapters.context_knob.directions import Change, Opposites
from replib.metrics import Estimate, Null

WAYS = ("learned", "mean difference", "probe", "shuffled")


@dataclass(frozen=True)
class Learned:
    """Directions of one adapter's model, all learned on the training relations."""

    layers: Choices  # the layer, chosen on the validation relation
    directions: Mapping[int, Float[Tensor, " d_model"]]  # of each layer that is followed up
    shuffled: Float[Tensor, "draw d_model"]  # at the first layer, with shuffled intents

    @property
    def layer(self) -> int:
        """The layer that was chosen most often."""
        return self.layers.first

    @property
    def u(self) -> Float[Tensor, " d_model"]:
        return self.directions[self.layer]


def learn(rows: Opposites, layers: Choices, n_shuffled: int, seed: int) -> Learned:
    found = {at: directions.learn(rows, at, rows.token, seed) for at in layers.followed}
    shuffled = [
        directions.learn(rows, layers.first, directions.coin_targets(rows, seed + i), seed)
        for i in range(1, n_shuffled + 1)
    ]
    return Learned(layers, found, torch.stack(shuffled))


@dataclass(frozen=True)
class Turned:
    """Which answers of one adapter's model turn into the source's: [direction case], 0 for cases
    that are not right without an exchange."""

    by: Mapping[str, Float[Tensor, "direction case"]]  # WAYS
    random: Float[Tensor, "draw direction case"]  # between the two answers alone
    right: Float[Tensor, "direction case"]


def turn(
    tested: Opposites,
    training: Opposites,
    change: Change,
    learned: Learned,
    random: Float[Tensor, "draw d_model"],
) -> Turned:
    """Exchange along each kind of direction, averaged over the layers in proportion; the shuffled
    and the random ones at the layer chosen most often. A random direction need not make the model
    say the source's answer: it is enough that this answer leads the other, which makes the null
    stricter."""
    right = tested.used.double().expand(2, -1)
    by = dict.fromkeys(WAYS[:3], torch.zeros_like(right))
    for at, share in learned.layers.followed.items():
        h = training.states[at][training.kept]
        ways = (learned.directions[at], directions.mean_difference(h), directions.ridge_probe(h))
        said = tested.says_source(tested.exchanged(at, change, torch.stack(ways)))
        said = tested.by_direction(said).movedim(-1, 0) * right
        by = {name: by[name] + share * hit for name, hit in zip(by, said, strict=True)}
    at = learned.layer
    mixed = tested.says_source(tested.exchanged(at, change, learned.shuffled)).mean(-1)
    leads = tested.towards_source(tested.exchanged(at, change, random)) > 0
    by["shuffled"] = tested.by_direction(mixed) * right
    chance = tested.by_direction(leads.double()).movedim(-1, 0) * right
    return Turned(by, chance, right)


def turned_share(turned: Sequence[Turned], name: str, groups: Sequence[str], seed: int) -> Estimate:
    """The share of answers that turn one way, the median over adapters, in the weaker direction."""
    hits, of = (torch.stack(x) for x in ([t.by[name] for t in turned], [t.right for t in turned]))
    return choosing.weaker_median(hits, of, groups, seed, f"4.6 {name}")


def numbers(
    turned: Sequence[Turned], learned: Sequence[Learned], groups: Sequence[str], seed: int
) -> dict[str, Any]:
    """For the record of 4.6: the other ways, the null, the margin over shuffled intents, both
    directions, and how stable the layer is."""
    of = torch.stack([one.right for one in turned])
    hits, mixed = (torch.stack([one.by[n] for one in turned]) for n in ("learned", "shuffled"))
    chance = [
        choosing.each_share(torch.stack([one.random[i] for one in turned]), of)
        for i in range(len(turned[0].random))
    ]
    null = Null(torch.stack(chance).median(1).values.min(-1).values.numpy())
    layers = ", ".join(str(one.layer) for one in learned)
    return choosing.spread(choosing.each_share(hits, of)) | {
        "margin": choosing.weaker_median(hits - mixed, of, groups, seed, "4.6 margin"),
        "shuffled": turned_share(turned, "shuffled", groups, seed).value,
        "mean_difference": turned_share(turned, "mean difference", groups, seed).value,
        "probe": turned_share(turned, "probe", groups, seed).value,
        "null": null.asdict() | {"max": null.draws.max()},
        "layer": learned[0].layer,
        "layer_stability": min(one.layers.stability for one in learned),
        "note": f"layers {layers}" if len(learned) > 1 else f"layer {layers}",
    }
