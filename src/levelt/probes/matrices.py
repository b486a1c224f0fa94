"""Products, squares and inverses of matrices, in the shapes in which BLAS and LAPACK are fast.

Arrays are laid out as in `levelt.probes.loss`: vectors [designs, lines, .] and features [designs, width, n].
"""

from __future__ import annotations

import contextlib
import math
from functools import cache
from typing import Any

import numpy as np
from scipy.linalg import get_blas_funcs, get_lapack_funcs

from levelt.probes.loss import Real

UNPACKED, UNPACKED_SUMS = 1_000_000, 1200
"""Multiplications up to which OpenBLAS (with AVX-512) reads a product's operands where they lie instead of copying them
first, 1.5 to 2 times as fast for a dozen problems; and the values that sums over rows may have for that."""

SHORTEST, FEWEST = 256, 6
"""Rows and lines of a product below which calling it costs more than that gains."""

HALVED = 64, 256
"""Rows of matrices whose inverse is put together from those of halves."""


def spread(vectors: Real, design: Real, out: Real | None = None) -> Real:
    """``vectors @ design``, [designs, m, width] by [designs, width, n], some columns at a time if that is faster."""
    lines, (width, rows) = vectors.shape[1], design.shape[1:]
    found = np.empty((*vectors.shape[:2], rows), vectors.dtype) if out is None else out
    if lines * width * rows <= UNPACKED:
        return np.matmul(vectors, design, out=found)
    at_once = _unpacked(lines, width, rows)
    for start in range(0, rows, at_once):
        part = slice(start, start + at_once)
        np.matmul(vectors, design[:, :, part], out=found[:, :, part])
    return found


def gathered(vectors: Real, design: Real) -> Real:
    """``vectors @ design.T``, [designs, m, n] by [designs, width, n], some lines and rows at a time if that is
    faster."""
    lines, (width, rows) = vectors.shape[1], design.shape[1:]
    found = np.empty((*vectors.shape[:2], width), vectors.dtype)
    if lines * width <= UNPACKED_SUMS and lines * width * rows <= UNPACKED:
        return np.matmul(vectors, design.transpose(0, 2, 1), out=found)
    together = _parts(lines, lines * width / UNPACKED_SUMS, FEWEST)
    at_once = _unpacked(together, width, rows)
    turned = design.transpose(0, 2, 1)
    for first in range(0, lines, together):
        some = slice(first, first + together)
        np.matmul(vectors[:, some, :at_once], turned[:, :at_once], out=found[:, some])
        for start in range(at_once, rows, at_once):
            part = slice(start, start + at_once)
            found[:, some] += vectors[:, some, part] @ turned[:, part]
    return found


def _unpacked(lines: int, width: int, rows: int) -> int:
    """Rows to multiply at once."""
    return _parts(rows, lines * width * rows / UNPACKED, SHORTEST)


def _parts(whole: int, parts: float, least: int) -> int:
    """Size of so many equal parts, or the whole if that is less than ``least``."""
    size = -(-whole // max(1, math.ceil(parts)))
    return size if size >= least else whole


def square_of(features: Real) -> Real:
    """X'X of blocks of features [blocks, width, n], over all of them: [width, width]."""
    (multiply,) = blas(features.dtype.char, "syrk")
    width = features.shape[1]
    half = np.zeros((width, width), features.dtype, order="F")
    for block in features:
        half = multiply(1.0, block.T, beta=1.0, c=half, trans=1, overwrite_c=1)
    return _mirrored(half)


def inverse_of(matrix: Real, accurate: bool = True) -> Real:
    """Inverse of a positive definite matrix by its Cholesky factor, 4 times as fast as the general one; or, if it need
    not be as accurate, by those of two halves, which is twice as fast for some hundred rows."""
    if not accurate and HALVED[0] < len(matrix) <= HALVED[1]:
        with contextlib.suppress(np.linalg.LinAlgError):  # rounding can undo what is left of the second half
            return _inverse_of_halves(matrix)
    factorise, invert = lapack(matrix.dtype.char, "potrf", "potri")
    factor, failed = factorise(matrix, lower=False)
    if failed:
        raise np.linalg.LinAlgError("the whitening matrix is not positive definite")
    upper, _ = invert(factor, lower=False)  # below it are zeros
    return _mirrored(upper)


def _mirrored(half: Real) -> Real:
    """A symmetric matrix of which one half is zeros."""
    whole: Real = half + half.T
    whole.ravel()[:: len(whole) + 1] /= 2
    return whole


def _inverse_of_halves(matrix: Real) -> Real:
    half = len(matrix) // 2
    whole = np.empty_like(matrix)
    first = inverse_of(matrix[:half, :half], accurate=False)
    across = matrix[half:, :half] @ first
    second = inverse_of(matrix[half:, half:] - across @ matrix[:half, half:], accurate=False)
    corner = second @ across
    whole[half:, half:] = second
    np.negative(corner, out=whole[half:, :half])
    whole[:half, half:] = whole[half:, :half].T
    np.add(first, across.T @ corner, out=whole[:half, :half])
    return whole


@cache
def lapack(kind: str, *names: str) -> Any:
    """LAPACK's functions for a precision."""
    return get_lapack_funcs(names, dtype=kind)


@cache
def blas(kind: str, *names: str) -> Any:
    """The same of BLAS."""
    return get_blas_funcs(names, dtype=kind)
