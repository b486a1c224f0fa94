"""Figure: does information at a role go together with behaviour?"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, ROLE_COLOURS, VARIATION_COLOURS, chance_line, legend, words
from levelt.vocabulary import ALL, UNTRAINED

KEYS = ["model", "task", "condition"]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Left: label information against exact match, a point per model, task and variation. Right: tau by task."""
    cells = _cells(tables["information"])
    taus = tables["correlations"]
    taus = taus[(taus["second"] == "behaviour") & (taus["stage"] == ALL)].reset_index(drop=True)
    roles = [role for role in ROLE_COLOURS if role in set(cells["role"])]
    tasks = [t for t in dict.fromkeys(taus[taus["level"] == "instances"]["task"]) if t != ALL]
    rows = [*[("instances", task) for task in tasks], ("instances", ALL), ("cells", ALL)]

    figure, (left, right) = plt.subplots(1, 2, figsize=(FULL_WIDTH, max(2.6, 0.6 + 0.3 * len(rows))))
    chance_line(left, horizontal=False)
    for role in reversed(roles):
        part = cells[cells["role"] == role]
        left.plot(
            part["information"], part["exact_match"], ".", color=ROLE_COLOURS[role], markersize=4, alpha=0.5, clip_on=False
        )
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
            right.plot(estimate["largest_tau"], position + offset, "|", color=GREY, markersize=4, markeredgewidth=0.8)
    names = [*map(words, tasks), "mean over tasks", "all cells"]
    right.set_yticks(range(len(rows)), names)
    right.set_ylim(len(rows) - 0.5, -0.5)
    right.axhline(len(tasks) - 0.5, color="0.75", linewidth=0.6)
    right.axhline(len(tasks) + 0.5, color="0.75", linewidth=0.6)
    right.set_xlim(-1, 1)
    right.set_xticks([-1, -0.5, 0, 0.5, 1])
    right.set_xlabel("Kendall's τ-b with exact match")
    entries: list[tuple[str, dict[str, object]]] = [
        (role, {"color": ROLE_COLOURS[role], "marker": "o", "markersize": 3.5}) for role in roles
    ]
    entries.append(("largest possible", {"color": GREY, "marker": "|", "linestyle": "none", "markersize": 5}))
    legend(figure, entries)
    drawn = pd.concat([cells.assign(panel="cells"), taus.assign(panel="tau")], ignore_index=True)
    return figure, drawn


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    """Label information at each role beside exact match, by trained model, task and variation."""
    single = (table["model"] != ALL) & (table["task"] != ALL) & (table["stage"] != UNTRAINED)
    rows = table[single & table["condition"].isin(VARIATION_COLOURS)]
    label = rows[(rows["target"] == "label") & rows["role"].isin(ROLE_COLOURS)]
    right = rows[rows["quantity"] == "exact_match"].rename(columns={"estimate": "exact_match"})
    joined = label.rename(columns={"estimate": "information"})[[*KEYS, "stage", "role", "information"]]
    return joined.merge(right[[*KEYS, "exact_match"]], on=KEYS, validate="many_to_one")
