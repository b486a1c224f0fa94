"""Memory for arrays that many fits need one after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

LINE = 64
"""Bytes of a cache line, which a vector register fills."""


def aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array to be filled that starts with a cache line: else every vector read from it may take two, and products
    with it a quarter longer."""
    kind = np.dtype(dtype)
    return _array(np.empty(math.prod(shape) * kind.itemsize + LINE, dtype=np.uint8), shape, kind)


class Room:
    """Arrays to be filled whose memory the next of their name takes over: memory new from the system costs as much as
    filling it twice."""

    def __init__(self) -> None:
        self._held: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """As `aligned`; ends the array of this name that was given out before."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize + LINE
        if name not in self._held or self._held[name].size < size:
            self._held[name] = np.empty(size, dtype=np.uint8)
        return _array(self._held[name], shape, kind)


def _array(held: npt.NDArray[np.uint8], shape: tuple[int, ...], kind: np.dtype[Any]) -> npt.NDArray[Any]:
    start = -held.ctypes.data % LINE
    return held[start : start + math.prod(shape) * kind.itemsize].view(kind).reshape(shape)
