"""The best of several cells (layers) without the winner's curse: chosen on some groups, evaluated on the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from levelt.statistics.resampling import Floats, group_sums


@dataclass(frozen=True)
class Best:
    """The nested estimate of the best cell.

    Attributes:
        estimate: weighted mean over rows, each at the cell that was best on the other folds.
        naive: largest mean over all rows, which is too high on average.
        cells: the cell chosen for each fold, [folds].
        values: each row at its chosen cell, [n], for an interval.
    """

    estimate: float
    naive: float
    cells: npt.NDArray[np.int64]
    values: Floats


def nested_best(
    values: npt.ArrayLike, weights: npt.ArrayLike, codes: npt.ArrayLike, folds: int, generator: np.random.Generator
) -> Best:
    """Choose the cell with the largest weighted mean on all folds but one, evaluate it on that one, and so in turn.

    Args:
        values: [n, cells].
        weights: of the rows, [n], summing to 1.
        codes: group of each row, integers from 0; groups are not split between folds.
        folds: at most the number of groups.

    The first of equally good cells is chosen. The estimate is that of a cell chosen from (folds - 1) / folds of the
    rows: slightly pessimistic for the best cell of all rows.
    """
    rows, weight, group = np.asarray(values, dtype=np.float64), np.asarray(weights), np.asarray(codes)
    groups = int(group.max()) + 1
    if not 2 <= folds <= groups:
        raise ValueError(f"{folds} folds of {groups} group(s): a choice needs at least 2 folds and a group in each")
    fold_of_group = generator.permutation(groups) % folds
    fold = fold_of_group[group]
    sums = group_sums(rows * weight[:, None], fold, folds)
    others = (sums.sum(axis=0) - sums) / (1 - group_sums(weight, fold, folds))[:, None]
    chosen = np.round(others, 12).argmax(axis=1)  # sums of equal rows in another order are equal
    picked = rows[np.arange(len(rows)), chosen[fold]]
    return Best(float(weight @ picked), float((weight @ rows).max()), chosen, picked)
