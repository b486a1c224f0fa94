"""Descent on whitened logistic losses: many problems in lockstep, each iteration two matrix products per design.

Scores are measured in units in which no row's loss curves more than 1 (half the log-odds for two classes, Boehning
1992), and weights in coordinates in which X'X + penalty is the identity. Then no direction curves more than 1 either,
the penalty needs no matrix of its own (it is |v|^2 minus the squared scores), and features of any spectrum look
alike. All designs of a batch and all problems of a design advance together.

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
        rows: relative row weights, [designs, 1, n]; None where all are equal.
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

    def part(self, designs: npt.NDArray[Any]) -> Loss:
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

    def slopes(self, said: Real) -> Real:
        """Derivatives of the rows' losses in their scores."""
        found: Real = said - self.targets
        if self.outputs > 1:
            found *= self.unit
        if self.rows is not None:
            found *= self.rows
        return found

    def slack(self, said: Real, ray: Real) -> Real:
        """``ray`` minus the rows' Hessians times ``ray``: what the loss curves less than its ceiling of 1."""
        if self.outputs == 1:
            found: Real = said * said
            found *= ray
        else:
            split, rays = self.split(said), self.split(ray)
            mixed = (split * rays).sum(axis=2, keepdims=True)
            found = ray - 2 * np.reshape(split * (rays - mixed), ray.shape)
        if self.rows is not None:
            found *= self.rows
        return found

    def split(self, values: Real) -> Real:
        """[designs, problems * outputs, m] as [designs, problems, outputs, m]."""
        return np.reshape(values, (values.shape[0], -1, self.outputs, values.shape[2]))

    def dot(self, first: Real, second: Real) -> Real:
        """Inner products over outputs and the last axis: [designs, problems]."""
        sums: Real = np.einsum("dpn,dpn->dp", first, second)
        return sums if self.outputs == 1 else np.sum(np.reshape(sums, (len(sums), -1, self.outputs)), axis=2)

    def each(self, values: Real) -> Real:
        """One value per problem [designs, problems] as a factor for [designs, problems * outputs, m]."""
        return (values if self.outputs == 1 else np.repeat(values, self.outputs, axis=1))[:, :, None]


class Space(Protocol):
    """Whitened coordinates of the designs of a batch."""

    @property
    def width(self) -> int:
        """Coordinates per output."""

    def pull(self, coefficients: Real, slopes: Real) -> tuple[Real, Real]:
        """The gradient of 1/2 |v|^2 + (a loss with these slopes in the scores), and its scores."""

    def inner(self, loss: Loss, first: Real, second: Real, scores: Real) -> Real:
        """Inner products [designs, problems] of two vectors, given the scores of the second."""

    def part(self, designs: npt.NDArray[Any]) -> Space:
        """The coordinates of some designs."""


@dataclass(frozen=True)
class Tall:
    """More rows than features: coordinates along the features. ``design`` is [designs, width, n]."""

    design: Real

    @property
    def width(self) -> int:
        """Coordinates per output."""
        return int(self.design.shape[1])

    def pull(self, coefficients: Real, slopes: Real) -> tuple[Real, Real]:
        gradient = slopes @ self.design.transpose(0, 2, 1)
        gradient += coefficients
        return gradient, gradient @ self.design

    def inner(self, loss: Loss, first: Real, second: Real, scores: Real) -> Real:
        return loss.dot(first, second)

    def part(self, designs: npt.NDArray[Any]) -> Tall:
        return Tall(self.design[designs])


@dataclass(frozen=True)
class Flat:
    """More features than rows: a vector is a combination of the rows, which is exact, since the optimum is one.

    ``kernel`` [designs, n, n] holds the whitened inner products of the rows; a gradient then needs no product at all
    and its scores one.
    """

    kernel: Real

    @property
    def width(self) -> int:
        """Coordinates per output."""
        return int(self.kernel.shape[1])

    def pull(self, coefficients: Real, slopes: Real) -> tuple[Real, Real]:
        gradient = coefficients + slopes
        return gradient, gradient @ self.kernel

    def inner(self, loss: Loss, first: Real, second: Real, scores: Real) -> Real:
        return loss.dot(first, scores)

    def part(self, designs: npt.NDArray[Any]) -> Flat:
        return Flat(self.kernel[designs])


