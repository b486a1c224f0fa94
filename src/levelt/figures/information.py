"""Figure: what can be decoded at each layer, by token role, target and variation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, VARIATION_COLOURS, chance_line, legend, words

LINES = ["-", "--", ":", "-."]
"""Line styles from the last model (the most trained one) backwards."""

TARGETS = {"label": "asked property", "answer": "right answer", "unasked": "unasked property"}


def mean_over_tasks(probes: pd.DataFrame) -> pd.DataFrame:
    """Balanced accuracy averaged over tasks by model, condition, role, target and depth, with an interval.

    Tasks have different samples, so their errors are independent: the half width of the mean is the root of the summed
    squares of the tasks' half widths, divided by their number.
    """
    keys = ["model", "stage", "condition", "role", "target", "layer", "depth"]
    probes = probes.assign(squared=((probes["ci_high"] - probes["ci_low"]) / 2) ** 2)
    grouped = probes.groupby(keys, sort=False, observed=True)
    table = grouped.agg(
        tasks=("task", "nunique"), balanced_accuracy=("balanced_accuracy", "mean"), squared=("squared", "sum")
    ).reset_index()
    half = np.sqrt(table.pop("squared")) / table["tasks"]
    return table.assign(ci_low=table["balanced_accuracy"] - half, ci_high=table["balanced_accuracy"] + half)


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Balanced accuracy against depth: columns are roles, rows are targets, colours variations, line styles models."""
    probes = tables["probes"]
    drawn = mean_over_tasks(probes[probes["condition"].isin(VARIATION_COLOURS)])
    models, roles, conditions = (list(dict.fromkeys(drawn[name])) for name in ("model", "role", "condition"))
    targets = [target for target in TARGETS if target in set(drawn["target"])]
    figure, axes = plt.subplots(
        len(targets),
        len(roles),
        figsize=(FULL_WIDTH, 0.55 + 1.45 * len(targets)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for i, target in enumerate(targets):
        for j, role in enumerate(roles):
            axis = axes[i][j]
            chance_line(axis)
            panel = drawn[(drawn["target"] == target) & (drawn["role"] == role)]
            for (model, condition), line in panel.groupby(["model", "condition"], sort=False, observed=True):
                before = len(models) - 1 - models.index(str(model))
                colour = VARIATION_COLOURS[str(condition)]
                width = 1.3 if before == 0 else 0.8
                style: dict[str, Any] = {"linestyle": LINES[before % len(LINES)], "linewidth": width}
                axis.plot(line["depth"], line["balanced_accuracy"], color=colour, marker=".", markersize=3, **style)
                axis.fill_between(line["depth"], line["ci_low"], line["ci_high"], color=colour, alpha=0.12, linewidth=0)
            if i == 0:
                axis.set_title(f"{role} tokens" if role != "decision" else "decision position")
            if j == 0:
                axis.set_ylabel(f"{TARGETS[target]}\nbalanced accuracy")
            if i == len(targets) - 1:
                axis.set_xlabel("depth (layer / layers)")
    low = drawn["ci_low"].min()
    axes[0][0].set_ylim(min(0.42, low - 0.02), 1.02)
    axes[0][0].set_xlim(-0.03, 1.03)
    entries: list[tuple[str, dict[str, object]]] = [(words(c), {"color": VARIATION_COLOURS[c]}) for c in conditions]
    entries += [(m, {"color": GREY, "linestyle": LINES[i % len(LINES)]}) for i, m in enumerate(reversed(models))]
    legend(figure, entries, columns=min(len(entries), 5))
    return figure, drawn
