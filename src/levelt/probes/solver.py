"""L2 logistic regression, many probes at once, each with a certificate of optimality.

The loss is mean log-loss + penalty/2 |w|^2 on features standardised with the training rows; the intercept is not
penalised. With the intercept minimised out the objective is penalty-strongly convex in w, so |gradient|^2 /
(2 penalty) bounds the distance from the optimal loss, and |gradient| / penalty the distance from the optimal weights.
Both are computed in float64 from the standardised features themselves, whatever precision found the weights. A probe
whose bound is too large is refused, never reported.

Probes that share features share their preconditioner, also where their training rows differ a little (folds);
`levelt.probes.descent` iterates in float32, and a few Newton steps whose gradients are exact finish. A design that does
not get there is solved again with everything in float64 (``precision="float64"`` does that from the start).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from levelt.probes.blocks import Blocks
from levelt.probes.designs import Start, TrainingSets, is_tall, relative, standardise, standardise_shared
from levelt.probes.loss import Loss, unit_of
from levelt.probes.memory import Room
from levelt.probes.systems import DESCENT, FlatSystem, Point, System, TallSystem

Floats = npt.NDArray[np.float64]
Precision = Literal["mixed", "float64"]

ACCURACY = 5e-6
"""Certified relative distance from the optimal weights at which a probe is finished, finer than any use of it; with
more than twice as much its design is solved again in float64."""

CLOSENESS, CLOSEST = 0.6, (1e-3, 0.1)
"""A Newton step is solved to this share of what is left to gain, in a relative residual of no less and no more than
these."""

CHUNK_SCORES = 200_000
"""Scores of tall designs computed together, if one design has fewer: few enough for a core's cache."""

SETTLED = 1e-12
"""Mean slope along the intercept below which it counts as minimised out: a thousandth of a finished gradient."""

STEPS = 400
"""Most descent iterations."""

ROUNDS = {np.float32: 6, np.float64: 40}
"""Most Newton steps by precision; a design that needs more in float32 is ill-conditioned and gets float64."""


class ConvergenceError(RuntimeError):
    """A probe did not reach the certified bound; the message says how far it got."""


@dataclass(frozen=True)
class Probe:
    """A fitted probe. ``weights`` [outputs, d] and ``intercepts`` [outputs] act on raw features (the standardisation
    is folded in); one output is two classes, more are a softmax."""

    weights: Floats
    intercepts: Floats
    bound: float

    def logits(self, features: npt.ArrayLike) -> Floats:
        """For rows [n, d]: log-odds of class 1, [n]; with more than two classes their scores, [n, classes]."""
        value: Floats = np.asarray(features, dtype=np.float64) @ self.weights.T + self.intercepts
        return value[:, 0] if len(self.weights) == 1 else value


@dataclass(frozen=True)
class Batch:
    """Fitted probes of several designs and problems.

    Attributes:
        weights: [designs, problems, outputs, d], on standardised features.
        intercepts: [designs, problems, outputs].
        scores: [designs, problems, outputs, n], of all rows given, fitted or not.
        bounds: [designs, problems], certified distance from the optimal loss in nats.
    """

    weights: Floats
    intercepts: Floats
    scores: Floats
    bounds: Floats


def fit(
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    penalty: float,
    bound: float = 1e-8,
    *,
    weights: npt.ArrayLike | None = None,
    precision: Precision = "mixed",
) -> Probe:
    """Fit one probe.

    Args:
        features: [n, d]; standardised here with these rows only. A constant feature gets weight 0.
        labels: [n], 0 .. classes - 1, all present.
        penalty: strength on standardised weights; scikit-learn's C is 1 / (penalty * n).
        bound: largest accepted certified distance from the optimal loss, in nats.
        weights: of the rows, [n]; a row of weight 2 counts as two rows.
        precision: see the module.

    Raises:
        ConvergenceError: the certificate exceeds ``bound``.
        ValueError: a feature is not finite, or a label is missing.
    """
    raw = np.asarray(features, dtype=np.float64)
    target = np.asarray(labels)
    rows = np.ones(len(raw)) if weights is None else np.asarray(weights, dtype=np.float64)
    classes = max(2, int(target.max()) + 1)
    design, centre, spread = standardise(raw.T, rows[None] / rows.sum())
    found = fit_batch(design, target[None, None], rows[None], penalty, bound, classes=classes, precision=precision)
    unscaled = found.weights[0, 0] / spread[0]
    return Probe(unscaled, found.intercepts[0, 0] - unscaled @ centre[0], float(found.bounds[0, 0]))


