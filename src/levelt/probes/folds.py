"""Cross-validation folds: a minimal pair never straddles two folds, and labels are balanced in each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold


class FoldError(ValueError):
    """The rows cannot be folded as asked; the message says what is missing."""


def grouped_folds(
    labels: npt.ArrayLike, groups: npt.ArrayLike, folds: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """The test fold of every row, [n] integers in [0, folds).

    Rows of one group share a fold; folds are stratified by label (the published probes used contiguous quarters).

    Raises:
        FoldError: fewer groups than folds, or a fold whose training or test rows lack a label.
    """
    target, group = np.asarray(labels), np.asarray(groups)
    distinct = len(np.unique(group))
    if distinct < folds:
        raise FoldError(f"{distinct} group(s) cannot fill {folds} folds; use more samples or fewer folds")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=int(generator.integers(2**31)))
    assignment = np.full(len(target), -1, dtype=np.int64)
    for fold, (_, test) in enumerate(splitter.split(np.zeros(len(target)), target, group)):
        assignment[test] = fold
    classes = set(np.unique(target))
    for fold in range(folds):
        for part, rows in (("training", assignment != fold), ("test", assignment == fold)):
            missing = classes - set(np.unique(target[rows]))
            if missing or len(classes) < 2:
                raise FoldError(
                    f"fold {fold}: the {part} rows have no label {sorted(missing) or 'but ' + str(sorted(classes))}; "
                    "use more samples or fewer folds"
                )
    return assignment
