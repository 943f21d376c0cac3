"""Lookups of a run of letters, asked for before or after the string (Jelassi et al., 2402.01032,
Sec. 3.5): which networks learnt them, and what is left beyond the lengths of training."""

from collections.abc import Callable, Mapping
from math import nan

import numpy as np
from jaxtyping import Float

from replib import metrics
from replib.chapters.copying_mamba.lengths import ByLength
from replib.metrics import Estimate

INSIDE, BEYOND = 30, 60  # letters: the longest of training, and twice as many
ENOUGH = 3  # seeds of five that have to learn a task before an architecture is compared


def kept(test: ByLength, name: str) -> Float[np.ndarray, " seed"]:
    """Accuracy with 60 letters as a share of that with 30, of the seeds that learnt the task: those
    that answer at least half of the questions on 30 letters."""
    inside, beyond = test.at(name, INSIDE), test.at(name, BEYOND)
    learnt = inside >= 0.5
    return beyond[learnt] / inside[learnt]


def best_transformer(learnt: Mapping[str, int], score: Callable[[str], float]) -> str | None:
    """Of the Transformers that at least 3 seeds learnt, the one with the largest score, the first
    of equals; None if there is none. `learnt`: seeds by architecture, Mamba-2 among them."""
    able = [name for name, n in learnt.items() if name != "mamba2" and n >= ENOUGH]
    return max(able, key=score) if able else None


def kept_by_both(test: ByLength, transformer: str | None) -> tuple[Estimate, Estimate]:
    """What Mamba-2 and a Transformer keep, mean over the seeds that learnt the task. Both are not a
    number, so that nothing is compared, without a Transformer or where too few seeds of Mamba-2
    learnt it."""
    if transformer is None or test.n_learnt("mamba2", INSIDE) < ENOUGH:
        nothing = Estimate(nan, nan, nan, 0)
        return nothing, nothing
    ssm, best = (metrics.seeds_mean(kept(test, name)) for name in ("mamba2", transformer))
    return ssm, best
