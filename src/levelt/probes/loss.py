"""Log-loss of many probes at once.

Scores are measured in units in which no row's loss curves more than 1 (half the log-odds for two classes, Boehning
1992), so that X'X + penalty bounds every Hessian.

Layout: arrays are [designs, problems * outputs, length], the last axis contiguous, because that is how products with
the features are fast. One output per problem is two classes (its score stands for class 1), more are a softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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
    """

    targets: Real
    outputs: int
    rows: Real | None = None

    @property
    def counts(self) -> Real:
        """Rows that each problem counts, [designs, problems], or [1, 1] where that is all of them."""
        total: Real = np.array([[self.targets.shape[2]]]) if self.rows is None else self.rows.sum(axis=2)
        return total

    @property
    def unit(self) -> float:
        """Log-odds per unit of score."""
        return 2.0 if self.outputs == 1 else 2**0.5

    def astype(self, dtype: npt.DTypeLike) -> Loss:
        """The same loss in another precision."""
        rows = None if self.rows is None else self.rows.astype(dtype)
        return Loss(self.targets.astype(dtype), self.outputs, rows)

    def part(self, designs: npt.NDArray[Any] | slice) -> Loss:
        """The loss of some designs."""
        return Loss(self.targets[designs], self.outputs, None if self.rows is None else self.rows[designs])

    def predict(self, scores: Real) -> Real:
        """What the scores say: expected target (two classes, -1 to 1), or class probabilities."""
        if self.outputs == 1:
            said: Real = np.tanh(scores)
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

    def slopes(self, said: Real) -> Real:
        """Derivatives of the rows' losses in their scores."""
        found: Real = said - self.targets
        if self.outputs > 1:
            found *= self.unit
        return self.weigh(found)

    def curvature(self, said: Real) -> Real:
        """What `bend` needs of predictions: the rows' second derivatives (two classes), or the predictions."""
        if self.outputs > 1:
            return said
        found: Real = said * said
        np.subtract(1, found, out=found)
        return self.weigh(found)

    def bend(self, curvature: Real, ray: Real) -> Real:
        """The rows' Hessians times ``ray``."""
        if self.outputs == 1:
            return curvature * ray
        split, rays = self.split(curvature), self.split(ray)
        mixed = (split * rays).sum(axis=2, keepdims=True)
        return self.weigh(np.reshape(2 * split * (rays - mixed), ray.shape))

    def split(self, values: Real) -> Real:
        """[designs, problems * outputs, m] as [designs, problems, outputs, m]."""
        return np.reshape(values, (values.shape[0], -1, self.outputs, values.shape[2]))

    def dot(self, first: Real, second: Real) -> Real:
        """Inner products over outputs and the last axis: [designs, problems]."""
        sums: Real = np.vecdot(first, second)
        return sums if self.outputs == 1 else np.sum(np.reshape(sums, (len(sums), -1, self.outputs)), axis=2)

    def each(self, values: Real) -> Real:
        """One value per problem [designs, problems or 1] as a factor for [designs, problems * outputs, m]."""
        one = self.outputs == 1 or values.shape[1] == 1 < self.targets.shape[1] // self.outputs
        return (values if one else np.repeat(values, self.outputs, axis=1))[:, :, None]
