"""Cheap random choices from a named generator: one block of uniform numbers at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draws:
    """Choices from a numpy generator, drawn in blocks: a call costs a list look-up, not a generator call."""

    def __init__(self, rng: np.random.Generator, block: int = 16_384) -> None:
        self._rng = rng
        self._block = block
        self._numbers: list[float] = []

    def uniform(self) -> float:
        """A number in [0, 1)."""
        if not self._numbers:
            self._numbers = self._rng.random(self._block).tolist()
        return self._numbers.pop()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, all equally likely."""
        return items[int(self.uniform() * len(items))]

    def shuffled(self, items: Sequence[T]) -> tuple[T, ...]:
        """The items in random order, all orders equally likely."""
        keys = [self.uniform() for _ in items]
        return tuple(items[index] for index in sorted(range(len(items)), key=keys.__getitem__))

    def weighted(self, items: Sequence[tuple[T, float]]) -> T:
        """One of (item, weight), in proportion to its weight."""
        left = self.uniform() * sum(weight for _, weight in items)
        for item, weight in items:
            left -= weight
            if left < 0:
                return item
        return items[-1][0]
