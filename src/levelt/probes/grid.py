"""The probes of one set of activations: every layer, fold and target, from arrays to out-of-fold scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from levelt.probes.solver import fit_batch, standardise

Floats = npt.NDArray[np.float64]

CHUNK_VALUES = 700_000
"""Feature values of the designs solved together: few enough to stay in a core's cache, many enough to hide Python."""


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold log-odds of class 1, [targets, repeats, n, layers], and the worst certificate of each layer's
    probes, [targets, layers]."""

    logits: Floats
    bounds: Floats


def out_of_fold(
    activations: npt.ArrayLike,
    labels: npt.NDArray[np.integer],
    assignments: npt.NDArray[np.integer],
    *,
    penalty: float,
    bound: float = 1e-8,
) -> OutOfFold:
    """Probe every layer of ``activations`` for every target, leaving out each fold in turn.

    Args:
        activations: [n, layers, d].
        labels: 0 or 1, [targets, n].
        assignments: test fold of every row in each repeat, [repeats, n] (see `grouped_folds`).
        penalty, bound: see `levelt.probes.solver.fit`.

    Raises:
        ConvergenceError, ValueError: from fitting, unchanged.
    """
    values = np.asarray(activations)
    rows, layers, width = values.shape
    held_out = [(repeat, fold) for repeat, part in enumerate(assignments) for fold in range(int(part.max()) + 1)]
    trained = np.stack([assignments[repeat] != fold for repeat, fold in held_out]).astype(np.float64)
    share = trained / trained.sum(axis=1, keepdims=True)
    logits = np.full((len(labels), len(assignments), rows, layers), np.nan)
    bounds = np.zeros((len(labels), layers))
    jobs = [(layer, cut) for layer in range(layers) for cut in range(len(held_out))]
    together = max(1, CHUNK_VALUES // (rows * width))
    start = 0
    while start < len(jobs):
        part = jobs[start : start + max(together, 1)]
        start += len(part)
        designs, kept = [], []
        for layer in dict.fromkeys(layer for layer, _ in part):
            cuts = [cut for of, cut in part if of == layer]
            features = np.ascontiguousarray(values[:, layer].T, dtype=np.float64)
            designs.append(standardise(features, share[cuts])[0])
            kept += [(layer, cut) for cut in cuts]
        batch = np.concatenate(designs) if len(designs) > 1 else designs[0]
        cuts = [cut for _, cut in kept]
        found = fit_batch(batch, np.broadcast_to(labels, (len(kept), *labels.shape)), trained[cuts], penalty, bound)
        for at, (layer, cut) in enumerate(kept):
            repeat, fold = held_out[cut]
            test = assignments[repeat] == fold
            logits[:, repeat, test, layer] = found.scores[at, :, 0][:, test]
            bounds[:, layer] = np.maximum(bounds[:, layer], found.bounds[at])
    return OutOfFold(logits, bounds)
