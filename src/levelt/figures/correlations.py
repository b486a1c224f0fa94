"""Figure: does information at a role go together with behaviour?"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, ROLE_COLOURS, VARIATION_COLOURS, chance_line, legend, words

MARKERS = ["o", "s", "^", "D", "v", "P", "X"]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Left: label information against exact match, a point per model, task and variation. Right: tau by task."""
    behaviour = tables["behaviour"]
    behaviour = behaviour[behaviour["polarity"] == "all"][["model", "task", "condition", "exact_match"]]
    probes = tables["probes"]
    label = probes[(probes["target"] == "label") & (probes["layer"] > 0) & probes["condition"].isin(VARIATION_COLOURS)]
    keys = ["model", "task", "condition", "role"]
    information = label.groupby(keys, sort=False, observed=True)["balanced_accuracy"].mean().reset_index(name="x")
    cells = information.merge(behaviour, on=keys[:3]).rename(columns={"exact_match": "y"})
    taus = tables["correlations"]
    single = (taus["level"] == "cells") | (taus["task"] != "all")
    taus = taus[(taus["second"] == "behaviour") & (taus["stage"] == "all") & single].reset_index(drop=True)
    models, roles = list(dict.fromkeys(cells["model"])), list(dict.fromkeys(cells["role"]))
    tasks = list(dict.fromkeys(taus[taus["level"] == "instances"]["task"]))
    rows = [("instances", task) for task in tasks] + [("cells", "all")]

    height = max(2.4, 0.6 + 0.3 * len(rows))
    figure, (left, right) = plt.subplots(1, 2, figsize=(FULL_WIDTH, height), width_ratios=[1, 1.1])
    chance_line(left, horizontal=False)
    for (role, model), part in cells.groupby(["role", "model"], sort=False, observed=True):
        marker = MARKERS[models.index(str(model)) % len(MARKERS)]
        left.plot(part["x"], part["y"], marker, color=ROLE_COLOURS[str(role)], markersize=4, alpha=0.75, clip_on=False)
    left.set(xlabel="label information (mean over layers)", ylabel="exact match", ylim=(-0.03, 1.03))

    chance_line(right, 0.0, horizontal=False)
    offsets = np.linspace(-0.2, 0.2, len(roles)) if len(roles) > 1 else [0.0]
    for offset, role in zip(offsets, roles, strict=True):
        for position, (level, task) in enumerate(rows):
            row = taus[(taus["level"] == level) & (taus["task"] == task) & (taus["first"] == role)]
            if row.empty or not np.isfinite(row["tau"].iloc[0]):
                continue
            estimate = row.iloc[0]
            right.hlines(position + offset, estimate["ci_low"], estimate["ci_high"], color=ROLE_COLOURS[role])
            right.plot(estimate["tau"], position + offset, "o", color=ROLE_COLOURS[role], markersize=3.5)
    names = [words(task) if level == "instances" else "all cells" for level, task in rows]
    right.set_yticks(range(len(rows)), names)
    right.set_ylim(len(rows) - 0.5, -0.5)
    right.axhline(len(tasks) - 0.5, color="0.75", linewidth=0.6)
    right.set_xlim(-1, 1)
    right.set_xlabel("Kendall's τ-b with exact match")
    entries: list[tuple[str, dict[str, object]]] = [(role, {"color": ROLE_COLOURS[role]}) for role in roles]
    entries += [
        (model, {"color": GREY, "marker": MARKERS[i % len(MARKERS)], "linestyle": "none", "markersize": 4})
        for i, model in enumerate(models)
    ]
    legend(figure, entries, columns=min(len(entries), 6))
    drawn = pd.concat(
        [
            cells.rename(columns={"x": "information", "y": "exact_match"}).assign(panel="cells"),
            taus.assign(panel="tau"),
        ],
        ignore_index=True,
    )
    return figure, drawn
