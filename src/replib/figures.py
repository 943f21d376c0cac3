"""The figures of the chapters: readable in grey, one idea each, described by their own data.

A function here returns a `Picture`, a matplotlib figure that shows itself as the last value of a
cell, with the text that a screen reader says in its place. That text is made from the values drawn,
so it says what this model's figure shows; a notebook may add to it (`picture.alt += ...`).
"""

import html
import inspect
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.core.pylabtools import print_figure
from IPython.display import HTML, display
from jaxtyping import Float
from matplotlib.figure import Figure
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from replib.interventions.network import Head
from replib.markup import as_html
from replib.metrics import Estimate, Null, head_label
from replib.prompts.pairs import PromptPairs

# Okabe and Ito's colours, told apart with any colour vision; shapes and hatches say it again.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
HATCHES = ("", "//", "..", "xx", "\\\\", "++")
MARKERS = ("o", "s", "^", "D", "v", "P")


class Picture(Figure):
    """A figure with an alternative text, `alt`."""

    alt: str

    def __init__(self, alt: str = "", **options: Any):
        super().__init__(**options)
        self.alt = alt

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        data = {"image/png": print_figure(self, base64=True), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt}}


def show(fig: Figure, alt: str) -> None:
    """Display a figure that a cell has drawn by itself with its alternative text."""
    display(fig, metadata={"image/png": {"alt": alt}})
    plt.close(fig)


def style() -> None:
    """Fonts that stay legible when a phone scales the figure; white cards, no top and right."""
    # A styled table would put text, such as a row of the user's own file, into the page as HTML.
    pd.set_option("styler.format.escape", "html")
    options = {"figure.dpi": 130, "figure.figsize": (7, 3.4), "figure.constrained_layout.use": True}
    options |= {"axes.spines.top": False, "axes.spines.right": False}
    sns.set_theme(context="notebook", style="ticks", font_scale=0.95, rc=options)


def _said(estimate: Estimate) -> str:
    if np.isnan(estimate.value):
        return "not measured"
    if np.isnan(estimate.low):
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"


def _null(null: Null) -> tuple[np.ndarray, float]:
    """Its draws, and the 95th percentile that claims are decided by (`Null.asdict`)."""
    return null.draws, null.asdict()["q95"]


def _named(label: str, title: str = "") -> str:
    return ", ".join(" ".join(text.split()) for text in (title, label) if text)


def _list(parts: Mapping[str, str]) -> str:
    return "; ".join(f"{' '.join(name.split())} {text}" for name, text in parts.items())


def head_maps(
    scores: Mapping[str, Float[Tensor, "layer head"]],
    marked: Mapping[str, Sequence[Head]],
    label: str = "score",
) -> Picture:
    """Layer × head maps of signed scores, one panel a title, each with its own colour scale.
    Circles with the score's sign mark chosen heads; grey heads have no score."""
    n_layers, n_heads = next(iter(scores.values())).shape
    height = 0.75 + 0.16 * max(n_heads, 5)
    fig = Picture(figsize=(7, height * len(scores)))
    axes = fig.subplots(len(scores), squeeze=False)
    cmap = plt.get_cmap("RdBu_r").with_extremes(bad="0.88")
    said = {}
    for ax, (title, score) in zip(axes[:, 0], scores.items(), strict=True):
        values = score.numpy(force=True).T
        finite = np.abs(values[np.isfinite(values)])
        limit = max(float(finite.max()) if finite.size else 0.0, 1e-6)
        image = ax.imshow(values, cmap=cmap, vmin=-limit, vmax=limit, aspect="auto")
        for layer, head in marked[title]:
            ax.plot(layer, head, "o", ms=11, mfc="white", mec="black", mew=1.2, alpha=0.75)
            sign = "+" if score[layer, head] > 0 else "−"
            ax.annotate(sign, (layer, head), ha="center", va="center_baseline", fontsize=9)
        ax.set(ylabel="head", title=title)
        ax.set_xticks(range(0, n_layers, 2 if n_layers > 12 else 1))
        ax.set_yticks(range(0, n_heads, 2 if n_heads > 6 else 1))
        fig.colorbar(image, ax=ax, label=label, pad=0.02)
        heads = ", ".join(f"{head_label(h)} {float(score[h]):+.2f}" for h in marked[title])
        said[f"{title}:"] = heads or "none"
    axes[-1, 0].set_xlabel("layer")
    fig.alt = f"Maps of layers by heads, {label}, with the chosen heads marked. {_list(said)}."
    return fig


