"""Statistics against scipy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap, kendalltau, permutation_test

from levelt.statistics.correlation import cronbach_alpha, kendall, largest_tau, weighted_tau
from levelt.statistics.permutation import holm, max_t, sign_flip_test, sign_flips
from levelt.statistics.resampling import (
    balanced_accuracy_interval,
    bca_interval,
    cluster_draws,
    group_sums,
    mean_interval,
    percentile_interval,
)
from levelt.statistics.selection import nested_best


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


def test_bca_equals_scipy_on_its_own_draws() -> None:
    random = np.random.default_rng(2)
    data = random.exponential(size=40)
    for statistic in (np.mean, np.var):
        theirs = bootstrap((data,), statistic, n_resamples=999, method="BCa", rng=random)
        left_out = np.array([statistic(np.delete(data, i)) for i in range(len(data))])
        draws = theirs.bootstrap_distribution[:, None]
        influence = (left_out.mean() - left_out)[:, None]
        ours = bca_interval(draws, [statistic(data)], influence, 0.95)
        expected = theirs.confidence_interval
        # the same quantiles of the same draws; acceleration is a ratio of sums, rounded in another order
        np.testing.assert_allclose([ours[0][0], ours[1][0]], [expected.low, expected.high], rtol=1e-9)
        assert bca_interval(draws, [statistic(data)], -influence, 0.95)[1][0] != pytest.approx(expected.high, rel=1e-6)


def test_bca_of_a_constant_and_of_the_undefined() -> None:
    low, high = bca_interval(np.ones((100, 2)), [1.0, np.nan], np.zeros((5, 2)), 0.95)
    assert low[0] == high[0] == 1.0
    assert np.isnan(low[1]) and np.isnan(high[1])


def test_sign_flips_are_all_of_them_when_few_and_start_with_the_data() -> None:
    exact = sign_flips(4, 100, np.random.default_rng(0))
    assert len(np.unique(exact, axis=0)) == 16
    sampled = sign_flips(40, 100, np.random.default_rng(0))
    assert sampled.shape == (100, 40)
    for signs in (exact, sampled):
        assert (signs[0] == 1).all() and set(np.unique(signs)) == {-1.0, 1.0}


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_sign_flip_test_equals_scipy(alternative: str) -> None:
    random = np.random.default_rng(3)
    differences = np.round(random.normal(0.3, 1, size=(9, 4)), 1)  # with ties
    flips = sign_flips(9, 1000, random)
    for column, p in enumerate(sign_flip_test(differences, flips, alternative)):  # type: ignore[arg-type]
        theirs = permutation_test(
            (differences[:, column],), np.mean, permutation_type="samples", alternative=alternative, n_resamples=np.inf
        )
        assert p == pytest.approx(theirs.pvalue, abs=1e-12)
        moved = differences[:, column] + 0.5
        assert sign_flip_test(moved[:, None], flips, alternative)[0] != pytest.approx(p)  # type: ignore[arg-type]


def test_max_t_by_hand() -> None:
    """Against the definition: the share of flips in which the largest of the remaining statistics is as large."""
    random = np.random.default_rng(4)
    sums = random.normal([0.0, 0.4, 1.0], 1, size=(12, 3))
    flips = sign_flips(12, 5000, random)
    ratio = np.abs(flips @ (sums / np.sqrt((sums**2).sum(axis=0))))
    first, second, third = np.argsort(-ratio[0])
    expected = np.empty(3)
    expected[first] = (ratio.max(axis=1) >= ratio[0, first] - 1e-9).mean()
    expected[second] = max(expected[first], (ratio[:, [second, third]].max(axis=1) >= ratio[0, second] - 1e-9).mean())
    expected[third] = max(expected[second], (ratio[:, third] >= ratio[0, third] - 1e-9).mean())
    np.testing.assert_allclose(max_t(sums, flips), expected)
    raw = sign_flip_test(sums, flips)
    assert (expected >= raw - 1e-12).all() and (expected > raw).any()
    # families are handled apart, one axis before the cells
    both = max_t(np.stack([sums, sums[:, ::-1]], axis=1), flips)
    np.testing.assert_allclose(both, [expected, expected[::-1]])
    # copies of one cell cost nothing, unlike with Bonferroni
    np.testing.assert_allclose(max_t(np.repeat(sums[:, :1], 5, axis=1), flips), raw[0])


def test_max_t_of_no_difference_is_one() -> None:
    sums = np.zeros((10, 2))
    sums[:, 0] = 1.0
    adjusted = max_t(sums, sign_flips(10, 2000, np.random.default_rng(0)))
    assert adjusted[0] < 0.01 and adjusted[1] == 1.0


def test_holm() -> None:
    # by hand: 0.01*4, 0.02*3, 0.03*2 (raised to 0.06), 0.5
    np.testing.assert_allclose(holm([0.02, 0.5, np.nan, 0.01, 0.03]), [0.06, 0.5, np.nan, 0.04, 0.06])
    assert holm([]).shape == (0,)


def test_alpha() -> None:
    random = np.random.default_rng(5)
    score = random.normal(size=4000)
    items = score[:, None] + random.normal(size=(4000, 3))
    # three items with half noise: Spearman-Brown gives 3 * 0.5 / (1 + 2 * 0.5); one standard error is about 0.007
    assert cronbach_alpha(items) == pytest.approx(0.75, abs=0.03)
    assert cronbach_alpha(np.repeat(score[:, None], 3, axis=1)) == pytest.approx(1.0)
    assert cronbach_alpha(random.normal(size=(4000, 3))) < 0.06
    assert np.isnan(cronbach_alpha(items[:, :1])) and np.isnan(cronbach_alpha(np.ones((10, 3))))


def test_largest_tau_of_a_perfect_measure_is_set_by_ties() -> None:
    y = np.repeat([0.0, 1.0], [20, 80])
    assert largest_tau(y, y[::-1], 1.0) == pytest.approx(1.0)
    assert largest_tau(y, y, 0.25) == pytest.approx(0.5)
    assert largest_tau(np.arange(100), y, 1.0) < 0.6


def test_nested_best_has_no_winners_curse() -> None:
    """Ten equally good layers: the best of them is not above their common mean when it is evaluated on other pairs."""
    random = np.random.default_rng(6)
    nested, naive = [], []
    for _ in range(200):
        hits = (random.random((100, 10)) < 0.7).astype(float)
        best = nested_best(hits, np.full(100, 0.01), np.repeat(np.arange(50), 2), 5, random)
        nested.append(best.estimate)
        naive.append(best.naive)
    # 200 studies of 100 rows: one standard error is 0.0032
    assert np.mean(nested) == pytest.approx(0.7, abs=0.013)
    assert np.mean(naive) > 0.75


def test_nested_best_finds_the_best_layer() -> None:
    random = np.random.default_rng(7)
    hits = (random.random((400, 4)) < [0.5, 0.6, 0.9, 0.6]).astype(float)
    best = nested_best(hits, np.full(400, 1 / 400), np.arange(400), 4, random)
    assert (best.cells == 2).all()
    assert best.estimate == pytest.approx(best.naive) and best.values.mean() == pytest.approx(best.estimate)
    with pytest.raises(ValueError, match="5 folds of 3 group"):
        nested_best(np.ones((3, 2)), np.full(3, 1 / 3), [0, 1, 2], 5, random)
