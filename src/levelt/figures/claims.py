"""Figure: the claims of the first paper on this study's models, with verdicts; the other papers' are drawn alike."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, VERDICT_COLOURS, chance_line, legend

UNITS = {
    "pp": "percentage points",
    "tau": "Kendall's τ-b",
    "percent": "per cent",
    "logits": "logits",
    "layers": "layers",
    "log10": "powers of ten",
}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """The claims of the first paper."""
    return draw_paper(tables["claims"], "asymmetry")


def draw_paper(claims: pd.DataFrame, paper: str) -> tuple[Figure, pd.DataFrame]:
    """Estimate, interval and published value of every claim with evidence; a panel per unit, grey where a claim holds."""
    drawn = claims[(claims["paper"] == paper) & np.isfinite(claims["estimate"])].reset_index(drop=True)
    units = [unit for unit in UNITS if unit in set(drawn["unit"])]
    counts = [int((drawn["unit"] == unit).sum()) for unit in units]
    height = 0.5 + sum(0.21 * count + 0.5 for count in counts)
    figure, axes = plt.subplots(
        max(len(units), 1), 1, figsize=(FULL_WIDTH, height), height_ratios=[c + 1.5 for c in counts] or None, squeeze=False
    )
    for axis, unit in zip(axes[:, 0], units, strict=False):
        rows = drawn[drawn["unit"] == unit].reset_index(drop=True)
        values = rows[["estimate", "ci_low", "ci_high", "published"]].to_numpy(dtype=float)
        least, most = min(0.0, np.nanmin(values)), max(0.0, np.nanmax(values))
        margin = 0.05 * (most - least)
        axis.set_xlim(least - margin, most + margin)
        chance_line(axis, 0.0, horizontal=False)
        for place, row in rows.iterrows():
            low = np.nanmax([row["region_low"], least - margin])  # an open end has no value
            high = np.nanmin([row["region_high"], most + margin])
            axis.barh(place, high - low, left=low, height=0.8, color="0.93", linewidth=0, zorder=0)
            colour = VERDICT_COLOURS[row["verdict"]]
            axis.hlines(place, row["ci_low"], row["ci_high"], color=colour, linewidth=1.2)
            axis.plot(row["estimate"], place, "o", color=colour, markersize=3.5, zorder=3)
        axis.plot(rows["published"], range(len(rows)), "D", color=GREY, markersize=3, fillstyle="none", zorder=4)
        axis.set_yticks(range(len(rows)), rows["short"])
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel(UNITS[unit])
        axis.tick_params(axis="y", length=0)
    entries: list[tuple[str, dict[str, object]]] = [
        (verdict, {"color": colour, "marker": "o", "markersize": 3.5}) for verdict, colour in VERDICT_COLOURS.items()
    ]
    if np.isfinite(drawn["published"].to_numpy(dtype=float)).any():
        published = {"color": GREY, "marker": "D", "fillstyle": "none", "linestyle": "none", "markersize": 3}
        entries.append(("published", published))
    legend(figure, entries)
    return figure, drawn
