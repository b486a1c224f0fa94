"""Coefficients of probes, their products with the features, and preconditioners for them.

A space belongs to a batch of designs, and serves all problems that share them: the inverse of X'X + penalty, or of
X'X/2 + penalty, which is nearer to most Hessians, makes features of any spectrum look alike. Arrays are laid out as in
`levelt.probes.loss`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from levelt.probes.loss import Loss, Real
from levelt.probes.matrices import gathered, inverse_of, lapack, spread

TYPICAL = np.float32(0.5)
"""Curvature of a typical row's loss, of the 1 it has at most: what preconditioners of tall designs take it for."""

FLATTENED = 0.2
"""Mean curvature of a problem's losses below which `TYPICAL` is too far from it."""


class Pull(NamedTuple):
    """Where the objective pulls coefficients.

    Attributes:
        gradient: of the whole objective, [designs, problems * outputs, width].
        steepest: what the preconditioner makes of it.
        image: scores of that, where the space needs them anyway.
    """

    gradient: Real
    steepest: Real
    image: Real | None = None

    def plus(self, length: Real, other: Pull) -> Pull:
        """The sum with so much of another."""
        image = None if self.image is None or other.image is None else self.image + length * other.image
        return Pull(self.gradient + length * other.gradient, self.steepest + length * other.steepest, image)

    def part(self, designs: npt.NDArray[Any] | slice) -> Pull:
        """That of some designs."""
        image = None if self.image is None else self.image[designs]
        return Pull(self.gradient[designs], self.steepest[designs], image)


class Space(Protocol):
    """Coefficients of the designs of a batch, and a preconditioner for them."""

    @property
    def width(self) -> int:
        """Coefficients per output."""

    def pull(self, loss: Loss, coefficients: Real, scores: Real, slopes: Real) -> Pull:
        """The gradient at coefficients with these scores, and a loss with these slopes in the scores."""

    def along(self, loss: Loss, vector: Real, pulled: Pull) -> Real:
        """Inner products [designs, problems] of a vector of coefficients and a gradient."""

    def ray(self, loss: Loss, vector: Real, ray: Real, factor: Real, pulled: Pull) -> Real:
        """Scores of a vector that was ``factor`` [designs, problems] times another with scores ``ray``, which may be
        overwritten, minus the preconditioned gradient."""

    def stiffness(self, loss: Loss, vector: Real, ray: Real) -> tuple[Real, Real]:
        """How much the penalty curves along a vector with scores ``ray``, and the least to divide by."""

    def learn(self, loss: Loss, coefficients: Real, scores: Real, said: Real) -> Space | None:
        """The same with a preconditioner for Hessians near these coefficients, or None if it knows no better one."""

    def part(self, loss: Loss, designs: npt.NDArray[Any] | slice) -> Space:
        """The coefficients of some of the designs of a loss."""


@dataclass(frozen=True)
class Gram:
    """What all problems of a design have in common.

    Attributes:
        square: X'X of the features, which have mean 0, [designs, width - 1, width - 1].
        counts: rows of a problem, [designs], which is the same of the column of ones.
        ridge: what the penalty adds to the diagonal, [designs, width].
        inverse: of ``TYPICAL`` times that of the features, plus the ridge, and of the counts, [designs, width, width].
        known: `principal`, where it was computed before.
    """

    square: Real
    counts: Real
    ridge: Real
    inverse: Real
    known: tuple[Real, Real] | None = None

    @staticmethod
    def of(square: Real, counts: Real, penalty: float) -> Gram:
        """Of X'X of the features over so many rows."""
        designs, width, _ = square.shape
        inverse, ridge = (
            np.zeros((designs, width + 1, width + 1), square.dtype),
            np.zeros((designs, width + 1), square.dtype),
        )
        ridge[:, :width] = (counts * penalty)[:, None]
        for found, products, penalties in zip(inverse, square, ridge, strict=True):
            typical = TYPICAL * products
            typical.ravel()[:: width + 1] += penalties[:width]
            found[:width, :width] = inverse_of(typical, accurate=False)
        inverse[:, width, width] = 1 / counts
        return Gram(square, counts, ridge, inverse)

    @cached_property
    def principal(self) -> tuple[Real, Real]:
        """Eigenvalues [designs, width] and eigenvectors of the products: principal components, and the intercept."""
        if self.known is not None:
            return self.known
        spectrum, basis = np.empty_like(self.ridge), np.zeros_like(self.inverse)
        (decompose,) = lapack(self.square.dtype.char, "syevd")  # in float32 faster than numpy's
        for design, products in enumerate(self.square):
            values, vectors, failed = decompose(products)
            if failed:
                raise np.linalg.LinAlgError("the principal components did not converge")
            spectrum[design, :-1], basis[design, :-1, :-1] = np.maximum(values, 0), vectors
        spectrum[:, -1], basis[:, -1, -1] = self.counts, 1
        return spectrum, basis

    def part(self, designs: npt.NDArray[Any] | slice) -> Gram:
        """That of some designs."""
        known = None
        if "principal" in self.__dict__:  # else nobody asked for it
            spectrum, basis = self.principal
            known = spectrum[designs], basis[designs]
        return Gram(self.square[designs], self.counts[designs], self.ridge[designs], self.inverse[designs], known)


