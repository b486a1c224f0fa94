"""Cross-validation folds: a minimal pair never straddles two folds, and labels are balanced in each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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
    assignment = deal_folds(labels, groups, folds, generator)
    check_folds(assignment, labels, folds)
    return assignment


def deal_folds(
    strata: npt.ArrayLike, groups: npt.ArrayLike, folds: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Folds balanced over strata as well as the groups allow, [n]; a stratum may be too rare to be in every fold.

    Groups are dealt in random order, the biggest and those of like composition first, each to the fold in which its
    strata are scarcest.

    Raises:
        FoldError: fewer groups than folds.
    """
    names, stratum = np.unique(np.asarray(strata), return_inverse=True)
    members, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(members) < folds:
        raise FoldError(f"{len(members)} group(s) cannot fill {folds} folds; use more samples or fewer folds")
    held = np.zeros((len(members), len(names)))
    np.add.at(held, (group, stratum), 1)
    order = generator.permutation(len(members))
    order = order[np.lexsort((*held[order].T, -held[order].sum(axis=1)))]
    scarcity = 1 / held.sum(axis=0)
    filled = np.zeros((folds, len(names)))
    sizes = np.zeros(folds)
    fold_of = np.empty(len(members), dtype=np.int64)
    for member in order:
        crowding = filled @ (held[member] * scarcity)
        ties = np.flatnonzero(crowding <= crowding.min() + 1e-9)
        chosen = ties[np.argmin(sizes[ties])]
        fold_of[member] = chosen
        filled[chosen] += held[member]
        sizes[chosen] += held[member].sum()
    assignment: npt.NDArray[np.int64] = fold_of[group]
    return assignment


def check_folds(assignment: npt.NDArray[np.int64], labels: npt.ArrayLike, folds: int) -> None:
    """Make sure that every fold has every label, in its test rows and in its training rows.

    Raises:
        FoldError: naming the fold and what it lacks.
    """
    target = np.asarray(labels)
    classes = set(np.unique(target))
    for fold in range(folds):
        for part, rows in (("training", assignment != fold), ("test", assignment == fold)):
            missing = classes - set(np.unique(target[rows]))
            if missing or len(classes) < 2:
                raise FoldError(
                    f"fold {fold}: the {part} rows have no label {sorted(missing) or 'but ' + str(sorted(classes))}; "
                    "use more samples or fewer folds"
                )
