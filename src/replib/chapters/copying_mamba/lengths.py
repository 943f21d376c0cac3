"""Trained networks on strings shorter and longer than those of their training (Jelassi et al.,
2402.01032, Sec. 3.3 and 3.5)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from replib import metrics
from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba.networks import LABELS
from replib.chapters.copying_mamba.scans import fast_scans
from replib.chapters.copying_mamba.strings import Strings
from replib.chapters.copying_mamba.trained import Trained
from replib.chapters.copying_mamba.training import strings_for
from replib.chapters.copying_mamba.training_grid import STUDIES
from replib.metrics import Estimate

# Letters of a string, or entries of a phone book, that each study is tested on.
LENGTHS: Mapping[str, tuple[int, ...]] = {
    "copy": (5, 10, 15, 20, 25, 30, 40, 60, 80),
    "long": (20, 40, 64, 80, 100, 130),
    "prefix": (15, 30, 45, 60, 100),
    "suffix": (15, 30, 45, 60, 100),
    "phone": (4, 8, 12, 16),
    "phone-copied": (4, 8, 12, 16),
}


@dataclass(frozen=True)
class ByLength:
    """String accuracy in one study."""

    study: str
    lengths: tuple[int, ...]
    accuracy: Mapping[str, Float[np.ndarray, "seed length"]]  # by architecture

    def at(self, name: str, *lengths: int) -> Float[np.ndarray, " seed"]:
        """String accuracy of each seed, at one length or as the mean over several."""
        return self.accuracy[name][:, [self.lengths.index(n) for n in lengths]].mean(1)

    def mean(self, name: str, *lengths: int) -> Estimate:
        """String accuracy at one length, or as the mean over several; mean over seeds."""
        return metrics.seeds_mean(self.at(name, *lengths))

    def lead(self, name: str, other: str, *lengths: int) -> Estimate:
        """The mean of an architecture less that of another; n is the number of seeds of each."""
        a, b = self.at(name, *lengths), self.at(other, *lengths)
        return replace(metrics.seeds_difference(a, b), n=len(b))

    def share(self, name: str, length: int) -> Estimate:
        """The mean over seeds for a figure: the interval is cut to 0 to 1, as of a share."""
        mean = self.mean(name, length)
        low, high = np.clip(mean.interval, 0, 1)
        return replace(mean, low=float(low), high=float(high))

    def shares(self, length: int) -> dict[str, Estimate]:
        """`share` of every architecture, by its label."""
        return {LABELS[name]: self.share(name, length) for name in self.accuracy}

    def n_learnt(self, name: str, length: int) -> int:
        """How many seeds are right in at least half of the strings of this length."""
        return int((self.at(name, length) >= 0.5).sum())

    def longest(self, name: str, share: float) -> Int[np.ndarray, " seed"]:
        """L50 (L90) of each seed, with a share of 0.5 (0.9): the largest length tested up to which
        string accuracy is at least `share`; 0 if it is less at the shortest."""
        enough = np.cumprod(self.accuracy[name] >= share, axis=1).sum(1)
        return np.array([0, *self.lengths])[enough]


def measured(study: str, networks: Mapping[str, Sequence[Trained]], n_strings: int) -> ByLength:
    """Test the networks of a study at all its `LENGTHS`, on strings that none was trained on. All
    networks get the same `n_strings` of each length."""
    tests = [
        strings_for(STUDIES[study], length, n_strings, 1000 + length) for length in LENGTHS[study]
    ]
    accuracy = {name: each_seed(some, string_accuracy, tests) for name, some in networks.items()}
    return ByLength(study, LENGTHS[study], accuracy)


def each_seed(
    networks: Sequence[Trained], score: Callable[[nn.Module, Any], float], tests: Sequence
) -> Float[np.ndarray, "seed test"]:
    """`score(network, test)` of the network of each seed in each test."""
    return np.array([[score(one.network, test) for test in tests] for one in networks])


def string_accuracy(network: nn.Module, strings: Strings) -> float:
    """Share of the strings whose whole answer is right, to the final `.`."""
    with fast_scans(network):
        right = copying.teacher_forced(network, strings)
    return right.all(1).double().mean().item()


def letters_right(
    networks: Mapping[str, Sequence[Trained]], lengths: Sequence[int], n_strings: int
) -> dict[str, list[float]]:
    """For copies of each length, the share of the answers' tokens that are right, mean over seeds:
    by architecture, teacher-forced and free-running."""
    ways = {"teacher-forced": copying.teacher_forced, "free-running": copying.free_running}
    tests = [strings_for(STUDIES["copy"], n, n_strings, 2000 + n) for n in lengths]

    def right(one: Trained, score: Callable, test: Strings) -> Bool[Tensor, "string answer"]:
        with fast_scans(one.network):
            return score(one.network, test)

    return {
        f"{LABELS[name]}, {way}": [
            torch.stack([right(one, score, test) for one in some]).double().mean().item()
            for test in tests
        ]
        for name, some in networks.items()
        for way, score in ways.items()
    }
