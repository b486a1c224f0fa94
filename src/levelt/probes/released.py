"""The published probe trainer, as released, for comparison: many probes in one vectorised loop.

Methods/1 section 6 (Holmes ``probing_model.py`` and ``probing_worker.py`` at the pinned commit): dropout on the raw
input, one linear layer, cross-entropy of the softmax of the softmax, Adam with a linear warm-up and decay, early
stopping on the development loss, the best epoch kept. The folds are contiguous quarters of the file, a random fifth of
each training part is the development set, and the F1 reported as macro is that of the second class.

What differs: the random numbers (theirs are unseeded or torch's), and precision (float64 here). Gradients are written
out, since a linear layer needs no more; a test holds them against torch's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from levelt.probes.grid import Floats, Labels

EPOCHS, BATCH, PATIENCE = 20, 16, 10
RATE, WARM_UP, DROPOUT = 1e-3, 0.1, 0.2
DEVELOPMENT = 0.2
"""Share of the training rows on which the best epoch is chosen."""


@dataclass(frozen=True)
class Trained:
    """Linear layers of a batch of probes: weights [probes, d, 2] and biases [probes, 1, 2]."""

    weights: Floats
    biases: Floats

    def said(self, features: Floats) -> npt.NDArray[np.int64]:
        """Predicted class of rows [probes, n, d]: [probes, n]."""
        chosen: npt.NDArray[np.int64] = np.argmax(features @ self.weights + self.biases, axis=2)
        return chosen


def quarters(rows: int, folds: int = 4) -> npt.NDArray[np.int64]:
    """The released folds: contiguous parts of the file, whatever pairs they split. [n]"""
    parts = np.array_split(np.arange(rows), folds)
    return np.repeat(np.arange(folds), [len(part) for part in parts])


def released_out_of_fold(
    activations: npt.ArrayLike, labels: Labels, assignment: Labels, seeds: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Predicted class of every row by the released trainer, leaving out each fold in turn: [seeds, n, layers].

    Args:
        activations: [n, layers, d], raw: nothing is standardised.
        labels: 0 or 1, [n].
        assignment: test fold of every row, [n]; `quarters` gives the released one.
        seeds: probes per layer and fold (the paper trains 5).

    All layers and seeds of a fold are trained in one loop.
    """
    values = np.asarray(activations, dtype=np.float64)
    rows, layers, _ = values.shape
    by_layer = np.ascontiguousarray(values.transpose(1, 0, 2))
    said = np.full((seeds, rows, layers), -1, dtype=np.int64)
    for fold in range(int(assignment.max()) + 1):
        known = generator.permutation(np.flatnonzero(assignment != fold))
        cut = round(len(known) * DEVELOPMENT)
        development, training = known[:cut], known[cut:]
        test = np.flatnonzero(assignment == fold)
        every = np.repeat(by_layer, seeds, axis=0)  # layer by layer, its seeds together
        trained = train(every[:, training], labels[training], every[:, development], labels[development], generator)
        found = trained.said(every[:, test]).reshape(layers, seeds, len(test))
        said[:, test, :] = found.transpose(1, 2, 0)
    return said


def f1_of_second_class(labels: npt.ArrayLike, said: npt.ArrayLike) -> float:
    """What the release reports as macro F1."""
    truth, answer = np.asarray(labels) == 1, np.asarray(said) == 1
    wrong = int((truth != answer).sum())
    hit = int((truth & answer).sum())
    return 2 * hit / (2 * hit + wrong) if hit or wrong else 0.0


def train(
    features: Floats,
    labels: Labels,
    development: Floats,
    development_labels: Labels,
    generator: np.random.Generator,
    dropout: float = DROPOUT,
    epochs: int = EPOCHS,
) -> Trained:
    """Train one linear layer per probe, as released.

    Args:
        features: training rows of each probe, [probes, n, d].
        labels: 0 or 1, [n], the same for every probe.
        development, development_labels: rows for choosing the epoch, [probes, m, d] and [m].
    """
    probes, rows, width = features.shape
    reach = width**-0.5
    weights = generator.uniform(-reach, reach, (probes, width, 2))
    biases = generator.uniform(-reach, reach, (probes, 1, 2))
    moments = [np.zeros_like(part) for part in (weights, biases, weights, biases)]
    steps = -(-rows // BATCH)
    total = steps * epochs
    warm = round(WARM_UP * total)
    truth, goal = np.eye(2)[labels], np.eye(2)[development_labels]
    best = Trained(weights.copy(), biases.copy())
    least, waited = np.full(probes, np.inf), np.zeros(probes, dtype=int)
    number = 0
    for _ in range(epochs):
        order = np.stack([generator.permutation(rows) for _ in range(probes)])
        for start in range(0, rows, BATCH):
            chosen = order[:, start : start + BATCH]
            inputs = np.take_along_axis(features, chosen[:, :, None], axis=1)
            if dropout:
                inputs = inputs * (generator.random(inputs.shape) >= dropout) / (1 - dropout)
            slope = loss_slope(inputs @ weights + biases, truth[chosen]) / chosen.shape[1]
            gradients = [inputs.transpose(0, 2, 1) @ slope, slope.sum(axis=1, keepdims=True)]
            rate = RATE * (number / max(1, warm) if number < warm else (total - number) / max(1, total - warm))
            number += 1
            for part, gradient, first, second in zip(
                (weights, biases), gradients, moments[:2], moments[2:], strict=True
            ):
                first += 0.1 * (gradient - first)
                second += 0.001 * (gradient**2 - second)
                part -= rate * (first / (1 - 0.9**number)) / (np.sqrt(second / (1 - 0.999**number)) + 1e-8)
        found = loss(development @ weights + biases, goal)
        better = (found < least) & (waited < PATIENCE)  # a probe that waited too long has stopped
        least = np.where(better, found, least)
        waited = np.where(better, 0, waited + 1)
        best.weights[better], best.biases[better] = weights[better], biases[better]
        if (waited >= PATIENCE).all():
            break
    return best


def loss(logits: Floats, truth: Floats) -> Floats:
    """Mean cross-entropy of the softmax of the softmax, by probe: [probes]. It lies between 0.313 and 1.313."""
    twice = _softmax(_softmax(logits))
    mean: Floats = -np.log((twice * truth).sum(axis=2)).mean(axis=1)
    return mean


def loss_slope(logits: Floats, truth: Floats) -> Floats:
    """Its derivative in the logits, by row: [probes, n, 2]."""
    once = _softmax(logits)
    outer = _softmax(once) - truth
    slope: Floats = once * (outer - (once * outer).sum(axis=2, keepdims=True))
    return slope


def _softmax(values: Floats) -> Floats:
    powers: Floats = np.exp(values - values.max(axis=2, keepdims=True))
    powers /= powers.sum(axis=2, keepdims=True)
    return powers
