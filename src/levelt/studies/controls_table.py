"""The controls of the probes over all models and tasks: what random labels, words, other probes and less data give."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

KEYS = ["stage", "kind", "condition", "role", "target", "train_rows"]
MEASURES = ["accuracy", "balanced_accuracy", "auc", "macro_f1", "selectivity", "bits", "uniform_bits", "compression"]

PROBE, EMBEDDING = "probe", "embedding"
"""Kinds of rows that come from the study's own probes: layers 1..L, and the embeddings alone."""


def controls_table(
    controls: Iterable[pd.DataFrame], probes: pd.DataFrame, control_tasks: Iterable[str] = ()
) -> pd.DataFrame:
    """Means over layers 1..L, draws, tasks and models of a stage, with the range over models.

    Args:
        controls: rows of the controls of one model and task each (`levelt.studies.controls`), with model and task.
        probes: the study's table of probes; its own scores stand beside the controls as kinds ``probe`` and
            ``embedding``, in the conditions that have controls.
        control_tasks: tasks kept out of the means.

    Returns:
        stage, kind, condition, role, target, train_rows (of a sample-size curve, rounded, else 0), models, tasks, the
        measures, and lowest and highest balanced accuracy of a model. Baselines of the tokens have the role ``none``.
    """
    made = pd.concat(list(controls), ignore_index=True)
    conditions = set(made["condition"])
    own = probes[probes["condition"].isin(conditions)]
    stages = probes.drop_duplicates("model").set_index("model")["stage"]
    inner = made[(made["layer"] != 0)].assign(stage=made["model"].map(stages))
    parts = [
        inner,
        own[own["layer"] > 0].assign(kind=PROBE),
        own[own["layer"] == 0].assign(kind=EMBEDDING),
    ]
    table = pd.concat(parts, ignore_index=True)
    table = table[~table["task"].isin(list(control_tasks))]
    # subsets of one wanted size differ by a group or two between folds and tasks: the nearest wanted size names them
    table["train_rows"] = _nearest(table["train_rows"])
    present = [name for name in MEASURES if name in table]
    by_task = table.groupby([*KEYS, "model", "task"], sort=False, dropna=False, observed=True)[present].mean()
    by_model = by_task.groupby(level=[*KEYS, "model"], sort=False, dropna=False).mean()
    grouped = by_model.groupby(level=KEYS, sort=False, dropna=False)
    out = grouped.mean().reindex(columns=MEASURES)
    out.insert(0, "models", grouped.size())
    tasks = by_task.reset_index().groupby(KEYS, sort=False, dropna=False)["task"].nunique()
    out.insert(1, "tasks", tasks)
    out["lowest"], out["highest"] = grouped["balanced_accuracy"].min(), grouped["balanced_accuracy"].max()
    return out.reset_index()


def _nearest(rows: pd.Series) -> pd.Series:
    """Training sizes rounded to two digits; 0 where a kind has none."""
    values = rows.fillna(0).to_numpy(dtype=float)
    digits = np.where(values > 0, 10.0 ** (np.floor(np.log10(np.maximum(values, 1))) - 1), 1.0)
    return pd.Series(np.round(values / digits) * digits, index=rows.index).astype(int)
