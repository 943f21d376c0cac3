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

from replib.chapters.copying_mamba import stored
from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba import training_grid as grid
from replib.chapters.copying_mamba.lengths import ByLength
from replib.chapters.copying_mamba.networks import LABELS, Size, longest_copy


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


def selections(root: Path, studies: Iterable[str]) -> HTML:
    """A table of `selection_of` for each study that searched, one below the other."""
    tables = (selection_of(root, study) for study in studies)
    return HTML("\n".join(table.to_html() for table in tables if table is not None))


def selection_of(root: Path, study: str) -> Styler | None:
    """Validation loss after the short trainings that choose (nats a token, mean over the selection
    seeds), by architecture with its start, and learning rate; the one taken is outlined. None where
    a study takes all its settings over."""
    rows: dict[str, dict[float, float]] = {}
    taken = []
    for name in grid.STUDIES[study].architectures:
        losses = grid.mean_losses(stored.selection(root, study, name))
        for (rate, start), loss in losses.items():
            rows.setdefault(f"{LABELS[name]}, {start}", {})[rate] = loss
        if best := grid.chosen(losses):
            taken.append((f"{LABELS[name]}, {best[1]}", f"{best[0]:g}"))
    if not rows:
        return None
    tried = sorted({rate for some in rows.values() for rate in some})
    cells = [[some.get(rate, np.nan) for rate in tried] for some in rows.values()]
    style = pd.DataFrame(cells, list(rows), [f"{rate:g}" for rate in tried]).style
    style = style.format("{:.3f}", na_rep="")
    for place in taken:
        style = style.set_properties(subset=pd.IndexSlice[place], border="2px solid currentColor")
    return style.set_caption(f"study: {study}")


def longest(test: ByLength) -> pd.DataFrame:
    """L90 and L50 of each seed, by architecture."""
    columns = {"L90, each seed": 0.9, "L50, each seed": 0.5}
    rows = [
        [", ".join(f"{n:.0f}" for n in test.reach(name, share)) for share in columns.values()]
        for name in test.accuracy
    ]
    return pd.DataFrame(rows, [LABELS[name] for name in test.accuracy], list(columns))
