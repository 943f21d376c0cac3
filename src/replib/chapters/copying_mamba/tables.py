"""Tables of the chapter: the tasks, the networks, and the learning rates that were tried."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from jaxtyping import Int
from pandas.io.formats.style import Styler
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from replib.chapters.copying_mamba import mechanism, pretrained, stored
from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba import training_grid as grid
from replib.chapters.copying_mamba.lengths import ByLength
from replib.chapters.copying_mamba.networks import LABELS, Size, longest_copy
from replib.metrics import head_label


def tasks(seed: int) -> Styler:
    """One string of each task, with ten letters or three entries, and its answer."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for task, make in copying.TASKS.items():
        strings = make(1, 3 if task == "phone_book" else 10, generator)
        rows.append((task, *map(copying.to_text, (strings.tokens[0], strings.answers[0]))))
    return pd.DataFrame(rows, columns=["task", "string", "answer"]).style.hide(axis="index")


def texts(tokens: Mapping[str, Int[Tensor, " pos"]]) -> pd.DataFrame:
    """Strings as they are written, by what they are."""
    return pd.DataFrame({"string": {name: copying.to_text(x) for name, x in tokens.items()}})


def sizes(networks: Mapping[str, Size]) -> Styler:
    """Parameters and state of each architecture, and the letters that its state has bits for."""
    rows = [
        (
            LABELS[name],
            f"{size.parameters:,}",
            f"{size.state_bits:,}",
            "yes" if size.grows else "no",
            "no limit" if size.grows else f"{longest_copy(size.state_bits):,.0f}",
        )
        for name, size in networks.items()
    ]
    columns = ["network", "parameters", "bits of state at 20 letters"]
    columns += ["grows", "most letters it could hold"]
    return pd.DataFrame(rows, columns=columns).style.hide(axis="index")


def rates(root: Path, studies: Iterable[str]) -> HTML:
    """A table of `rates_of` for each study, one below the other."""
    return HTML("\n".join(rates_of(root, study).to_html() for study in studies))


def rates_of(root: Path, study: str) -> Styler:
    """Validation loss at the end (nats a token) by architecture and learning rate, on the seed that
    chooses the rate; the one taken is outlined. Raises NotStored where one was not trained."""
    names = grid.STUDIES[study].architectures
    losses = {name: stored.selection(root, study, name) for name in names}
    tried = sorted({rate for some in losses.values() for rate in some})
    rows = [[losses[name].get(rate, np.nan) for rate in tried] for name in names]
    table = pd.DataFrame(rows, [LABELS[name] for name in names], [f"{rate:g}" for rate in tried])
    style = table.style.format("{:.3f}", na_rep="")
    for name in names:
        place = pd.IndexSlice[LABELS[name], f"{grid.chosen_rate(losses[name]):g}"]
        style = style.set_properties(subset=place, border="2px solid currentColor")
    return style.set_caption(f"study: {study}")


def longest(test: ByLength) -> pd.DataFrame:
    """L90 and L50 of each seed, by architecture."""
    columns = {"L90, each seed": 0.9, "L50, each seed": 0.5}
    rows = [
        [", ".join(map(str, test.longest(name, share))) for share in columns.values()]
        for name in test.accuracy
    ]
    return pd.DataFrame(rows, [LABELS[name] for name in test.accuracy], list(columns))


def of_capacity(sizes: Mapping[str, Size], *tests: ByLength) -> pd.DataFrame:
    """L50 of the best seed of each network with a fixed state, and the letters that the state has
    bits for, in each study; `share` is the first as a share of the second."""
    rows = []
    for test in tests:
        for name in test.accuracy:
            if not sizes[name].grows:
                most = int(test.longest(name, 0.5).max())
                bound = longest_copy(sizes[name].state_bits)
                rows.append((test.study, LABELS[name], most, bound, most / bound))
    columns = ["study", "network", "L50, best seed", "letters the state could hold", "share"]
    return pd.DataFrame(rows, columns=columns)


def capacity(found: pd.DataFrame) -> Styler:
    """What `of_capacity` gives, with its numbers rounded."""
    formats = {"letters the state could hold": "{:,.0f}", "share": "{:.2%}"}
    return found.style.format(formats).hide(axis="index")


def best_heads(models: Mapping[str, TransformerBridge], strings: copying.Strings) -> pd.DataFrame:
    """In each network that has heads, the one that looks the letter up most, and the one that looks
    most at the token before, with their scores."""
    scores = {
        "lookup": mechanism.lookup_scores,
        "previous token": mechanism.previous_token_scores,
    }
    rows = {}
    for name, model in models.items():
        if mechanism.has_heads(model):
            best = {title: mechanism.best_head(of(model, strings)) for title, of in scores.items()}
            rows[name] = {title: f"{head_label(h)}: {x:.2f}" for title, (h, x) in best.items()}
    return pd.DataFrame(rows).T


def losses(models: Mapping[str, TransformerBridge], losses: Mapping[str, float]) -> Styler:
    """How well pretrained models predict a neutral text, with their `losses` in nats a byte."""
    rows = [(name, losses[name], pretrained.perplexity(model)) for name, model in models.items()]
    columns = ["model", "loss on a neutral text (nats a byte)", "perplexity (a token)"]
    table = pd.DataFrame(rows, columns=columns)
    return table.style.format({columns[1]: "{:.3f}", columns[2]: "{:.1f}"}).hide(axis="index")
