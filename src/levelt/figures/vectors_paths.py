"""Figure: from which tokens do high-ranking paths to the answer start, and how much do all paths of a token carry?"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, legend
from levelt.figures.vectors_ladder import ladder, of_models, sides

MEASURES = {"high": "high-ranking paths", "share": "share of the token's paths", "total": "logit of all paths"}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Raw counts, counts as shares of all paths there are, and exact totals, by source token; a line per model."""
    paths = tables["paths"]
    models = ladder(paths)
    chosen = (paths["mode"] == "exact") & (paths["wording"] == 0) & (paths["keys"] == paths["keys"].min())
    drawn = of_models(paths[chosen], models)
    rows = sides(drawn)
    colours = dict(zip(models, sns.color_palette("colorblind", len(models)), strict=True))
    figure, axes = plt.subplots(len(rows), 3, figsize=(FULL_WIDTH, 1.3 * len(rows) + 0.6), squeeze=False)
    for row, (task, instruction) in enumerate(rows):
        for axis, (measure, name) in zip(axes[row], MEASURES.items(), strict=True):
            part = drawn[
                (drawn["task"] == task) & (drawn["instruction_id"] == instruction) & (drawn["measure"] == measure)
            ]
            axis.axvline(0, color="0.75", linewidth=0.6, zorder=0)
            for model in models:
                line = part[part["model"] == model]
                axis.fill_between(line["from_last"], line["ci_low"], line["ci_high"], color=colours[model], alpha=0.2)
                axis.plot(line["from_last"], line["mean"], color=colours[model])
            if row == 0:
                axis.set_title(name)
            if row == len(rows) - 1:
                axis.set_xlabel("token (0: last of the instruction)")
        axes[row, 0].set_ylabel(f"{task}:\n{instruction}")
    legend(figure, [(model, {"color": colour}) for model, colour in colours.items()])
    return figure, drawn
