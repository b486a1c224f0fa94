"""The penalty chosen in nested folds: no row helps to choose the penalty of a probe that it tests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from levelt.probes.grid import Floats, Labels, OutOfFold, fit_sets
from levelt.probes.memory import Room


@dataclass(frozen=True)
class Chosen:
    """Out-of-fold scores, and the penalty chosen for each target, repeat, fold and layer."""

    scores: OutOfFold
    penalties: Floats


def out_of_fold_chosen(
    activations: npt.ArrayLike,
    labels: Labels,
    assignments: Labels,
    *,
    penalties: Sequence[float],
    bound: float = 1e-8,
    room: Room | None = None,
) -> Chosen:
    """As `levelt.probes.grid.out_of_fold`, with the penalty of least log-loss in inner folds.

    The inner folds of an outer fold are the other outer folds, so they are grouped and stratified as those are, and
    the probes without folds f and g serve both: f validates them when g is tested, and g when f is.

    Raises:
        ValueError: fewer than three folds, or no penalty.
    """
    values, room = np.asarray(activations), room or Room()
    targets, (repeats, rows), layers = len(labels), assignments.shape, values.shape[1]
    folds = int(assignments.max()) + 1
    if folds < 3 or not len(penalties):
        raise ValueError(
            f"choosing among {len(penalties)} penalties needs at least one of them, and 3 folds, not {folds}"
        )
    logits = np.full((targets, repeats, rows, layers), np.nan)
    chosen = np.empty((targets, repeats, folds, layers))
    bounds = np.zeros((targets, layers))
    pairs = list(itertools.combinations(range(folds), 2))
    signs = np.where(labels == 1, 1.0, -1.0)
    for repeat, assignment in enumerate(assignments):
        losses = np.zeros((len(penalties), targets, folds, layers))
        without = np.stack([(assignment != first) & (assignment != second) for first, second in pairs])
        for at, penalty in enumerate(penalties):
            for layer, pair, scores, _ in fit_sets(values, labels, without, penalty, bound, room):
                loss = np.logaddexp(0, -signs * scores)
                first, second = pairs[pair]
                losses[at, :, second, layer] += loss[:, assignment == first].sum(axis=1)
                losses[at, :, first, layer] += loss[:, assignment == second].sum(axis=1)
        best = losses.argmin(axis=0)
        chosen[:, repeat] = np.asarray(penalties)[best]
        tested = assignment == np.arange(folds)[:, None]
        for at in np.unique(best):
            for layer, fold, scores, certified in fit_sets(values, labels, ~tested, penalties[at], bound, room):
                mine = best[:, fold, layer] == at
                logits[np.ix_(mine, [repeat], tested[fold], [layer])] = scores[mine][:, None, tested[fold], None]
                bounds[mine, layer] = np.maximum(bounds[mine, layer], certified[mine])
    return Chosen(OutOfFold(logits, bounds), chosen)
