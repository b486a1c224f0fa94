"""Closed-form classifiers on the same standardised features: second opinions on what a logistic probe finds.

- ``ridge``: least squares on -1 and 1 with the probes' penalty.
- ``lda``: linear discriminant analysis, the pooled within-class covariance shrunk as Ledoit and Wolf (2004) derive.
- ``mean_difference``: the difference of the class means, threshold half way.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from levelt.probes.grid import Floats, Labels, designs_of, held_out_rows

LEAST = 1e-9
"""Least shrinkage: a covariance stays invertible where rows take few distinct values (one position's vectors, say)."""

COMPANIONS = ("ridge", "lda", "mean_difference")


def companions_out_of_fold(
    activations: npt.ArrayLike, labels: Labels, assignments: Labels, penalty: float
) -> dict[str, Floats]:
    """Out-of-fold scores (positive: class 1) of every companion, [targets, repeats, n, layers] each.

    Args: see `levelt.probes.grid.out_of_fold`.
    """
    values = np.asarray(activations)
    tested = held_out_rows(assignments)
    shape = (len(labels), len(assignments), *values.shape[:2])
    found = {name: np.full(shape, np.nan) for name in COMPANIONS}
    for pairs, designs in designs_of(values, ~tested):
        for (layer, cut), design in zip(pairs, designs, strict=True):
            rows = tested[cut]
            repeat = cut * len(assignments) // len(tested)
            for name, scores in companions(design, labels, ~rows, penalty).items():
                found[name][:, repeat, rows, layer] = scores[:, rows]
    return found


def companions(design: Floats, labels: Labels, trained: npt.NDArray[np.bool_], penalty: float) -> dict[str, Floats]:
    """Scores of all rows by companion, [targets, n] each.

    Args:
        design: features standardised on the training rows, [d, n].
        labels: 0 or 1, [targets, n].
        trained: training rows, [n].
    """
    ambient = len(design)
    if ambient > trained.sum():
        design = _row_space(design, trained)
    used = design[:, trained]
    rows = used.shape[1]
    gram = used @ used.T / rows
    signs = np.where(labels[:, trained] == 1, 1.0, -1.0)
    offsets = signs.mean(axis=1)
    ridge = np.linalg.solve(gram + penalty * np.eye(len(gram)), used @ (signs - offsets[:, None]).T / rows)
    found = {"ridge": ridge.T @ design + offsets[:, None], "lda": [], "mean_difference": []}
    for sign in signs:
        means = np.stack([used[:, sign == side].mean(axis=1) for side in (-1, 1)])
        counts = np.array([(sign == side).sum() for side in (-1, 1)])
        inner = used - means[(sign > 0).astype(int)].T
        covariance = _shrunk(inner, ambient)
        difference, middle = means[1] - means[0], means.mean(axis=0)
        discriminant = np.linalg.solve(covariance, difference)
        prior = np.log(counts[1] / counts[0])
        found["lda"].append(discriminant @ design - discriminant @ middle + prior)
        found["mean_difference"].append(difference @ design - difference @ middle)
    return {name: np.asarray(scores) for name, scores in found.items()}


def _row_space(design: Floats, trained: npt.NDArray[np.bool_]) -> Floats:
    """The design in an orthonormal basis of its training rows: what lies outside it has no effect on training."""
    used = design[:, trained]
    values, vectors = np.linalg.eigh(used.T @ used)
    kept = values > values[-1] * 1e-12
    basis = used @ (vectors[:, kept] / np.sqrt(values[kept]))
    rotated: Floats = basis.T @ design
    return rotated


def _shrunk(inner: Floats, ambient: int) -> Floats:
    """Ledoit-Wolf covariance of centred columns [d, n] whose ``ambient`` features beyond d are all zero."""
    rows = inner.shape[1]
    sample = inner @ inner.T / rows
    level = np.trace(sample) / ambient or 1.0  # where nothing varies, any covariance does
    squares = float((sample**2).sum())
    distance = (squares - ambient * level**2) / ambient
    noise = (float(((inner**2).sum(axis=0) ** 2).sum()) / rows - squares) / (ambient * rows)
    weight = max(min(noise, distance) / distance, LEAST) if distance > 0 else 1.0
    shrunk: Floats = (1 - weight) * sample + weight * level * np.eye(len(sample))
    return shrunk
