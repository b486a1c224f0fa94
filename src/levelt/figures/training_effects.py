"""Figure: what size and post-training change, at each role."""

from __future__ import annotations

import math
from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from levelt.figures.style import FULL_WIDTH, GREY, ROLE_COLOURS, chance_line, legend
from levelt.vocabulary import ALL, STAGES, UNTRAINED, latest_stage

MARKERS = ["o", "s", "^", "D", "v", "P"]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Left: label information by role, and exact match, against parameters (latest stage; ladders are connected).

    Right: change of label information by depth from each stage to the next, a line per shape and seed.
    """
    information, layers = tables["information"], tables["stage_layers"]
    points = _points(information)
    steps = _steps(layers)
    panels = list(dict.fromkeys(zip(steps["earlier_stage"], steps["stage"], strict=True)))
    figure, axes = plt.subplots(
        1, 1 + max(len(panels), 1), figsize=(FULL_WIDTH, 2.6), width_ratios=[1.25, *[1] * max(len(panels), 1)]
    )
    left = axes[0]
    families = list(dict.fromkeys(points["family"]))
    chance_line(left)
    for (family, _, role), line in points.groupby(["family", "seed", "role"], sort=False, dropna=False, observed=True):
        colour = ROLE_COLOURS.get(str(role), GREY)
        ladder = line.sort_values("parameters")
        marker = MARKERS[families.index(family) % len(MARKERS)]
        left.plot(ladder["parameters"], ladder["estimate"], color=colour, marker=marker, markersize=3, linewidth=0.8)
        left.vlines(ladder["parameters"], ladder["ci_low"], ladder["ci_high"], color=colour, linewidth=0.8)
    left.set_xscale("log")
    sizes = _apart(points["parameters"])
    left.set_xticks(sizes, [_short(size) for size in sizes])
    left.xaxis.set_minor_locator(NullLocator())
    left.set_xlabel("parameters")
    left.set_ylabel("label information, exact match")
    for axis, (earlier, stage) in zip(axes[1:], panels, strict=False):
        chance_line(axis, 0.0)
        panel = steps[(steps["earlier_stage"] == earlier) & (steps["stage"] == stage)]
        for (_, role), line in panel.groupby(["model", "role"], sort=False, observed=True):
            axis.plot(line["depth"], 100 * line["change"], color=ROLE_COLOURS[str(role)], linewidth=0.8, alpha=0.8)
        axis.set_title(f"{stage} minus {earlier}")
        axis.set_xlabel("depth (layer / layers)")
        axis.set_xlim(-0.03, 1.03)
    if panels:
        axes[1].set_ylabel("change of label information\n(percentage points)")
        spread = 100 * steps["change"].abs().max() + 2
        for axis in axes[1:]:
            axis.set_ylim(-spread, spread)
    else:
        axes[1].set_visible(False)
    roles = [role for role in ROLE_COLOURS if role in set(points["role"])]
    entries: list[tuple[str, dict[str, object]]] = [(role, {"color": ROLE_COLOURS[role]}) for role in roles]
    entries.append(("exact match", {"color": GREY}))
    entries += [
        (family, {"color": "0.2", "marker": MARKERS[i % len(MARKERS)], "linestyle": "none", "markersize": 3.5})
        for i, family in enumerate(families)
    ]
    legend(figure, entries)
    return figure, pd.concat([points.assign(panel="size"), steps.assign(panel="stages")], ignore_index=True)


def _apart(sizes: pd.Series) -> list[int]:
    """Sizes to label on a logarithmic axis: smallest first, none within a seventh of the axis of the one before."""
    found: list[int] = []
    values = sorted(int(size) for size in sizes.unique())
    for size in values:
        if not found or math.log(size / found[-1]) > math.log(values[-1] / values[0]) / 7:
            found.append(size)
    return found


def _short(size: int) -> str:
    """137808 -> 138k, 7615616512 -> 7.62B."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if size >= unit:
            return f"{size / unit:.3g}{name}"
    return str(size)


def _points(table: pd.DataFrame) -> pd.DataFrame:
    """Means over tasks of the models of the latest stage, instruction first."""
    rows = table[(table["task"] == ALL) & (table["model"] != ALL) & (table["condition"] == "instruction_first")]
    rows = rows[rows["stage"] == latest_stage(rows["stage"])]
    label = (rows["quantity"] == "information") & (rows["target"] == "label") & rows["role"].isin(ROLE_COLOURS)
    return rows[label | (rows["quantity"] == "exact_match")]


def _steps(table: pd.DataFrame) -> pd.DataFrame:
    """Changes from each stage to the one right after it."""
    rows = table[(table["task"] == ALL) & (table["target"] == "label") & table["role"].isin(ROLE_COLOURS)]
    rows = rows[~rows["stage"].isin([UNTRAINED]) & rows["stage"].isin(STAGES)]
    known = [stage for stage in STAGES if stage in set(rows["stage"]) | set(rows["earlier_stage"])]
    after = dict(zip(known[1:], known[:-1], strict=True))
    return rows[rows["earlier_stage"] == rows["stage"].map(after)].reset_index(drop=True)
