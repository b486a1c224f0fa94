"""Figure: does the instruction select what is decodable, where the model reads and where it answers?"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.style import CONDITION_COLOURS, FULL_WIDTH, chance_line, legend, words
from levelt.vocabulary import ALL, UNTRAINED, latest_stage

ROLES = {"sample": "sample tokens", "decision": "decision position"}
CODEBOOK_ROLES = {"behaviour": ("exact match", "D"), "sample": ("sample", "o"), "decision": ("decision", "s")}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Left and middle: information about a property when it is asked minus when the other one is, by depth; the mean of
    both properties and of tasks; a line per model and condition, latest stage.

    Right: the codebook task, whose text means nothing without the instruction: label information at the sample and at
    the decision, and exact match; means over models with intervals. Absent where the study has no such task.
    """
    layers, code = tables["selection_layers"], tables["codebook"]
    stage = latest_stage(layers["stage"]) if len(layers) else None
    lines = layers[(layers["task"] == ALL) & (layers["stage"] == stage) & layers["condition"].isin(CONDITION_COLOURS)]
    lines = lines[lines["role"].isin(ROLES) & (lines["target"] == ALL)]
    conditions = [name for name in CONDITION_COLOURS if name in set(lines["condition"]) | set(code["condition"])]
    dots = code[(code["model"] == ALL) & (code["stage"] != UNTRAINED) & code["condition"].isin(CONDITION_COLOURS)]
    stages = list(dict.fromkeys(dots["stage"]))
    dots = dots[dots["stage"] == (latest_stage(stages) if stages else None)]
    wanted = (dots["quantity"] == "exact_match") | ((dots["quantity"] == "information") & (dots["target"] == "label"))
    answered = (dots["role"] != "behaviour") | (dots["condition"] != "unrelated_instruction")  # a question without answer
    dots = dots[wanted & answered & dots["role"].isin(CODEBOOK_ROLES)]
    figure, axes = plt.subplots(1, 3, figsize=(FULL_WIDTH, 2.5), width_ratios=[1, 1, 0.9])
    for axis, (role, title) in zip(axes, ROLES.items(), strict=False):
        chance_line(axis, 0.0)
        of_role = lines[lines["role"] == role]
        for (condition, _), line in of_role.groupby(["condition", "model"], sort=False, observed=True):
            colour = CONDITION_COLOURS[str(condition)]
            axis.plot(line["depth"], 100 * line["estimate"], color=colour, linewidth=0.9, alpha=0.8)
        axis.set_title(title)
        axis.set_xlabel("depth (layer / layers)")
        axis.set_xlim(-0.03, 1.03)
    bounds = 100 * lines["estimate"] if len(lines) else pd.Series([0.0])
    for axis in axes[:2]:
        axis.set_ylim(min(-10.0, bounds.min() - 3), max(10.0, bounds.max() + 3))
    axes[0].set_ylabel("a property asked\nminus not asked (points)")
    chance_line(axes[2], horizontal=False)
    shown = [name for name in conditions if name in set(dots["condition"])]
    offsets = dict(zip(CODEBOOK_ROLES, np.linspace(-0.22, 0.22, len(CODEBOOK_ROLES)), strict=True))
    for role, (_, marker) in CODEBOOK_ROLES.items():
        rows = dots[dots["role"] == role]
        heights = np.array([shown.index(name) for name in rows["condition"]]) + offsets[role]
        colours = [CONDITION_COLOURS[name] for name in rows["condition"]]
        axes[2].hlines(heights, rows["ci_low"], rows["ci_high"], colors=colours, linewidth=1.0)
        axes[2].scatter(rows["estimate"], heights, c=colours, marker=marker, s=12, zorder=3, clip_on=False)
    axes[2].set_yticks(range(len(shown)), [words(name) for name in shown])
    axes[2].tick_params(axis="y", length=0)
    axes[2].set_ylim(max(len(shown), 1) - 0.5, -0.5)
    axes[2].set_xlim(min(0.4, dots["estimate"].min() - 0.03) if len(dots) else 0.4, 1.02)
    axes[2].set_title("codebook task")
    axes[2].set_xlabel("share of samples")
    axes[2].set_visible(bool(len(dots)))
    drawn_lines = [name for name in conditions if name in set(lines["condition"])]
    entries: list[tuple[str, dict[str, object]]] = [(words(c), {"color": CONDITION_COLOURS[c]}) for c in drawn_lines]
    if len(dots):
        entries += [
            (name, {"color": "0.45", "marker": marker, "linestyle": "none", "markersize": 3.5})
            for name, marker in CODEBOOK_ROLES.values()
        ]
    legend(figure, entries)
    drawn = pd.concat([lines.assign(panel="selection"), dots.assign(panel="codebook")], ignore_index=True)
    return figure, drawn
