"""Figure: what each defect of the released methods does to the numbers."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, VERDICT_COLOURS, chance_line, legend, words
from levelt.vocabulary import ALL

RELEASED = VERDICT_COLOURS["contradicted"]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Left: each number corrected and with one defect. Right: the difference with its interval. Means over tasks."""
    table = tables["audit"]
    drawn = table[table["task"] == ALL].reset_index(drop=True)
    models = list(dict.fromkeys(drawn["model"]))
    drawn = drawn[drawn["model"] == models[-1]].reset_index(drop=True)
    height = 0.6 + min(0.15 * len(drawn), 7.8)  # a page of the report is 9 inches, and has a caption
    figure, (left, right) = plt.subplots(1, 2, figsize=(FULL_WIDTH, height), sharey=True, width_ratios=[1.4, 1])
    places = range(len(drawn))
    chance_line(left, 0.0, horizontal=False)
    chance_line(right, 0.0, horizontal=False)
    left.hlines(places, 100 * drawn["corrected"], 100 * drawn["released"], color="0.8", linewidth=0.8)
    left.plot(100 * drawn["corrected"], places, "o", color=GREY, markersize=3)
    left.plot(100 * drawn["released"], places, "x", color=RELEASED, markersize=3.5)
    right.hlines(places, 100 * drawn["ci_low"], 100 * drawn["ci_high"], color=RELEASED, linewidth=1)
    right.plot(100 * drawn["difference"], places, "o", color=RELEASED, markersize=3)
    names = []
    for row in drawn.itertuples():
        block = f", {words(str(row.block)).removeprefix('block ')}" if isinstance(row.block, str) and row.block else ""
        names.append(f"{words(str(row.defect))}: {str(row.quantity).replace('change of ', 'Δ ')}{block}")
    left.set_yticks(places, names, fontsize=6.5)
    left.set_ylim(len(drawn) - 0.5, -0.5)
    for axis in (left, right):
        axis.tick_params(axis="y", length=0)
        starts = drawn.index[drawn["defect"] != drawn["defect"].shift()][1:]
        for start in starts:
            axis.axhline(start - 0.5, color="0.85", linewidth=0.5)
    left.set_xlabel("corrected and with the defect (points)")
    right.set_xlabel("difference (points)")
    legend(
        figure,
        [
            ("corrected", {"color": GREY, "marker": "o", "linestyle": "none", "markersize": 3}),
            ("with this defect alone", {"color": RELEASED, "marker": "x", "linestyle": "none", "markersize": 3.5}),
        ],
    )
    return figure, drawn
