"""The probes of one set of activations: every layer, training set and target, from arrays to scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from levelt.probes.designs import TrainingSets, standardise
from levelt.probes.memory import Room
from levelt.probes.solver import Batch, fit_batch, fit_shared

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer]

CHUNK_VALUES = 260_000
"""Feature values of the designs solved together: a megabyte in float32, which stays in a core's cache."""

CHUNK_SHARED, ARRAYS = 900_000, 6
"""Feature values of designs with the same training sets that are prepared and certified together, and values of so many
arrays of their scores: enough that what this costs once is small beside them."""


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold log-odds of class 1, [targets, repeats, n, layers], and the worst certificate of each layer's
    probes, [targets, layers]."""

    logits: Floats
    bounds: Floats


def held_out_rows(assignments: Labels) -> npt.NDArray[np.bool_]:
    """Test rows of every fold of every repeat: [repeats * folds, n], repeat by repeat."""
    return np.concatenate([part == np.arange(part.max() + 1)[:, None] for part in assignments])


def designs_of(activations: npt.ArrayLike, trained: npt.ArrayLike) -> Iterator[tuple[list[tuple[int, int]], Floats]]:
    """Standardised features of every layer for every training set, a chunk at a time.

    Args:
        activations: [n, layers, d].
        trained: training rows, [sets, n].

    Yields:
        The (layer, set) pairs of the chunk, and their designs [pairs, d, n].

    Raises:
        ValueError: a feature is not finite.
    """
    values, used = np.asarray(activations), np.asarray(trained, dtype=np.float64)
    rows, layers, width = values.shape
    share = used / used.sum(axis=1, keepdims=True)
    pairs = [(layer, at) for layer in range(layers) for at in range(len(used))]
    together = max(1, CHUNK_VALUES // (rows * width))
    for start in range(0, len(pairs), together):
        part = pairs[start : start + together]
        made = []
        for layer in dict.fromkeys(layer for layer, _ in part):
            features = np.ascontiguousarray(values[:, layer].T, dtype=np.float64)
            made.append(standardise(features, share[[at for of, at in part if of == layer]])[0])
        yield part, np.concatenate(made) if len(made) > 1 else made[0]


def fit_sets(
    activations: npt.ArrayLike,
    labels: Labels,
    trained: npt.NDArray[np.bool_],
    penalty: float,
    bound: float,
    room: Room | None = None,
) -> Iterator[tuple[int, int, Floats, Floats]]:
    """Probes of every layer on every training set.

    Args:
        activations: [n, layers, d].
        labels: 0 or 1, [targets, n].
        trained: training rows, [sets, n].
        penalty, bound, room: see `levelt.probes.solver.fit_shared`.

    Yields:
        layer, training set, log-odds of class 1 of all rows [targets, n], certificates [targets].
    """
    values = np.asarray(activations)
    large = 2 * trained.sum(axis=1) >= trained.shape[1]
    for layers, found in _shared(values, labels, trained[large], penalty, bound, room or Room()):
        for place, layer in enumerate(layers):
            scores = found.scores[place, :, 0].reshape(-1, *labels.shape)
            bounds = found.bounds[place].reshape(-1, len(labels))
            for at, which in enumerate(np.flatnonzero(large)):
                yield layer, int(which), scores[at], bounds[at]
    small = np.flatnonzero(~large)
    if not len(small):
        return
    weights = trained[small].astype(np.float64)
    for pairs, designs in designs_of(values, trained[small]):
        sets = [at for _, at in pairs]
        targets = np.broadcast_to(labels, (len(pairs), *labels.shape))
        batch = fit_batch(designs, targets, weights[sets], penalty, bound)
        for place, (layer, at) in enumerate(pairs):
            yield layer, int(small[at]), batch.scores[place, :, 0], batch.bounds[place]


def _shared(
    values: npt.NDArray[Any], labels: Labels, trained: npt.NDArray[np.bool_], penalty: float, bound: float, room: Room
) -> Iterator[tuple[range, Batch]]:
    """Probes of every layer, a chunk of layers at a time, on training sets that have most rows in common."""
    if not len(trained):
        return
    rows, layers, width = values.shape
    sets = TrainingSets.of(trained.astype(np.float64), width)
    size = rows * (width + ARRAYS * len(labels) * len(trained))
    parts = -(-layers // max(1, CHUNK_SHARED // size))
    for number in range(parts):
        part = range(layers * number // parts, layers * (number + 1) // parts)
        features = values[:, part.start : part.stop].transpose(1, 0, 2)
        targets = np.broadcast_to(labels, (len(part), *labels.shape))
        yield part, fit_shared(features, targets, sets, penalty, bound, room=room)


def out_of_fold(
    activations: npt.ArrayLike,
    labels: Labels,
    assignments: Labels,
    *,
    penalty: float,
    bound: float = 1e-8,
    room: Room | None = None,
) -> OutOfFold:
    """Probe every layer for every target, leaving out each fold in turn.

    Args:
        activations: [n, layers, d].
        labels: 0 or 1, [targets, n].
        assignments: test fold of every row in each repeat, [repeats, n] (see `levelt.probes.folds`).
        penalty, bound, room: see `levelt.probes.solver.fit_shared`.

    Raises:
        ConvergenceError, ValueError: from fitting, unchanged.
    """
    values = np.asarray(activations)
    tested = held_out_rows(assignments)
    logits = np.full((len(labels), len(assignments), *values.shape[:2]), np.nan)
    bounds = np.zeros((len(labels), values.shape[1]))
    for layer, cut, scores, certified in fit_sets(values, labels, ~tested, penalty, bound, room):
        rows = tested[cut]
        repeat = cut * len(assignments) // len(tested)
        logits[:, repeat, rows, layer] = scores[:, rows]
        bounds[:, layer] = np.maximum(bounds[:, layer], certified)
    return OutOfFold(logits, bounds)