def descend(space: Space, loss: Loss, tolerance: float, limit: int) -> Real:
    """Nonlinear conjugate gradients from zero (Polak-Ribiere, Newton step lengths), until every gradient is small.

    A step that passes the minimum along its line by more than it started before it is shortened by the secant rule.

    Args:
        tolerance: gradient norm of each problem at which it is done.
        limit: most iterations.

    Returns:
        Coefficients [designs, problems * outputs, width]. Whether they are good enough is for the caller to certify.
    """
    designs, problems, rows = loss.targets.shape
    kind = loss.targets.dtype
    found = np.zeros((designs, problems, space.width), kind)
    where = np.arange(designs)
    coefficients, scores = found.copy(), np.zeros((designs, problems, rows), kind)
    direction = ray = gradient = np.zeros(0, kind)
    size: Real = np.zeros(0, kind)
    slope = length = size
    best: Real = np.full((1, 1), np.inf)
    mark, floor = best, (1000 * tolerance) ** 2
    fresh = True
    for iteration in range(limit):
        said = loss.predict(scores)
        slopes = loss.slopes(said)
        slopes -= scores if loss.rows is None else scores * loss.rows
        before = gradient
        gradient, image = space.pull(coefficients, slopes)
        if not fresh:
            passed = space.inner(loss, direction, gradient, image)
            wild = passed > -slope
            if wild.any():
                back = loss.each(np.where(wild, length * slope / (slope - passed + (~wild)) - length, 0).astype(kind))
                coefficients += back * direction
                scores += back * ray
                fresh = True
                continue
        old, size = size, space.inner(loss, gradient, gradient, image)
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
            coefficients, scores, gradient, image = coefficients[left], scores[left], gradient[left], image[left]
            said, size, best, mark = said[left], size[left], best[left], mark[left]
            if not fresh:
                direction, ray, before, old = direction[left], ray[left], before[left], old[left]
        if fresh:
            direction, ray = -gradient, -image
            fresh = False
        else:
            beta = (size - space.inner(loss, before, gradient, image)) / np.maximum(old, 1e-12 * size + 1e-30)
            factor = loss.each(np.clip(beta, 0, 10))
            direction *= factor
            direction -= gradient
            ray *= factor
            ray -= image
        slope = space.inner(loss, direction, gradient, image)
        lost = slope >= 0
        if lost.any():
            chosen = loss.each(lost)
            direction, ray = np.where(chosen, -gradient, direction), np.where(chosen, -image, ray)
            slope = np.where(lost, -size, slope)
        longest = space.inner(loss, direction, direction, ray)
        curvature = longest - loss.dot(loss.slack(said, ray), ray)
        length = -slope / np.maximum(
            curvature, 1e-3 * longest + 1e-38
        )  # a difference: rounding can leave nothing of it
        step = loss.each(length.astype(kind))
        coefficients += step * direction
        scores += step * ray
    found[where] = coefficients
    return found


def newton_step(space: Space, loss: Loss, said: Real, gradient: Real, accuracy: float, limit: int) -> Real:
    """The Newton step at a point, to a relative ``accuracy``, by linear conjugate gradients.

    Args:
        said: `Loss.predict` at the point, [designs, problems * outputs, n].
        gradient: in the coordinates of ``space``, [designs, problems * outputs, width].

    Returns:
        The step (to be added), [designs, problems * outputs, width].
    """
    step = np.zeros_like(gradient)
    residual = -gradient
    _, image = space.pull(residual, np.zeros_like(said))
    size = space.inner(loss, residual, residual, image)
    goal = accuracy**2 * size
    direction, ray = residual.copy(), image.copy()
    going = size > 0
    for _ in range(limit):
        curved, curved_ray = space.pull(direction, -loss.slack(said, ray))
        along = space.inner(loss, direction, curved, curved_ray)
        going &= (size > goal) & (along > 1e-6 * size)
        length = loss.each(np.where(going, size / np.where(going, along, 1), 0).astype(step.dtype))
        step += length * direction
        residual -= length * curved
        image -= length * curved_ray
        old, size = size, space.inner(loss, residual, residual, image)
        if not going.any() or (size <= goal).all():
            break
        factor = loss.each(np.where(going, size / np.where(going, old, 1), 0).astype(step.dtype))
        direction *= factor
        direction += residual
        ray *= factor
        ray += image
    return step