def bars(
    values: Mapping[str, Estimate],
    ylabel: str,
    title: str = "",
    chance: float | None = None,
    null: Null | None = None,
    null_label: str = "random\nhead sets\n(bar: 95th pct.)",
) -> Picture:
    """Bars with 95% intervals; a dashed line for chance; the null's draws as the last column."""
    fig = Picture(figsize=(7, 3.4))
    ax = fig.subplots()
    for i, e in enumerate(values.values()):
        ax.bar(i, e.value, color=COLORS[i % 6], hatch=HATCHES[i % 6], edgecolor="white", width=0.7)
        ax.vlines(i, e.low, e.high, color="black", lw=1.5)
    labels, more = list(values), ""
    if null is not None:
        draws, q95 = _null(null)
        x = len(labels)
        jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(draws))
        ax.plot(x + jitter, draws, "o", ms=2.5, color="0.45", alpha=0.5, mew=0)
        ax.hlines(q95, x - 0.35, x + 0.35, color="black", lw=1.5)
        labels.append(f"{len(draws)} {null_label}")
        more += f" {len(draws)} draws of the null beside them, 95th percentile {q95:.3g}."
    if chance is not None:
        ax.axhline(chance, color="black", ls="--", lw=1)
        label = ax.annotate("chance", (0.995, chance), xycoords=("axes fraction", "data"))
        label.set(fontsize=9, ha="right", va="bottom")
        more += f" Chance is {chance:.3g}."
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xticks(range(len(labels)), labels, fontsize=9)
    ax.set(ylabel=ylabel, title=title)
    said = _list({name: _said(estimate) for name, estimate in values.items()})
    fig.alt = f"Bars with 95% intervals, {_named(ylabel, title)}: {said}.{more}"
    return fig


def null_histogram(null: Null, observed: float, xlabel: str) -> Picture:
    """What chance gives, and where the observed value stands."""
    draws, q95 = _null(null)
    fig = Picture(figsize=(7, 2.8))
    ax = fig.subplots()
    ax.hist(draws, bins=min(40, max(8, len(np.unique(draws)))), color="0.7", edgecolor="white")
    ax.axvline(q95, color="black", ls=":", lw=1.5, label="null, 95th pct.")
    ax.axvline(observed, color=COLORS[5], lw=2.5, label="observed")
    ax.set(xlabel=xlabel, ylabel="null draws")
    ax.legend(frameon=False)
    fig.alt = f"Histogram of {len(draws)} draws of the null, {' '.join(xlabel.split())}: mean "
    fig.alt += f"{np.mean(draws):.3g}, 95th percentile {q95:.3g}; observed {observed:.3g}."
    return fig


