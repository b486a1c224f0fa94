"""Information by layer: curves against relative depth, and the best layer without the winner's curse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array, eye_array, kron

from levelt.statistics.selection import nested_best
from levelt.studies.estimates import Builder, Estimates, Resampling, stack
from levelt.studies.evidence import Evidence
from levelt.studies.quantities import COMPARED
from levelt.studies.scope import MODEL_COLUMNS, PUBLISHED_VARIATIONS

GRID = np.linspace(0, 1, 11)
"""Relative depths at which curves of models with different numbers of layers are averaged."""

FOLDS = 5
"""Folds of the nested choice of a layer."""

_CELL = ["task", "condition", "role", "target"]


def depth_table(layers: Estimates, resampling: Resampling, control_tasks: Sequence[str]) -> pd.DataFrame:
    """Curves against relative depth in the published variations, means over the models of a stage: by task, over tasks.

    Curves are interpolated linearly onto a grid of depths. A depth that some model of the stage does not reach (before
    its first layer) is left out, so that a curve never changes its models. Untrained models are a stage of their own.
    """
    inner = layers.where(layers.rows["condition"].isin(PUBLISHED_VARIATIONS).to_numpy())
    curves = _on_grid(inner)
    judged = curves.where(~curves.rows["task"].isin(control_tasks).to_numpy())
    tables = []
    for part, over in ((curves, ["family", "model"]), (judged, ["family", "model", "task"])):
        means = part.mean(over)
        columns = [name for name in means.keys if name in part.rows and name not in (*MODEL_COLUMNS, "task")]
        by = ["stage", *columns, *([] if "task" in over else ["task"])]
        models = part.rows.groupby(by, sort=False, dropna=False)["model"].nunique().reset_index(name="models")
        table = resampling.table(means).merge(models, on=by, how="left")
        most = table.groupby([name for name in by if name != "depth"], sort=False)["models"].transform("max")
        tables.append(table[table["models"] == most])
    columns = [*MODEL_COLUMNS, *_CELL, "depth", "models", "n", "groups", "estimate", "ci_low", "ci_high"]
    return pd.concat(tables, ignore_index=True)[columns]


def _on_grid(layers: Estimates) -> Estimates:
    """Curves interpolated onto the grid, from their first depth on."""
    keys = [name for name in layers.keys if name not in ("layer", "depth")]
    grouped = layers.rows.groupby(keys, sort=False, dropna=False, observed=True)
    size, cell = grouped["layer"].transform("size").to_numpy(dtype=int), grouped.ngroup().to_numpy()
    depths = layers.rows["depth"].to_numpy(dtype=float)
    first = grouped["depth"].transform("min").to_numpy(dtype=float)
    several = []
    for count, start in sorted({(int(c), float(f)) for c, f in zip(size, first, strict=True)}):
        rows = np.flatnonzero((size == count) & (first == start))
        curves = rows[np.argsort(cell[rows], kind="stable")].reshape(-1, count)
        grid = GRID[start - 1e-9 <= GRID]
        # the same weights for every curve of this shape
        weights = np.array([np.interp(grid, depths[curves[0]], unit) for unit in np.eye(count)]).T
        matrix = csr_array(kron(eye_array(len(curves)), weights))
        described = layers.rows.iloc[np.repeat(curves[:, 0], len(grid))].drop(columns="layer")
        described = described.assign(depth=np.tile(grid, len(curves)))
        several.append(layers.take(curves.ravel()).combine(matrix, described))
    return stack(several) if several else layers.without("layer")


def best_layers_table(evidence: Evidence, resampling: Resampling, control_tasks: Sequence[str]) -> pd.DataFrame:
    """Information at the best layer, chosen on some pairs and evaluated on the others (5 folds), layers 1..L.

    ``naive`` is the maximum over layers on all pairs, which is too high; ``depth`` the mean relative depth of the
    chosen layers. Intervals take these as given. All conditions for control tasks, the variations for the others.
    """
    builder = Builder(evidence.samples)
    layers_of = dict(zip(evidence.models["model"], evidence.models["layers"], strict=True))
    for (model, task, condition, role, target), hits in evidence.hits.items():
        if condition not in (COMPARED if task in control_tasks else PUBLISHED_VARIATIONS):
            continue
        shares: npt.NDArray[np.float32] = hits.inner
        present = ~np.isnan(shares[:, 0])
        weights = evidence.weights(task, condition, target, present)
        codes = np.unique(evidence.samples[task].codes[present], return_inverse=True)[1]
        folds = resampling.generator(task, "layer")
        best = nested_best(shares[present], weights[present], codes, FOLDS, folds)
        values = np.full((len(present), 1), np.nan)
        values[present, 0] = best.values
        first = max(1, hits.first_layer)
        named = {"model": model, "condition": condition, "role": role, "target": target, "naive": best.naive}
        named |= {"depth": float((best.cells + first).mean() / layers_of[model])}
        builder.add(task, values, weights, named, evidence.classes[task, condition, target])
    columns = ["condition", "role", "target", "naive", "depth"]
    estimates = builder.build(evidence.models, columns, companions=("naive", "depth"))
    table = resampling.table(estimates.with_means(control_tasks))
    return table[[*MODEL_COLUMNS, *_CELL, "depth", "n", "groups", "estimate", "ci_low", "ci_high", "naive"]]
