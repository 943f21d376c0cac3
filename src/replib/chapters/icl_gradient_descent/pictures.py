"""The chapter's figures and tables."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML
from jaxtyping import Float
from pandas.io.formats.style import Styler
from torch import Tensor, nn

from replib import figures, moving
from replib.chapters.icl_gradient_descent import descent, weights
from replib.chapters.icl_gradient_descent.agreement import Repeats, Shifted
from replib.chapters.icl_gradient_descent.bench import Bench
from replib.chapters.icl_gradient_descent.tasks import PAIRS, D
from replib.chapters.icl_gradient_descent.training import Trained
from replib.chapters.icl_gradient_descent.watching import cosines
from replib.figures import Picture


def matrices(shown: Mapping[str, Float[Tensor, "row column"]]) -> Picture:
    """Matrices side by side on one scale of colours, blue below 0."""
    picture = Picture(figsize=(7, 0.6 + 6.0 / max(2, len(shown))))
    axes = picture.subplots(1, len(shown), squeeze=False)[0]
    limit = max(float(m.abs().max()) for m in shown.values()) or 1.0
    said = []
    for ax, (title, m) in zip(axes, shown.items(), strict=True):
        values = m.numpy(force=True)
        image = ax.imshow(values, cmap=plt.get_cmap("RdBu_r"), vmin=-limit, vmax=limit)
        ax.set(title=title, xticks=[0, values.shape[1] - 1], yticks=[0, len(values) - 1])
        said.append(f"{title}: {len(values)} by {values.shape[1]}, {_words(m)}")
    picture.colorbar(image, ax=list(axes), shrink=0.7, pad=0.02)
    picture.alt = f"Maps of matrices on one scale of colours. {'. '.join(said)}."
    return picture


def _words(m: Float[Tensor, "row column"]) -> str:
    """What there is to see in a matrix: its diagonal against the rest of it."""
    if m.shape[0] != m.shape[1]:
        return f"entries from {m.min():.2g} to {m.max():.2g}"
    off = (m - m.diagonal().diag()).square().mean().sqrt()
    entries, last = m.diagonal()[:D].mean(), m.diagonal()[-1]
    ten = f"first ten diagonal entries {entries:.3f} on average"
    return f"{ten}, the last {last:.3f}, others {off:.3f}"


def learnt(one: Trained, rate: float) -> HTML:
    """The matrix M over the training of one layer, beside the construction's; it moves."""
    target = weights.combined(weights.construction(rate))
    every = -(-len(one.matrices) // 30)  # a page need not hold more
    matrices, steps = one.matrices[::every], one.curve["step"][::every]
    said = [f"Learnt: {_words(m)}. Set by hand: {_words(target)}" for m in matrices]
    steps = [f"{step:,}" for step in steps]
    shown = {"M, learnt": matrices, "M, set by hand": target[None]}
    return moving.maps(shown, steps, "Step of training", said, start=0)


def course(curves: Mapping[str, Mapping[str, list]], key: str, label: str, mark: float) -> Picture:
    """A measure over training, a line for each network; a dashed line at `mark`."""
    steps = next(iter(curves.values()))["step"]
    series = {name: curve[key] for name, curve in curves.items()}
    return figures.lines(steps, series, "step of training", label, mark=mark)


def references(bench: Bench) -> Styler:
    """Losses of the algorithms, and the cosine of their sensitivities with those of one step."""
    tasks, chosen = bench.tasks, bench.references
    one = chosen.gd(tasks)
    some = {
        "predicting 0": 0 * one,
        "GD, 1 step": one,
        "GD, 2 steps": chosen.gd(tasks, 2),
        "GD, 5 steps": chosen.gd(tasks, 5),
        "GD++, 2 steps": chosen.gd_pp(tasks, 2),
        "GD++, 5 steps": chosen.gd_pp(tasks, 5),
        "ridge regression": descent.ridge(tasks, chosen.penalty),
        "least squares": descent.ridge(tasks, 0.0),
    }
    rows = {
        name: {"loss": bench.of(s).mean().item(), "cosine to 1 step": _cosine(s, one)}
        for name, s in some.items()
    }
    return pd.DataFrame(rows).T.style.format("{:.4f}", na_rep="–")


def _cosine(a: Tensor, b: Tensor) -> float:
    return cosines(a, b).mean().item() if a.any() else float("nan")


def off_distribution(some: Shifted) -> Picture:
    """Loss of layers (mean over seeds) and of the control as multiples of that of one step, over
    the scale of uniform inputs."""
    layers = [sum(e.value for e in place) / len(place) for place in some.layers["input scale"]]
    series = {"linear layer": layers, "perceptron": some.control["input scale"]}
    ylabel = "loss (multiple of one GD step's)"
    return figures.lines(some.scales["input scale"], series, "width of the inputs", ylabel, mark=1)


def repeats(some: Repeats, until: int = 50) -> Picture:
    """Losses of damped layers (mean over seeds) and damped GD, over the times they are applied."""
    layers = sum(one.mean(1) for one in some.layers) / len(some.layers)
    series = {
        "the layer, damped": layers[:until].tolist(),
        "GD, damped": some.steps.mean(1)[:until].tolist(),
    }
    times = range(1, len(series["GD, damped"]) + 1)
    return figures.lines(times, series, "times applied", "loss")


def losses(bench: Bench, networks: Mapping[str, Sequence[nn.Module]], empty: str) -> Picture:
    """Losses of networks, a point a seed, beside those of algorithms (rows of one point)."""
    tasks, chosen = bench.tasks, bench.references
    rows = {name: [bench.loss(n).mean().item() for n in some] for name, some in networks.items()}
    for k in (1, 2, 5):
        rows[f"GD, {k}"] = [bench.of(chosen.gd(tasks, k)).mean().item()]
        if k > 1:
            rows[f"GD++, {k}"] = [bench.of(chosen.gd_pp(tasks, k)).mean().item()]
    shown = {name: {"loss": values} for name, values in rows.items()}
    return figures.strips(shown, "loss", empty, row_height=0.35)


def copying(one: Trained, step_loss: float) -> Picture:
    """Norms of the first layer's derivatives, and the loss, over one training."""
    curve = one.curve
    series = {f"derivative: {k} token": curve[k] for k in ("next", "other")}
    picture = figures.lines(
        curve["step"], series | {"loss": curve["loss"]}, "step of training", "norm; loss"
    )
    picture.axes[0].axhline(step_loss, color="0.6", lw=1, ls=":")
    picture.alt += f" A dotted line at the loss of one GD step, {step_loss:.3f}."
    return picture


def as_linear(m: Float[Tensor, "row column"]) -> dict[str, float]:
    """Mean of the first ten diagonal entries of an M as a step size, and the size of the others."""
    block = m[:D, :D]
    mean = block.diagonal().mean().item()
    off = (block - block.diagonal().diag()).square().mean().sqrt().item()
    return {"rate": -mean * PAIRS, "off": off / max(abs(mean), 1e-12)}
