"""Figure: does each model answer, and answer right, in each variation?"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, VARIATION_COLOURS, chance_line, legend, words

COLUMNS = ["model", "task", "condition", "n", "exact_match", "exact_match_ci_low", "exact_match_ci_high", "preferred"]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Exact match by model and variation (dots with intervals), one panel per task; ticks mark preference accuracy."""
    table = tables["behaviour"]
    drawn = table[(table["polarity"] == "all") & table["condition"].isin(VARIATION_COLOURS)][COLUMNS]
    drawn = drawn.reset_index(drop=True)
    models, tasks, conditions = (list(dict.fromkeys(drawn[name])) for name in ("model", "task", "condition"))
    across = min(len(tasks), 3)
    down = -(-len(tasks) // across)
    height = (0.5 + max(0.13 * len(models), 0.5)) * down + 0.35
    figure, axes = plt.subplots(down, across, figsize=(FULL_WIDTH, height), sharex=True, sharey=True, squeeze=False)
    offsets = np.linspace(-0.24, 0.24, len(conditions)) if len(conditions) > 1 else [0.0]
    for axis, task in zip(axes.flat, tasks, strict=False):
        chance_line(axis, horizontal=False)
        for row in range(1, len(models), 2):
            axis.axhspan(row - 0.5, row + 0.5, color="0.96", linewidth=0, zorder=-1)
        for offset, condition in zip(offsets, conditions, strict=True):
            cell = drawn[(drawn["task"] == task) & (drawn["condition"] == condition)].set_index("model").reindex(models)
            heights = np.arange(len(models)) + offset
            low, high = cell["exact_match_ci_low"], cell["exact_match_ci_high"]
            colour = VARIATION_COLOURS[condition]
            axis.hlines(heights, low, high, color=colour, linewidth=0.9)
            axis.plot(cell["preferred"], heights, "|", color=GREY, markersize=3.5, markeredgewidth=0.8, clip_on=False)
            axis.plot(cell["exact_match"], heights, "o", color=colour, markersize=2.4, clip_on=False, zorder=3)
        axis.set_title(words(task))
        axis.set_xlim(0, 1)
        axis.set_yticks(range(len(models)), models)
        axis.set_ylim(len(models) - 0.5, -0.5)
        axis.tick_params(axis="y", length=0)
    for axis in list(axes.flat)[max(0, len(tasks) - across) : len(tasks)]:  # the lowest panel of each column
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("share of samples")
    for axis in list(axes.flat)[len(tasks) :]:
        axis.set_visible(False)
    entries: list[tuple[str, dict[str, object]]] = [
        (f"exact match, {words(c)}", {"color": VARIATION_COLOURS[c], "marker": "o", "markersize": 3, "linewidth": 1})
        for c in conditions
    ]
    entries.append(("right option preferred", {"color": GREY, "marker": "|", "linestyle": "none", "markersize": 5}))
    legend(figure, entries)
    return figure, drawn
