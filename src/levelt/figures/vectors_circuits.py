"""Figure: do two instructions use different heads on the same queries, and more so in later layers?"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, legend, words
from levelt.figures.vectors_ladder import ladder, of_models

_COLOURS = sns.color_palette("colorblind")
LINES = {"instructions": _COLOURS[3], "rephrased": _COLOURS[0], "other_queries": _COLOURS[2], "permuted": GREY}
PANELS = (("activity", "instruction_last"), ("activity", "query"), ("flow", "instruction"), ("flow", "query"))
NAMES = {"instruction_last": "last instruction token"}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Distance of head maps by layer: between instructions, and its nulls; a row per model and task."""
    circuits = tables["circuits"]
    models = ladder(circuits)
    chosen = (circuits["mode"] == "exact") & (circuits["keys"] == circuits["keys"].min())
    drawn = of_models(circuits[chosen], models)
    rows = list(drawn[["model", "task"]].drop_duplicates().itertuples(index=False))
    size = (FULL_WIDTH, 1.3 * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), len(PANELS), figsize=size, squeeze=False, sharex=True)
    for row, (model, task) in enumerate(rows):
        for axis, (measure, source) in zip(axes[row], PANELS, strict=True):
            part = drawn[
                (drawn["model"] == model)
                & (drawn["task"] == task)
                & (drawn["measure"] == measure)
                & (drawn["source"] == source)
            ]
            for comparison, colour in LINES.items():
                line = part[part["comparison"] == comparison]
                axis.fill_between(line["layer"], line["ci_low"], line["ci_high"], color=colour, alpha=0.2, linewidth=0)
                axis.plot(line["layer"], line["distance"], color=colour)
            if part.empty:  # no comparison: too few queries have a map
                axis.text(0.5, 0.5, "too few paths", transform=axis.transAxes, ha="center", va="center", color=GREY)
            axis.set_ylim(bottom=0)
            if row == 0:
                axis.set_title(f"{measure} from\n{NAMES.get(source, source)}")
            if row == len(rows) - 1:
                axis.set_xlabel("layer")
        axes[row, 0].set_ylabel(f"{model}\n{task}")
    legend(figure, [(words(name), {"color": colour}) for name, colour in LINES.items()])
    return figure, drawn
