"""Coefficients of probes, their products with the features, and preconditioners for them.

A space belongs to a batch of designs, and serves all problems that share them: the inverse of X'X + penalty, or of
X'X/2 + penalty, which is nearer to most Hessians, makes features of any spectrum look alike. Arrays are laid out as in
`levelt.probes.loss`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.linalg import get_lapack_funcs

from levelt.probes.loss import Loss, Real

UNPACKED = 1_000_000
"""Multiplications up to which OpenBLAS (with AVX-512) reads a product's operands where they lie instead of copying them
first: 1.5 times as fast for a dozen problems."""

SHORTEST = 256
"""Rows of a product below which calling it costs more than that gains."""

TYPICAL = np.float32(0.5)
"""Curvature of a typical row's loss, of the 1 it has at most: what preconditioners of tall designs take it for."""

FLATTENED = 0.2
"""Mean curvature of a problem's losses below which `TYPICAL` is too far from it."""


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

    def learn(self, loss: Loss, coefficients: Real, scores: Real, said: Real) -> Space | None:
        """The same with a preconditioner for Hessians near these coefficients, or None if it knows no better one."""

    def part(self, designs: npt.NDArray[Any] | slice) -> Space:
        """The coefficients of some designs."""


@dataclass(frozen=True)
class Gram:
    """What all problems of a design have in common.

    Attributes:
        products: X'X of the features and a last column of ones, [designs, width, width]; of features with mean 0.
        ridge: what the penalty adds to its diagonal, [designs, width].
        inverse: of ``TYPICAL`` times the products plus the ridge, [designs, width, width].
        known: `principal`, where it was computed before.
    """

    products: Real
    ridge: Real
    inverse: Real
    known: tuple[Real, Real] | None = None

    @staticmethod
    def of(features: Real, rows: Real, counts: Real, penalty: float) -> Gram:
        """Of features [designs, width - 1, n] with row weights [designs, n] that sum to ``counts`` [designs]."""
        designs, width, _ = features.shape
        even = bool((rows == rows[0, 0]).all())
        products = np.zeros((designs, width + 1, width + 1), dtype=features.dtype)
        inverse, ridge = np.zeros_like(products), np.zeros((designs, width + 1), dtype=features.dtype)
        square, diagonal = products[:, :width, :width], np.arange(width)
        np.matmul(features if even else features * rows[:, None], features.transpose(0, 2, 1), out=square)
        if even:
            square *= rows[0, 0]
        products[:, width, width] = counts
        ridge[:, :width] = (counts * penalty)[:, None]
        for design in range(designs):
            typical = TYPICAL * square[design]
            typical[diagonal, diagonal] += ridge[design, :width]
            inverse[design, :width, :width] = inverse_of(typical)
        inverse[:, width, width] = 1 / counts
        return Gram(products, ridge, inverse)

    @cached_property
    def principal(self) -> tuple[Real, Real]:
        """Eigenvalues [designs, width] and eigenvectors of the products: principal components, and the intercept."""
        if self.known is not None:
            return self.known
        spectrum, basis = np.empty_like(self.ridge), np.zeros_like(self.products)
        (decompose,) = _lapack(self.products, "syevd")  # in float32 faster than numpy's
        for design, products in enumerate(self.products):
            values, vectors, failed = decompose(products[:-1, :-1])
            if failed:
                raise np.linalg.LinAlgError("the principal components did not converge")
            spectrum[design, :-1], basis[design, :-1, :-1] = np.maximum(values, 0), vectors
        spectrum[:, -1], basis[:, -1, -1] = self.products[:, -1, -1], 1
        return spectrum, basis

    def part(self, designs: npt.NDArray[Any] | slice) -> Gram:
        """That of some designs."""
        known = None
        if "principal" in self.__dict__:  # else nobody asked for it
            spectrum, basis = self.principal
            known = spectrum[designs], basis[designs]
        return Gram(self.products[designs], self.ridge[designs], self.inverse[designs], known)


