"""Models compared with each other: larger with smaller ones of a family, and later with earlier stages of a shape."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from levelt.statistics.resampling import percentile_interval
from levelt.studies.conditions import with_contrasts
from levelt.studies.estimates import Estimates, Resampling, stack
from levelt.studies.scope import INTERVENED, MODEL_COLUMNS
from levelt.vocabulary import STAGES

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_CELL = ["task", "condition", "quantity", "role", "target"]
_CHANGE = ["n", "groups", "before", "change", "ci_low", "ci_high", "p"]


def scale_table(
    outcomes: Estimates, information: Estimates, resampling: Resampling, control_tasks: Sequence[str]
) -> pd.DataFrame:
    """Growth along each ladder of sizes (one family, stage and seed), instruction first (methods/1 section 9, row 10).

    A row per step to the next larger model and, as span ``whole``, from the smallest to the largest; the model columns
    are those of the larger one. Models of equal size are not compared with each other, but each with those of the next
    size. ``change`` is the difference, ``growth`` the change relative to the smaller model.
    """
    both = _instruction_first([outcomes, information]).with_task_means(control_tasks)
    models = both.rows[MODEL_COLUMNS].drop_duplicates()
    steps = []
    for _, ladder in models.groupby(["family", "stage", "seed"], sort=False, dropna=False, observed=True):
        sizes = [list(of_size["model"]) for _, of_size in ladder.groupby("parameters", observed=True)]  # ascending
        spans = [(*pair, "step") for pair in itertools.pairwise(sizes)]
        spans += [(sizes[0], sizes[-1], "whole")] if len(sizes) > 1 else []
        steps += [(small, large, span) for less, more, span in spans for small, large in itertools.product(less, more)]
    changes = _between(both, pd.DataFrame(steps, columns=["smaller", "model", "span"]), "smaller")
    columns = [*MODEL_COLUMNS, "span", "smaller", *_CELL, *_CHANGE, "growth", "growth_ci_low", "growth_ci_high"]
    whole = changes.where((changes.rows["span"] == "whole").to_numpy()).mean(["family", "model", "smaller"])
    changes = with_contrasts(stack([changes, whole]))
    return resampling.table(changes, "change", test=True).join(_growth(changes, resampling))[columns]


def stages_table(
    outcomes: Estimates,
    information: Estimates,
    layers: Estimates,
    resampling: Resampling,
    control_tasks: Sequence[str],
) -> pd.DataFrame:
    """What a stage of post-training changes, instruction first (methods/1 section 9, row 12): model minus earlier model
    of the same shape and seed, per task and as means over tasks, shapes and families.

    Quantity ``peak_depth``: relative depth of the layer with most information.
    """
    both = _instruction_first([outcomes, information])
    pairs = _stage_pairs(both.rows)
    changes = with_contrasts(_between(both, pairs, "earlier").without("earlier")).with_means(control_tasks)
    columns = [*MODEL_COLUMNS, "earlier_stage", *_CELL, *_CHANGE]
    table = resampling.table(changes, "change", test=True)
    return pd.concat([table, _peaks(layers, pairs, resampling, control_tasks)], ignore_index=True)[columns]


def stage_layers_table(layers: Estimates, resampling: Resampling, control_tasks: Sequence[str]) -> pd.DataFrame:
    """The same by layer, for each task and the mean over tasks; ``p_adjusted`` covers the layers of a row's cell."""
    both = _instruction_first([layers]).with_task_means(control_tasks)
    changes = _between(both, _stage_pairs(both.rows), "earlier").without("earlier")
    table = resampling.table(changes, "change", test=True)
    table["p_adjusted"] = resampling.adjusted(changes, [n for n in changes.keys if n not in ("layer", "depth")])
    return table[[*MODEL_COLUMNS, "earlier_stage", *_CELL, "layer", "depth", *_CHANGE, "p_adjusted"]]


def _instruction_first(several: Sequence[Estimates]) -> Estimates:
    """All of them, with the instruction first."""
    together = stack(several)
    return together.where((together.rows["condition"] == INTERVENED).to_numpy())


