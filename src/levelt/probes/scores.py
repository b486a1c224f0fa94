"""How well scores tell two classes apart, for many columns of scores at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> Floats:
    """Area under the ROC curve: the share of (class 1, class 0) pairs ranked right, ties counting half.

    Args:
        labels: [n], 0 or 1.
        scores: [n, columns].

    Returns:
        [columns]; nan if a class is missing.
    """
    target, values = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    positive, negative = np.sort(values[target], axis=0), np.sort(values[~target], axis=0)
    if not len(positive) or not len(negative):
        return np.full(values.shape[1], np.nan)
    below = np.empty(values.shape[1])
    for column in range(values.shape[1]):
        sides = [np.searchsorted(negative[:, column], positive[:, column], side).sum() for side in ("left", "right")]
        below[column] = sum(sides) / 2
    return below / (len(positive) * len(negative))


def rates(labels: npt.ArrayLike, said: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Accuracy, balanced accuracy (mean hit rate of the classes) and macro F1 (mean of both classes' F1).

    Args:
        labels: [n], 0 or 1, both present.
        said: [..., n, columns], 0 or 1; leading axes (repeats) are averaged over.

    Returns:
        (accuracy, balanced accuracy, macro F1), each [columns].
    """
    target = np.asarray(labels, dtype=bool)
    answers = np.asarray(said, dtype=bool)
    true_positive = answers[..., target, :].sum(axis=-2)
    false_positive = answers[..., ~target, :].sum(axis=-2)
    positives, negatives = target.sum(), (~target).sum()
    true_negative, false_negative = negatives - false_positive, positives - true_positive
    wrong = false_positive + false_negative
    accuracy = 1 - wrong / len(target)
    balanced = (true_positive / positives + true_negative / negatives) / 2
    one = 2 * true_positive / (2 * true_positive + wrong + (true_positive + wrong == 0))
    other = 2 * true_negative / (2 * true_negative + wrong + (true_negative + wrong == 0))
    macro = (one + other) / 2
    axes = tuple(range(accuracy.ndim - 1))
    return accuracy.mean(axis=axes), balanced.mean(axis=axes), macro.mean(axis=axes)
