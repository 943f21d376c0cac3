"""The chapter's own figures: a sequence, and attention maps before, at and after the jump."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from IPython.display import HTML
from jaxtyping import Bool, Float
from torch import Tensor

from replib.chapters.abrupt_induction.curves import Jump
from replib.chapters.abrupt_induction.network import Seen, TwoLayers
from replib.chapters.abrupt_induction.sequences import Sequences
from replib.figures import COLORS, Picture, grouped_bars, slider
from replib.metrics import proportion

MOMENTS = {
    "start": "at the start",
    "before": "before the jump",
    "at": "at the jump",
    "end": "after the jump",
}


def names_of(sequences: Sequences, row: int) -> list[str]:
    """The tokens of a sequence in words: items by letter, one for each class, labels by number."""
    classes, asked = sequences.classes[row].tolist(), int(sequences.query[row])
    letter = {k: chr(ord("A") + i) for i, k in enumerate(dict.fromkeys([*classes, asked]))}
    pairs = zip(sequences.classes[row].tolist(), sequences.labels[row].tolist(), strict=True)
    names = [name for k, label in pairs for name in (letter[k], str(label))]
    return [*names, f"{letter[int(sequences.query[row])]}?"]


def sequence_rows(rows: Mapping[str, Sequences]) -> Picture:
    """The first sequence of each kind, a box a token; pairs share a colour by class, and the answer
    stands behind the query."""
    fig = Picture(figsize=(7, 0.5 + 0.55 * len(rows)))
    ax = fig.subplots()
    said = []
    for y, (title, some) in enumerate(rows.items()):
        names = names_of(some, 0)
        for i, name in enumerate(names):
            key = names[i - i % 2].rstrip("?")
            box = {"facecolor": COLORS[(ord(key) - 65) % 6], "alpha": 0.3, "edgecolor": "none"}
            ax.text(i, y, name, ha="center", va="center", fontsize=9, bbox=box)
        answer = str(int(some.answer[0]))
        ax.text(len(names) + 0.5, y, f"→ {answer}", ha="center", va="center", fontsize=9)
        said.append(f"{title}: {' '.join(names)}, answer {answer}")
    ax.set_xlim(-0.7, len(names) + 1.5)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_yticks(range(len(rows)), list(rows), fontsize=9)
    ax.set_xticks([])
    for side in ax.spines.values():
        side.set_visible(False)
    fig.alt = f"Sequences, items by letter and labels by number. {'; '.join(said)}."
    return fig


@torch.no_grad()
def seen_at(networks: Mapping[str, TwoLayers], one: Sequences) -> dict[str, Seen]:
    """What the networks of each moment see in one sequence, in the order of time."""
    return {name: networks[name].run(one.tokens) for name in MOMENTS if name in networks}


def attention_maps(seen: Mapping[str, Seen], names: Sequence[str]) -> Picture:
    """Who looks at whom, at each moment: above layer 1, a row for each token that looks, and below
    the query in layer 2."""
    n = len(seen)
    fig = Picture(figsize=(7, 3.2))
    axes = fig.subplots(2, n, squeeze=False, height_ratios=(8, 1), sharex=True)
    said = []
    for (moment, one), (top, below) in zip(seen.items(), axes.T, strict=True):
        top.imshow(one.first[0], cmap="Greys", vmin=0, vmax=1, aspect="auto")
        below.imshow(one.second[:1], cmap="Greys", vmin=0, vmax=1, aspect="auto")
        top.set_title(MOMENTS[moment], fontsize=9)
        top.set_yticks(range(len(names)), names if moment == next(iter(seen)) else [], fontsize=6)
        below.set_yticks([0], ["query"] if moment == next(iter(seen)) else [], fontsize=7)
        below.set_xticks(range(len(names)), names, fontsize=6, rotation=90)
        back, most = _one_back(one.first[0]).mean(), int(one.second[0].argmax())
        said.append(
            f"{MOMENTS[moment]} labels give {back:.2f} to the item before them, and the query "
            f"gives most to {names[most]} ({one.second[0].max():.2f})"
        )
    fig.alt = f"Attention maps. Of layer 1 and of the query in layer 2: {'; '.join(said)}."
    return fig


def _one_back(first: Float[Tensor, "token token"]) -> Float[Tensor, " label"]:
    label = torch.arange(1, len(first), 2)
    return first[label, label - 1]


def attention_slider(seen: Mapping[str, Seen], names: Sequence[str]) -> HTML:
    """The same as bars that move with time: where the last label looks in layer 1, and the query in
    layer 2. Tokens are numbered, as a label may come twice."""
    last = len(names) - 2
    every = [f"{i + 1}: {name}" for i, name in enumerate(names)]
    first = [one.first[0, last] for one in seen.values()]
    second = [one.second[0] for one in seen.values()]
    questions = {
        f"Layer 1: the label {names[last]} looks at": first,
        f"Layer 2: the query {names[-1]} looks at": second,
    }
    bars = {
        asked: {name: [float(row[i]) for row in rows] for i, name in enumerate(every)}
        for asked, rows in questions.items()
    }
    return slider(bars, [MOMENTS[name] for name in seen], "Moment", start=0)


def jump_table(jumps: Mapping[str, Jump]) -> pd.DataFrame:
    """When each seed jumps: t10 and t90 in steps, the ratio, and the plateau; a dash where a level
    is never reached."""

    def shown(x: float, form: str) -> str:
        return "–" if math.isnan(x) else format(x, form)

    rows = {
        name: {
            "t10": shown(one.t10, ",.0f"),
            "t90": shown(one.t90, ",.0f"),
            "(t90 − t10) / t90": shown(one.ratio, ".2f"),
            "N · IC at 0.9 t10": shown(one.plateau, ".2f"),
            "reaches 0.95": "yes" if one.jumped else "no",
        }
        for name, one in jumps.items()
    }
    return pd.DataFrame(rows).T


def accuracy_bars(right: Mapping[str, Mapping[str, Bool[Tensor, " row"]]]) -> Picture:
    """IC, IC2 and IW of networks trained on other data, with intervals over sequences."""
    groups = {
        name: {test.upper(): proportion(some[test]) for test in ("ic", "ic2", "iw")}
        for name, some in right.items()
    }
    return grouped_bars(groups, "right answers")
