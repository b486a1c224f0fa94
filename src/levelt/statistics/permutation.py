"""Sign-flip tests of paired differences over groups (minimal pairs), and corrections for testing many cells.

The null hypothesis is that flipping the sign of a group's difference changes nothing: its distribution is symmetric
about zero, as it is when the two conditions are exchangeable. One set of flips serves every cell, so that the
dependence between cells (the layers of a model) is kept, and a test is a matrix product.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from levelt.statistics.resampling import Floats

Alternative = Literal["two-sided", "greater", "less"]

SLACK = 1e-6
"""Relative: statistics this close to each other count as equal, since single-precision sums of the same differences in
another order are; counting them as larger would make discrete data look more significant than they are."""


def sign_flips(groups: int, draws: int, generator: np.random.Generator) -> Floats:
    """Signs of every group in every draw: array [draws, groups] of -1 and 1; the first row is the data themselves.

    All 2^groups sign vectors where these are at most ``draws`` (the test is then exact); otherwise ``draws`` vectors at
    random. Counting the data among the draws keeps the level (Phipson and Smyth 2010).
    """
    if groups < 1:
        raise ValueError("no group to flip")
    if 2**groups <= draws:
        bits = (np.arange(2**groups)[:, None] >> np.arange(groups)) & 1
        exact: Floats = (1 - 2 * bits).astype(np.float64)
        return exact
    signs: Floats = (1 - 2 * generator.integers(0, 2, size=(draws, groups))).astype(np.float64)
    signs[0] = 1.0
    return signs


def sign_flip_test(sums: npt.ArrayLike, flips: Floats, alternative: Alternative = "two-sided") -> Floats:
    """p-value of "the differences are symmetric about zero" for each cell: array [cells].

    Args:
        sums: sum of the paired differences within each group, [groups, cells].
        flips: from `sign_flips`.
    """
    flipped = _directed(flips @ np.asarray(sums, dtype=np.float64), alternative)
    size = np.abs(flipped).max(axis=0, initial=0.0)
    p_values: Floats = (flipped >= flipped[0] - SLACK * size).mean(axis=0)
    return p_values


def max_t(sums: npt.ArrayLike, flips: Floats, alternative: Alternative = "two-sided") -> Floats:
    """p-values adjusted for all cells of one family (the layers): step-down max-T (Westfall and Young 1993).

    The probability that any true null hypothesis is rejected at level a is at most a, whatever the dependence between
    cells. Cells are scaled by the root of their sums of squares; Student's t is a monotone function of that ratio.
    A cell whose differences are all zero has p = 1.

    Args:
        sums: sum of the paired differences within each group, [groups, ..., cells]; each family is the last axis.
        flips: from `sign_flips`.

    Returns:
        [..., cells]
    """
    values = np.asarray(sums, dtype=np.float64)
    norm = np.sqrt((values**2).sum(axis=0))
    scaled = np.divide(values, norm, out=np.zeros_like(values), where=norm > 0)
    flipped = _directed(np.tensordot(flips, scaled, axes=1), alternative)
    order = np.argsort(-flipped[0], axis=-1, kind="stable")
    ordered = np.take_along_axis(flipped, np.broadcast_to(order, flipped.shape), axis=-1)
    largest = np.maximum.accumulate(ordered[..., ::-1], axis=-1)[..., ::-1]
    stepwise = np.maximum.accumulate((largest >= ordered[0] - SLACK).mean(axis=0), axis=-1)
    adjusted = np.empty_like(stepwise)
    np.put_along_axis(adjusted, order, stepwise, axis=-1)
    return np.where(norm > 0, adjusted, 1.0)


def holm(p_values: npt.ArrayLike) -> Floats:
    """Holm's adjustment (1979) of p-values [n], for families whose joint draws are not at hand; nan stays nan."""
    values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full_like(values, np.nan)
    order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return adjusted


def _directed(statistics: Floats, alternative: Alternative) -> Floats:
    """Statistics of which large ones speak against the null hypothesis."""
    return {"two-sided": np.abs, "greater": np.positive, "less": np.negative}[alternative](statistics)
