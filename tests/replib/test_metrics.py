"""Statistics worked by hand; their error rates are in test_calibration.py."""

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

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
    # (p + z²/2n ± z√(p(1−p)/n + z²/4n²)) / (1 + z²/n) with p = 0.8, n = 10, z = 1.96
    share = m.proportion(torch.tensor([True] * 8 + [False] * 2))
    assert (share.value, share.n) == (0.8, 10)
    assert share.interval == pytest.approx((0.4902, 0.9433), abs=1e-4)
    with pytest.raises(UsageError, match="no prompts"):
        m.proportion(torch.tensor([], dtype=torch.bool))


def test_cluster_bootstrap_resamples_groups_not_rows():
    weights = m.cluster_draws(["a", "a", "a", "b"], np.random.default_rng(0), 500)
    assert np.allclose(weights.sum(-1), 1)
    # only three resamples of two groups exist: (a,a), (a,b), (b,b)
    assert len({tuple(row.round(6)) for row in weights}) == 3
    assert np.allclose(weights[:, 0], weights[:, 2])


def test_bootstrap_statistic_acts_on_means():
    values = torch.tensor([[1.0, 3.0], [3.0, 5.0]])
    gap = m.bootstrap(values, ["a", "b"], m.rng(0), lambda mean: mean[..., 1] - mean[..., 0])
    assert gap == m.Estimate(2.0, 2.0, 2.0, 2)


def test_percentiles_are_expanded_for_few_groups():
    draws = np.arange(100_001) / 100_000
    # t(0.975; 4) = 2.7764, × sqrt(5 / 4) = 3.1042: 0.000954 of a normal lies beyond
    assert m.percentiles(draws, 5) == pytest.approx((0.000954, 1 - 0.000954), abs=2e-5)
    assert m.percentiles(draws, 10**6) == pytest.approx((0.025, 0.975), abs=1e-4)
    assert np.isnan(m.percentiles(draws, 1)).all()


def test_proportion_of_groups_that_agree_within():
    # 4 groups of 5, all right or all wrong: as good as 4 prompts, with the quantile of t
    right = torch.tensor([True, True, True, False]).repeat_interleave(5)
    group = ["a"] * 5 + ["b"] * 5 + ["c"] * 5 + ["d"] * 5
    share = m.proportion(right, group)
    # variance of the mean: 20 apart 0.1875 · 20 / 19 / 20 = 0.009868; summed by group
    # 4/3 · (3 · 1.25² + 3.75²) / 400 = 0.0625; n = 20 · 0.009868 / 0.0625 = 3.158
    # z = 1.95996 · t(0.975; 3) / t(0.975; 19) = 1.95996 · 3.18245 / 2.09302 = 2.98013
    n, z = 3.15789, 2.98013
    middle = (0.75 + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (0.75 * 0.25 / n + z**2 / (4 * n**2)) ** 0.5
    assert share.interval == pytest.approx((middle - half, middle + half), abs=1e-4)
    alone = [str(i) for i in range(20)]
    assert m.proportion(right, alone) == m.proportion(right)
    assert m.proportion(right, ["one"] * 20) == m.Estimate(0.75, 0.0, 1.0, 20)
    spread = m.proportion(right, ["a", "b", "c", "d"] * 5)  # groups alike: no fewer than 20 prompts
    assert spread.low > share.low and spread.high < share.high


def test_bootstrap_of_answers_is_wilsons_and_of_differences_is_not():
    right = torch.tensor([True, True, True, False, True])
    assert m.bootstrap(right, range(5), m.rng(0)) == m.proportion(right, range(5))
    low, high = m.bootstrap(torch.ones(20) == 1, range(20), m.rng(0)).interval
    assert 0.8 < low < 0.9 and high == 1.0  # 20 / (20 + 1.96²) = 0.839
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
    assert m.seeds_difference([1.0, 1.0], [0.5, 0.5]) == m.Estimate(0.5, 0.5, 0.5, 4)
    assert m.seeds_mean([1.0, 1.0]) == m.Estimate(1.0, 1.0, 1.0, 2)
    with pytest.raises(UsageError, match="at least 2, got 1"):
        m.seeds_mean([1.0])
    with pytest.raises(UsageError, match="got 1 and 2"):
        m.seeds_difference([1.0], [1.0, 2.0])
