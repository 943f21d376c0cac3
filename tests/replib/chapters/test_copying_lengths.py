"""What networks are asked, worked by hand: how far they copy, how many examples they needed, how
long a string they copy from so many bits; and planted networks, of which every answer is known."""

import math

import numpy as np
import pytest
import torch

from replib import metrics
from replib.chapters.copying_mamba import attention, lengths, mechanism, state_bits, trained
from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba.lengths import ByLength, reach_of
from replib.chapters.copying_mamba.networks import build
from replib.chapters.copying_mamba.planted import Register, planted_copier
from replib.chapters.copying_mamba.scans import fast_scans
from replib.chapters.copying_mamba.survival import FURTHEST, arrivals, factor
from replib.chapters.copying_mamba.trained import Trained
from replib.chapters.copying_mamba.training_grid import STUDIES, Cell
from replib.errors import UsageError

ROPE = [[1.0, 0.9, 0.9, 0.6, 0.0], [1.0, 0.8, 0.6, 0.4, 0.0], [0.2, 0.1, 0.0, 0.0, 0.9]]
CELL = Cell("copy", "rope", 0.01, "s10", 21)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_accuracy_by_length_by_hand():
    table = {"rope": np.array(ROPE)}
    test = ByLength("suffix", (15, 30, 45, 60, 100), table, table)
    assert test.at("rope", 30).tolist() == [0.9, 0.8, 0.1]
    assert test.at("rope", 15, 45) == pytest.approx([0.95, 0.8, 0.1])
    assert test.n_learnt("rope", 30) == 2
    # Up to which length: what is right again at 100 letters does not count.
    assert test.reach("rope") == pytest.approx([60 + 40 / 6, 45 + 15 / 2, 0])
    assert test.reach("rope", 0.9) == pytest.approx([45, 15 + 15 / 2, 0])
    assert reach_of((5, 10), (1.0, 0.5), 0.5) == 10  # never below
    assert test.mean("rope", 30) == metrics.seeds_mean([0.9, 0.8, 0.1], share=True)
    assert test.lead("rope", "rope", 30).value == 0


# --- Examples -------------------------------------------------------------------------------------


def reached(*times, budget=1000.0):
    """Curves of two points; None: it never gets there."""
    return arrivals(
        [{"examples": [t or 1.0, budget], "string": [float(t is not None)] * 2} for t in times]
    )


def test_a_seed_that_never_arrives_is_censored():
    some = reached(100.0, 200.0, 300.0, None, None)
    assert some.examples.tolist() == [100, 200, 300, 1000, 1000] and some.n_arrived == 3
    assert some.median == 300  # two of five are left after it: less than half
    assert reached(100.0, None, None).median == 1000  # at least


def test_factors_that_a_log_rank_test_does_not_refuse():
    fast, slow = reached(10.0, 11.0, 12.0, 13.0, 14.0), reached(50.0, 55.0, 60.0, 65.0, 70.0)
    found = factor(slow, fast)
    assert found.value == 5 and found.n == 10
    assert 3 < found.low < 5 < found.high < 8
    back = factor(fast, slow)
    assert (back.value, back.low) == pytest.approx((1 / 5, 1 / found.high), rel=1e-6)
    never = factor(reached(None, None, None, None, None, budget=70.0), fast)
    assert never.value == pytest.approx(70 / 12) and never.high == FURTHEST and never.low > 3


# --- What networks say ----------------------------------------------------------------------------


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
    said = copying.copies_of(torch.tensor([[0, 0, 1], [2, 3, 4]]))
    assert lengths.string_accuracy(Scripted(3), said) == 0.0
    assert lengths.letter_accuracy(Scripted(3), said) == 3 / 4
    short = copying.Strings(said.tokens[:, :-1], 3, said.source)  # without the final `.`
    assert lengths.string_accuracy(Scripted(3), short) == 1.0
    some = [Trained(CELL, {}, Scripted(back)) for back in (3, 3, 0)]
    scores = lengths.each_seed(some, lambda network, test: float(network.back + test), [1, 10])
    assert scores.tolist() == [[4, 13], [4, 13], [1, 10]]


@pytest.mark.parametrize("task", copying.TASKS)
def test_a_register_answers_what_it_holds(task):
    length = 9
    some = copying.TASKS[task](200, length, seeded())
    whole = lengths._right(Register(task, 10_000), some)
    assert whole.all()
    held = lengths._right(Register(task, 12 if task == "phone_book" else 4), some)
    first = 1 + 4 * (task == "prefix_ngram")
    inside = some.source - first < (12 if task == "phone_book" else 4)
    expected = torch.ones_like(inside) if task == "prefix_ngram" else inside
    assert torch.equal(held[:, :-1], expected) and held[:, -1].all()
    assert not lengths._right(Register(task, 10_000, furthest=8), some)[:, :-1].any()


