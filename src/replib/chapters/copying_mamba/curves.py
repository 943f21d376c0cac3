"""The chapter's curves: a dot or a line for each seed. Nothing is averaged over seeds of which some
learn a task and some do not."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from replib import figures
from replib.chapters.copying_mamba.lengths import ByLength
from replib.chapters.copying_mamba.networks import LABELS
from replib.chapters.copying_mamba.survival import Arrivals
from replib.chapters.copying_mamba.training_grid import STUDIES
from replib.figures import COLORS, MARKERS, Picture


def live_line(curve: Mapping[str, Sequence[float]], what: str) -> Picture:
    """Letters and strings right, by examples seen, in one training."""
    series = {"letters right": curve["char"], "strings right": curve["string"]}
    return figures.lines(curve["examples"], series, "examples seen", f"share, {what}")


def arrival_strips(reached: Mapping[str, Arrivals], letters: int) -> Picture:
    """A point for each seed: the examples after which it could copy, or all that it saw."""
    rows = {
        LABELS[name]: {
            "90% reached": some.examples[some.arrived] / 1000,
            "never (all examples seen)": some.examples[~some.arrived] / 1000,
        }
        for name, some in reached.items()
    }
    xlabel = f"examples until 90% of strings of {letters} letters are right (thousands)"
    return figures.strips(rows, xlabel, "no network", row_height=0.5)


def length_dots(
    test: ByLength, names: Sequence[str], what: str = "letters in the string"
) -> Picture:
    """Strings right and letters right by length, a dot for each seed; a dotted line where the
    lengths of training end."""
    fig = Picture(figsize=(7, 5.4))
    trained_to = STUDIES[test.study].lengths[1]
    parts = {"strings right": test.accuracy, "letters right": test.letters}
    said = []
    for axes, (title, table) in zip(fig.subplots(2, 1, sharex=True), parts.items(), strict=True):
        for i, name in enumerate(names):
            shift = 1 + 0.03 * (i - (len(names) - 1) / 2)
            for seed, row in enumerate(table[name]):
                style = {"marker": MARKERS[i % 6], "color": COLORS[i % 6], "lw": 0, "ms": 4}
                label = None if seed else LABELS[name]
                axes.plot(np.array(test.lengths) * shift, row, alpha=0.7, label=label, **style)
            ends = (
                f"{x.min():.2f} to {x.max():.2f}" for x in (table[name][:, 0], table[name][:, -1])
            )
            said.append(f"{LABELS[name]}, {title}: {' at first, '.join(ends)} at last")
        axes.axvline(trained_to, color="0.6", lw=1, ls=":")
        axes.set(xscale="log", ylim=(-0.03, 1.03), ylabel=f"{title} (share)")
    axes.set_xticks(test.lengths, [str(n) for n in test.lengths], fontsize=9)
    axes.minorticks_off()
    axes.set_xlabel(f"{what} (trained: up to {trained_to})")
    fig.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
    )
    fig.alt = f"Dots for each seed, by {what}. {'; '.join(said)}. Training ends at {trained_to}."
    return fig


def seed_lines(
    x: Sequence[float],
    rows: Mapping[str, Float[np.ndarray, "seed x"]],
    xlabel: str,
    ylabel: str,
    *,
    log: bool = False,
) -> Picture:
    """A line for each seed, in the colour and marker of its row."""
    fig, said = Picture(), []
    axes = fig.subplots()
    if log:
        axes.set_xscale("log", base=2)
    for i, (name, some) in enumerate(rows.items()):
        for seed, row in enumerate(some):
            style = {"marker": MARKERS[i % 6], "color": COLORS[i % 6], "alpha": 0.7, "ms": 4}
            axes.plot(x, row, label=None if seed else name, **style)
        ends = (f"{column.min():.3g} to {column.max():.3g}" for column in (some[:, 0], some[:, -1]))
        said.append(f"{name}: {f' at {x[0]:g}, '.join(ends)} at {x[-1]:g}")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(frameon=False, fontsize=9)
    fig.alt = f"A line for each seed, {ylabel} by {xlabel}. {'; '.join(said)}."
    return fig


def seed_strips(
    rows: Mapping[str, Mapping[str, Sequence[float]]], xlabel: str, height: float = 0.6
) -> Picture:
    """A point for each seed, rows by network."""
    return figures.strips(rows, xlabel, "no network", row_height=height)
