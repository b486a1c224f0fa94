"""Figure: what each defect of the released methods does to the correlations of information and behaviour."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, VERDICT_COLOURS, chance_line, legend, words
from levelt.vocabulary import ALL

RELEASED = VERDICT_COLOURS["contradicted"]
LEVELS = {"cells": "over cells", "instances": "over samples"}
NAMES = ["defect", "first", "second", "instead"]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """A row per defect and pair of variables: tau-b corrected and with the defect, with intervals, a panel per level."""
    table = tables["audit_correlations"]
    drawn = table[table["task"] == ALL].fillna({"instead": ""}).reset_index(drop=True)
    rows = drawn[NAMES].drop_duplicates().reset_index(drop=True)
    figure, axes = plt.subplots(1, 2, figsize=(FULL_WIDTH, 0.7 + 0.15 * len(rows)), sharey=True)
    for axis, (level, title) in zip(axes, LEVELS.items(), strict=True):
        chance_line(axis, 0.0, horizontal=False)
        for place, row in enumerate(rows.merge(drawn[drawn["level"] == level], on=NAMES, how="left").itertuples()):
            axis.hlines(place - 0.15, row.corrected_low, row.corrected_high, color=GREY, linewidth=0.9)
            axis.plot(row.corrected, place - 0.15, "o", color=GREY, markersize=3)
            axis.hlines(place + 0.15, row.released_low, row.released_high, color=RELEASED, linewidth=0.9)
            axis.plot(row.released, place + 0.15, "x", color=RELEASED, markersize=3.5)
        for start in rows.index[rows["defect"] != rows["defect"].shift()][1:]:
            axis.axhline(start - 0.5, color="0.85", linewidth=0.5)
        axis.set_xlabel(f"Kendall's τ-b {title}")
        axis.tick_params(axis="y", length=0)
    names = [
        f"{words(str(row.defect))}: {row.first}, {row.second}" + (f" ({words(str(row.instead))})" if row.instead else "")
        for row in rows.itertuples()
    ]
    axes[0].set_yticks(range(len(rows)), names, fontsize=5.5)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    entries: list[tuple[str, dict[str, object]]] = [
        ("corrected", {"color": GREY, "marker": "o", "markersize": 3}),
        ("with this defect", {"color": RELEASED, "marker": "x", "markersize": 3.5}),
    ]
    legend(figure, entries)
    return figure, drawn