def fit_batch(
    designs: Floats,
    targets: npt.NDArray[np.integer],
    rows: Floats,
    penalty: float,
    bound: float = 1e-8,
    *,
    classes: int = 2,
    precision: Precision = "mixed",
) -> Batch:
    """Fit every problem on every design.

    Args:
        designs: standardised features, [designs, d, n] (see `standardise`).
        targets: classes 0 .. classes - 1, [designs, problems, n]; of rows with weight 0 they do not matter.
        rows: row weights, [designs, n]; a row of weight 0 is scored but not fitted.
        penalty, bound, precision: see `fit`.

    Raises:
        ConvergenceError, ValueError: see `fit`.
    """
    scaled, ever = np.ones((len(designs), 1, 1)), np.asarray((rows > 0).any(axis=0))
    if ever.all():
        return _fit(designs, targets, rows[:, None], scaled, penalty, bound, classes, precision)
    fitted = designs.transpose(0, 2, 1)[:, ever].transpose(0, 2, 1)  # whole rows are quick to copy
    found = _fit(fitted, targets[:, :, ever], rows[:, None, ever], scaled, penalty, bound, classes, precision)
    return _with_others(found, ever, designs[:, :, ~ever])


def fit_shared(
    features: npt.ArrayLike,
    targets: npt.NDArray[np.integer],
    sets: TrainingSets,
    penalty: float,
    bound: float = 1e-8,
    *,
    precision: Precision = "mixed",
    room: Room | None = None,
) -> Batch:
    """Fit every problem on every one of several sets of training rows that are much alike.

    Features are standardised by each set's own rows, as if each had been a design of its own; but what all sets have in
    common is computed once: the products of the features that precondition them.

    Args:
        features: of each design, [designs, n, d]; not standardised.
        targets: classes 0 and 1, [designs, problems, n].
        sets: of the n rows, for d features.
        penalty, bound, precision: see `fit`.
        room: for arrays of the size of the features, for which many fits may share it.

    Returns:
        The sets' problems one set after the other, [designs, sets * problems]; weights and intercepts are those of
        features standardised over all sets.

    Raises:
        ConvergenceError, ValueError: see `fit`.
    """
    values, rows, blocks, every = np.asarray(features), sets.rows, sets.blocks, bool(sets.ever.all())
    others = values[:, ~sets.ever]
    if not every:
        values, targets = values[:, sets.ever], targets[:, :, sets.ever]
    kind = np.float32 if precision == "mixed" else np.float64
    made = standardise_shared(values, sets, unit_of(1), kind, room or Room())
    if not (np.isfinite(made.means).all() and np.isfinite(others).all()):
        raise ValueError("features contain nan or infinity")
    factors = made.factors if sets.tall else None
    found = _fit(
        made.designs, targets, rows[None], made.scales, penalty, bound, 2, precision, blocks, factors, made.start
    )
    return found if every else _with_others(found, sets.ever, ((others - made.means) * made.factors).transpose(0, 2, 1))


def _with_others(found: Batch, ever: npt.NDArray[np.bool_], designs: Floats) -> Batch:
    """The same with scores of all rows, of which only those in ``ever`` were fitted; ``designs`` of the others."""
    count, problems, outputs, width = found.weights.shape
    scores = np.empty((count, problems, outputs, len(ever)))
    scores[..., ever] = found.scores
    further = (found.weights.reshape(count, -1, width) @ designs).reshape(count, problems, outputs, -1)
    scores[..., ~ever] = further + found.intercepts[..., None]
    return Batch(found.weights, found.intercepts, scores, found.bounds)