def _stage_pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Models of the same shape and seed, each with every earlier stage: earlier, model, earlier_stage."""
    pairs = []
    models = rows[MODEL_COLUMNS].drop_duplicates()
    for _, shape in models.groupby(["family", "size", "seed"], sort=False, dropna=False, observed=True):
        known = shape[shape["stage"].isin(STAGES)].drop_duplicates("stage")
        ordered = known.iloc[np.argsort([STAGES.index(stage) for stage in known["stage"]])]
        for (_, earlier), (_, later) in itertools.combinations(ordered.iterrows(), 2):
            pairs.append((earlier["model"], later["model"], earlier["stage"]))
    return pd.DataFrame(pairs, columns=["earlier", "model", "earlier_stage"])


def _between(estimates: Estimates, pairs: pd.DataFrame, before: str) -> Estimates:
    """Each cell of ``pairs["model"]`` minus the same cell of the model named in the column ``before``."""
    on = [name for name in estimates.keys if name not in MODEL_COLUMNS]
    numbered = estimates.rows.assign(_at=np.arange(len(estimates.rows)))
    left = numbered.merge(pairs, on="model")
    right = numbered[["model", *on, "_at"]].rename(columns={"model": before})
    merged = left.merge(right, on=[before, *on], suffixes=("", "_right"))
    at, at_right = merged["_at"].to_numpy(dtype=np.int64), merged["_at_right"].to_numpy(dtype=np.int64)
    return estimates.changes(at, at_right, merged.drop(columns=["_at", "_at_right"]))


def _growth(changes: Estimates, resampling: Resampling) -> pd.DataFrame:
    """Change relative to ``before``; its interval takes ``before`` as it is."""
    before = changes.rows["before"].to_numpy(dtype=float)
    low, high = resampling.intervals(changes)
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = {"growth": changes.values, "growth_ci_low": low, "growth_ci_high": high}
        return pd.DataFrame({name: np.where(before > 0, part / before, np.nan) for name, part in parts.items()})


def _peaks(
    layers: Estimates, pairs: pd.DataFrame, resampling: Resampling, control_tasks: Sequence[str]
) -> pd.DataFrame:
    """Change of the depth of the best layer, from curves of single tasks and of the mean over tasks."""
    both = _instruction_first([layers]).with_task_means(control_tasks)
    keys = [name for name in both.keys if name not in ("layer", "depth")]
    grouped = both.rows.groupby(keys, sort=False, dropna=False, observed=True)
    size, cell = grouped["layer"].transform("size").to_numpy(), grouped.ngroup().to_numpy()
    peaks, drawn_peaks = [], []
    for layers_read in np.unique(size):
        rows = np.flatnonzero(size == layers_read)
        curves = rows[np.argsort(cell[rows], kind="stable")].reshape(-1, layers_read)
        depth = both.rows["depth"].to_numpy(dtype=float)[curves]
        best = both.values[curves].argmax(axis=1)[:, None]
        described = both.rows.iloc[curves[:, 0]].drop(columns=["layer", "depth"])
        peaks.append(described.assign(peak=np.take_along_axis(depth, best, axis=1)[:, 0]))
        drawn = resampling.bootstrap(both.take(curves.ravel())).reshape(*curves.shape, -1).argmax(axis=1)
        drawn_peaks.append(np.take_along_axis(depth, drawn, axis=1))
    columns = [*MODEL_COLUMNS, "earlier_stage", *_CELL, *_CHANGE]
    if not peaks or pairs.empty:
        return pd.DataFrame(columns=columns)
    table = pd.concat(peaks, ignore_index=True).assign(quantity="peak_depth")
    numbered = table.assign(_at=np.arange(len(table)))
    on = [name for name in keys if name not in MODEL_COLUMNS]
    left = numbered.merge(pairs, on="model")
    right = numbered[["model", *on, "_at", "peak"]].rename(columns={"model": "earlier"})
    merged = left.merge(right, on=["earlier", *on], suffixes=("", "_right"))
    of_cell = np.concatenate(drawn_peaks)
    drawn = of_cell[merged["_at"]] - of_cell[merged["_at_right"]]
    low, high = percentile_interval(drawn.T, resampling.statistics.level)
    merged = merged.assign(before=merged["peak_right"], change=merged["peak"] - merged["peak_right"])
    return merged.assign(ci_low=low, ci_high=high, p=np.nan)[columns]
