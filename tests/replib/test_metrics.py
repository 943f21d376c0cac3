"""Statistics worked by hand; their error rates are in test_calibration.py."""

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from scipy import stats

from replib import metrics as m
from replib.errors import UsageError
from replib.prompts.ioi import ioi_pairs
from replib.prompts.vocabulary import word_tokenizer


def test_a_logit_difference_by_hand():
    pairs = ioi_pairs(word_tokenizer(), 2, 0)
    pairs = replace(pairs, answer=torch.tensor([2, 0]), foil=torch.tensor([1, 2]))
    logits = torch.tensor([[1.0, 2.0, 7.0], [3.0, 5.0, 9.0]])
    assert m.logit_diff(logits, pairs).tolist() == [7 - 2, 3 - 9]


def test_proportion_of_eight_in_ten():
    # With share 0.4439, 8 or more of 10 have probability 0.025; with 0.9748, 8 or fewer.
    share = m.proportion(torch.tensor([True] * 8 + [False] * 2))
    assert (share.value, share.n) == (0.8, 10)
    assert share.interval == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert stats.binom.sf(7, 10, share.low) == pytest.approx(0.025)
    assert stats.binom.cdf(8, 10, share.high) == pytest.approx(0.025)
    assert m.proportion(torch.tensor([True])).interval == (pytest.approx(0.025), 1.0)
    assert m.proportion(torch.tensor([False] * 5)).interval == (
        0.0,
        pytest.approx(0.5218, abs=1e-4),
    )
    with pytest.raises(UsageError, match="no prompts"):
        m.proportion(torch.tensor([], dtype=torch.bool))
    with pytest.raises(UsageError, match="lie in 0 to 1, not at -1 to"):
        m.proportion(torch.tensor([-1.0, 0.5]))


def test_cluster_bootstrap_resamples_groups_not_rows():
    weights = m.cluster_draws(["a", "a", "a", "b"], np.random.default_rng(0), 500)
    assert np.allclose(weights.sum(-1), 1)
    # only three resamples of two groups exist: (a,a), (a,b), (b,b)
    assert len({tuple(row.round(6)) for row in weights}) == 3
    assert np.allclose(weights[:, 0], weights[:, 2])


def test_bootstrap_statistic_acts_on_means():
    values = torch.tensor([[1.0, 3.0], [3.0, 6.0], [2.0, 5.0]])
    gap = m.bootstrap(values, range(3), m.rng(0), lambda mean: mean[..., 1] - mean[..., 0])
    # of resamplings of 2, 3 and 3 the least mean is 2, the largest 3
    assert gap.interval == pytest.approx((2, 3)) and gap.value == pytest.approx(8 / 3)


def test_bootstrap_of_values_that_agree():
    # 10 of 10 prompts show 3, so at least 0.025 ** (1 / 10) = 0.6915 of all do
    same = m.bootstrap(torch.full((10,), 3.0), range(10), m.rng(0))
    assert astuple(same) == pytest.approx((3, 3 * 0.6915, 3, 10), abs=1e-3)
    negative = m.bootstrap(torch.full((10,), -3.0) + 1e-7, range(10), m.rng(0))  # rounding
    assert negative.interval == pytest.approx((-3, -3 * 0.6915), abs=1e-3)
    values = torch.tensor([[1.0, 3.0], [3.0, 5.0]])
    gap = m.bootstrap(values, ["a", "b"], m.rng(0), lambda mean: mean[..., 1] - mean[..., 0])
    assert gap.interval == pytest.approx((2 * 0.025**0.5, 2), abs=1e-4)
    none = m.bootstrap(values * 0, ["a", "b"], m.rng(0), lambda mean: mean[..., 0])
    assert none.value == 0 and np.isnan(none.interval).all()
    assert np.isnan(m.bootstrap(torch.tensor([1.5, 2.5]), ["a"] * 2, m.rng(0)).interval).all()


