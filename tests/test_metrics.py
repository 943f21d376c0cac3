"""Statistics worked by hand; their error rates are in test_calibration.py."""

import numpy as np
import pytest
import torch

from replib import metrics as m
from replib.errors import UsageError


def test_wilson_of_eight_in_ten():
    # (p + z²/2n ± z√(p(1−p)/n + z²/4n²)) / (1 + z²/n) with p = 0.8, n = 10, z = 1.96
    share, (low, high) = m.wilson(torch.tensor([True] * 8 + [False] * 2))
    assert share == 0.8
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    with pytest.raises(UsageError, match="no prompts"):
        m.wilson(torch.tensor([], dtype=torch.bool))


def test_cluster_bootstrap_resamples_groups_not_rows():
    weights = m.cluster_draws(["a", "a", "a", "b"], np.random.default_rng(0), 500)
    assert np.allclose(weights.sum(-1), 1)
    # only three resamples of two groups exist: (a,a), (a,b), (b,b)
    assert len({tuple(row.round(6)) for row in weights}) == 3
    assert np.allclose(weights[:, 0], weights[:, 2])


def test_bootstrap_statistic_acts_on_means():
    values = torch.tensor([[1.0, 3.0], [3.0, 5.0]])
    value, (low, high) = m.bootstrap(
        values, ["a", "b"], np.random.default_rng(0), lambda mean: mean[..., 1] - mean[..., 0]
    )
    assert value == low == high == 2.0


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
    null = m.overlap_null(a, a, 4, np.random.default_rng(0), 4000)
    # each layer's one head is hit with probability 1/4
    assert null.mean() == pytest.approx(0.25, abs=0.02)
    assert set(np.unique(null)) <= {0.0, 0.5, 1.0}


def test_layer_matched_heads_avoid_what_is_excluded():
    generator = np.random.default_rng(0)
    heads = {(3, 0), (3, 1), (5, 2)}
    for _ in range(50):
        drawn = m.layer_matched(heads, 4, generator, exclude=heads)
        assert sorted(layer for layer, _ in drawn) == [3, 3, 5]
        assert not drawn & heads
    crowded = m.layer_matched({(0, 0), (0, 1)}, 3, generator, exclude={(0, 0), (0, 1)})
    assert len(crowded) == 2  # one free head is too few: the layer is drawn whole


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


@pytest.mark.parametrize("n", [*range(1, 60), 99, 100, 101, 199, 200, 999, 1000])
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
    value, (low, high) = m.seeds_mean([1.0, 2.0, 3.0])
    assert (value, low, high) == pytest.approx((2, 2 - 2.4841, 2 + 2.4841), abs=1e-4)
    # Equal sizes and variances: Welch is Student, t(0.975; 4) = 2.7764, error sqrt(2 / 3).
    value, (low, high) = m.seeds_difference([4.0, 5.0, 6.0], [1.0, 2.0, 3.0])
    assert (value, low, high) == pytest.approx((3, 3 - 2.2670, 3 + 2.2670), abs=1e-3)
    assert m.seeds_difference([1.0, 1.0], [0.5, 0.5]) == (0.5, (0.5, 0.5))
    assert m.seeds_mean([1.0, 1.0]) == (1.0, (1.0, 1.0))


def test_one_seed_has_no_interval():
    with pytest.raises(UsageError, match="at least 2, got 1"):
        m.seeds_mean([1.0])
    with pytest.raises(UsageError, match="got 1 and 2"):
        m.seeds_difference([1.0], [1.0, 2.0])
