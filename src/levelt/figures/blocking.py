"""Figure: what changes when attention between token groups is blocked?"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, ROLE_COLOURS, chance_line, legend, words

QUANTITIES = {
    ("behaviour", "answer"): ("exact match", GREY, "D"),
    ("sample", "label"): ("label at sample", ROLE_COLOURS["sample"], "o"),
    ("decision", "label"): ("label at decision", ROLE_COLOURS["decision"], "o"),
    ("decision", "unasked"): ("unasked at decision", ROLE_COLOURS["decision"], "x"),
    ("output", "label"): ("label at output", ROLE_COLOURS["output"], "o"),
}
"""(role, target) -> name, colour and marker."""


def mean_over_tasks(blocking: pd.DataFrame) -> pd.DataFrame:
    """Changes averaged over tasks. Tasks have different samples, so squared half widths add up."""
    keys = ["model", "condition", "role", "target"]
    table = blocking.assign(squared=((blocking["ci_high"] - blocking["ci_low"]) / 2) ** 2)
    means = (
        table.groupby(keys, sort=False, observed=True)
        .agg(tasks=("task", "nunique"), before=("before", "mean"), change=("change", "mean"), squared=("squared", "sum"))
        .reset_index()
    )
    half = np.sqrt(means.pop("squared")) / means["tasks"]
    return means.assign(ci_low=means["change"] - half, ci_high=means["change"] + half)


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Change of behaviour and information under each intervention, mean over tasks; a panel per model."""
    table = tables["blocking"]
    single = (table["model"] != "all") & (table["task"] != "all") & table["quantity"].isin(["exact_match", "information"])
    drawn = mean_over_tasks(table[single])
    chosen = [(role, target) in QUANTITIES for role, target in zip(drawn["role"], drawn["target"], strict=True)]
    drawn = drawn[chosen].reset_index(drop=True)
    models, conditions = list(dict.fromkeys(drawn["model"])), list(dict.fromkeys(drawn["condition"]))
    across = min(len(models), 3)
    down = -(-len(models) // across)
    height = (0.6 + 0.36 * len(conditions)) * down + 0.3
    figure, axes = plt.subplots(down, across, figsize=(FULL_WIDTH, height), sharex=True, sharey=True, squeeze=False)
    offsets = np.linspace(-0.3, 0.3, len(QUANTITIES))
    for axis, model in zip(axes.flat, models, strict=False):
        chance_line(axis, 0.0, horizontal=False)
        for offset, ((role, target), (_, colour, marker)) in zip(offsets, QUANTITIES.items(), strict=True):
            rows = drawn[(drawn["model"] == model) & (drawn["role"] == role) & (drawn["target"] == target)]
            heights = np.array([conditions.index(name) for name in rows["condition"]]) + offset
            axis.hlines(heights, rows["ci_low"], rows["ci_high"], color=colour, linewidth=1.0)
            axis.plot(rows["change"], heights, marker, color=colour, markersize=3.5)
        axis.set_title(model)
        axis.set_yticks(range(len(conditions)), [words(name) for name in conditions])
        axis.set_ylim(len(conditions) - 0.5, -0.5)
        axis.set_xlabel("change (share of samples)")
    for axis in list(axes.flat)[len(models) :]:
        axis.set_visible(False)
    entries: list[tuple[str, dict[str, object]]] = [
        (name, {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1.0})
        for name, colour, marker in QUANTITIES.values()
    ]
    legend(figure, entries)
    return figure, drawn
