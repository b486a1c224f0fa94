"""How much data a probe needs: accuracy by training size, and the online description length in bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from levelt.probes.grid import Floats, Labels, fit_sets
from levelt.probes.memory import Room


@dataclass(frozen=True)
class Code:
    """The online code of labels given features (Voita and Titov 2020, prequential coding), by target and layer.

    Attributes:
        bits: length of the code, [targets, layers].
        uniform_bits: what the labels cost without features and without learning, n bits.
    """

    bits: Floats
    uniform_bits: float

    @property
    def compression(self) -> Floats:
        """How many times shorter than the uniform code."""
        return self.uniform_bits / self.bits


def shuffled_by_group(groups: npt.ArrayLike, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """An order of the rows in which groups stand together, in random order: [n] row numbers."""
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    place = generator.permutation(codes.max() + 1)
    return np.argsort(place[codes], kind="stable")


def group_end(groups: npt.NDArray[np.int64], wanted: int) -> int:
    """The first position, from ``wanted`` rows on, at which a run of equal ``groups`` ends."""
    end = min(max(wanted, 0), len(groups))
    while 0 < end < len(groups) and groups[end] == groups[end - 1]:
        end += 1
    return end


def online_code(
    activations: npt.ArrayLike,
    labels: Labels,
    groups: npt.ArrayLike,
    fractions: Sequence[float],
    generator: np.random.Generator,
    *,
    penalty: float,
    bound: float = 1e-8,
    room: Room | None = None,
) -> Code:
    """Bits to send the labels block by block, each coded by probes fitted on all blocks before it.

    The first block, and a block before which only one class was seen, is sent at one bit per label.

    Args:
        activations: [n, layers, d].
        labels: 0 or 1, [targets, n].
        groups: rows of one group are sent in one block, [n].
        fractions: ends of the blocks as shares of the rows, rising; the last is 1.
        penalty, bound, room: see `levelt.probes.solver.fit_shared`.
    """
    values = np.asarray(activations)
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    order = shuffled_by_group(codes, generator)
    ends = sorted({group_end(codes[order], round(fraction * len(order))) for fraction in fractions} - {0})
    bits = np.zeros((len(labels), values.shape[1])) + ends[0]
    known = np.zeros((len(ends) - 1, len(order)), dtype=bool)
    for place, end in enumerate(ends[:-1]):
        known[place, order[:end]] = True
    both = np.array([[len(np.unique(target[rows])) == 2 for rows in known] for target in labels])
    for seen in np.unique(both, axis=1).T:  # mostly every class is seen at once, and this is one pass
        blocks = np.flatnonzero((both == seen[:, None]).all(axis=0))
        for block in blocks:
            bits[~seen] += ends[block + 1] - ends[block]
        if not seen.any():
            continue
        for layer, place, scores, _ in fit_sets(values, labels[seen], known[blocks], penalty, bound, room):
            new = order[ends[blocks[place]] : ends[blocks[place] + 1]]
            wrong = np.where(labels[seen][:, new] == 1, -1.0, 1.0) * scores[:, new]
            bits[seen, layer] += np.logaddexp(0, wrong).sum(axis=1) / np.log(2)
    return Code(bits, float(len(order)))


def training_subsets(
    trained: npt.NDArray[np.bool_], groups: npt.ArrayLike, size: int, generator: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """For each training set [sets, n], the part of it with the first ``size`` rows (whole groups) in a random order.

    The same generator state gives nested parts for different sizes.
    """
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    order = shuffled_by_group(codes, generator)
    parts = np.zeros_like(trained)
    for part, rows in zip(parts, trained, strict=True):
        mine = order[rows[order]]
        part[mine[: group_end(codes[mine], size)]] = True
    return parts
