"""The probes of a batch of designs as one system: descent from zero, Newton steps from gradients that float64 made.

Tall designs (more rows than features) are solved for weights, wide ones for combinations of their training rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from levelt.probes.descent import descend, newton_step
from levelt.probes.designs import Start
from levelt.probes.loss import Loss, Real
from levelt.probes.matrices import gathered, inverse_of, square_of
from levelt.probes.memory import aligned
from levelt.probes.spaces import Flat, Gram, Pull, Tall

Floats = npt.NDArray[np.float64]

DESCENT = 3e-5
"""Gradient norm in whitened coordinates at which descent hands over to Newton steps, which then need one or two."""

CACHED_VALUES = 260_000
"""Feature values of tall designs that advance together, if one has fewer: a core's cache holds them."""

ALIKE = 0.4
"""Largest relative difference of a feature's variance in a set of rows for which wide designs share their products."""

ROUGH = 0.03
"""What a Newton step with shared products is good for, and hence solved to."""


@dataclass(frozen=True)
class Point:
    """Parameters and intercepts of every problem of a batch, their scores, and what these say (`Loss.predict`)."""

    parameters: Floats
    intercepts: Floats
    scores: Floats
    said: Floats


class System(Protocol):
    """The problems of a batch in one space, and the parameters that float64 keeps: weights, or combinations of rows.

    Weights are those of the features in the scale of each problem; times ``reach`` [designs, problems * outputs or 1, d
    or 1] they give scores from the designs.
    """

    reach: Floats

    def descend(self, tolerance: float, limit: int) -> tuple[Floats, Floats]:
        """From zero to (parameters [designs, problems * outputs, .], intercepts in scores [.., 1])."""

    def step(self, at: Point, slopes: Floats, full: Floats, accuracy: Floats) -> tuple[Floats, Floats]:
        """The Newton step from a point with these slopes, and this gradient in the weights, to a relative accuracy
        [designs, problems]."""

    def weights(self, parameters: Floats) -> Floats:
        """Weights for log-odds, [designs, problems * outputs, d]."""

    def gradient(self, slopes: Floats, parameters: Floats) -> Floats:
        """The gradient of the whole objective in the weights."""