@dataclass(frozen=True)
class Tall:
    """More rows than features: a coefficient per feature, and the intercept.

    Attributes:
        design: features and a last row of ones, [designs, width, n], which may serve several sets of training rows.
        across: the same by row, [designs, n, width]: products are fast along contiguous axes.
        scales: of the features for each problem, [designs, problems * outputs or 1, width].
        penalties: on squared coefficients, [designs, problems * outputs or 1, width].
        gram: of the features, which preconditions.
        shrinkage: what its principal components are multiplied with for each problem, [designs, problems, width], where
            that is known better than from its inverse.
        lift: what each problem adds to that: a vector [designs, problems, width] and the factor of its outer product
            [designs, problems, 1].
    """

    design: Real
    across: Real
    scales: Real
    penalties: Real
    gram: Gram
    shrinkage: Real | None = None
    lift: tuple[Real, Real] | None = None

    @property
    def width(self) -> int:
        """Coefficients per output."""
        return int(self.design.shape[1])

    def pull(self, loss: Loss, coefficients: Real, scores: Real, slopes: Real) -> tuple[Real, Real, Real]:
        del loss, scores
        gradient = products(slopes, self.across)
        gradient *= self.scales
        gradient += self.penalties * coefficients
        direction = self.precondition(gradient)
        return gradient, direction, self.scores(direction)

    def scores(self, vector: Real) -> Real:
        """Of the rows, [designs, problems * outputs, n]."""
        return spread(vector * self.scales, self.design)

    def precondition(self, gradient: Real) -> Real:
        """What stands for the inverse Hessian times a gradient."""
        if self.shrinkage is None:
            direction: Real = gradient @ self.gram.inverse
        else:
            basis = self.gram.principal[1]
            direction = ((gradient @ basis) * self.shrinkage) @ basis.transpose(0, 2, 1)
        if self.lift is not None:
            vector, factor = self.lift
            direction += (factor * np.vecdot(gradient, vector)[:, :, None]) * vector
        return direction

    def along(self, loss: Loss, vector: Real, pulled: tuple[Real, Real, Real]) -> Real:
        return loss.dot(vector, pulled[0])

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
        curvature = 1 - np.vecdot(loss.weigh(said.copy()), said) / loss.counts
        shrinkage = None
        assumed: Real = np.array(TYPICAL)
        if curvature.min() < FLATTENED:
            assumed = np.maximum(curvature, 1e-4)
            spectrum, _ = self.gram.principal
            inverse = assumed[:, :, None] * spectrum[:, None] + self.gram.ridge[:, None]
            shrinkage = (1 / inverse).astype(kind, copy=False)
        squares = loss.weigh(scores * scores)
        total, penalty = squares.sum(axis=2), loss.dot(self.penalties * coefficients, coefficients)
        found = np.maximum(total - np.vecdot(squares, said * said) + penalty, 1e-30)  # curvature along w
        expected = assumed * total + penalty
        gain = np.maximum((curvature / assumed) * expected / found - 1, 0)
        factor = (gain / np.maximum(expected, 1e-30)).astype(kind, copy=False)
        return dataclasses.replace(self, shrinkage=shrinkage, lift=(coefficients.copy(), factor[:, :, None]))

    def part(self, designs: npt.NDArray[Any] | slice) -> Tall:
        shrinkage = None if self.shrinkage is None else self.shrinkage[designs]
        lift = None if self.lift is None else (self.lift[0][designs], self.lift[1][designs])
        design, across, scales = self.design[designs], self.across[designs], self.scales[designs]
        return Tall(design, across, scales, self.penalties[designs], self.gram.part(designs), shrinkage, lift)


def spread(vectors: Real, design: Real) -> Real:
    """``vectors @ design``, [designs, m, width] by [designs, width, n], some columns at a time if that is faster."""
    at_once = _unpacked(vectors.shape[1], *design.shape[1:])
    if at_once >= design.shape[2]:
        return vectors @ design
    found = np.empty((*vectors.shape[:2], design.shape[2]), vectors.dtype)
    for start in range(0, design.shape[2], at_once):
        part = slice(start, start + at_once)
        np.matmul(vectors, design[:, :, part], out=found[:, :, part])
    return found


def products(vectors: Real, across: Real) -> Real:
    """``vectors @ across``, [designs, m, n] by [designs, n, width], some rows at a time if that is faster."""
    rows = across.shape[1]
    at_once = _unpacked(vectors.shape[1], across.shape[2], rows)
    found: Real = vectors[:, :, :at_once] @ across[:, :at_once]
    for start in range(at_once, rows, at_once):
        part = slice(start, start + at_once)
        found += vectors[:, :, part] @ across[:, part]
    return found


def _unpacked(vectors: int, width: int, rows: int) -> int:
    """Rows to multiply at once, in equal parts."""
    parts = -(-vectors * width * rows // UNPACKED)
    at_once = -(-rows // parts)
    return at_once if at_once >= SHORTEST else rows


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

    def learn(self, loss: Loss, coefficients: Real, scores: Real, said: Real) -> Flat | None:
        del loss, coefficients, scores, said
        return None

    def part(self, designs: npt.NDArray[Any] | slice) -> Flat:
        return Flat(self.kernel[designs])


def inverse_of(matrix: Real) -> Real:
    """Inverse of a positive definite matrix by its Cholesky factor, 4 times as fast as the general one."""
    factorise, invert = _lapack(matrix, "potrf", "potri")
    factor, failed = factorise(matrix, lower=False)
    if failed:
        raise np.linalg.LinAlgError("the whitening matrix is not positive definite")
    upper, _ = invert(factor, lower=False)  # below it are zeros
    whole: Real = upper + upper.T
    diagonal = np.arange(len(whole))
    whole[diagonal, diagonal] /= 2
    return whole


def _lapack(matrix: Real, *names: str) -> Any:
    """LAPACK's functions for the precision of a matrix."""
    return get_lapack_funcs(names, (matrix,))