def test_bootstrap_of_few_groups_by_hand():
    # Equal groups: t of their means 1, 2, 3 with 2 degrees of freedom, 4.3027 / sqrt(3) = 2.4841.
    values = torch.tensor([0.5, 1.5, 1.8, 2.2, 2.9, 3.1])
    found = m.bootstrap(values, ["a", "a", "b", "b", "c", "c"], m.rng(0))
    assert found.interval == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    # Groups of 1 and 3, sums 2.5 and 1.5, mean 1: 1.5 and -1.5 beyond it. CR2: error² =
    # (1.5² / (3 / 4) + 1.5² / (1 / 4)) / 16 = 0.75; with two groups there is 1 degree of freedom.
    found = m.bootstrap(torch.tensor([2.5, 0.5, 0.5, 0.5]), ["a", "b", "b", "b"], m.rng(0))
    half = 12.7062 * 0.75**0.5
    assert found.interval == pytest.approx((1 - half, 1 + half), abs=1e-3)


def test_bootstrap_of_skewed_values_reaches_further_up():
    values = torch.from_numpy(stats.expon.ppf((np.arange(20) + 0.5) / 20))
    found = m.bootstrap(values, range(20), m.rng(0))
    half = stats.t.ppf(0.975, 19) * stats.sem(values.numpy())
    assert found.high - found.value > 1.3 * half and found.value - found.low < half
    assert found == m.bootstrap(values, range(20), m.rng(0))
    one = m.bootstrap(torch.tensor([5.0] + [0.0] * 19), range(20), m.rng(0))
    assert np.isfinite(one.interval).all()  # though a third of resamplings hold zeros only


def test_percentiles_are_expanded_for_few_groups():
    draws = np.arange(100_001) / 100_000
    # t(0.975; 4) = 2.7764, × sqrt(5 / 4) = 3.1042: 0.000954 of a normal lies beyond
    assert m.percentiles(draws, 5) == pytest.approx((0.000954, 1 - 0.000954), abs=2e-5)
    assert m.percentiles(draws, 10**6) == pytest.approx((0.025, 0.975), abs=1e-4)
    assert np.isnan(m.percentiles(draws, 1)).all()


def test_proportion_of_groups_that_agree_within():
    right = torch.tensor([True, True, True, False]).repeat_interleave(5)
    # 4 groups of 5, all right or all wrong: as good as 4 prompts
    share = m.proportion(right, np.arange(4).repeat(5).tolist())
    four = m.proportion(torch.tensor([True, True, True, False]))
    assert share.interval == pytest.approx(four.interval) and share.n == 20
    assert m.proportion(right, range(20)) == m.proportion(right)
    assert m.proportion(right, ["one"] * 20) == m.Estimate(0.75, 0.0, 1.0, 20)
    # groups alike: 20 prompts, but for what t asks of 4 groups, (2.09302 / 3.18245)² = 0.43254
    n = 19 * 0.43254
    spread = m.proportion(right, ["a", "b", "c", "d"] * 5)
    low = stats.beta.ppf(0.025, 0.75 * n, 0.25 * n + 1)
    assert spread.low == pytest.approx(low, abs=1e-4) and share.low < low


def test_proportion_of_shares_by_hand():
    # 0.8 and 1 in turn: the squared error of the mean is 0.1² / 9, of answers 0.9 · 0.1 / n: worth
    # 81 of them, and by t of 80 and 9 degrees of freedom (1.99006 / 2.26216)² · 81 = 62.686
    shares = m.proportion(torch.tensor([0.8, 1.0] * 5))
    n = 62.686
    low, high = stats.beta.ppf([0.025, 0.975], [0.9 * n, 0.9 * n + 1], [0.1 * n + 1, 0.1 * n])
    assert shares.interval == pytest.approx((low, high), abs=1e-4)
    assert m.proportion(torch.ones(5)) == m.proportion(torch.ones(5) == 1)
    assert m.proportion(torch.tensor([1.0, 0, 1, 1])).interval == pytest.approx(
        m.proportion(torch.tensor([True, False, True, True])).interval
    )


def test_bootstrap_of_answers_is_a_proportion_and_of_differences_is_not():
    right = torch.tensor([True, True, True, False, True])
    assert m.bootstrap(right, range(5), m.rng(0)) == m.proportion(right, range(5))
    low, high = m.bootstrap(torch.ones(20) == 1, range(20), m.rng(0)).interval
    assert low == pytest.approx(0.025 ** (1 / 20)) and high == 1.0
    # a difference that happens never to be negative is still one
    low, high = m.bootstrap(torch.tensor([1.0, 0, 0, 0, 0]), range(5), m.rng(0)).interval
    assert low < 0 < high  # a share of 1 in 5 would be above 0


