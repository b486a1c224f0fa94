"""Descent on preconditioned logistic losses: many problems in lockstep, each iteration two matrix products per design.

All designs of a batch and all problems of a design advance together, in the coefficients of a `levelt.probes.spaces`
space. Arrays are laid out as in `levelt.probes.loss`.
"""

from __future__ import annotations

import numpy as np

from levelt.probes.loss import Loss, Real
from levelt.probes.spaces import Space

LEARNT = (5, 15, 45)
"""Descent iterations that teach the preconditioner where the losses have flattened."""


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
    direction, ray, steepest = np.zeros_like(found), np.zeros_like(scores), np.zeros_like(found)
    size: Real = np.ones((designs, problems // loss.outputs), kind)
    slope = length = size
    best = mark = np.full_like(size, np.inf)
    floor = (1000 * tolerance) ** 2
    starts, moved = np.ones(size.shape, dtype=bool), np.zeros(size.shape, dtype=bool)
    for iteration in range(limit):
        said = loss.predict(scores)
        if iteration in LEARNT and (learnt := space.learn(loss, coefficients, scores, said)) is not None:
            space, starts = learnt, np.ones_like(starts)
            best = mark = np.full_like(best, np.inf)  # sizes are measured by the preconditioner
        before, old = steepest, size
        pulled = space.pull(loss, coefficients, scores, loss.slopes(said))
        _, steepest, image = pulled
        size = space.along(loss, steepest, pulled)
        passed = space.along(loss, direction, pulled)
        wild = (passed > -slope) & moved
        if back := bool(wild.any()):  # these are where nobody has looked: they stay for an iteration, and start anew
            shift = loss.each(np.where(wild, length * slope / (slope - passed + (~wild)) - length, 0).astype(kind))
            coefficients += shift * direction
            scores += shift * ray
            size = np.where(wild, old, size)
        ended = size <= tolerance**2
        best = np.minimum(best, size)
        if iteration % 8 == 7:
            # rounding lets it get no closer: far from the best, or not much nearer than 8 iterations ago
            ended |= ((size > 100 * best) | (size > 0.25 * mark)) & (best <= floor)
            mark = best
        if ended.all():
            break
        if iteration % 8 == 7 and (done := ended.all(axis=1)).mean() >= 0.25:  # go on with the others only
            found[where[done]] = coefficients[done]
            left = np.logical_not(done)
            where, space, loss = where[left], space.part(left), loss.part(left)
            coefficients, scores, said = coefficients[left], scores[left], said[left]
            pulled = pulled[0][left], pulled[1][left], pulled[2][left]
            _, steepest, image = pulled
            size, best, mark, starts, wild = size[left], best[left], mark[left], starts[left], wild[left]
            direction, ray, before, old = direction[left], ray[left], before[left], old[left]
        beta = (size - space.along(loss, before, pulled)) / np.maximum(old, 1e-30)
        factor = loss.each(np.where(starts, 0, np.minimum(np.maximum(beta, 0), 10)))  # np.clip is slow on short arrays
        direction *= factor
        direction -= steepest
        ray *= factor
        ray -= image
        slope = space.along(loss, direction, pulled)
        lost = (slope >= 0) & (size > 0)
        if lost.any():
            chosen = loss.each(lost)
            direction, ray = np.where(chosen, -steepest, direction), np.where(chosen, -image, ray)
            slope = np.where(lost, -size, slope)
        stiff, least = space.stiffness(loss, direction, ray)
        length = -slope / np.maximum(stiff + loss.dot(loss.bend(loss.curvature(said), ray), ray), least + 1e-38)
        if back:
            length = np.where(wild, 0, length)
        starts, moved = wild, ~wild
        step = loss.each(length.astype(kind, copy=False))
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
