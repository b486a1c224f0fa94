"""Figure: how the models trained here came about."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, chance_line, legend, words

MEASURES = {
    "marker": "held-out texts\nmarked right",
    "exact": "held-out\nexact match",
}
"""Prefix of a measure's columns in training.csv -> what it is: base models comment on texts, tuned ones answer."""


_WIDE = 8  # checkpoints from which on a row of panels holds one stage of every training
_STAGES = ("base", "sft", "dpo")


def _stage(name: str) -> int:
    """Place of a checkpoint's stage in the order of training."""
    return next((place for place, stage in enumerate(_STAGES) if name.endswith(f"-{stage}")), len(_STAGES))


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Loss (top) and the stage's held-out measure by task (bottom) against tokens seen; a column per checkpoint."""
    names = sorted(tables, key=_stage) if len(tables) > _WIDE else list(tables)
    drawn = pd.concat([_long(name, table) for name, table in tables.items()], ignore_index=True)
    tasks = sorted(drawn["task"].dropna().unique())
    colours = dict(zip(tasks, sns.color_palette("colorblind", len(tasks)), strict=True))
    stages = max(len({_stage(name) for name in names}), 1)
    across = -(-len(names) // stages) if len(names) > _WIDE else min(len(names), 4)
    bands = -(-len(names) // across)
    size = 5 if len(names) > _WIDE else None
    figure, axes = plt.subplots(
        2 * bands,
        across,
        figsize=(FULL_WIDTH, 0.4 + (2.1 if size else 2.7) * bands),
        squeeze=False,
        sharex="none" if size else "col",  # the stages differ in length
        height_ratios=[1, 1.2] * bands,
    )
    for number, name in enumerate(names):
        band, column = divmod(number, across)
        top, bottom = axes[2 * band][column], axes[2 * band + 1][column]
        part = drawn[drawn["model"] == name]
        loss = part[part["measure"] == "loss"]
        top.plot(loss["tokens"] / 1e6, loss["value"], color=GREY, linewidth=0.9)
        top.set_title(name, fontsize=size)
        top.set_ylim(bottom=0)
        top.tick_params(labelbottom=False)
        held_out = part[part["measure"] != "loss"]
        for task, line in held_out.groupby("task", sort=True):
            bottom.plot(line["tokens"] / 1e6, line["value"], color=colours[str(task)], marker=".", markersize=4)
        measure = held_out["measure"].iloc[0] if len(held_out) else "exact"
        if measure == "exact":  # yes or no; a mark is one of three
            chance_line(bottom)
        bottom.set_ylim(-0.02, 1.02)
        bottom.set_xlabel("million tokens")
        if column == 0 or not size:
            bottom.set_ylabel(MEASURES[str(measure)])
        if column == 0:
            top.set_ylabel("training loss")
    for number in range(len(names), bands * across):
        band, column = divmod(number, across)
        axes[2 * band][column].set_visible(False)
        axes[2 * band + 1][column].set_visible(False)
    legend(figure, [(words(task), {"color": colours[task], "marker": ".", "markersize": 4}) for task in tasks])
    return figure, drawn


def _long(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """training.csv as rows of model, step, tokens, measure, task, value; the measure is the one of the stage."""
    stage = "marker" if any(str(column).startswith("marker_") for column in table) else "exact"
    columns = ["loss", *(column for column in map(str, table) if column.startswith(f"{stage}_"))]
    long = table.melt(id_vars=["step", "tokens"], value_vars=columns, var_name="column").dropna(subset="value")
    parts = long.pop("column").str.partition("_")
    return long.assign(model=name, measure=parts[0], task=parts[2].where(parts[2] != ""))[
        ["model", "step", "tokens", "measure", "task", "value"]
    ].reset_index(drop=True)
