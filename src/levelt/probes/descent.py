"""Descent on preconditioned logistic losses: many problems in lockstep, each iteration two matrix products per design.

All designs of a batch and all problems of a design advance together, in the coefficients of a `levelt.probes.spaces`
space. Arrays are laid out as in `levelt.probes.loss`.
"""

from __future__ import annotations

import numpy as np

from levelt.probes.loss import Loss, Real
from levelt.probes.spaces import Pull, Space

LEARNT = (3, 15, 45)
"""Descent iterations that teach the preconditioner where the losses have flattened."""

LONGEST = 10.0
"""Most of a direction that the next one keeps, in its units."""


def descend(space: Space, loss: Loss, tolerance: float, limit: int) -> tuple[Real, Space | None]:
    """Nonlinear conjugate gradients from zero (Dai and Yuan 1999, Newton step lengths), until every gradient is small.

    A step that passes the minimum along its line by more than it started before it is shortened by the secant rule.

    Args:
        tolerance: preconditioned gradient norm of each problem at which it is done.
        limit: most iterations.

    Returns:
        Coefficients [designs, problems * outputs, width], and the space with the preconditioner learnt last, if all
        designs had it. Whether the coefficients are good enough is for the caller to certify.
    """
    kind = loss.targets.dtype
    found = np.zeros((loss.designs, loss.problems * loss.outputs, space.width), kind)
    where = np.arange(loss.designs)
    coefficients, direction = found.copy(), np.zeros_like(found)
    scores, ray, said, work = loss.room(4)
    scores[:] = ray[:] = 0
    size: Real = np.zeros((loss.designs, loss.problems), kind)
    fall = length = size
    kept: Real | float = 0.0
    best = mark = np.full_like(size, np.inf)
    floor = (1000 * tolerance) ** 2
    for iteration in range(limit):
        said = loss.predict(scores, said)
        if iteration in LEARNT and (learnt := space.learn(loss, coefficients, scores, said)) is not None:
            space, kept = learnt, 0.0
            best = mark = np.full_like(best, np.inf)  # sizes are measured by the preconditioner
        pulled, old = space.pull(loss, coefficients, scores, loss.slopes(said, work)), size
        size, passed = space.along(loss, pulled.steepest, pulled), space.along(loss, direction, pulled)
        wild = (passed > fall) & (length > 0)
        if back := bool(np.count_nonzero(wild)):  # these are where nobody has looked: they stay, and start anew
            shift = np.where(wild, length * fall / (fall + passed + (~wild)) - length, 0).astype(kind)
            coefficients += loss.each(shift) * direction
            scores += loss.each_row(shift) * ray
            size = np.where(wild, old, size)
        best = np.minimum(best, size)
        if not np.count_nonzero(size > tolerance**2):
            break
        if iteration % 8 == 7:
            # rounding lets it get no closer: far from the best, or not much nearer than 8 iterations ago
            ended = (size <= tolerance**2) | (((size > 100 * best) | (size > 0.25 * mark)) & (best <= floor))
            mark, done = best, np.asarray(ended.all(axis=1))
            ready = np.count_nonzero(done)
            if ready == done.size:
                break
            if ready >= 0.25 * done.size:  # go on with the others only
                found[where[done]] = coefficients[done]
                left = np.logical_not(done)
                space, pulled = space.part(loss, left), pulled.part(left)
                scores, said, ray = loss.some(scores, left), loss.some(said, left), loss.some(ray, left)
                where, loss, work = where[left], loss.part(left), np.empty_like(scores)
                coefficients, direction = coefficients[left], direction[left]
                size, best, mark, wild = size[left], best[left], mark[left], wild[left]
                passed, fall, kept = passed[left], fall[left], np.broadcast_to(kept, old.shape)[left]
        factor = np.minimum(size / np.maximum(passed + fall, 1e-30), kept)
        direction *= loss.each(factor)
        direction -= pulled.steepest
        fall = size - factor * passed
        ray = space.ray(loss, direction, ray, factor, pulled)
        stiff, least = space.stiffness(loss, direction, ray)
        bent = loss.bend(loss.curvature(said, work), ray, work)
        length = fall / np.maximum(stiff + loss.over_rows(bent, ray), least + 1e-38)
        kept = LONGEST
        if back:
            length, kept = np.where(wild, 0, length), np.where(wild, 0, LONGEST)
        step = length.astype(kind, copy=False)
        coefficients += loss.each(step) * direction
        scores += np.multiply(ray, loss.each_row(step), out=work)
    found[where] = coefficients
    return found, space if len(where) == len(found) else None


def newton_step(space: Space, loss: Loss, said: Real, pulled: Pull, accuracy: Real, limit: int) -> Real:
    """The Newton step at a point, to a relative ``accuracy``, by linear conjugate gradients.

    Args:
        said: `Loss.predict` at the point, [designs, problems * outputs, n].
        pulled: the gradient there, as from `Space.pull`.
        accuracy: of each problem, [designs, problems].

    Returns:
        The step (to be added), [designs, problems * outputs, width].
    """
    curvature, ray, work = loss.room(3)
    curvature, rest, step = loss.curvature(said, curvature), pulled, np.zeros_like(pulled.gradient)
    ray[:] = 0
    size, factor = space.along(loss, rest.steepest, rest), np.zeros(accuracy.shape, said.dtype)
    goal, direction = accuracy**2 * size, -rest.steepest
    for _ in range(limit):
        ray = space.ray(loss, direction, ray, factor, rest)
        curved = space.pull(loss, direction, ray, loss.bend(curvature, ray, work))
        along = space.along(loss, direction, curved)
        going = (along > 1e-6 * size) & (size > 0)  # else rounding is all there is
        length = np.where(going, size / np.where(going, along, 1), 0).astype(step.dtype)
        step += loss.each(length) * direction
        rest = rest.plus(loss.each(length), curved)
        old, size = size, space.along(loss, rest.steepest, rest)
        if not np.count_nonzero((size > goal) & going):
            break
        factor = np.where(going, size / np.where(going, old, 1), 0).astype(step.dtype)
        direction *= loss.each(factor)
        direction -= rest.steepest
    return step
