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
    """Exact match by task and variation (dots with intervals), one panel per model; bars mark preference accuracy."""
    table = tables["behaviour"]
    drawn = table[(table["polarity"] == "all") & table["condition"].isin(VARIATION_COLOURS)][COLUMNS]
    drawn = drawn.reset_index(drop=True)
    models, tasks, conditions = (list(dict.fromkeys(drawn[name])) for name in ("model", "task", "condition"))
    across = min(len(models), 4)
    down = -(-len(models) // across)
    height = (0.55 + 0.32 * len(tasks)) * down + 0.3
    figure, axes = plt.subplots(down, across, figsize=(FULL_WIDTH, height), sharex=True, sharey=True, squeeze=False)
    offsets = np.linspace(-0.22, 0.22, len(conditions)) if len(conditions) > 1 else [0.0]
    for axis, model in zip(axes.flat, models, strict=False):
        chance_line(axis, horizontal=False)
        for offset, condition in zip(offsets, conditions, strict=True):
            cell = drawn[(drawn["model"] == model) & (drawn["condition"] == condition)].set_index("task").loc[tasks]
            heights = np.arange(len(tasks)) + offset
            low, high = cell["exact_match_ci_low"], cell["exact_match_ci_high"]
            colour = VARIATION_COLOURS[condition]
            axis.hlines(heights, low, high, color=colour, linewidth=1.0)
            axis.plot(cell["exact_match"], heights, "o", color=colour, markersize=3.5, clip_on=False, zorder=3)
            axis.plot(cell["preferred"], heights, "|", color=GREY, markersize=5, markeredgewidth=1.0, clip_on=False)
        axis.set_title(model)
        axis.set_xlim(0, 1)
        axis.set_yticks(range(len(tasks)), [words(task) for task in tasks])
        axis.set_ylim(len(tasks) - 0.5, -0.5)
        axis.set_xlabel("share of samples")
    for axis in list(axes.flat)[len(models) :]:
        axis.set_visible(False)
    entries: list[tuple[str, dict[str, object]]] = [
        (f"exact match, {words(c)}", {"color": VARIATION_COLOURS[c], "marker": "o", "markersize": 3.5, "linewidth": 1})
        for c in conditions
    ]
    entries.append(("right option preferred", {"color": GREY, "marker": "|", "linestyle": "none", "markersize": 5}))
    legend(figure, entries)
    return figure, drawn
