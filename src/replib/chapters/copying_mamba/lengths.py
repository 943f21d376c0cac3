"""Trained networks on strings shorter and longer than those of their training (Jelassi et al.,
2402.01032, Sec. 3.3 and 3.5)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from replib import metrics
from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba.scans import fast_scans
from replib.chapters.copying_mamba.strings import Strings
from replib.chapters.copying_mamba.trained import Trained
from replib.chapters.copying_mamba.training import strings_for
from replib.chapters.copying_mamba.training_grid import STUDIES
from replib.metrics import Estimate

# Letters of a string, or entries of a phone book, that each study is tested on.
COPIES = (5, 10, 15, 20, 25, 30, 40, 60, 80, 120)
LOOKUPS = (15, 30, 45, 60, 100)
LENGTHS: Mapping[str, tuple[int, ...]] = {
    "copy": COPIES,
    "copy-10": COPIES[:4],
    "copy-40": COPIES,
    "states": COPIES,
    "prefix": LOOKUPS,
    "suffix": LOOKUPS,
    "phone": (4, 8, 12, 16),
}


@dataclass(frozen=True)
class ByLength:
    """Accuracy in one study: of whole strings, and of single letters given the true ones before."""

    study: str
    lengths: tuple[int, ...]
    accuracy: Mapping[str, Float[np.ndarray, "seed length"]]  # by architecture
    letters: Mapping[str, Float[np.ndarray, "seed length"]]

    def at(self, name: str, *lengths: int) -> Float[np.ndarray, " seed"]:
        """String accuracy of each seed, at one length or as the mean over several."""
        return self.accuracy[name][:, [self.lengths.index(n) for n in lengths]].mean(1)

    def mean(self, name: str, *lengths: int) -> Estimate:
        """String accuracy at one length, or as the mean over several; mean over seeds."""
        return metrics.seeds_mean(self.at(name, *lengths), share=True)

    def lead(self, name: str, other: str, *lengths: int) -> Estimate:
        """The mean of an architecture less that of another."""
        a, b = self.at(name, *lengths), self.at(other, *lengths)
        return metrics.seeds_difference(a, b, share=True)

    def learnt(self, name: str, length: int) -> Bool[np.ndarray, " seed"]:
        """Which seeds are right in at least half of the strings of this length?"""
        return self.at(name, length) >= 0.5

    def n_learnt(self, name: str, length: int) -> int:
        return int(self.learnt(name, length).sum())

    def reach(self, name: str, share: float = 0.5) -> Float[np.ndarray, " seed"]:
        """L50 (L90) of each seed, with a share of 0.5 (0.9): the length at which string accuracy
        first falls below `share`, on straight lines between the lengths tested; 0 if it is below
        at the shortest, the longest length if it never is."""
        return np.array([reach_of(self.lengths, row, share) for row in self.accuracy[name]])


def reach_of(lengths: Sequence[int], accuracy: Sequence[float], share: float) -> float:
    """See `ByLength.reach`; of one seed."""
    if accuracy[0] < share:
        return 0.0
    for (n, a), (m, b) in pairwise(zip(lengths, accuracy, strict=True)):
        if b < share:
            return n + (a - share) / (a - b) * (m - n)
    return float(lengths[-1])


def measured(study: str, networks: Mapping[str, Sequence[Trained]], n_strings: int) -> ByLength:
    """Test the networks of a study at all its `LENGTHS`, on strings that none was trained on. All
    networks get the same `n_strings` of each length."""
    tests = [
        strings_for(STUDIES[study], length, n_strings, 1000 + length) for length in LENGTHS[study]
    ]
    whole, letters = (
        {name: each_seed(some, score, tests) for name, some in networks.items()}
        for score in (string_accuracy, letter_accuracy)
    )
    return ByLength(study, LENGTHS[study], whole, letters)


def each_seed(
    networks: Sequence[Trained], score: Callable[[nn.Module, Any], float], tests: Sequence
) -> Float[np.ndarray, "seed test"]:
    """`score(network, test)` of the network of each seed in each test."""
    return np.array([[score(one.network, test) for test in tests] for one in networks])


def _right(network: nn.Module, strings: Strings) -> Bool[Tensor, "string answer"]:
    with fast_scans(network):
        return copying.teacher_forced(network, strings)


def string_accuracy(network: nn.Module, strings: Strings) -> float:
    """Share of the strings whose whole answer is right, to the final `.`."""
    return _right(network, strings).all(1).double().mean().item()


def letter_accuracy(network: nn.Module, strings: Strings) -> float:
    """Share of the answers' tokens that are right, given the true ones before."""
    return _right(network, strings).double().mean().item()


def after_run(network: nn.Module, run: int, n_strings: int, length: int = 20) -> float:
    """Share right of the two letters that follow a run of `run` letters which occurs twice (Sec.
    3.4). Who looks up the last letters cannot tell the two places apart, from runs of that length
    on; who counts is not misled."""
    twice, after = copying.duplicate_ngram(
        n_strings, length, torch.Generator().manual_seed(4000 + run), run
    )
    return _right(network, twice).gather(1, after).double().mean().item()