@dataclass(frozen=True)
class Tall:
    """More rows than features: a coefficient per feature, and the intercept. Features have one scale for all problems;
    that of a problem's own training rows is in its penalties.

    Attributes:
        design: features and a last row of ones, [designs, width, n], which may serve several sets of training rows; of
            blocks [designs * blocks, width, places], 0 at empty places.
        penalties: on squared coefficients, [designs, problems * outputs or 1, width].
        gram: of the features, which preconditions.
        shrinkage: what its principal components are multiplied with for each problem, [designs, problems, width], where
            that is known better than from its inverse.
        lift: vectors [designs, problems, width] whose outer products each problem adds to that.
    """

    design: Real
    penalties: Real
    gram: Gram
    shrinkage: Real | None = None
    lift: Real | None = None

    @property
    def width(self) -> int:
        """Coefficients per output."""
        return int(self.design.shape[1])

    def pull(self, loss: Loss, coefficients: Real, scores: Real, slopes: Real) -> Pull:
        del scores
        gradient = loss.total(gathered(slopes, self.design))
        gradient += self.penalties * coefficients
        return Pull(gradient, self.precondition(gradient))

    def ray(self, loss: Loss, vector: Real, ray: Real, factor: Real, pulled: Pull) -> Real:
        del factor, pulled
        return self.scores(loss, vector, ray)

    def scores(self, loss: Loss, vector: Real, out: Real | None = None) -> Real:
        """Of the rows, [designs, problems * outputs, n]."""
        return spread(loss.lines(vector), self.design, out)

    def precondition(self, gradient: Real) -> Real:
        """What stands for the inverse Hessian times a gradient."""
        if self.shrinkage is None:
            direction: Real = gradient @ self.gram.inverse
        else:
            basis = self.gram.principal[1]
            direction = ((gradient @ basis) * self.shrinkage) @ basis.transpose(0, 2, 1)
        if self.lift is not None:
            direction += np.vecdot(gradient, self.lift)[:, :, None] * self.lift
        return direction

    def along(self, loss: Loss, vector: Real, pulled: Pull) -> Real:
        return loss.dot(vector, pulled.gradient)

    def stiffness(self, loss: Loss, vector: Real, ray: Real) -> tuple[Real, Real]:
        del ray
        found = loss.dot(self.penalties * vector, vector)
        return found, found

    def learn(self, loss: Loss, coefficients: Real, scores: Real, said: Real) -> Tall | None:
        """For two classes.

        The better classes are told apart, the surer are most rows, and the flatter their losses: the Hessian is near
        (mean curvature) X'X + penalty, which differs by problem but is always diagonal in the principal components.
        Losses are flattest along the coefficients w: for normal features E[c(w'x) xx'] = a S + b Sww'S, S = E[xx'] (by
        Stein's lemma), one eigenvalue unlike the others, which ``lift`` makes equal. Features that are not normal cost
        iterations, nothing else.
        """
        if loss.outputs > 1:
            return None
        kind = coefficients.dtype
        counts = loss.counts.astype(kind, copy=False)
        curvature = 1 - loss.over_rows(loss.weigh(said.copy()), said) / counts
        shrinkage = None
        assumed: Real = np.array(TYPICAL)
        if curvature.min() < FLATTENED:
            assumed = np.maximum(curvature, 1e-4)
            spectrum, _ = self.gram.principal
            inverse = assumed[:, :, None] * spectrum[:, None] + self.gram.ridge[:, None]
            shrinkage = (1 / inverse).astype(kind, copy=False)
        squares = loss.weigh(scores * scores)
        total, penalty = loss.sums(squares), loss.dot(self.penalties * coefficients, coefficients)
        found = np.maximum(total - loss.over_rows(squares, said * said) + penalty, 1e-30)  # curvature along w
        expected = assumed * total + penalty
        gain = np.maximum((curvature / assumed) * expected / found - 1, 0)
        factor = np.sqrt(gain / np.maximum(expected, 1e-30)).astype(kind, copy=False)
        return Tall(self.design, self.penalties, self.gram, shrinkage, factor[:, :, None] * coefficients)

    def part(self, loss: Loss, designs: npt.NDArray[Any] | slice) -> Tall:
        shrinkage = None if self.shrinkage is None else self.shrinkage[designs]
        lift = None if self.lift is None else self.lift[designs]
        return Tall(loss.some(self.design, designs), self.penalties[designs], self.gram.part(designs), shrinkage, lift)


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

    def pull(self, loss: Loss, coefficients: Real, scores: Real, slopes: Real) -> Pull:
        gradient = slopes - loss.weigh(scores.copy())
        gradient += coefficients
        return Pull(gradient, gradient, gradient @ self.kernel)

    def ray(self, loss: Loss, vector: Real, ray: Real, factor: Real, pulled: Pull) -> Real:
        del vector
        assert pulled.image is not None
        ray *= loss.each(factor)
        ray -= pulled.image
        return ray

    def along(self, loss: Loss, vector: Real, pulled: Pull) -> Real:
        assert pulled.image is not None
        return loss.dot(vector, pulled.image)

    def stiffness(self, loss: Loss, vector: Real, ray: Real) -> tuple[Real, Real]:
        longest = loss.dot(vector, ray)  # a difference follows: rounding can leave nothing of it
        return longest - loss.dot(loss.weigh(ray.copy()), ray), 1e-3 * longest

    def learn(self, loss: Loss, coefficients: Real, scores: Real, said: Real) -> Flat | None:
        del loss, coefficients, scores, said
        return None

    def part(self, loss: Loss, designs: npt.NDArray[Any] | slice) -> Flat:
        del loss
        return Flat(self.kernel[designs])
