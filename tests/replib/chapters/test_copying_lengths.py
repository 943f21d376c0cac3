"""What stored networks are asked, worked by hand: how far they copy, what is kept of a lookup, how
many examples they needed; and two pretrained models compared."""

import math

import numpy as np
import pytest
import torch

from replib import metrics
from replib.chapters.copying_mamba import lengths, lookups, tables, trained
from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba.lengths import ByLength
from replib.chapters.copying_mamba.networks import Size
from replib.chapters.copying_mamba.trained import Trained
from replib.chapters.copying_mamba.training_grid import Cell
from replib.errors import UsageError

# Three seeds: two that learnt, of which one keeps half beyond 30 letters, and one that did not.
ROPE = [[1.0, 0.9, 0.9, 0.6, 0.0], [1.0, 0.8, 0.6, 0.4, 0.0], [0.2, 0.1, 0.0, 0.0, 0.9]]
SSM = [[1.0, 0.6, 0.3, 0.3, 0.0], [1.0, 0.5, 0.3, 0.0, 0.0], [1.0, 1.0, 0.3, 0.4, 0.0]]


@pytest.fixture
def test():
    accuracy = {"rope": np.array(ROPE), "mamba2": np.array(SSM)}
    return ByLength("suffix", (15, 30, 45, 60, 100), accuracy)


def test_accuracy_by_length_by_hand(test):
    assert test.at("rope", 30).tolist() == [0.9, 0.8, 0.1]
    assert test.at("rope", 15, 45) == pytest.approx([0.95, 0.8, 0.1])
    assert test.n_learnt("rope", 30) == 2 and test.n_learnt("mamba2", 30) == 3
    # Up to which length: what is right again at 100 letters does not count.
    assert test.longest("rope", 0.5).tolist() == [60, 45, 0]
    assert test.longest("rope", 0.9).tolist() == [45, 15, 0]
    lead = test.lead("rope", "mamba2", 60)
    assert lead.value == pytest.approx(1 / 3 - 0.7 / 3) and lead.n == 3
    assert test.mean("rope", 30) == metrics.seeds_mean([0.9, 0.8, 0.1])
    assert test.mean("rope", 30).high > 1 and test.share("rope", 30).interval == (0.0, 1.0)
    assert test.shares(30)["Mamba-2"] == test.share("mamba2", 30)


def test_capacity_is_that_of_fixed_states_and_of_the_best_seed(test):
    bits = math.log2(26)
    sizes = {"rope": Size(1, 5, grows=True), "mamba2": Size(1, round(600 * bits), grows=False)}
    (row,) = tables.of_capacity(sizes, test).to_dict("records")
    assert (row["study"], row["network"], row["L50, best seed"]) == ("suffix", "Mamba-2", 30)
    assert row["share"] == pytest.approx(30 / 600, rel=1e-3)


def test_what_is_kept_beyond_the_lengths_of_training(test):
    assert lookups.kept(test, "rope") == pytest.approx([0.6 / 0.9, 0.5])  # the third never learnt
    ssm, transformer = lookups.kept_by_both(test, "rope")
    assert ssm.value == pytest.approx((0.5 + 0 + 0.4) / 3) and ssm.n == 3
    assert transformer.value == pytest.approx((0.6 / 0.9 + 0.5) / 2) and transformer.n == 2
    assert all(math.isnan(one.value) for one in lookups.kept_by_both(test, None))
    test.accuracy["mamba2"][0, 1] = 0.4  # two seeds are not enough
    assert all(math.isnan(one.value) for one in lookups.kept_by_both(test, "rope"))


def test_the_best_transformer_is_one_that_three_seeds_learnt():
    score = {"rope": 0.9, "alibi": 0.5, "nope": 0.7, "mamba2": 1.0}.get
    learnt = {"rope": 2, "alibi": 3, "nope": 5, "mamba2": 5}
    assert lookups.best_transformer(learnt, score) == "nope"
    assert lookups.best_transformer({"rope": 2, "mamba2": 5}, score) is None


class Scripted(torch.nn.Module):
    """Copies whatever stands `back` tokens before."""

    def __init__(self, back):
        super().__init__()
        self.back = back

    def forward(self, tokens):
        said = tokens.roll(self.back, 1)
        return torch.nn.functional.one_hot(said, 30).float()


def test_strings_are_right_as_a_whole_and_letters_one_by_one():
    # "$aab|aab.": after `|` and each letter, the token 3 before is a, a, b and then `|`, not `.`
    x = torch.tensor([[0, 0, 1], [2, 3, 4]])
    assert lengths.string_accuracy(Scripted(3), copying.copies_of(x)) == 0.0
    said = copying.copies_of(x)
    short = copying.Strings(said.tokens[:, :-1], 3, said.source)  # without the final `.`
    assert lengths.string_accuracy(Scripted(3), short) == 1.0
    some = [Trained(Cell("copy", "rope", 0.01, 1), {}, Scripted(back)) for back in (3, 3, 0)]
    right = lengths.letters_right({"rope": some}, (3, 30), 50)
    assert right["Transformer, RoPE, teacher-forced"][0] == pytest.approx(2 / 3 * 3 / 4, abs=0.05)
    tests = [1, 10, 100]
    scores = lengths.each_seed(some, lambda network, test: float(network.back + test), tests)
    assert scores.tolist() == [[4, 13, 103], [4, 13, 103], [1, 10, 100]]


def test_examples_are_compared_by_their_geometric_means():
    ratio = trained.examples_ratio([100, 400], [10, 40])
    assert (ratio.value, ratio.n) == (pytest.approx(10), 2)
    assert ratio.low * ratio.high == pytest.approx(100)  # symmetric in logarithms
    with pytest.raises(UsageError, match="live_steps is 99; give at least 100"):
        trained.train_now({}, (), (), 99)
