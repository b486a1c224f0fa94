"""Which models the figures of instruction vectors show: the stages of one model, so that a page is enough."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

MOST = 4
"""Models in a figure."""


def ladder(table: pd.DataFrame) -> list[str]:
    """The models of the family, size and seed with the most stages, in the order of the table; at most `MOST`."""
    models = table[["model", "family", "size", "seed", "stage"]].drop_duplicates("model")
    groups = models.fillna({"seed": -1}).groupby(["family", "size", "seed"], sort=False)["model"].agg(list)
    best: list[str] = max(groups, key=len)
    return best[:MOST]


def of_models(table: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """The rows of these models."""
    return table[table["model"].isin(models)].reset_index(drop=True)


def sides(table: pd.DataFrame) -> list[tuple[str, str]]:
    """(task, instruction) in the order of the table."""
    rows = table[["task", "instruction_id"]].drop_duplicates()
    return [(str(task), str(instruction)) for task, instruction in rows.itertuples(index=False)]
