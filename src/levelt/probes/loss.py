"""Log-loss of many probes at once.

Scores are measured in units in which no row's loss curves more than 1 (half the log-odds for two classes, Boehning
1992), so that X'X + penalty bounds every Hessian.

Layout: what there is of each row is [designs, problems * outputs, n], coefficients are [designs, problems * outputs,
width], the last axis contiguous, because that is how products with the features are fast. One output per problem is two
classes (its score stands for class 1), more are a softmax. Where rows are in `levelt.probes.blocks`, what there is of
each row is [designs * blocks, lines, places] instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from levelt.probes.blocks import Blocks
from levelt.probes.memory import aligned

Real = npt.NDArray[Any]
"""Floating point of either precision."""


@dataclass(frozen=True)
class Loss:
    """Log-loss of every problem.

    Attributes:
        targets: of two classes, 1 for class 1 and -1 for class 0; of more, 1 where the row has the class, else 0:
            [designs, problems * outputs, n].
        outputs: scores per problem: 1, or the number of classes.
        rows: relative row weights, [designs, problems, n], or [designs, 1, n] where the problems agree; None where all
            rows count the same.
        blocks: of two classes, the blocks that the rows are in, if any; then there are no ``rows``.
    """

    targets: Real
    outputs: int
    rows: Real | None = None
    blocks: Blocks | None = None

    @property
    def designs(self) -> int:
        """How many designs."""
        return len(self.targets) if self.blocks is None else len(self.targets) // self.blocks.count

    @cached_property
    def problems(self) -> int:
        """Problems of a design."""
        if self.blocks is None:
            return int(self.targets.shape[1]) // self.outputs
        return int(self.targets.shape[1] // self.blocks.sets.shape[1] * len(self.blocks.rows))

    @cached_property
    def counts(self) -> Real:
        """Rows that each problem counts, [designs or 1, problems or 1]."""
        if self.blocks is not None:
            return np.repeat(self.blocks.rows, self.problems // len(self.blocks.rows))[None]
        total: Real = np.array([[float(self.targets.shape[2])]]) if self.rows is None else self.rows.sum(axis=2)
        return total

    @property
    def unit(self) -> float:
        """Log-odds per unit of score."""
        return unit_of(self.outputs)

    def astype(self, dtype: npt.DTypeLike) -> Loss:
        """The same loss in another precision."""
        rows = None if self.rows is None else self.rows.astype(dtype)
        targets = aligned(self.targets.shape, dtype)
        targets[:] = self.targets
        return Loss(targets, self.outputs, rows, self.blocks)

    def room(self, arrays: int) -> Real:
        """So many arrays for what there is of each row, to be filled, [arrays, designs, problems * outputs, n]."""
        return aligned((arrays, *self.targets.shape), self.targets.dtype)

    def part(self, designs: npt.NDArray[Any] | slice) -> Loss:
        """The loss of some designs."""
        rows = None if self.rows is None else self.rows[designs]
        return Loss(self.some(self.targets, designs), self.outputs, rows, self.blocks)

    def some(self, values: Real, designs: npt.NDArray[Any] | slice) -> Real:
        """Of what there is of each row (or block), that of some designs."""
        if self.blocks is None:
            return values[designs]
        count, shape = self.blocks.count, values.shape[1:]
        return np.reshape(np.reshape(values, (-1, count, *shape))[designs], (-1, *shape))

    def predict(self, scores: Real, out: Real | None = None) -> Real:
        """What the scores say: expected target (two classes, -1 to 1), or class probabilities."""
        if self.outputs == 1:
            said: Real = np.tanh(scores, out=out)
            return said
        split = self.split(scores * self.unit)
        powers = np.exp(split - split.max(axis=2, keepdims=True))
        powers /= powers.sum(axis=2, keepdims=True)
        return np.reshape(powers, scores.shape)

    def weigh(self, values: Real) -> Real:
        """Values of rows times their weights, in place."""
        if self.rows is not None:
            if self.outputs == 1:
                values *= self.rows
            else:
                split = self.split(values)
                split *= self.rows[:, :, None]
        return values

    def slopes(self, said: Real, out: Real | None = None) -> Real:
        """Derivatives of the rows' losses in their scores."""
        found: Real = np.subtract(said, self.targets, out=out)
        if self.outputs > 1:
            found *= self.unit
        return self.weigh(found)

    def curvature(self, said: Real, out: Real | None = None) -> Real:
        """What `bend` needs of predictions: the rows' second derivatives (two classes), or the predictions."""
        if self.outputs > 1:
            return said
        found: Real = np.multiply(said, said, out=out)
        np.subtract(1, found, out=found)
        return self.weigh(found)

    def bend(self, curvature: Real, ray: Real, out: Real | None = None) -> Real:
        """The rows' Hessians times ``ray``."""
        if self.outputs == 1:
            bent: Real = np.multiply(curvature, ray, out=out)
            return bent
        split, rays = self.split(curvature), self.split(ray)
        mixed = (split * rays).sum(axis=2, keepdims=True)
        return self.weigh(np.reshape(2 * split * (rays - mixed), ray.shape))

    def split(self, values: Real) -> Real:
        """[designs, problems * outputs, m] as [designs, problems, outputs, m]."""
        return np.reshape(values, (values.shape[0], -1, self.outputs, values.shape[2]))

    def dot(self, first: Real, second: Real) -> Real:
        """Inner products of coefficients: [designs, problems]."""
        return self._per_problem(np.vecdot(first, second))

    def over_rows(self, first: Real, second: Real) -> Real:
        """Inner products of what there is of each row: [designs, problems]."""
        return self.total(self._per_problem(np.vecdot(first, second)))

    def sums(self, values: Real) -> Real:
        """Sums over rows: [designs, problems * outputs]."""
        return self.total(values.sum(axis=2))

    def _per_problem(self, sums: Real) -> Real:
        return sums if self.outputs == 1 else np.sum(np.reshape(sums, (len(sums), -1, self.outputs)), axis=2)

    def each(self, values: Real) -> Real:
        """One value per problem [designs, problems or 1] as a factor for coefficients."""
        if self.outputs == 1:
            return values[:, :, None]
        one = values.shape[1] == 1 < self.problems
        return (values if one else np.repeat(values, self.outputs, axis=1))[:, :, None]

    def each_row(self, values: Real) -> Real:
        """One value per problem [designs, problems] as a factor for what there is of each row."""
        return self.each(self.lines(values))

    def lines(self, values: Real) -> Real:
        """Of coefficients, those that the rows (of each block) need."""
        return values if self.blocks is None else self.blocks.lines(values)

    def total(self, values: Real) -> Real:
        """Of what the rows (of each block) add to coefficients, the sum."""
        return values if self.blocks is None else self.blocks.total(values)


def unit_of(outputs: int) -> float:
    """Log-odds per unit of score."""
    return 2.0 if outputs == 1 else 2**0.5
