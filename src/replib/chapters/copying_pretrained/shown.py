"""The curves and the table of the chapter on pretrained models."""

from collections.abc import Mapping, Sequence

import pandas as pd
from pandas.io.formats.style import Styler
from transformer_lens.model_bridge import TransformerBridge

from replib import figures
from replib.chapters.copying_pretrained import pretrained
from replib.chapters.copying_pretrained.comparison import Scores
from replib.figures import Picture


def score_lines(
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
    picture = figures.lines(lengths, series | dict(more or {}), xlabel, ylabel)
    picture.axes[0].set_ylim(-0.02, 1.02)
    return picture


def losses(models: Mapping[str, TransformerBridge], losses: Mapping[str, float]) -> Styler:
    """How well pretrained models predict a neutral text, with their `losses` in nats a byte."""
    rows = [(name, losses[name], pretrained.perplexity(model)) for name, model in models.items()]
    columns = ["model", "loss on a neutral text (nats a byte)", "perplexity (a token)"]
    table = pd.DataFrame(rows, columns=columns)
    return table.style.format({columns[1]: "{:.3f}", columns[2]: "{:.1f}"}).hide(axis="index")