class TallSystem:
    """More rows than features: the parameters are the weights."""

    def __init__(
        self,
        designs: Floats,
        loss: Loss,
        low: Loss,
        scales: Floats,
        penalty: float,
        factors: Floats | None = None,
        start: Start | None = None,
    ) -> None:
        count, width = loss.designs, designs.shape[1]
        kind = low.targets.dtype
        counts = np.broadcast_to(loss.counts, (count, loss.counts.shape[1]))
        self.designs, self.penalty, self.unit, self.loss, self.low = designs, penalty, loss.unit, loss, low
        self.scales, self.counts = scales, loss.each(counts)
        per_score = np.full((count, 1, 1), 1 / loss.unit) if factors is None else factors / loss.unit
        self.reach = scales * per_score
        dead = scales == 0  # a feature that a set does not have: its coefficient, which ends at 0, is left out
        self.shrink, self.stretch = np.where(dead, 1, 1 / (scales + dead)), np.where(dead, 0, 1 / (scales + dead))
        start = start or self._start(designs, loss, per_score.transpose(0, 2, 1).astype(kind))
        gram = Gram.of(start.square, counts.mean(axis=1).astype(kind), penalty)
        penalties = np.zeros((count, max(self.counts.shape[1], scales.shape[1]), width + 1), dtype=kind)
        penalties[:, :, :-1] = penalty * self.counts * self.shrink**2
        self.space = Tall(start.design, penalties, gram)
        number = -(-count // max(1, CACHED_VALUES * count // designs.size))
        self.parts = [(slice(0, count), self.space, low)]
        if number > 1:
            parts = [slice(count * at // number, count * (at + 1) // number) for at in range(number)]
            self.parts = [(part, self.space.part(low, part), low.part(part)) for part in parts]
        self.learnt: list[Tall | None] = []

    @staticmethod
    def _start(designs: Floats, loss: Loss, per_score: Real) -> Start:
        count, width, length = designs.shape
        design = aligned((count, width + 1, length), per_score.dtype)
        features = design[:, :width]
        features[:], design[:, width] = designs, 1
        features *= np.repeat(per_score, count // loss.designs, axis=0)
        if loss.blocks is not None:
            loss.blocks.blank(design)
            square = loss.blocks.typical * np.stack([square_of(of) for of in np.split(features, loss.designs)])
        elif loss.rows is None:
            square = features @ features.transpose(0, 2, 1)
        else:
            typical = loss.rows.mean(axis=1).astype(features.dtype)
            square = (features * typical[:, None]) @ features.transpose(0, 2, 1)
        return Start(design, square)

    def descend(self, tolerance: float, limit: int) -> tuple[Floats, Floats]:
        found = []
        for _, space, low in self.parts:
            coefficients, learnt = descend(space, low, tolerance, limit)
            assert learnt is None or isinstance(learnt, Tall)
            found.append(coefficients)
            self.learnt.append(learnt)
        return self._lift(found)

    def step(self, at: Point, slopes: Floats, full: Floats, accuracy: Floats) -> tuple[Floats, Floats]:
        kind = self.space.design.dtype
        said = at.said.astype(kind)
        coefficients = np.concatenate([at.parameters * self.scales, at.intercepts], axis=2, dtype=kind)
        gradient = np.empty(coefficients.shape, dtype=kind)
        gradient[:, :, :-1] = full * (self.counts * self.stretch)
        gradient[:, :, -1] = self.loss.sums(slopes)
        steps = []
        for (part, space, low), learnt in zip(self.parts, self.learnt, strict=True):
            there = self.low.some(said, part)
            if learnt is None:
                scores = self.low.some(at.scores, part).astype(kind)
                learnt = space.learn(low, coefficients[part], scores, there) or space
            pulled = Pull(gradient[part], learnt.precondition(gradient[part]))
            steps.append(newton_step(learnt, low, there, pulled, accuracy[part], 60))
        return self._lift(steps)

    def weights(self, parameters: Floats) -> Floats:
        return parameters

    def gradient(self, slopes: Floats, parameters: Floats) -> Floats:
        full = self.loss.total(gathered(slopes, self.designs))
        full *= self.reach / self.counts
        full += self.penalty * parameters
        return full

    def _lift(self, steps: list[Real]) -> tuple[Floats, Floats]:
        found = np.concatenate(steps, dtype=np.float64)
        return found[:, :, :-1] * self.stretch, found[:, :, -1:]


@dataclass(frozen=True)
class Part:
    """The problems of one set of training rows in a flat system."""

    problems: slice
    chosen: npt.NDArray[np.intp]
    inverse: Real
    space: Flat
    low: Loss
    share: Floats


class FlatSystem:
    """More features than rows: the parameters are combinations of the training rows.

    With Y = R^1/2 X for row weights R, (X'RX + penalty)^-1 X' = X' R^1/2 (YY' + penalty)^-1 R^-1/2: one n x n inverse
    replaces the d x d one, exactly. Sets that scale the features nearly alike share YY', whose error later Newton steps
    take off; the others compute their own.
    """

    def __init__(self, designs: Floats, loss: Loss, low: Loss, scales: Floats, penalty: float) -> None:
        assert loss.rows is not None and len(designs) == 1
        kind = low.targets.dtype
        self.design, self.penalty, self.unit, self.scales = designs[0], penalty, loss.unit, scales
        self.reach = scales / loss.unit
        self.counts = loss.each(loss.rows.sum(axis=2))
        rows = loss.rows[0]
        starts = [at for at in range(len(rows)) if at == 0 or (rows[at] != rows[at - 1]).any()]
        features = self.design.astype(kind)
        near = kind == np.float32 and np.abs(np.square(scales) - 1).max() <= ALIKE
        products = features.T @ features if near and len(starts) > 1 else None
        self.rough = ROUGH if products is not None else 0.0
        self.parts = [
            self._part(features, products, loss, low, start, stop)
            for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)
        ]

    def _part(self, features: Real, products: Real | None, loss: Loss, low: Loss, start: int, stop: int) -> Part:
        assert loss.rows is not None
        weights = loss.rows[0, start]
        chosen = np.flatnonzero(weights > 0)
        length, outputs = len(chosen), loss.outputs
        problems = slice(start * outputs, stop * outputs) if loss.rows.shape[1] > 1 else slice(None)
        root = None if (weights[chosen] == 1).all() else np.sqrt(weights[chosen])[None].astype(features.dtype)
        if products is None:
            mine = features if length == features.shape[1] else features[:, chosen]
            scale = self.scales[0, problems][0].astype(features.dtype)[:, None]
            mine = mine if (scale == 1).all() else mine * scale
            gram = mine.T @ mine
        else:
            gram = products[np.ix_(chosen, chosen)]
        share = weights[chosen] / weights.sum()
        if len(loss.rows[0]) > 1:  # features have mean 0 over all sets, and shall have it over this one
            low_share = share.astype(gram.dtype)
            gram -= low_share @ gram
            gram -= (gram @ low_share)[:, None]
        if root is not None:
            gram *= root * root.T
        gram *= 1 / (length * self.unit**2)
        diagonal = np.arange(length)
        gram[diagonal, diagonal] += self.penalty
        inverse = inverse_of(gram)
        kernel = -self.penalty * inverse
        kernel[diagonal, diagonal] += 1
        if root is not None:
            kernel /= root * root.T
            inverse *= root.T / root
        kernel += 1 / length  # the intercept
        targets = low.targets[:, problems][:, :, chosen]
        few = None if root is None else (root**2)[None]
        return Part(problems, chosen, inverse, Flat(kernel[None]), Loss(targets, outputs, few), share)

    def descend(self, tolerance: float, limit: int) -> tuple[Floats, Floats]:
        tolerance = max(tolerance, tolerance / DESCENT * self.rough**2)
        return self._lift([descend(part.space, part.low, tolerance, limit)[0] for part in self.parts])

    def step(self, at: Point, slopes: Floats, full: Floats, accuracy: Floats) -> tuple[Floats, Floats]:
        kind = self.parts[0].inverse.dtype
        combined = (slopes + self.penalty * self.unit * self.counts * at.parameters).astype(kind)
        steps, accuracy = [], np.maximum(accuracy, self.rough)
        for part in self.parts:
            gradient = combined[:, part.problems][:, :, part.chosen]
            pulled = Pull(gradient, gradient, gradient @ part.space.kernel)
            there = at.said[:, part.problems][:, :, part.chosen].astype(kind)
            steps.append(newton_step(part.space, part.low, there, pulled, accuracy[:, part.problems], 60))
        return self._lift(steps)

    def weights(self, parameters: Floats) -> Floats:
        found: Floats = parameters @ self.design.T
        found *= self.scales
        return found

    def gradient(self, slopes: Floats, parameters: Floats) -> Floats:
        return self.weights(slopes / (self.counts * self.unit) + self.penalty * parameters)

    def _lift(self, steps: list[Real]) -> tuple[Floats, Floats]:
        outputs = self.counts.shape[1] if len(self.parts) > 1 else steps[0].shape[1]
        parameters, intercepts = np.zeros((1, outputs, self.design.shape[1])), np.empty((1, outputs, 1))
        for part, step in zip(self.parts, steps, strict=True):
            found = (step @ part.inverse.T).astype(np.float64)
            factor = 1 / (len(part.chosen) * self.unit)
            found *= factor
            found -= part.share * found.sum(axis=2, keepdims=True)  # no weight changes: weighted rows sum to 0
            parameters[:, part.problems, part.chosen] = found
            total = step.sum(axis=2, keepdims=True, dtype=np.float64)
            intercepts[:, part.problems] = factor * self.unit * total
        return parameters, intercepts
