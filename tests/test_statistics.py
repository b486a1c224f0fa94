"""Statistics against scipy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from levelt.statistics.correlation import kendall, weighted_tau
from levelt.statistics.resampling import (
    balanced_accuracy_interval,
    cluster_draws,
    group_sums,
    mean_interval,
    percentile_interval,
)


def test_tau_equals_scipy_with_ties_and_with_repeated_rows() -> None:
    random = np.random.default_rng(0)
    for levels in (2, 5, 1000):
        x = random.integers(0, levels, 200) / levels
        y = (random.random(200) < x).astype(float)
        weights = random.integers(0, 4, (3, 200))
        expected = [kendalltau(np.repeat(x, w), np.repeat(y, w)).statistic for w in weights]
        # both are ratios of sums of integers: equal up to rounding of a square root
        np.testing.assert_allclose(weighted_tau(x, y, weights), expected, rtol=1e-12)
        moved = y.copy()
        moved[0] = 1 - moved[0]
        assert not np.allclose(weighted_tau(x, moved, weights), expected, rtol=1e-6)


def test_tau_of_a_constant_is_undefined_and_says_so() -> None:
    draws = cluster_draws(10, 100, np.random.default_rng(0))
    result = kendall(np.arange(10), np.ones(10), np.arange(10), draws, 0.95)
    assert np.isnan(result.tau) and np.isnan(result.ci_low)
    assert result.reason == "y constant"


def test_draws_keep_the_number_of_clusters() -> None:
    draws = cluster_draws(7, 500, np.random.default_rng(0))
    assert (draws.sum(axis=1) == 7).all()
    # each cluster is picked once per draw on average; 5 standard errors (about 0.04 each)
    assert np.abs(draws.mean(axis=0) - 1).max() < 0.2
    with pytest.raises(ValueError, match="at least 2"):
        cluster_draws(1, 10, np.random.default_rng(0))


def test_group_sums() -> None:
    np.testing.assert_array_equal(group_sums([[1, 10], [2, 20], [3, 30]], [0, 1, 0], 2), [[4, 40], [2, 20]])


def test_cluster_interval_covers_and_the_naive_one_does_not() -> None:
    """Pairs whose two rows share an error: the interval over pairs covers its 95 %, the one over rows does not."""
    random = np.random.default_rng(1)
    pairs, studies = 60, 400
    covered = {"pairs": 0, "rows": 0}
    for _ in range(studies):
        shared = random.normal(size=pairs)
        values = np.repeat(shared, 2)[:, None] + 0.1 * random.normal(size=(2 * pairs, 1))
        for name, codes in (("pairs", np.repeat(np.arange(pairs), 2)), ("rows", np.arange(2 * pairs))):
            draws = cluster_draws(codes.max() + 1, 400, random)
            _, low, high = mean_interval(values, codes, draws, 0.95)
            covered[name] += bool(low[0] <= 0 <= high[0])
    # 400 studies: one standard error of a 95 % rate is 1.1 points; percentile intervals at 60 pairs run slightly narrow
    assert 0.91 <= covered["pairs"] / studies <= 0.98
    assert covered["rows"] / studies < 0.88


def test_balanced_accuracy_ignores_class_sizes() -> None:
    truth = np.array([1] * 90 + [0] * 10)
    always_one = (truth == 1).astype(float)[:, None]
    draws = cluster_draws(100, 400, np.random.default_rng(0))
    estimate, low, high = balanced_accuracy_interval(always_one, truth, np.arange(100), draws, 0.95)
    assert estimate[0] == low[0] == high[0] == 0.5
    assert mean_interval(always_one, np.arange(100), draws, 0.95)[0][0] == pytest.approx(0.9)


def test_percentiles_leave_out_undefined_draws() -> None:
    values = np.array([[0.0], [1.0], [np.nan], [2.0]])
    low, high = percentile_interval(values, 0.9)
    assert 0 <= low[0] < high[0] <= 2
    low, high = percentile_interval(values * np.nan, 0.9)
    assert np.isnan(low[0]) and np.isnan(high[0])