def test_after_a_run_that_occurs_twice():
    assert lengths.after_run(planted_copier(3), 2, 100) > 0.9
    assert lengths.after_run(planted_copier(3), 4, 100) == pytest.approx(0.25, abs=0.1)
    assert lengths.after_run(Register("copy", 40), 7, 50) == 1.0


# --- The state in so many bits --------------------------------------------------------------------


def test_a_state_in_so_many_bits_has_no_more_values():
    learn, some = torch.randn(100, 30, generator=seeded()), torch.randn(50, 30, generator=seeded(1))
    of = state_bits.components(learn, 30)
    assert torch.allclose(of.axes.T @ of.axes, torch.eye(30), atol=1e-4)
    four = state_bits.in_bits(some, of, 4)
    assert len(four.round(decimals=4).unique(dim=0)) <= 16
    assert len(state_bits.in_bits(some, of, 8).round(decimals=4).unique(dim=0)) > 16
    error = [(state_bits.in_bits(some, of, b) - some).norm() for b in (4, 32, 120)]
    assert error[0] > error[1] > error[2] and error[2] < 0.2 * some.norm()


def test_the_whole_state_of_a_register_and_of_mamba_2_gives_their_own_answers():
    some = copying.copy(8, 6, seeded())
    for network in (Register("copy", 4), build("mamba2", 0).eval()):
        right = state_bits.copied_from(network, some, state_bits.state_before_bar(network, some))
        with fast_scans(network):
            assert torch.equal(right, copying.teacher_forced(network, some))


def test_more_bits_let_a_register_copy_more():
    reach = state_bits.reach_by_bits(Register("copy", 30), 40, (16, 1024))
    assert reach[0] < 5 < 10 < reach[1]
    assert (reach <= np.array([16, 1024]) / math.log2(26)).all()


# --- Attention ------------------------------------------------------------------------------------


def test_the_planted_heads_are_the_ones_that_look_and_the_register_looks_at_what_it_holds():
    some = copying.copy(8, 10, seeded())
    head, share = attention.lookup_head(planted_copier(), some)
    assert head == (1, 5) and share > 0.9
    head, share = attention.lookup_head(Register("copy", 5), some)
    assert head == (0, 0) and share == 0.5
    with pytest.raises(UsageError, match="LSTM has no attention"):
        attention.patterns(build("lstm", 0), some.tokens)


def test_implicit_attention_times_what_is_written_is_what_the_layer_reads():
    network = build("mamba2", 0).eval()
    tokens = copying.copy(2, 5, seeded()).tokens
    found = attention.patterns(network, tokens)
    assert found.shape == (3, 2, 8, 12, 12)
    assert torch.allclose(found.sum(-1), torch.ones(3, 2, 8, 12), atol=1e-5)
    assert found.triu(1).abs().max() == 0


def test_pictures_say_what_they_show():
    one, many = copying.copy(1, 6, seeded()), copying.copy(16, 6, seeded(1))
    some = attention.shown({"planted": planted_copier(), "held": Register("copy", 3)}, one, many)
    assert list(some) == ["planted, L1H5", "held, L0H0"]
    assert "held, L0H0: 50%" in attention.maps(some, one).alt
    page = attention.slider(some, one).data
    assert "letter to be said" in page and page.count('"text"') == 2


def test_who_looks_up_follows_content_and_who_counts_position():
    cut = mechanism.spliced(100, 16, 4, seeded())
    assert attention.next_letters(planted_copier(), cut)["content"] > 0.95
    assert attention.next_letters(Register("copy", 30), cut) == {"content": 0, "position": 1}


# --- Networks of the three kinds ------------------------------------------------------------------


@pytest.mark.parametrize("study", STUDIES)
def test_planted_and_untrained_networks_are_there_for_every_study(study, tmp_path):
    for model_name in ("planted-copying", "untrained-copying"):
        some = trained.load_study(tmp_path, study, model_name)
        assert list(some) == list(STUDIES[study].architectures)
        for seeds in some.values():
            assert [one.cell.seed for one in seeds] == list(STUDIES[study].seeds)
            for one in seeds:
                assert one.curve["examples"][-1] <= one.cell.steps * 32
    assert trained.better(tmp_path, "planted-copying", ("mamba2", "mamba")) == "mamba2"
