"""Kendall's tau-b, with a cluster-bootstrap interval computed from resampling counts instead of resampled rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from levelt.statistics.resampling import Floats, percentile_interval


@dataclass(frozen=True)
class Correlation:
    """Tau-b of two variables over ``n`` rows in ``groups`` groups; nan with a ``reason`` where it is undefined."""

    tau: float
    ci_low: float
    ci_high: float
    n: int
    groups: int
    reason: str
    draws: Floats


def weighted_tau(x: npt.ArrayLike, y: npt.ArrayLike, weights: npt.ArrayLike) -> Floats:
    """Tau-b of the data in which row i occurs ``weights[k, i]`` times, for each draw k: array [draws].

    tau_b = (concordant - discordant) / sqrt(pairs untied in x * pairs untied in y) (Kendall 1945). Rows with equal
    (x, y) are merged first, so the cost grows with the number of distinct values and not with the number of rows.
    A draw in which x or y is constant gives nan.
    """
    points = np.column_stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)])
    unique, inverse = np.unique(points, axis=0, return_inverse=True)
    counts = np.asarray(weights, dtype=np.float64)
    merged = np.zeros((counts.shape[0], len(unique)))
    np.add.at(merged.T, inverse.ravel(), counts.T)
    sign_x = np.sign(unique[:, 0][:, None] - unique[:, 0][None, :])
    sign_y = np.sign(unique[:, 1][:, None] - unique[:, 1][None, :])

    def total(kernel: Floats) -> Floats:
        value: Floats = np.einsum("ki,ki->k", merged @ kernel, merged)
        return value

    with np.errstate(invalid="ignore", divide="ignore"):
        tau: Floats = total(sign_x * sign_y) / np.sqrt(total(sign_x**2) * total(sign_y**2))
    return tau


def kendall(x: npt.ArrayLike, y: npt.ArrayLike, codes: npt.ArrayLike, draws: Floats, level: float) -> Correlation:
    """Tau-b of x and y [n] with a percentile interval over groups (``codes`` [n], ``draws`` from `cluster_draws`)."""
    first, second, group = np.asarray(x, dtype=float), np.asarray(y, dtype=float), np.asarray(codes)
    constant = [name for name, values in (("x", first), ("y", second)) if np.ptp(values) == 0]
    tau = weighted_tau(first, second, np.ones((1, len(first))))[0]
    resampled = weighted_tau(first, second, draws[:, group])
    low, high = percentile_interval(resampled[:, None], level)
    reason = f"{' and '.join(constant)} constant" if constant else ""
    groups = len(np.unique(group))
    return Correlation(float(tau), float(low[0]), float(high[0]), len(first), groups, reason, resampled)
