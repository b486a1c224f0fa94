"""Figure: what can be decoded at each depth, by token role, target, variation and stage of training."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, VARIATION_COLOURS, chance_line, legend, words
from levelt.vocabulary import ALL, UNTRAINED

LINES = ["-", "--", ":"]
"""Line styles from the latest stage of training backwards."""

TARGETS = {"label": "asked property", "answer": "right answer", "unasked": "unasked property"}
ROLES = {"sample": "sample tokens", "output": "output tokens", "decision": "decision position"}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Balanced accuracy against relative depth, means over tasks and models of a stage.

    Columns are roles, rows are targets, colours variations, line styles stages. Models with random weights are not
    drawn here (see the figure of controls).
    """
    table = tables["depth"]
    chosen = (table["task"] == ALL) & (table["stage"] != UNTRAINED) & table["condition"].isin(VARIATION_COLOURS)
    drawn = table[chosen & table["role"].isin(ROLES) & table["target"].isin(TARGETS)].reset_index(drop=True)
    stages, conditions = (list(dict.fromkeys(drawn[name])) for name in ("stage", "condition"))
    roles = [role for role in ROLES if role in set(drawn["role"])]
    targets = [target for target in TARGETS if target in set(drawn["target"])]
    figure, axes = plt.subplots(
        len(targets),
        len(roles),
        figsize=(FULL_WIDTH, 0.55 + 1.45 * len(targets)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    lines = {stage: LINES[min(i, len(LINES) - 1)] for i, stage in enumerate(reversed(stages))}
    for i, target in enumerate(targets):
        for j, role in enumerate(roles):
            axis = axes[i][j]
            chance_line(axis)
            panel = drawn[(drawn["target"] == target) & (drawn["role"] == role)]
            for (stage, condition), line in panel.groupby(["stage", "condition"], sort=False, observed=True):
                colour, latest = VARIATION_COLOURS[str(condition)], stage == stages[-1]
                width = 1.3 if latest else 0.8
                axis.plot(line["depth"], line["estimate"], color=colour, linestyle=lines[str(stage)], linewidth=width)
                if latest:
                    low, high = line["ci_low"], line["ci_high"]
                    axis.fill_between(line["depth"], low, high, color=colour, alpha=0.15, linewidth=0)
            if i == 0:
                axis.set_title(ROLES[role])
            if j == 0:
                axis.set_ylabel(f"{TARGETS[target]}\nbalanced accuracy")
            if i == len(targets) - 1:
                axis.set_xlabel("depth (layer / layers)")
    axes[0][0].set_ylim(min(0.42, drawn["estimate"].min() - 0.02), 1.02)
    axes[0][0].set_xlim(-0.03, 1.03)
    entries: list[tuple[str, dict[str, object]]] = [(words(c), {"color": VARIATION_COLOURS[c]}) for c in conditions]
    entries += [(stage, {"color": GREY, "linestyle": lines[stage]}) for stage in reversed(stages)]
    legend(figure, entries)
    return figure, drawn
