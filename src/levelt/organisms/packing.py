"""Token arrays for training: documents in one stream (base), conversations side by side in rows (sft)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from levelt.files import InputError

Encoded = tuple[Int32[np.ndarray, " tokens"], Float32[np.ndarray, " tokens"]]


@dataclass(frozen=True)
class Rows:
    """Packed rows: token ids, the loss weight of each token (as a target), and the segment it belongs to.

    Positions of different segments must not attend to each other; segment -1 is padding.
    """

    ids: Int32[np.ndarray, "rows length"]
    weights: Float32[np.ndarray, "rows length"]
    segments: Int32[np.ndarray, "rows length"]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Int32[np.ndarray, " n"]) -> Rows:
        """The rows with these numbers."""
        return Rows(self.ids[index], self.weights[index], self.segments[index])


def concatenate(parts: Sequence[Rows]) -> Rows:
    """The rows of several blocks, one after the other."""
    return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "weights", "segments")))


def stream(documents: Sequence[Encoded], rows: int, length: int, rng: np.random.Generator) -> Rows:
    """``rows`` rows cut from the documents in random order, one after the other, repeated as often as needed."""
    need = rows * length
    order: list[int] = []
    have = 0
    while have < need:
        for index in rng.permutation(len(documents)):
            order.append(int(index))
            have += len(documents[index][0])
            if have >= need:
                break
    ids = np.concatenate([documents[index][0] for index in order])[:need].reshape(rows, length)
    weights = np.concatenate([documents[index][1] for index in order])[:need].reshape(rows, length)
    return Rows(ids, weights, np.zeros_like(ids))


def side_by_side(
    conversations: Sequence[Encoded], rows: int, length: int, pad: int, rng: np.random.Generator, open_rows: int = 8
) -> Rows:
    """``rows`` rows of whole conversations in random order, each a segment of its own, padded at the end.

    A conversation goes into the first of a few open rows that has room, so that rows stay full and the order random.

    Raises:
        InputError: a conversation is longer than a row.
    """
    longest = max(len(ids) for ids, _ in conversations)
    if longest > length:
        raise InputError(f"organisms.sft.length is {length}, but a conversation has {longest} tokens: make it longer")
    packed = Rows(
        np.full((rows, length), pad, dtype=np.int32),
        np.zeros((rows, length), dtype=np.float32),
        np.full((rows, length), -1, dtype=np.int32),
    )
    used = np.zeros(rows, dtype=np.int64)
    segment = 0
    start = 0  # rows before this one are closed
    while start < rows:
        for index in rng.permutation(len(conversations)):
            ids, weights = conversations[index]
            while True:
                stop = min(start + open_rows, rows)
                free = [row for row in range(start, stop) if used[row] + len(ids) <= length]
                if free or start >= rows:
                    break
                start += 1
            if start >= rows:
                break
            row, at = free[0], used[free[0]]
            where = slice(at, at + len(ids))
            packed.ids[row, where], packed.weights[row, where], packed.segments[row, where] = ids, weights, segment
            packed.weights[row, at] = 0.0  # the first token of a segment has nothing before it
            used[row] += len(ids)
            segment += 1
    return packed
