"""Features as solvers want them: standardised, a column per row of data, in blocks and in two precisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from levelt.probes.blocks import Blocks, blocks_of
from levelt.probes.loss import Loss, Real
from levelt.probes.matrices import square_of
from levelt.probes.memory import Room

Floats = npt.NDArray[np.float64]

FLAT_WIDTH = 192
"""Features up to which designs are solved along their features, in batches, even if they have fewer rows."""

APART = 8
"""Values between rows whose columns are read, as many as fill a cache line: else a power of two keeps them from it."""


@dataclass(frozen=True)
class TrainingSets:
    """Sets of training rows that are much alike, as those of folds are, and what follows from them alone.

    Attributes:
        ever: rows that are in some set, [n].
        rows: weights of these, [sets, rows].
        tall: whether probes are solved for weights of features rather than of rows.
        blocks: of the rows, if that helps.
    """

    ever: npt.NDArray[np.bool_]
    rows: Floats
    tall: bool
    blocks: Blocks | None

    @property
    def relative(self) -> Floats:
        """Weights that are 1 where all rows of a set count the same."""
        return relative(self.rows)

    @staticmethod
    def of(rows: Floats, width: int) -> TrainingSets:
        """Of row weights [sets, n], for ``width`` features."""
        ever = np.asarray((rows > 0).any(axis=0))
        used = rows if ever.all() else rows[:, ever]
        tall = is_tall(width, used)
        return TrainingSets(ever, used, tall, blocks_of(used) if tall else None)


def relative(rows: Floats) -> Floats:
    """Weights [.., n] that sum to how many are not 0: 1 where all count the same."""
    count = (rows > 0).sum(axis=-1, keepdims=True)
    return np.asarray(rows * (count / rows.sum(axis=-1, keepdims=True)))


def is_tall(width: int, rows: Floats) -> bool:
    """Whether to solve for weights of features rather than of rows, with row weights [.., n]."""
    return width <= max(FLAT_WIDTH, int((rows > 0).sum(axis=-1).max()))


@dataclass(frozen=True)
class Start:
    """What descent on tall designs starts with, in its precision.

    Attributes:
        design: features and a last row of ones that give scores, [designs * blocks, width, places]; 0 where empty.
        square: their products X'X over the rows of a typical set, [designs, width - 1, width - 1].
    """

    design: Real
    square: Real

    def part(self, loss: Loss, designs: npt.NDArray[Any] | slice) -> Start:
        """That of some of the designs of a loss."""
        return Start(loss.some(self.design, designs), self.square[designs])


@dataclass(frozen=True)
class Standardised:
    """Designs of several training sets.

    Attributes:
        designs: features from which the mean of all rows was taken, so that squares cannot cancel, a column per row:
            [designs, d, n] or [designs * blocks, d, places].
        means: those, [designs, 1, d].
        factors: what gives features variance 1 over all sets, [designs, 1, d]; 0 for one that is constant. Wide designs
            were multiplied with it.
        scales: what makes them those of each set then, [designs, sets, d].
        start: of tall designs.
    """

    designs: Floats
    means: Floats
    factors: Floats
    scales: Floats
    start: Start | None


def standardise(features: Floats, rows: Floats) -> tuple[Floats, Floats, Floats]:
    """Features with mean 0 and variance 1 over weighted rows; a feature that is constant there becomes 0.

    Args:
        features: [d, n] (a column per row of data: sums run along the last axis).
        rows: row weights of each design, [designs, n], summing to 1.

    Returns:
        (standardised [designs, d, n], centres [designs, d], spreads [designs, d]).

    Raises:
        ValueError: a feature is not finite.
    """
    if not np.isfinite(features).all():
        raise ValueError("features contain nan or infinity")
    middle = features.mean(axis=1)  # taken off first, so that squares cannot cancel
    values = features - middle[:, None]
    centre = rows @ values.T
    spread, constant = _spreads(rows @ (values**2).T, centre, middle)
    scale = np.where(constant, 0.0, 1 / np.where(constant, 1.0, spread))
    design = values[None] - centre[:, :, None]
    design *= scale[:, :, None]
    return design, middle + centre, np.where(constant, 1.0, spread)


def standardise_shared(
    values: npt.NDArray[Any], sets: TrainingSets, unit: float, kind: npt.DTypeLike, room: Room
) -> Standardised:
    """Features of each design, [designs, rows, d], by the rows of each set; ``unit`` and ``kind`` are those of `Start`:
    log-odds per unit of score, and precision."""
    return _tall(values, sets, unit, kind, room) if sets.tall else _wide(values, sets)


def _wide(values: npt.NDArray[Any], sets: TrainingSets) -> Standardised:
    designs = np.array(values, dtype=np.float64)
    means = designs.mean(axis=1, keepdims=True)
    designs -= means
    share = sets.rows / sets.rows.sum(axis=1, keepdims=True)
    squares = np.stack([share @ np.square(design) for design in designs])  # a square at a time stays in the cache
    factors, scales = _scales(share @ designs, squares, means)
    designs *= factors
    return Standardised(designs.transpose(0, 2, 1), means, factors, scales, None)


def _tall(values: npt.NDArray[Any], sets: TrainingSets, unit: float, kind: npt.DTypeLike, room: Room) -> Standardised:
    designs, rows, width = values.shape
    blocks, share = sets.blocks, sets.rows / sets.rows.sum(axis=1, keepdims=True)
    count, length = (1, rows) if blocks is None else (blocks.count, blocks.length)
    centred = room.array("centred", (designs, count, width, length), np.float64)
    low = room.array("low", (designs, count, width + 1, length), kind)
    by_row = room.array("by row", (count * length, width + APART), np.float64)[:, :width]
    by_block, ones = by_row.reshape(count, length, width), np.ones(length)
    places = np.arange(rows) if blocks is None else blocks.place
    if blocks is not None:
        share = blocks.used / blocks.rows[:, None]
        for block, start in blocks.short:
            by_block[block, start:] = 0
    means, (centres, squares) = np.empty((designs, 1, width)), np.empty((2, designs, len(share), width))
    for at, design in enumerate(centred):  # all of a design while a core's cache has it
        by_row[places] = values[at]
        np.copyto(design, by_block.transpose(0, 2, 1))
        means[at] = (design @ ones).sum(axis=0) / rows
        design -= means[at].T
        if blocks is None:
            centres[at], squares[at] = share @ design[0].T, share @ np.square(design[0]).T
        else:
            blocks.blank(design)
            centres[at], squares[at] = share @ (design @ ones), share @ np.vecdot(design, design)
        low[at, :, :width] = design
    factors, scales = _scales(centres, squares, means)
    per_score, square = (factors / unit).astype(kind), np.empty((designs, width, width), kind)
    typical = (sets.relative.mean(axis=0)).astype(kind)
    for at, features in enumerate(low[:, :, :width]):
        features *= per_score[at].T
        if blocks is None:
            np.matmul(features[0] * typical, features[0].T, out=square[at])
        else:
            np.multiply(square_of(features), blocks.typical, out=square[at])
    low[:, :, width] = 1
    if blocks is not None:
        blocks.blank(low[:, :, width].reshape(-1, 1, length))
    begin = Start(low.reshape(-1, width + 1, length), square)
    return Standardised(centred.reshape(-1, width, length), means, factors, scales, begin)


def _scales(centres: Floats, squares: Floats, means: Floats) -> tuple[Floats, Floats]:
    """`Standardised.factors` and `Standardised.scales` from means and mean squares of sets, [.., sets, d], after the
    means of all rows, [.., 1, d], were taken off."""
    squares, centres = (np.concatenate([of, of.mean(axis=-2, keepdims=True)], axis=-2) for of in (squares, centres))
    spreads, constant = _spreads(squares, centres, means)
    spreads[constant] = 1
    of_sets, overall = spreads[..., :-1, :], spreads[..., -1:, :]
    useless = constant[..., -1:, :]
    return np.where(useless, 0, 1 / overall), np.where(constant[..., :-1, :] | useless, 0, overall / of_sets)


def _spreads(squares: Floats, centre: Floats, middle: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Standard deviations from means of squares and means, and whether the feature is constant as far as the rounding
    of both can tell; ``middle`` was taken off before."""
    variance = squares - centre**2
    spread = np.sqrt(np.maximum(variance, 0))
    return spread, (variance <= 1e-13 * squares) | (spread <= 1e-12 * np.maximum(1.0, np.abs(middle + centre)))