def lines(
    x: Sequence[int | float],
    series: Mapping[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    mark: float | None = None,
    log: bool = False,
    verticals: Mapping[str, int | float] | None = None,
) -> Picture:
    """Several lines over one axis, told apart by marker and dash; an optional grey null band, a
    dashed line at the height `mark`, and thin ones at the x of `verticals`, by what they mean. A
    value that is NaN leaves its point out. With `log`, x is logarithmic, its values the ticks."""
    fig = Picture()
    ax = fig.subplots()
    if mark is not None:
        ax.axhline(mark, color="black", lw=0.8, ls="--")
    if log:
        ax.set_xscale("log")
        ax.set_xticks(x, [f"{value:g}" for value in x], fontsize=9)
        ax.minorticks_off()
    if band is not None:
        ax.fill_between(x, *band, color="0.85", label="null, 5th to 95th pct.")
    dashes = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
    said = {}
    for i, (name, y) in enumerate(series.items()):
        ax.plot(x, y, marker=MARKERS[i % 6], ls=dashes[i % 6], color=COLORS[i % 6], label=name)
        drawn = np.flatnonzero(np.isfinite(y))  # a point may be missing
        if not len(drawn):
            said[name] = "nothing"
            continue
        top = max(drawn, key=lambda at, y=y: float(y[at]))
        first, last, top = (f"{float(y[at]):.3g} at {x[at]:g}" for at in (*drawn[[0, -1]], top))
        said[name] = f"from {first} to {last}, largest {top}"
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(frameon=False, fontsize=9)
    what = f"{_named(ylabel)} over {' '.join(xlabel.split())}"
    fig.alt = f"Lines, {what}: {_list(said)}." + (" A grey band is the null." if band else "")
    fig.alt += "" if mark is None else f" A dashed line at {mark:g}."
    for at in (verticals or {}).values():
        ax.axvline(at, color="0.6", lw=1, ls=":")
    if verticals:
        places = (f"{' '.join(name.split())} at {at:.3g}" for name, at in verticals.items())
        fig.alt += f" Vertical lines: {', '.join(places)}."
    return fig


def grouped_bars(
    groups: Mapping[str, Mapping[str, Estimate]], ylabel: str, title: str = ""
) -> Picture:
    """{group on the x axis: {bar within the group: its estimate}}."""
    fig = Picture()
    ax = fig.subplots()
    names = list(next(iter(groups.values())))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        at = np.arange(len(groups)) + (i - (len(names) - 1) / 2) * width
        value = [group[name].value for group in groups.values()]
        ends = np.array([group[name].interval for group in groups.values()])
        ax.bar(at, value, width, color=COLORS[i], hatch=HATCHES[i], edgecolor="white", label=name)
        ax.vlines(at, ends[:, 0], ends[:, 1], color="black", lw=1.3)
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xticks(range(len(groups)), list(groups), fontsize=9)
    ax.set(ylabel=ylabel, title=title)
    fig.legend(loc="outside upper center", ncols=len(names), frameon=False, fontsize=9)
    each = {
        f"{group}:": ", ".join(f"{' '.join(name.split())} {_said(e)}" for name, e in some.items())
        for group, some in groups.items()
    }
    fig.alt = f"Bars with 95% intervals, {_named(ylabel, title)}. {_list(each)}."
    return fig


def strips(
    rows: Mapping[str, Mapping[str, Sequence[float]]],
    xlabel: str,
    empty: str,
    row_height: float = 1.1,
) -> Picture:
    """{row: {kind of point: its values}}; the words `empty` where there is no row. Kinds are told
    apart by marker, and stand above one another so that none hides another."""
    fig = Picture(figsize=(7, 1.4 + row_height * max(1, len(rows))))
    ax = fig.subplots()
    said = {}
    for y, (row, kinds) in enumerate(rows.items()):
        for i, (kind, values) in enumerate(kinds.items()):
            at = y + (i - (len(kinds) - 1) / 2) * 0.25
            style = {"marker": MARKERS[i], "color": COLORS[i], "alpha": 0.7, "s": 45, "lw": 0}
            ax.scatter(values, np.full(len(values), at), **style, label=None if y else kind)
            ends = f"{min(values):.3g} to {max(values):.3g}" if len(values) else "none"
            said[f"{row}, {kind}:"] = ends
    if rows:
        ax.set_yticks(range(len(rows)), list(rows))
        ax.set(ylim=(len(rows) - 0.5, -0.5))
        n_kinds = len(next(iter(rows.values())))
        fig.legend(loc="outside upper center", ncols=n_kinds, frameon=False, fontsize=9)
    else:
        ax.text(0.5, 0.5, empty, ha="center", va="center", transform=ax.transAxes)
        ax.set_yticks([])
    ax.set(xlabel=xlabel)
    fig.alt = f"Points in rows, {_named(xlabel)}. {_list(said)}." if rows else f"{empty}."
    return fig


def scatter(
    x: Float[Tensor, " item"],
    y: Float[Tensor, " item"],
    labels: Sequence[str],
    xlabel: str,
    ylabel: str,
    kinds: Sequence[str] | None = None,
) -> Picture:
    """One point per item; the six most extreme carry their names, or `kinds` their markers."""
    fig = Picture()
    ax = fig.subplots()
    ax.axhline(0, color="0.8", lw=0.8)
    ax.axvline(0, color="0.8", lw=0.8)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    x, y = x.cpu(), y.cpu()
    fig.alt = f"{len(x)} points, {_named(ylabel)} over {' '.join(xlabel.split())}"
    if kinds is None:
        ax.plot(x, y, "o", ms=4, color=COLORS[0], alpha=0.6, mew=0)
        far = sum((t / t.abs().max().clamp_min(1e-9)).abs() for t in (x, y))
        furthest = far.argsort(descending=True)[:6].tolist()
        for i in furthest:
            at = (float(x[i]), float(y[i]))
            ax.annotate(labels[i], at, xytext=(4, 3), textcoords="offset points", fontsize=8)
        said = {labels[i]: f"({float(x[i]):.2g}, {float(y[i]):.2g})" for i in furthest}
        fig.alt += f"; furthest out: {_list(said)}."
        return fig
    for i, kind in enumerate(dict.fromkeys(kinds)):
        mine = [at for at, name in enumerate(kinds) if name == kind]
        ax.plot(x[mine], y[mine], MARKERS[i % 6], ms=8, mfc="none", mec=COLORS[i % 6], label=kind)
        fig.alt += f"; {kind}: " + ", ".join(f"({x[j]:.2g}, {y[j]:.2g})" for j in mine)
    fig.alt += "."
    fig.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    return fig


def tokens(tokenizer: PreTrainedTokenizerBase, pairs: PromptPairs, row: int = 0) -> HTML:
    """One pair as the model reads it, a box a token: spaces are shown as ␣, the token that differs
    is framed, with the corrupted one under it, and positions carry their names, such as END."""
    names: dict[int, list[str]] = {}
    for name, at in pairs.positions.items():
        for position in at[row].reshape(-1).tolist():
            names.setdefault(position, []).append(name)
    boxes = []
    for position in range(int(pairs.length[row])):
        clean, other = (
            tokenizer.decode([int(ids[row, position])]).replace(" ", "␣").replace("\n", "↵")
            for ids in (pairs.clean, pairs.corrupted)
        )
        words = [as_html(clean), f"↓ {as_html(other)}" if clean != other else ""]
        here = names.get(position, [])
        words += [f"<small>{'…' if len(here) > 2 else as_html(', '.join(here))}</small>"]
        kind = "token differs" if clean != other else "token"
        boxes.append(f'<span class="{kind}">{"<br>".join(filter(None, words))}</span>')
    return HTML(f'<p class="replib tokens">{" ".join(boxes)}</p>')


def source(function: Callable) -> HTML:
    """A function's code, folded, for a reader who wants to know how it works."""
    code = highlight(
        textwrap.dedent(inspect.getsource(function)), PythonLexer(), HtmlFormatter(nowrap=True)
    )
    name = as_html(f"{function.__module__}.{function.__qualname__}")
    body = f'<div class="highlight"><pre>{code}</pre></div>'
    return HTML(f"<details class='replib source'><summary>{name}</summary>{body}</details>")


def slider(
    questions: Mapping[str, Mapping[str | tuple[str, ...], Sequence[float]]],
    steps: Sequence[str],
    what: str,
    *,
    limits: tuple[float, float] | None = None,
    percent: bool = True,
    mark: float | None = None,
    start: int | None = None,
) -> HTML:
    """Bars that a reader moves: {question: {answer: its probability at each step}}.

    An answer may have another name at each step, as a tuple. Bars begin at 0 and are cut at
    `limits` (None: 0 and 1, or as far as the values go beyond); their numbers are shares, or with
    `percent` off plain ones, and a line at `mark` runs across them. `start` is the step that is
    shown first, the middle one if None. `what` names the quantity of the steps, for the eye and for
    a screen reader.

    The data are in the page, and the book's own knob.js moves them, without a server. Elsewhere, as
    in Jupyter, a sentence says that the plain figure beside it shows the same.
    """
    asked = []
    for text, some in questions.items():
        answers = [[name, [round(p, 3) for p in values]] for name, values in some.items()]
        asked.append({"text": text, "answers": answers})
    every = [0.0, 1.0, *(p for some in questions.values() for ps in some.values() for p in ps)]
    limits = (min(every), max(every)) if limits is None else limits
    data = {"steps": list(steps), "questions": asked, "limits": limits, "percent": percent}
    # Strict: a value that is not finite would stop the script in the page.
    packed = json.dumps(data | {"mark": mark}, allow_nan=False)
    packed = packed.replace("<", "\\u003c")  # cannot end the script
    last = len(steps) - 1
    start = last // 2 if start is None else start
    return HTML(_SLIDER.format(what=html.escape(what), start=start, last=last, data=packed))


_SLIDER = """<div class="knob">
<p class="knob-still">In the book this figure moves; the plain figure above shows the same.</p>
<div class="knob-moving" hidden>
<label>{what}: <output></output>
<input type="range" min="0" max="{last}" value="{start}" aria-label="{what}"></label>
<div class="knob-bars" aria-live="polite"></div>
</div>
<script type="application/json">{data}</script>
</div>"""
