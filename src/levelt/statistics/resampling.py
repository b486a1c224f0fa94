"""Cluster bootstrap: resample groups (minimal pairs), never rows, since the two texts of a pair are not independent.

Draws are count matrices, so that thousands of cells share one resampling and an interval costs a matrix product.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

Floats = npt.NDArray[np.float64]


def cluster_draws(clusters: int, draws: int, generator: np.random.Generator) -> Floats:
    """How often each cluster occurs in each bootstrap draw: array [draws, clusters], rows sum to ``clusters``."""
    if clusters < 2:
        raise ValueError(f"{clusters} group(s): an interval needs at least 2")
    picks = generator.integers(0, clusters, size=(draws, clusters))
    offsets = picks + clusters * np.arange(draws)[:, None]
    return np.bincount(offsets.ravel(), minlength=draws * clusters).reshape(draws, clusters).astype(np.float64)


def group_sums(values: npt.ArrayLike, codes: npt.ArrayLike, groups: int) -> Floats:
    """Sums of ``values`` [n, ...] within groups given by integer ``codes`` [n]: array [groups, ...]."""
    rows = np.asarray(values, dtype=np.float64)
    sums = np.zeros((groups, *rows.shape[1:]))
    np.add.at(sums, np.asarray(codes), rows)
    return sums


def percentile_interval(draws: npt.ArrayLike, level: float) -> tuple[Floats, Floats]:
    """Percentile interval over the first axis of bootstrap values [draws, ...]; undefined (nan) draws are left out."""
    tail = (1 - level) / 2
    values = np.asarray(draws, dtype=np.float64)
    flat = values.reshape(len(values), -1)
    missing = np.isnan(flat)
    low, high = np.full((2, flat.shape[1]), np.nan)
    whole = ~missing.any(axis=0)
    if whole.any():
        low[whole], high[whole] = np.quantile(flat[:, whole], [tail, 1 - tail], axis=0)
    some = ~whole & ~missing.all(axis=0)
    if some.any():  # column by column inside numpy, many times slower
        low[some], high[some] = np.nanquantile(flat[:, some], [tail, 1 - tail], axis=0)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def bca_interval(
    draws: npt.ArrayLike, estimate: npt.ArrayLike, influence: npt.ArrayLike, level: float
) -> tuple[Floats, Floats]:
    """Bias-corrected and accelerated interval (Efron 1987), for statistics whose bootstrap is shifted or skewed.

    Args:
        draws: bootstrap values, [draws, cells]; undefined (nan) ones are left out.
        estimate: [cells].
        influence: mean of the leave-one-cluster-out values minus each of them, [clusters, cells]; for a statistic of
            several independent samples, the blocks stacked, each times (clusters - 1) / clusters of its sample.

    Returns:
        (low, high), each [cells]; nan where the estimate or all draws are, the estimate where nothing varies.
    """
    values, centre, deviations = (np.asarray(part, dtype=np.float64) for part in (draws, estimate, influence))
    tail = (1 - level) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        acceleration = (deviations**3).sum(axis=0) / (6 * (deviations**2).sum(axis=0) ** 1.5)
        acceleration = np.where(np.isfinite(acceleration), acceleration, 0.0)
    low, high = np.full(centre.shape, np.nan), np.full(centre.shape, np.nan)
    for cell in range(len(centre)):
        defined = values[~np.isnan(values[:, cell]), cell]
        if not len(defined) or np.isnan(centre[cell]):
            continue
        below = ((defined < centre[cell]).mean() + (defined <= centre[cell]).mean()) / 2
        if below in (0.0, 1.0):  # the estimate lies outside its own bootstrap: no correction is defined
            low[cell], high[cell] = np.quantile(defined, [tail, 1 - tail])
            continue
        bias = ndtri(below)
        shifted = bias + ndtri([tail, 1 - tail])
        levels = ndtr(bias + shifted / (1 - acceleration[cell] * shifted))
        low[cell], high[cell] = np.quantile(defined, levels)
    return low, high


def mean_interval(
    values: npt.ArrayLike, codes: npt.ArrayLike, draws: Floats, level: float
) -> tuple[Floats, Floats, Floats]:
    """Mean over rows [n, cells] with a cluster-bootstrap percentile interval: (estimate, low, high), each [cells]."""
    rows = np.asarray(values, dtype=np.float64)
    groups = draws.shape[1]
    sums = group_sums(rows, codes, groups)
    counts = group_sums(np.ones(len(rows)), codes, groups)
    resampled = (draws @ sums) / (draws @ counts)[:, None]
    low, high = percentile_interval(resampled, level)
    return rows.mean(axis=0), low, high


def balanced_accuracy_interval(
    correct: npt.ArrayLike, truth: npt.ArrayLike, codes: npt.ArrayLike, draws: Floats, level: float
) -> tuple[Floats, Floats, Floats]:
    """Balanced accuracy (mean of the per-class hit rates) with a cluster-bootstrap percentile interval.

    Args:
        correct: hits, [n, cells], 0 or 1.
        truth: class of each row, [n]; every class counts the same.
        codes: group of each row, integers in [0, draws.shape[1]).
        draws: from `cluster_draws`.

    Returns:
        (estimate, low, high), each [cells]. A draw that lost a class entirely is left out of the interval.
    """
    hits = np.asarray(correct, dtype=np.float64)
    labels = np.asarray(truth)
    groups = draws.shape[1]
    rates, sums = [], []
    for label in np.unique(labels):
        chosen = labels == label
        counted = np.column_stack([hits[chosen], np.ones(chosen.sum())])
        rates.append(hits[chosen].mean(axis=0))
        sums.append(group_sums(counted, np.asarray(codes)[chosen], groups))
    drawn = np.split(draws @ np.concatenate(sums, axis=1), len(sums), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = [total[:, :-1] / total[:, -1:] for total in drawn]
    low, high = percentile_interval(np.mean(resampled, axis=0), level)
    return np.mean(rates, axis=0), low, high
