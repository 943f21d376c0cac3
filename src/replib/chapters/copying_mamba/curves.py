"""The chapter's curves: shares by length or by examples seen, and what a patch brings back."""

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from replib import figures
from replib.chapters.copying_mamba.comparison import Scores
from replib.chapters.copying_mamba.lengths import ByLength
from replib.chapters.copying_mamba.networks import LABELS
from replib.chapters.copying_mamba.trained import Trained
from replib.chapters.copying_mamba.training_grid import STUDIES
from replib.figures import Picture


def share_lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    *,
    trained_to: float | None = None,
    chance: float | None = None,
) -> Picture:
    """Lines on an axis from 0 to 1; dotted lines at the end of training's lengths, at chance."""
    picture = figures.lines(x, series, xlabel, ylabel)
    axes = picture.axes[0]
    axes.set_ylim(-0.02, 1.02)
    if trained_to is not None:
        axes.axvline(trained_to, color="0.6", lw=1, ls=":")
        picture.alt += f" A dotted line at {trained_to}, where the lengths of training end."
    if chance is not None:
        axes.axhline(chance, color="0.6", lw=1, ls=":")
        picture.alt += f" A dotted line at chance, {chance:.3g}."
    return picture


def training_lines(networks: Mapping[str, Sequence[Trained]]) -> Picture:
    """Strings of the largest length of training copied, by examples seen; a line for each seed."""
    some = [one for seeds in networks.values() for one in seeds]
    series = {
        f"{LABELS[one.cell.architecture]}, seed {one.cell.seed}": one.curve["string"]
        for one in some
    }
    ylabel = "strings of 20 letters copied (share)"
    return share_lines(some[0].curve["examples"], series, "examples seen", ylabel)


def reached_strips(reached: Mapping[str, Sequence[tuple[int, bool]]]) -> Picture:
    """A point for each seed: (examples seen until it could copy, whether it ever could)."""
    kinds = {"90% reached": True, "never (all examples seen)": False}
    rows = {
        LABELS[name]: {
            kind: [examples / 1000 for examples, there in seeds if there == wanted]
            for kind, wanted in kinds.items()
        }
        for name, seeds in reached.items()
    }
    xlabel = "examples seen until 90% of strings of 20 letters are right (thousands)"
    return figures.strips(rows, xlabel, "no network", row_height=0.5)


def length_lines(test: ByLength, names: Sequence[str]) -> Picture:
    """Strings copied by their length, mean over seeds, a line for each architecture."""
    low, high = STUDIES[test.study].lengths
    return share_lines(
        test.lengths,
        {LABELS[name]: test.accuracy[name].mean(0) for name in names},
        f"letters in the string (trained: {low} to {high})",
        "strings copied (share, mean of 5 seeds)",
        trained_to=high,
    )


def recovered_lines(recovered: Float[Tensor, "layer place string"], name: str) -> Picture:
    """What `mechanism.moved` found in one network, mean over the strings that it could judge."""
    mean = recovered.nanmean(-1)
    layers = range(len(mean))
    places = {
        "put back at its source": mean[:, 0].tolist(),
        "put back at the query": mean[:, 1].tolist(),
    }
    ylabel = "recovered (share of the logit difference)"
    picture = figures.lines(layers, places, f"layer of {name}", ylabel)
    picture.axes[0].set_xticks(layers)
    return picture


def pretrained_lines(
    scores: Mapping[tuple[str, str], Scores],
    lengths: Sequence[int],
    whole: str,
    xlabel: str,
    ylabel: str,
    more: Mapping[str, Sequence[float]] | None = None,
) -> Picture:
    """Scores by (model, kind of item): `whole` answers, and single tokens; `more` lines besides."""
    series: dict[str, Sequence[float]] = {}
    for (name, kind), score in scores.items():
        series[f"{name}, {kind}: {whole}"] = score.whole.mean(1).tolist()
        series[f"{name}, {kind}: token"] = score.tokens.mean(1).tolist()
    return share_lines(lengths, series | dict(more or {}), xlabel, ylabel)
