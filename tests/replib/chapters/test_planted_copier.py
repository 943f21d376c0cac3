"""The planted copier: right at any length, wrong exactly where a lookup of n letters must be."""

import pytest
import torch

from replib.chapters.copying_mamba import strings as copying
from replib.chapters.copying_mamba.planted import planted_copier
from replib.errors import UsageError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("length", [1, 2, 5, 30, 100, 300])
def test_it_copies_strings_of_any_length_but_for_runs_that_occur_twice(length):
    n = 64
    strings = copying.copy(n, length, seeded(length))
    right = copying.teacher_forced(planted_copier(), strings).all(1)
    runs = strings.tokens[:, 1 : length + 1].unfold(1, min(4, length), 1)
    twice = torch.tensor([len({tuple(r) for r in row.tolist()}) < len(row) for row in runs])
    assert right[~twice].all()
    assert twice.float().mean() <= length**2 / 26**4 + 0.05  # the bound of Lemma 2.4


def test_longer_runs_make_it_right_on_long_strings():
    strings = copying.copy(32, 300, seeded())
    assert copying.teacher_forced(planted_copier(n_gram=6), strings).all(1).double().mean() >= 0.99


@pytest.mark.parametrize("n_gram", [2, 4])
def test_it_breaks_where_the_run_that_occurs_twice_is_as_long_as_the_lookup(n_gram):
    network = planted_copier(n_gram)
    for run in range(1, 7):
        strings, after = copying.duplicate_ngram(200, 20, seeded(run), run)
        right = copying.teacher_forced(network, strings).gather(1, after).double().mean(0)
        if run < n_gram:
            assert right.min() > 0.94  # the letter before agrees in 1 of 26
        else:
            # Two answers tie; then the copy itself holds the first of them once more.
            assert 0.4 < right[0] < 0.6 and right[1] < 0.06


def test_free_running_is_as_right():
    strings = copying.copy(8, 40, seeded())
    assert copying.free_running(planted_copier(), strings).all()


def test_a_lookup_of_no_letters_is_refused():
    with pytest.raises(UsageError, match="n_gram is 0"):
        planted_copier(0)