def _fit(
    designs: Floats,
    targets: npt.NDArray[np.integer],
    rows: Floats,
    scales: Floats,
    penalty: float,
    bound: float,
    classes: int,
    precision: Precision,
    blocks: Blocks | None = None,
    factors: Floats | None = None,
    start: Start | None = None,
) -> Batch:
    """``rows`` are [designs or 1, sets, n], each in some set; ``scales`` turn features into those of each set, and
    ``factors`` [designs, 1, d] turn ``designs`` into features, if they are not yet."""
    used = rows > 0
    at = np.stack([targets == label for label in range(classes)]).astype(np.float32)  # classes, designs, problems, n
    found_in = at @ used.astype(np.float32).transpose(0, 2, 1)
    missing = [label for label in range(classes) if not found_in[label].all()]
    if missing:
        wanted = "both 0 and 1" if classes == 2 else f"all of 0 to {classes - 1}"
        raise ValueError(f"labels must contain {wanted} among the training rows; {missing} missing")
    count, problems, length = targets.shape
    sets = rows.shape[1]
    if blocks is not None:
        signs = blocks.arrange(2.0 * targets - 1.0).transpose(0, 2, 1, 3)  # designs, blocks, problems, places
        active = blocks.sets.shape[1]
        repeated = np.repeat(signs[:, :, None], active, axis=2)
        loss = Loss(repeated.reshape(len(designs), active * problems, -1), 1, None, blocks)
    else:
        repeated = np.broadcast_to(targets[:, None], (count, sets, problems, length)).reshape(count, -1, length)
        weights = np.broadcast_to(relative(rows), (count, sets, length))
        if sets > 1:
            weights = np.repeat(weights, problems, axis=1)
        if classes == 2:
            loss = Loss(2.0 * repeated - 1.0, 1, weights)
        else:
            hot = (repeated[:, :, None, :] == np.arange(classes)[:, None]).astype(np.float64)
            loss = Loss(hot.reshape(count, -1, length), classes, weights)
    if sets > 1:
        scales = np.repeat(scales, problems * (1 if classes == 2 else classes), axis=1)
    sizes = f"(n={int(used.sum(axis=2).max())}, d={designs.shape[1]}, penalty={penalty:g})"
    try:
        if precision == "float64":
            found, _ = _solve(designs, loss, scales, factors, penalty, np.float64, start)
        else:
            found = _mixed(designs, loss, scales, factors, penalty, bound, start)
    except np.linalg.LinAlgError:
        raise ConvergenceError(
            f"features depend on each other too much to be probed {sizes}; raise probes.penalty"
        ) from None
    worst = float(found.bounds.max())
    if not worst <= bound:
        raise ConvergenceError(
            f"probe not converged: certified {worst:.1e} nats from the optimum, {bound:.0e} allowed {sizes}; "
            "raise probes.penalty or probes.bound"
        )
    return found


def _mixed(
    designs: Floats,
    loss: Loss,
    scales: Floats,
    factors: Floats | None,
    penalty: float,
    bound: float,
    start: Start | None,
) -> Batch:
    """In float32 with certificates from float64, and in float64 alone what does not get there."""
    try:
        found, near = _solve(designs, loss, scales, factors, penalty, np.float32, start)
    except np.linalg.LinAlgError:  # features depend on each other more than float32 can tell apart
        return _solve(designs, loss, scales, factors, penalty, np.float64)[0]
    late = np.asarray(~(found.bounds <= np.minimum(bound, near)).all(axis=1))
    if late.any():
        of_late = None if factors is None else factors[late]
        again, _ = _solve(loss.some(designs, late), loss.part(late), scales[late], of_late, penalty, np.float64)
        for name in ("weights", "intercepts", "scores", "bounds"):
            getattr(found, name)[late] = getattr(again, name)
    return found


