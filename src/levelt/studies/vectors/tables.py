"""The tables of the study: every model's results with intervals, models in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from levelt.config import Statistics, Vectors
from levelt.randomness import generator
from levelt.statistics.resampling import cluster_draws, mean_interval
from levelt.studies.scope import with_models
from levelt.studies.vectors.circuits import activity_table, circuits_table, robustness_table
from levelt.studies.vectors.patching import interaction_table, patching_table, summary_table
from levelt.studies.vectors.stages import stages_table
from levelt.studies.vectors.tracing import paths_table, sums_table

TABLES = (
    "contrastive",
    "patching",
    "vectors",
    "interaction",
    "separability",
    "projection",
    "paths",
    "path_sums",
    "activity",
    "circuits",
    "circuit_keys",
    "vectors_stages",
)
"""Names of the tables; docs/vectors.md says what their columns mean."""


def contrastive_table(behaviour: pd.DataFrame, statistics: Statistics, seed: int) -> pd.DataFrame:
    """Is the first token of the answer to a full prompt the right one? With intervals over queries.

    Returns:
        task, instruction_id, wording, n, correct, ci_low, ci_high, other (share of the other instruction's answer),
        rank (median of the answer's first token), probability (mean).
    """
    rows = []
    for (task, instruction, wording), part in behaviour.groupby(["task", "instruction_id", "wording"], sort=False):
        count = len(part)
        draws = cluster_draws(count, statistics.draws, generator(seed, "vectors", "contrastive", str(task)))
        hits = part["correct"].to_numpy(dtype=float)[:, None]
        mean, low, high = mean_interval(hits, np.arange(count), draws, statistics.level)
        rows.append(
            {"task": task, "instruction_id": instruction, "wording": wording, "n": count}
            | {"correct": mean[0], "ci_low": low[0], "ci_high": high[0], "other": part["other"].mean()}
            | {"rank": part["rank"].median(), "probability": part["probability"].mean()}
        )
    return pd.DataFrame(rows)


def vector_tables(
    folders: Mapping[str, Path], models: pd.DataFrame, vectors: Vectors, statistics: Statistics, seed: int
) -> dict[str, pd.DataFrame]:
    """All tables by name.

    Args:
        folders: by model, the folder that `levelt vectors` wrote.
        models: from `levelt.studies.scope.describe_models`.
    """
    made: dict[str, Callable[[Callable[[str], pd.DataFrame]], pd.DataFrame]] = {
        "contrastive": lambda read: contrastive_table(read("behaviour"), statistics, seed),
        "patching": lambda read: patching_table(read("effects"), statistics, seed),
        "vectors": lambda read: summary_table(read("effects"), statistics, seed),
        "interaction": lambda read: interaction_table(read("effects"), statistics, vectors.top, seed),
        "separability": lambda read: read("separability"),
        "projection": lambda read: read("projection"),
        "paths": lambda read: paths_table(read("tokens"), statistics, seed),
        "path_sums": lambda read: sums_table(read("sums")),
        "activity": lambda read: activity_table(read("heads"), statistics, seed),
        "circuits": lambda read: circuits_table(read("heads"), statistics, seed),
        "circuit_keys": lambda read: robustness_table(read("heads")),
    }
    tables = {}
    for name in made:
        frames = []
        for model, folder in folders.items():
            table = made[name](lambda file, folder=folder: pd.read_parquet(folder / f"{file}.parquet"))  # type: ignore[misc]
            frames.append(table.assign(model=model))
        tables[name] = with_models(pd.concat(frames, ignore_index=True), models)
    tables["vectors_stages"] = stages_table(folders, models, statistics, seed)
    return tables