def test_bootstrap_of_paired_differences_by_hand():
    # 8 prompts, 3 gained, 1 lost: with one more of each, mean 2 / 10, mean square 6 / 10
    values = torch.tensor([1.0, 1, 1, -1, 0, 0, 0, 0])
    found = m.bootstrap(values, range(8), np.random.default_rng(0))
    half = 1.95996 * ((0.6 - 0.04) / 10) ** 0.5
    assert found.interval == pytest.approx((0.2 - half, 0.2 + half), abs=1e-4)
    assert found.value == 0.25
    low, high = m.bootstrap(torch.tensor([0.0, 0, -1, 1] * 5), ["a"] * 20, m.rng(0)).interval
    assert (low, high) == (-1.0, 1.0)  # one group says nothing of others


def test_max_statistic_finds_a_real_effect_and_skips_missing_heads():
    generator = np.random.default_rng(3)
    effect = torch.from_numpy(generator.normal(size=(3, 4, 24)))
    effect[1, 2] -= 3.0
    effect[2] = torch.nan
    p = m.max_statistic_pvalues(effect, generator)
    assert p[1, 2] < 0.01
    assert (p[2] == 1).all()
    assert (p[:2].flatten() < 0.05).sum() == 1


def test_max_statistic_is_not_fooled_by_rounding_or_by_effects_without_spread():
    generator = np.random.default_rng(3)
    effect = torch.from_numpy(1e-8 * (generator.random(size=(2, 50, 24)) < 0.05))  # inert heads
    effect[0, 0] = 2.0
    effect[1, 1] = torch.from_numpy(generator.normal(1.0, 0.5, size=24))
    p = m.max_statistic_pvalues(effect, generator)
    assert p[0, 0] < 0.01 and p[1, 1] < 0.01
    assert (p < 0.05).sum() == 2
    assert (m.max_statistic_pvalues(torch.zeros(2, 2, 6), generator) == 1).all()
    # values that are mostly a little below 0 and seldom far above
    skewed = torch.from_numpy(generator.exponential(size=(200, 1, 9, 12)) - 1)
    found = [float(m.max_statistic_pvalues(one, generator, 200).min()) < 0.05 for one in skewed]
    assert np.mean(found) < 0.1


def test_top_heads_by_magnitude_without_nan():
    score = torch.tensor([[0.1, -0.5, torch.nan], [0.3, 0.0, 0.2]])
    assert m.top_heads(score, 3) == [(0, 1), (1, 0), (1, 2)]
    assert len(m.top_heads(score, 99)) == 5
    assert m.n_top(384) == 8 and m.n_top(270) == 6 and m.n_top(72) == 2


def test_overlap_by_hand():
    a = [{(0, 0), (0, 1)}, {(1, 0), (1, 1)}]
    b = [{(0, 0), (0, 2)}, {(1, 0), (0, 1)}]
    assert m.overlap(a, b) == 0.5  # L0H0 in stage 1, L1H0 in stage 2
    assert m.overlap([set()], [set()]) == 0.0


def test_overlap_null_keeps_layers():
    a = [{(0, 0), (1, 0)}]
    null = m.drawn_overlap_null(a, a, 4, np.random.default_rng(0), 4000)
    # each layer's one head is hit with probability 1/4
    assert null.mean() == pytest.approx(0.25, abs=0.02)
    assert set(np.unique(null)) <= {0.0, 0.5, 1.0}


def test_a_window_is_a_fifth_of_the_depth_and_stays_inside():
    # 30 layers: three on either side; at least one on either side; as many at the ends
    for layer, n_layers, first, last in ((15, 30, 12, 18), (4, 7, 3, 5), (0, 30, 0, 6)):
        assert m.layer_window(layer, n_layers) == range(first, last + 1)
    assert m.layer_window(29, 30) == range(23, 30) and m.layer_window(1, 2) == range(2)


