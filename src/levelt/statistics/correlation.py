"""Kendall's tau-b with a cluster-bootstrap interval computed from resampling counts, and the largest tau observable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau

from levelt.statistics.resampling import Floats, bca_interval


@dataclass(frozen=True)
class Correlation:
    """Tau-b of two variables over ``n`` rows in ``groups`` groups; nan with a ``reason`` where it is undefined.

    ``draws`` are its bootstrap values and ``influence`` [groups of the draws] its jackknife deviations, for intervals
    of means over several correlations.
    """

    tau: float
    ci_low: float
    ci_high: float
    n: int
    groups: int
    reason: str
    draws: Floats
    influence: Floats


def weighted_tau(x: npt.ArrayLike, y: npt.ArrayLike, weights: npt.ArrayLike) -> Floats:
    """Tau-b of the data in which row i occurs ``weights[k, i]`` times, for each draw k: array [draws].

    tau_b = (concordant - discordant) / sqrt(pairs untied in x * pairs untied in y) (Kendall 1945). Rows with equal
    (x, y) are merged first, so the cost grows with the number of distinct values and not with the number of rows.
    A draw in which x or y is constant gives nan.
    """
    counts = np.asarray(weights, dtype=np.float64)
    return _grouped_tau(x, y, np.arange(counts.shape[1]), counts)


def kendall(x: npt.ArrayLike, y: npt.ArrayLike, codes: npt.ArrayLike, draws: Floats, level: float) -> Correlation:
    """Tau-b of x and y [n] with a BCa interval over groups (``codes`` [n], ``draws`` from `cluster_draws`).

    Tau is bounded and its bootstrap skewed, so the bias-corrected interval is used.
    """
    first, second, group = np.asarray(x, dtype=float), np.asarray(y, dtype=float), np.asarray(codes)
    constant = [name for name, values in (("x", first), ("y", second)) if np.ptp(values) == 0]
    # the data, the bootstrap, and the data without each group in turn, in one call
    clusters = draws.shape[1]
    taus = _grouped_tau(first, second, group, np.vstack([np.ones((1, clusters)), draws, 1.0 - np.eye(clusters)]))
    tau, resampled, jackknife = taus[0], taus[1 : 1 + len(draws)], taus[1 + len(draws) :]
    influence = np.nan_to_num(np.nanmean(jackknife) - jackknife) if np.isfinite(jackknife).any() else 0 * jackknife
    low, high = bca_interval(resampled[:, None], [tau], influence[:, None], level)
    reason = f"{' and '.join(constant)} constant" if constant else ""
    groups = len(np.unique(group))
    return Correlation(float(tau), float(low[0]), float(high[0]), len(first), groups, reason, resampled, influence)


def _grouped_tau(x: npt.ArrayLike, y: npt.ArrayLike, codes: npt.ArrayLike, weights: Floats) -> Floats:
    """Tau-b of the data in which each row of group g occurs ``weights[k, g]`` times, for each draw k: array [draws]."""
    points = np.column_stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)])
    unique, inverse = np.unique(points, axis=0, return_inverse=True)
    rows_of_point = np.zeros((weights.shape[1], len(unique)))
    np.add.at(rows_of_point, (np.asarray(codes), inverse.ravel()), 1.0)
    merged = weights @ rows_of_point
    sign_x = np.sign(unique[:, 0][:, None] - unique[:, 0][None, :])
    sign_y = np.sign(unique[:, 1][:, None] - unique[:, 1][None, :])

    def total(kernel: Floats) -> Floats:
        value: Floats = np.einsum("ki,ki->k", merged @ kernel, merged)
        return value

    with np.errstate(invalid="ignore", divide="ignore"):
        tau: Floats = total(sign_x * sign_y) / np.sqrt(total(sign_x**2) * total(sign_y**2))
    return tau


def cronbach_alpha(items: npt.ArrayLike) -> float:
    """Reliability of the mean over items [n, items] as a measure of the rows (Cronbach 1951), clipped to [0, 1].

    Items are layers (or repeats) of one probe's hits. nan with fewer than two items, or where the mean is constant.
    """
    values = np.asarray(items, dtype=np.float64)
    count = values.shape[1]
    total = values.sum(axis=1).var()
    if count < 2 or total == 0:
        return float("nan")
    return float(np.clip(count / (count - 1) * (1 - values.var(axis=0).sum() / total), 0.0, 1.0))


def largest_tau(x: npt.ArrayLike, y: npt.ArrayLike, reliability: float) -> float:
    """The tau-b to expect if y were decided by what x measures without error: the yardstick for an observed tau.

    Two things keep it below 1. Ties: the tau-b of both variables sorted alike is the largest that their values allow.
    Measurement: error in x attenuates a correlation by the root of x's reliability (Spearman 1904); for tau-b this is
    an approximation, within 0.06 for binary y and means of 4 to 6 hits (tests/test_calibration.py).
    """
    ties = kendalltau(np.sort(np.asarray(x)), np.sort(np.asarray(y))).statistic
    return float(ties * np.sqrt(reliability))
