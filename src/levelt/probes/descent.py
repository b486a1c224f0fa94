"""Descent on preconditioned logistic losses: many problems in lockstep, each iteration two matrix products per design.

Scores are measured in units in which no row's loss curves more than 1 (half the log-odds for two classes, Boehning
1992), so that X'X + penalty bounds every Hessian. The inverse of this, or of X'X/2 + penalty, which is nearer to most
of them, preconditions all problems that share the features: features of any spectrum look alike then. All designs of a
batch and all problems of a design advance together.

Layout: arrays are [designs, problems * outputs, length], the last axis contiguous, because that is how the products
are fast. One output per problem is two classes (its score stands for class 1), more are a softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

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


class Space(Protocol):
    """Coefficients of the designs of a batch, and a preconditioner for them."""

    @property
    def width(self) -> int:
        """Coefficients per output."""

    def pull(self, loss: Loss, coefficients: Real, scores: Real, slopes: Real) -> tuple[Real, Real, Real]:
        """At coefficients with these scores, and a loss with these slopes in the scores: the gradient of the whole
        objective, what the preconditioner makes of it, and the scores of that."""

    def along(self, loss: Loss, vector: Real, pulled: tuple[Real, Real, Real]) -> Real:
        """Inner products [designs, problems] of a vector of coefficients and a gradient."""

    def stiffness(self, loss: Loss, vector: Real, ray: Real) -> tuple[Real, Real]:
        """How much the penalty curves along a vector with scores ``ray``, and the least to divide by."""

    def part(self, designs: npt.NDArray[Any] | slice) -> Space:
        """The coefficients of some designs."""


@dataclass(frozen=True)
class Tall:
    """More rows than features: a coefficient per feature, and the intercept.

    Attributes:
        design: features and a last row of ones, [designs, width, n], which may serve several sets of training rows.
        across: the same by row, [designs, n, width]: products are fast along contiguous axes.
        scales: of the features for each problem, [designs, problems * outputs or 1, width].
        penalties: on squared coefficients, [designs, problems * outputs or 1, width].
        inverse: the preconditioner, [designs, width, width].
    """

    design: Real
    across: Real
    scales: Real
    penalties: Real
    inverse: Real

    @property
    def width(self) -> int:
        """Coefficients per output."""
        return int(self.design.shape[1])

    def pull(self, loss: Loss, coefficients: Real, scores: Real, slopes: Real) -> tuple[Real, Real, Real]:
        del loss, scores
        gradient = slopes @ self.across
        gradient *= self.scales
        gradient += self.penalties * coefficients
        direction = gradient @ self.inverse
        return gradient, direction, (direction * self.scales) @ self.design

    def along(self, loss: Loss, vector: Real, pulled: tuple[Real, Real, Real]) -> Real:
        return loss.dot(vector, pulled[0])

    def stiffness(self, loss: Loss, vector: Real, ray: Real) -> tuple[Real, Real]:
        del ray
        found = loss.dot(self.penalties * vector, vector)
        return found, found

    def part(self, designs: npt.NDArray[Any] | slice) -> Tall:
        fields = (self.design, self.across, self.scales, self.penalties, self.inverse)
        return Tall(*(field[designs] for field in fields))


@dataclass(frozen=True)
class Flat:
    """More features than rows: a vector is a combination of the rows, which is exact, since the optimum is one.

    ``kernel`` [designs, n, n] holds the inner products of the rows in coordinates in which X'X + penalty is the
    identity. There the penalty is |v|^2 minus the squared scores, a gradient needs no product at all, and its scores
    one.
    """

    kernel: Real

    @property
    def width(self) -> int:
        """Coefficients per output."""
        return int(self.kernel.shape[1])

    def pull(self, loss: Loss, coefficients: Real, scores: Real, slopes: Real) -> tuple[Real, Real, Real]:
        gradient = slopes - loss.weigh(scores.copy())
        gradient += coefficients
        return gradient, gradient, gradient @ self.kernel

    def along(self, loss: Loss, vector: Real, pulled: tuple[Real, Real, Real]) -> Real:
        return loss.dot(vector, pulled[2])

    def stiffness(self, loss: Loss, vector: Real, ray: Real) -> tuple[Real, Real]:
        longest = loss.dot(vector, ray)  # a difference follows: rounding can leave nothing of it
        return longest - loss.dot(loss.weigh(ray.copy()), ray), 1e-3 * longest

    def part(self, designs: npt.NDArray[Any] | slice) -> Flat:
        return Flat(self.kernel[designs])


def descend(space: Space, loss: Loss, tolerance: float, limit: int) -> Real:
    """Nonlinear conjugate gradients from zero (Polak-Ribiere, Newton step lengths), until every gradient is small.

    A step that passes the minimum along its line by more than it started before it is shortened by the secant rule.

    Args:
        tolerance: preconditioned gradient norm of each problem at which it is done.
        limit: most iterations.

    Returns:
        Coefficients [designs, problems * outputs, width]. Whether they are good enough is for the caller to certify.
    """
    designs, problems, rows = loss.targets.shape
    kind = loss.targets.dtype
    found = np.zeros((designs, problems, space.width), kind)
    where = np.arange(designs)
    coefficients, scores = found.copy(), np.zeros((designs, problems, rows), kind)
    direction = ray = steepest = np.zeros(0, kind)
    size: Real = np.zeros(0, kind)
    slope = length = size
    best: Real = np.full((1, 1), np.inf)
    mark, floor = best, (1000 * tolerance) ** 2
    fresh = True
    for iteration in range(limit):
        said = loss.predict(scores)
        before = steepest
        pulled = space.pull(loss, coefficients, scores, loss.slopes(said))
        _, steepest, image = pulled
        if not fresh:
            passed = space.along(loss, direction, pulled)
            wild = passed > -slope
            if wild.any():
                back = loss.each(np.where(wild, length * slope / (slope - passed + (~wild)) - length, 0).astype(kind))
                coefficients += back * direction
                scores += back * ray
                fresh = True
                continue
        old, size = size, space.along(loss, steepest, pulled)
        ended = size <= tolerance**2
        best = np.minimum(best, size)
        ended |= (size > 100 * best) & (best <= floor)  # rounding: it gets no closer than this
        if iteration % 8 == 7:
            ended |= (size > 0.25 * mark) & (best <= floor)
            mark = best
        done = ended.all(axis=1)
        if done.all():
            break
        if iteration % 8 == 7 and done.mean() >= 0.25:  # go on with the others only
            found[where[done]] = coefficients[done]
            left = np.logical_not(done)
            where, space, loss = where[left], space.part(left), loss.part(left)
            coefficients, scores, said = coefficients[left], scores[left], said[left]
            pulled = pulled[0][left], pulled[1][left], pulled[2][left]
            _, steepest, image = pulled
            size, best, mark = size[left], best[left], mark[left]
            if not fresh:
                direction, ray, before, old = direction[left], ray[left], before[left], old[left]
        if fresh:
            direction, ray = -steepest, -image
            fresh = False
        else:
            beta = (size - space.along(loss, before, pulled)) / np.maximum(old, 1e-12 * size + 1e-30)
            factor = loss.each(np.clip(beta, 0, 10))
            direction *= factor
            direction -= steepest
            ray *= factor
            ray -= image
        slope = space.along(loss, direction, pulled)
        lost = slope >= 0
        if lost.any():
            chosen = loss.each(lost)
            direction, ray = np.where(chosen, -steepest, direction), np.where(chosen, -image, ray)
            slope = np.where(lost, -size, slope)
        stiff, least = space.stiffness(loss, direction, ray)
        length = -slope / np.maximum(stiff + loss.dot(loss.bend(loss.curvature(said), ray), ray), least + 1e-38)
        step = loss.each(length.astype(kind))
        coefficients += step * direction
        scores += step * ray
    found[where] = coefficients
    return found


def newton_step(
    space: Space, loss: Loss, said: Real, pulled: tuple[Real, Real, Real], accuracy: Real, limit: int
) -> Real:
    """The Newton step at a point, to a relative ``accuracy``, by linear conjugate gradients.

    Args:
        said: `Loss.predict` at the point, [designs, problems * outputs, n].
        pulled: the gradient there, as from `Space.pull`.
        accuracy: of each problem, [designs, problems].

    Returns:
        The step (to be added), [designs, problems * outputs, width].
    """
    step, curvature = np.zeros_like(pulled[0]), loss.curvature(said)
    rest = (-pulled[0], -pulled[1], -pulled[2])
    size = space.along(loss, rest[1], rest)
    goal = accuracy**2 * size
    direction, ray = rest[1].copy(), rest[2].copy()
    going = size > 0
    for _ in range(limit):
        curved = space.pull(loss, direction, ray, loss.bend(curvature, ray))
        along = space.along(loss, direction, curved)
        going &= (size > goal) & (along > 1e-6 * size)
        length = loss.each(np.where(going, size / np.where(going, along, 1), 0).astype(step.dtype))
        step += length * direction
        for left, part in zip(rest, curved, strict=True):
            left -= length * part
        old, size = size, space.along(loss, rest[1], rest)
        if not going.any() or (size <= goal).all():
            break
        factor = loss.each(np.where(going, size / np.where(going, old, 1), 0).astype(step.dtype))
        direction *= factor
        direction += rest[1]
        ray *= factor
        ray += rest[2]
    return step
