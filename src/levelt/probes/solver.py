"""L2 logistic regression, many probes at once, each with a certificate of optimality.

The loss is mean log-loss + penalty/2 |w|^2 on features standardised with the training rows; the intercept is not
penalised. With the intercept minimised out the objective is penalty-strongly convex in w, so |gradient|^2 /
(2 penalty) bounds the distance from the optimal loss, and |gradient| / penalty the distance from the optimal weights.
Both are computed in float64 from the standardised features themselves, whatever precision found the weights. A probe
whose bound is too large is refused, never reported.

Probes that share a design (features and training rows) share its decomposition; `levelt.probes.descent` iterates in
float32, and a few Newton steps whose gradients are exact finish. A design that does not get there is solved again with
everything in float64 (``precision="float64"`` does that from the start).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from levelt.probes.descent import Flat, Loss, Real, Space, Tall, descend, newton_step

Floats = npt.NDArray[np.float64]
Precision = Literal["mixed", "float64"]

ACCURACY = 1e-6
"""Certified relative distance from the optimal weights at which a probe is finished (finer than any use of it)."""

DESCENT = 1e-5
"""Gradient norm in whitened coordinates at which descent hands over to Newton steps, which then need one or two."""

CLOSENESS = 1e-3
"""Relative residual to which a Newton step is solved."""

FLAT_WIDTH = 192
"""Features up to which designs are solved along their features, in batches, even if they have fewer rows."""

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
    spread = np.sqrt(np.maximum(rows @ (values**2).T - centre**2, 0))
    constant = spread <= 1e-12 * np.maximum(1.0, np.abs(middle + centre))
    scale = np.where(constant, 0.0, 1 / np.where(constant, 1.0, spread))
    design = values[None] - centre[:, :, None]
    design *= scale[:, :, None]
    return design, middle + centre, np.where(constant, 1.0, spread)


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
    used = rows > 0
    missing = [label for label in range(classes) if not ((targets == label) & used[:, None]).any(axis=2).all()]
    if missing:
        wanted = "both 0 and 1" if classes == 2 else f"all of 0 to {classes - 1}"
        raise ValueError(f"labels must contain {wanted} among the training rows; {missing} missing")
    if classes == 2:
        loss = Loss(2.0 * targets - 1.0, 1)
    else:
        hot = (targets[:, :, None, :] == np.arange(classes)[:, None]).astype(np.float64)
        loss = Loss(hot.reshape(len(designs), -1, hot.shape[-1]), classes)
    relative = rows * (used.sum(axis=1) / rows.sum(axis=1))[:, None]  # 1 where all count the same
    loss = Loss(loss.targets, loss.outputs, relative[:, None, :])
    found = _solve(designs, loss, penalty, np.float32 if precision == "mixed" else np.float64)
    norms = (found.weights**2).sum(axis=(2, 3))
    near = np.minimum(bound, (10 * ACCURACY) ** 2 * penalty / 2 * norms + 1e-28 / penalty)
    late = ~(found.bounds <= near).all(axis=1)
    if late.any() and precision == "mixed":
        again = _solve(designs[late], loss.part(late), penalty, np.float64)
        for name in ("weights", "intercepts", "scores", "bounds"):
            getattr(found, name)[late] = getattr(again, name)
    worst = float(found.bounds.max())
    if not worst <= bound:
        raise ConvergenceError(
            f"probe not converged: certified {worst:.1e} nats from the optimum, {bound:.0e} allowed "
            f"(n={int((rows > 0).sum(axis=1).max())}, d={designs.shape[1]}, penalty={penalty:g}); "
            "raise probes.penalty or probes.bound"
        )
    return found


class System(Protocol):
    """A whitened system, and the parameters that float64 keeps: weights, or combinations of rows."""

    space: Space

    def lift(self, step: Real) -> tuple[Floats, Floats]:
        """A vector of the space as (parameters [designs, problems * outputs, .], intercepts in scores [.., 1])."""

    def weights(self, parameters: Floats) -> Floats:
        """Weights on the standardised features for log-odds, [designs, problems * outputs, d]."""

    def gradient(self, slopes: Floats, parameters: Floats) -> tuple[Floats, Real]:
        """The gradient of the whole objective in the weights, and in the space."""


class TallSystem:
    """More rows than features: whitened coordinates along the features, and one more for the intercept."""

    def __init__(self, designs: Floats, loss: Loss, rows: Floats, penalty: float) -> None:
        count, width, length = designs.shape
        kind = loss.targets.dtype
        used = rows > 0
        self.designs, self.penalty, self.unit = designs, penalty, loss.unit
        self.root = (used.sum(axis=2) ** -0.5)[:, :, None]  # 1 / sqrt(n)
        low = designs.astype(kind)
        if not used.all():
            low *= used  # rows that are not fitted become 0 and drop out of every sum
        scale = self.root / self.unit
        gram = (low if loss.rows is None else low * loss.rows) @ low.transpose(0, 2, 1)
        gram *= scale**2
        gram[:, np.arange(width), np.arange(width)] += penalty
        self.inverse = np.linalg.inv(np.linalg.cholesky(gram))
        design = np.empty((count, width + 1, length), dtype=kind)
        np.matmul(self.inverse * scale.astype(kind), low, out=design[:, :width])
        design[:, width:] = used * self.root
        self.space: Space = Tall(design)

    def lift(self, step: Real) -> tuple[Floats, Floats]:
        parameters = (step[:, :, :-1] @ self.inverse) * self.root
        return parameters, self.root * step[:, :, -1:]

    def weights(self, parameters: Floats) -> Floats:
        return parameters

    def gradient(self, slopes: Floats, parameters: Floats) -> tuple[Floats, Real]:
        full = slopes @ self.designs.transpose(0, 2, 1)
        full *= self.root**2 / self.unit
        full += self.penalty * parameters
        whitened = np.empty((*full.shape[:2], full.shape[2] + 1), dtype=self.inverse.dtype)
        scaled = (full / self.root).astype(self.inverse.dtype)
        np.matmul(scaled, self.inverse.transpose(0, 2, 1), out=whitened[:, :, :-1])
        whitened[:, :, -1:] = self.root * slopes.sum(axis=2, keepdims=True)
        return full, whitened


class FlatSystem:
    """More features than rows: everything is a combination of the training rows.

    With Y = R^1/2 X for row weights R, (X'RX + penalty)^-1 X' = X' R^1/2 (YY' + penalty)^-1 R^-1/2: one n x n inverse
    replaces the d x d one, exactly.
    """

    def __init__(self, designs: Floats, loss: Loss, rows: Floats, penalty: float) -> None:
        kind = loss.targets.dtype
        self.designs, self.penalty, self.unit, self.share = designs, penalty, loss.unit, rows / rows.sum()
        length = designs.shape[2]
        self.factor = 1 / (length * self.unit)
        root = np.sqrt(rows)
        low = designs.astype(kind)
        if loss.rows is not None:
            low *= root.astype(kind)
        gram = np.stack([part.T @ part for part in low])
        gram *= 1 / (length * self.unit**2)
        diagonal = np.arange(length)
        gram[:, diagonal, diagonal] += penalty
        inverse = np.stack([_inverse(part) for part in gram])
        kernel = -penalty * inverse
        kernel[:, diagonal, diagonal] += 1
        if loss.rows is not None:
            kernel /= (root * root.transpose(0, 2, 1)).astype(kind)
            inverse *= (root.transpose(0, 2, 1) / root).astype(kind)
        kernel += 1 / length  # the intercept
        self.inverse = inverse
        self.space: Space = Flat(kernel)

    def lift(self, step: Real) -> tuple[Floats, Floats]:
        parameters = (step @ self.inverse.transpose(0, 2, 1)).astype(np.float64)
        parameters *= self.factor
        parameters -= self.share * parameters.sum(axis=2, keepdims=True)  # no weight changes: weighted rows sum to 0
        return parameters, self.factor * self.unit * step.sum(axis=2, keepdims=True, dtype=np.float64)

    def weights(self, parameters: Floats) -> Floats:
        return parameters @ self.designs.transpose(0, 2, 1)

    def gradient(self, slopes: Floats, parameters: Floats) -> tuple[Floats, Real]:
        combined = slopes * self.factor + self.penalty * parameters
        return combined @ self.designs.transpose(0, 2, 1), (combined / self.factor).astype(self.inverse.dtype)


def _inverse(matrix: Real) -> Real:
    """Inverse of a positive definite matrix by its Cholesky factor, 4 times as fast as the general one."""
    from scipy.linalg import get_lapack_funcs  # here, since only wide designs need it and it takes a while to import

    found: Any = get_lapack_funcs(("potrf", "potri"), (matrix,))
    factorise, invert = found
    factor, failed = factorise(matrix, lower=False)
    if failed:
        raise np.linalg.LinAlgError("the whitening matrix is not positive definite")
    upper, _ = invert(factor, lower=False)
    whole: Real = np.triu(upper) + np.triu(upper, 1).T
    return whole


def _solve(designs: Floats, loss: Loss, penalty: float, kind: npt.DTypeLike) -> Batch:
    assert loss.rows is not None
    used = loss.rows[:, 0] > 0
    if designs.shape[1] <= max(FLAT_WIDTH, used.sum(axis=1).max()):
        return _solve_system(TallSystem, designs, loss, penalty, kind)
    parts = []
    for at, chosen in enumerate(used):  # designs this wide are big enough alone; rows not fitted would be singular
        one = designs[at : at + 1] if chosen.all() else np.ascontiguousarray(designs[at : at + 1][:, :, chosen])
        of = Loss(loss.targets[at : at + 1][:, :, chosen], loss.outputs, loss.rows[at : at + 1][:, :, chosen])
        found = _solve_system(FlatSystem, one, of, penalty, kind)
        scores = np.empty((*found.scores.shape[:3], len(chosen)))
        scores[..., chosen] = found.scores
        rest = found.weights[0].reshape(-1, designs.shape[1]) @ designs[at][:, ~chosen]
        scores[..., ~chosen] = rest.reshape(*found.scores.shape[:3], -1) + found.intercepts[..., None]
        parts.append(Batch(found.weights, found.intercepts, scores, found.bounds))
    return Batch(
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.intercepts for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.bounds for part in parts]),
    )


def _solve_system(
    kind_of_system: type[TallSystem] | type[FlatSystem],
    designs: Floats,
    loss: Loss,
    penalty: float,
    kind: npt.DTypeLike,
) -> Batch:
    """Descent, then Newton steps with exact gradients; a step that made a gradient longer is halved."""
    assert loss.rows is not None
    counts = (loss.rows > 0).sum(axis=2)
    even = np.allclose(loss.rows[loss.rows > 0], 1, rtol=0, atol=1e-12)
    low = Loss(loss.targets.astype(kind), loss.outputs, None if even else loss.rows.astype(kind))
    system: System = kind_of_system(designs, low, loss.rows, penalty)
    parameters, intercepts = system.lift(descend(system.space, low, DESCENT * float(counts.max()) ** 0.5, STEPS))
    anchor, moves = (parameters, intercepts), (parameters, intercepts)
    reached, factor = np.array(np.inf), np.array(1.0)
    rounds = ROUNDS[np.dtype(kind).type]
    for number in range(rounds + 1):
        weights = system.weights(parameters)
        scores = weights @ designs
        scores /= loss.unit
        scores += intercepts
        said, shift = settle(loss, scores)
        intercepts = intercepts + shift
        slopes = loss.slopes(said)
        full, whitened = system.gradient(slopes, parameters)
        size = loss.dot(full, full)
        if number == rounds or (size <= (ACCURACY * penalty) ** 2 * loss.dot(weights, weights) + 1e-28).all():
            break
        step = newton_step(system.space, low, said.astype(kind), whitened, CLOSENESS, 60)
        fresh = system.lift(step)
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
    return Batch(
        loss.split(weights),
        loss.split(loss.unit * intercepts)[..., 0],
        loss.split(loss.unit * scores),
        size / (2 * penalty),
    )


def settle(loss: Loss, scores: Floats) -> tuple[Floats, Floats]:
    """Move the intercepts to their optimum for fixed weights (Newton), in ``scores`` too.

    Returns:
        (predictions there, how far each intercept was moved, in scores).
    """
    assert loss.rows is not None
    counts = loss.rows.sum(axis=2)[:, :, None, None]
    moved = np.zeros((*scores.shape[:2], 1))
    said = loss.predict(scores)
    for _ in range(100):
        slope = loss.split(loss.slopes(said).sum(axis=2, keepdims=True)) / counts
        if np.abs(slope).max() < 1e-14:
            break
        if loss.outputs == 1:
            curvature = 1 - loss.split((said * said) @ loss.rows.transpose(0, 2, 1)) / counts
            move = slope / np.maximum(curvature, 1e-300)
        else:
            split = loss.split(said)
            weighted = split * loss.rows[:, None]
            curvature = weighted.sum(axis=3)[..., None] * np.eye(loss.outputs) - weighted @ split.transpose(0, 1, 3, 2)
            move = np.linalg.solve(2 * curvature / counts + 1, slope)  # + 1: all scores of a row may move together
        shift = -np.clip(move, -2, 2).reshape(moved.shape)
        moved += shift
        scores += shift
        said = loss.predict(scores)
    return said, moved
