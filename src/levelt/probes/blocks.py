"""Rows in blocks, by the training sets that use them, so that no product spends time on rows that a set leaves out.

Each of four folds leaves out a quarter of the rows: in blocks of the same fold every row counts for three of the four
training sets, whose problems are the block's lines. Blocks are padded to a common length with empty places, where
features and targets are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from levelt.probes.memory import aligned

EVEN = 16
"""Places of a block are a multiple of this: whole vector registers."""

FEWEST = 64
"""Rows of a block, on average, below which more blocks cost more than they save."""


@dataclass(frozen=True)
class Blocks:
    """Rows arranged in blocks.

    Attributes:
        place: of each row among all places of all blocks, [n].
        filled: places of each block that hold a row, [blocks]; empty ones follow.
        length: places of each block.
        sets: training sets that use the rows of each block, [blocks, active].
        idle: those that do not, [blocks, others].
    """

    place: npt.NDArray[np.intp]
    filled: npt.NDArray[np.intp]
    length: int
    sets: npt.NDArray[np.intp]
    idle: npt.NDArray[np.intp]

    @cached_property
    def count(self) -> int:
        """Blocks."""
        return len(self.filled)

    @cached_property
    def short(self) -> list[tuple[int, int]]:
        """Blocks with empty places, and where these begin."""
        return [(at, int(filled)) for at, filled in enumerate(self.filled) if filled < self.length]

    @cached_property
    def member(self) -> npt.NDArray[np.float64]:
        """1 where a line of sets [blocks * active] is of a set: [sets, blocks * active]."""
        every = np.arange((self.sets.size + self.idle.size) // self.count)
        return np.equal(self.sets.ravel(), every[:, None]).astype(np.float64)

    @cached_property
    def used(self) -> npt.NDArray[np.float64]:
        """1 where a set uses a block: [sets, blocks]."""
        lines = np.reshape(self.member, (-1, self.count, self.sets.shape[1]))
        return np.asarray(lines.sum(axis=2))

    @cached_property
    def low(self) -> npt.NDArray[np.float32]:
        """`member` in float32."""
        return self.member.astype(np.float32)

    @cached_property
    def rows(self) -> npt.NDArray[np.float64]:
        """Rows that each set is fitted on, [sets]."""
        return np.asarray(self.used @ self.filled)

    def lines(self, values: npt.NDArray[Any], idle: bool = False) -> npt.NDArray[Any]:
        """Of problems [designs, sets * targets, ..] those that use each block, [designs * blocks, lines, ..]; or those
        that do not."""
        sets = self.idle if idle else self.sets
        by_set = values.reshape(len(values), len(self.member), -1)
        return by_set.take(sets.reshape(-1), axis=1).reshape(len(values) * self.count, -1, *values.shape[2:])

    def total(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Sums over blocks: of lines [designs * blocks, lines, ..], problems [designs, sets * targets, ..]."""
        designs, member = len(values) // self.count, self.low if values.dtype == np.float32 else self.member
        sums: npt.NDArray[Any] = member @ values.reshape(designs, self.sets.size, -1)
        return sums.reshape(designs, -1, *values.shape[2:])

    @property
    def typical(self) -> float:
        """Sets that use a row, as a share of all."""
        return float(self.sets.shape[1] / len(self.member))

    def blank(self, values: npt.NDArray[Any]) -> None:
        """Zero at the empty places, [designs * blocks, .., places]."""
        for block, start in self.short:
            values[block :: self.count, ..., start:] = 0

    def arrange(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Of rows [.., n] those of the blocks, [.., blocks, places], zero at the empty places."""
        arranged = aligned((*values.shape[:-1], self.count * self.length), values.dtype)
        arranged[:] = 0
        arranged[..., self.place] = values
        return np.reshape(arranged, (*values.shape[:-1], self.count, self.length))

    def rows_of(self, active: npt.NDArray[Any], idle: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Of values of each block's lines, and of the problems that do not use it, both [designs * blocks, lines,
        places], those of rows, [designs, sets * targets, n]."""
        designs, count = len(active) // self.count, self.count
        whole = np.empty((designs, len(self.member), active.shape[1] // self.sets.shape[1], count, self.length))
        for sets, values in ((self.sets, active), (self.idle, idle)):
            by_set = np.reshape(values, (designs, count, sets.shape[1], -1, self.length))
            for block in range(count):
                whole[..., block, :][:, sets[block]] = by_set[:, block]
        return np.reshape(whole, (designs, -1, count * self.length)).take(self.place, axis=2)


def blocks_of(rows: npt.NDArray[np.float64]) -> Blocks | None:
    """Blocks of rows with these weights in each training set, [sets, n]; every row is in a set.

    None where that would not help: all rows in one block, unequal weights, a block for few rows, or blocks that differ
    in how many sets use them.
    """
    used = rows > 0
    if used.all() or len(used) > 50 or not (rows[used] == rows.max()).all():
        return None
    keys = (2.0 ** np.arange(len(used)) @ used).astype(np.uint16 if len(used) <= 16 else np.int64)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    count = len(starts)
    if count * FEWEST > len(keys):
        return None
    uses = used[:, order[starts]].T
    active = int(uses[0].sum())
    filled = np.diff(starts, append=len(keys))
    length = -(-int(filled.max()) // EVEN) * EVEN
    if (uses.sum(axis=1) != active).any() or count * length * active > 0.9 * used.size:
        return None
    place = np.empty(len(keys), dtype=np.intp)
    place[order] = np.arange(len(keys)) + np.repeat(np.arange(count) * length - starts, filled)
    sets = np.nonzero(uses)[1].reshape(count, active)
    return Blocks(place, filled, length, sets, np.nonzero(~uses)[1].reshape(count, -1))
