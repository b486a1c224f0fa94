"""The probes of one set of activations: every layer and fold, from arrays to out-of-fold scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from levelt.probes.folds import grouped_folds
from levelt.probes.solver import fit

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold log-odds of class 1, [repeats, n, layers], and the worst certificate of each layer's probes."""

    logits: Floats
    bounds: Floats


def out_of_fold(
    activations: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    folds: int,
    repeats: int,
    penalty: float,
    bound: float,
    generator: np.random.Generator,
) -> OutOfFold:
    """Probe every layer of ``activations`` [n, layers, d] for ``labels`` [n] with folds grouped by ``groups`` [n].

    Raises:
        FoldError, ConvergenceError, ValueError: from folding and fitting, unchanged.
    """
    values = np.asarray(activations, dtype=np.float64)
    target = np.asarray(labels)
    rows, layers, _ = values.shape
    logits = np.full((repeats, rows, layers), np.nan)
    bounds = np.zeros(layers)
    for repeat in range(repeats):
        assignment = grouped_folds(target, groups, folds, generator)
        for fold in range(folds):
            train, test = assignment != fold, assignment == fold
            for layer in range(layers):
                probe = fit(values[train, layer], target[train], penalty, bound)
                logits[repeat, test, layer] = probe.logits(values[test, layer])
                bounds[layer] = max(bounds[layer], probe.bound)
    return OutOfFold(logits, bounds)