def _solve(
    designs: Floats,
    loss: Loss,
    scales: Floats,
    factors: Floats | None,
    penalty: float,
    kind: npt.DTypeLike,
    start: Start | None = None,
) -> tuple[Batch, Floats]:
    tall = loss.rows is None or is_tall(designs.shape[1], loss.rows)
    at_once = max(1, CHUNK_SCORES * loss.designs // loss.targets.size) if tall else 1  # wide ones are big enough alone
    found = []
    for first in range(0, loss.designs, at_once):
        part = slice(first, first + at_once)
        some, of_some = loss.some(designs, part), None if factors is None else factors[part]
        started = None if start is None else start.part(loss, part)
        found.append(_solve_some(tall, some, loss.part(part), scales[part], of_some, penalty, kind, started))
    if len(found) == 1:
        return found[0]
    fields = ("weights", "intercepts", "scores", "bounds")
    batch = Batch(*(np.concatenate([getattr(part, name) for part, _ in found]) for name in fields))
    return batch, np.concatenate([near for _, near in found])


def _solve_some(
    tall: bool,
    designs: Floats,
    loss: Loss,
    scales: Floats,
    factors: Floats | None,
    penalty: float,
    kind: npt.DTypeLike,
    start: Start | None,
) -> tuple[Batch, Floats]:
    """Descent, then Newton steps with exact gradients; a step that made a gradient longer is halved.

    Returns:
        The probes, and the bounds below which each counts as finished.
    """
    even = loss.rows is None or bool((loss.rows == 1).all())
    low = dataclasses.replace(loss, rows=None if even else loss.rows).astype(kind)
    system: System = (
        TallSystem(designs, loss, low, scales, penalty, factors, start)
        if tall
        else FlatSystem(designs, loss, low, scales, penalty)
    )
    parameters, intercepts = system.descend(DESCENT * float(loss.counts.max()) ** 0.5, STEPS)
    anchor, moves = (parameters, intercepts), (parameters, intercepts)
    reached, factor = np.array(np.inf), np.array(1.0)
    rounds = ROUNDS[np.dtype(kind).type]
    for number in range(rounds + 1):
        weights = system.weights(parameters)
        scores = _scores(loss, designs, weights * system.reach, intercepts)
        if last := number > 0 or rounds == 0:
            said, shift = settle(loss, scores)
            intercepts = intercepts + shift
        else:  # the first step moves the intercepts, too
            said = loss.predict(scores, loss.room(1)[0])
        slopes = loss.slopes(said, loss.room(1)[0])
        full = system.gradient(slopes, parameters)
        size, norm = loss.dot(full, full), loss.dot(weights, weights)
        if last and (number == rounds or (size <= (ACCURACY * penalty) ** 2 * norm + 1e-28).all()):
            break
        goal = CLOSENESS * ACCURACY * penalty * np.sqrt(norm / np.maximum(size, 1e-300))
        at = Point(parameters, intercepts, scores, said)
        fresh = system.step(at, slopes, full, np.clip(goal, *CLOSEST))
        worse = ~(size <= reached)
        factor = np.where(worse, factor / 2, 1.0)
        reached = np.where(worse, reached, size)
        if worse.any():
            hold = loss.each(worse)
            anchor = np.where(hold, anchor[0], parameters), np.where(hold, anchor[1], intercepts)
            moves = np.where(hold, moves[0], fresh[0]), np.where(hold, moves[1], fresh[1])
        else:
            anchor, moves = (parameters, intercepts), fresh
        length = loss.each(factor)
        parameters, intercepts = anchor[0] + length * moves[0], anchor[1] + length * moves[1]
    if (blocks := loss.blocks) is not None:
        others = blocks.lines(weights * system.reach, idle=True) @ designs + blocks.lines(intercepts, idle=True)
        scores = blocks.rows_of(scores, others)
    found = Batch(
        loss.split(weights * scales),
        loss.split(loss.unit * intercepts)[..., 0],
        loss.split(loss.unit * scores),
        size / (2 * penalty),
    )
    return found, (2 * ACCURACY) ** 2 * penalty / 2 * norm + 1e-28 / penalty


def _scores(loss: Loss, designs: Floats, weights: Floats, intercepts: Floats) -> Floats:
    """Of what there is of each row; 0 at the empty places of blocks."""
    scores: Floats = loss.room(1)[0]
    np.matmul(loss.lines(weights), designs, out=scores)
    scores += loss.lines(intercepts)
    if loss.blocks is not None:
        loss.blocks.blank(scores)
    return scores


def settle(loss: Loss, scores: Floats) -> tuple[Floats, Floats]:
    """Move the intercepts to their optimum for fixed weights (Newton), in ``scores`` too.

    Returns:
        (predictions there, how far each intercept was moved, in scores: [designs, problems * outputs, 1]).
    """
    counts = loss.counts[:, :, None, None]
    weighted = loss.weigh(loss.targets.copy()) if loss.rows is not None else loss.targets
    wanted = loss.sums(weighted)
    moved = np.zeros((*wanted.shape, 1))
    said = loss.predict(scores, loss.room(1)[0])
    for _ in range(100):
        weighted = loss.weigh(said.copy()) if loss.rows is not None else said
        slope = loss.split((loss.sums(weighted) - wanted)[:, :, None]) / counts
        if np.abs(slope).max() < SETTLED:
            break
        if loss.outputs == 1:
            curvature = 1 - loss.over_rows(weighted, said)[:, :, None, None] / counts
            move = slope / np.maximum(curvature, 1e-300)
        else:
            split = loss.split(said)
            spread = loss.split(weighted)
            curvature = spread.sum(axis=3)[..., None] * np.eye(loss.outputs) - spread @ split.transpose(0, 1, 3, 2)
            slope *= loss.unit
            move = np.linalg.solve(2 * curvature / counts + 1, slope)  # + 1: all scores of a row may move together
        shift = -np.clip(move, -2, 2).reshape(moved.shape)
        moved += shift
        scores += loss.lines(shift)
        if loss.blocks is not None:
            loss.blocks.blank(scores)
        said = loss.predict(scores, said)
    return said, moved