def test_layer_matched_heads_are_any_of_the_window():
    generator = np.random.default_rng(0)
    heads = [(1, 0), (1, 1)]  # of 3 layers of 2 heads, all in the window
    drawn = [m.layer_matched(heads, 3, 2, generator) for _ in range(3000)]
    every = {(layer, head) for layer in range(3) for head in range(2)}
    assert {len(one) for one in drawn} == {2} and set.union(*drawn) == every
    # of the 15 pairs of six heads one is the chosen one, and 9 hold one of it
    assert np.mean([one == set(heads) for one in drawn]) == pytest.approx(1 / 15, abs=0.02)
    assert m.holding(drawn, heads).mean() == pytest.approx(9 / 15, abs=0.03)
    assert all(m.layer_matched([(9, 0)], 10, 4, generator).pop()[0] >= 7 for _ in range(50))


def test_spearman_by_hand_and_its_null():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    rho, null = m.spearman(x, torch.tensor([10.0, 30.0, 20.0, 40.0]), np.random.default_rng(0))
    assert rho == pytest.approx(0.8)  # 1 − 6·2 / (4·15)
    assert abs(null.mean()) < 0.05
    assert np.isnan(m.spearman(x, torch.ones(4), np.random.default_rng(0))[0])


def test_null_pvalue_counts_the_observed():
    null = m.Null(np.array([0.0, 1.0, 2.0]))
    assert null.pvalue(1.5) == 0.5 and null.pvalue(9.0) == 0.25
    assert null.asdict() == {"mean": 1.0, "q05": 0.0, "q95": 2.0, "draws": 3}


@pytest.mark.parametrize("n", [1, 2, 18, 19, 20, 38, 39, 40, 59, 99, 100, 999, 1000])
def test_percentiles_of_a_null_are_exceeded_by_chance_in_at_most_5_percent(n):
    found = m.Null(np.random.default_rng(n).permutation(n).astype(float)).asdict()
    above = n - found["q95"]  # of the n + 1 places that one more draw could take
    assert above == 1 or above / (n + 1) <= 0.05
    assert (above + 1) / (n + 1) > 0.05
    assert found["q05"] == n - 1 - found["q95"]


def test_draws_depend_on_seed_and_purpose_only():
    assert m.rng(0, "a").random() == m.rng(0, "a").random()
    assert m.rng(0, "a").random() != m.rng(0, "b").random() != m.rng(1, "b").random()


def test_intervals_over_seeds_by_hand():
    # Mean 2, standard error 1 / sqrt(3), t(0.975; 2) = 4.3027.
    mean = m.seeds_mean([1.0, 2.0, 3.0])
    assert astuple(mean) == pytest.approx((2, 2 - 2.4841, 2 + 2.4841, 3), abs=1e-4)
    # Equal sizes and variances: Welch is Student, t(0.975; 4) = 2.7764, error sqrt(2 / 3).
    more = m.seeds_difference([4.0, 5.0, 6.0], [1.0, 2.0, 3.0])
    assert astuple(more) == pytest.approx((3, 3 - 2.2670, 3 + 2.2670, 6), abs=1e-3)
    least = 0.025**0.5  # of seeds, if two of two do the same
    same = m.seeds_difference([1.0, 1.0], [0.5, 0.5])
    assert astuple(same) == pytest.approx((0.5, 0.5 * least, 0.5, 4))
    assert astuple(m.seeds_mean([2.0, 2.0])) == pytest.approx((2, 2 * least, 2, 2))
    assert np.isnan(m.seeds_difference([1.0, 1.0], [1.0, 1.0]).interval).all()
    with pytest.raises(UsageError, match="at least 2, got 1"):
        m.seeds_mean([1.0])
    with pytest.raises(UsageError, match="got 1 and 2"):
        m.seeds_difference([1.0], [1.0, 2.0])


def test_intervals_of_shares_over_seeds():
    learned, never = [1.0] * 5, [0.0] * 5
    least = 0.025 ** (1 / 5)
    assert m.seeds_mean(learned, share=True).interval == pytest.approx((least, 1))
    more = m.seeds_difference(learned, never, share=True)
    assert more.interval == pytest.approx((1 - (1 - least) * 2**0.5, 1))
    shares = m.seeds_mean([0.99, 0.96, 1.0, 0.98, 0.99], share=True)
    assert 0.9 < shares.low < 0.984 < shares.high < 1
    with pytest.raises(UsageError, match="lie in 0 to 1"):
        m.seeds_mean([0.5, 1.5], share=True)
