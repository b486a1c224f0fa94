"""Figure: are vectors of different instructions linearly separable, and how much of it would labels at random give?"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, chance_line, legend
from levelt.figures.vectors_ladder import ladder, of_models, sides

LINES = {
    ("held_out", "true"): ("held-out wordings", sns.color_palette("colorblind")[0], "-"),
    ("held_out", "shuffled"): ("held-out, shuffled labels", GREY, "-"),
    ("in_sample", "true"): ("in sample", sns.color_palette("colorblind")[1], ":"),
    ("in_sample", "shuffled"): ("in sample, shuffled labels", GREY, ":"),
}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Accuracy by layer for both classifiers, and two principal components of the vectors of the last layer but one."""
    separability, projection = tables["separability"], tables["projection"]
    models = ladder(separability)
    curves = of_models(separability[separability["layer"] >= 0], models)
    places = of_models(projection, models)
    places = places[places["layer"] == max(places["layer"].max() - 1, 0)]
    figure, axes = plt.subplots(len(models), 3, figsize=(FULL_WIDTH, 1.6 * len(models) + 0.5), squeeze=False)
    instructions = sides(places)
    colours = dict(zip(instructions, sns.color_palette("colorblind", len(instructions)), strict=True))
    for row, model in enumerate(models):
        for axis, method in zip(axes[row], ("logistic", "lda"), strict=False):
            part = curves[(curves["model"] == model) & (curves["method"] == method)]
            if len(part):
                chance_line(axis, 1 / part["classes"].iloc[0])
            for (split, labels), (_, colour, style) in LINES.items():
                line = part[(part["split"] == split) & (part["labels"] == labels)]
                axis.fill_between(line["layer"], line["ci_low"], line["ci_high"], color=colour, alpha=0.2, linewidth=0)
                axis.plot(line["layer"], line["accuracy"], color=colour, linestyle=style)
            axis.set_ylim(0, 1.03)
            axis.set_title(f"{model}: {method}" if method == "logistic" else f"{model}: LDA")
            axis.set_xlabel("layer" if row == len(models) - 1 else "")
        axes[row, 0].set_ylabel("accuracy")
        for side, colour in colours.items():
            part = places[(places["model"] == model) & (places["task"] == side[0])]
            part = part[part["instruction_id"] == side[1]]
            axes[row, 2].plot(part["first"], part["second"], "o", color=colour, markersize=2.5, label=side[1])
        axes[row, 2].set_title("two principal components")
        axes[row, 2].set_xticks([])
        axes[row, 2].set_yticks([])
    axes[0, 2].legend(frameon=False, fontsize=6, loc="best", handletextpad=0.1)
    legend(figure, [(name, {"color": colour, "linestyle": style}) for name, colour, style in LINES.values()])
    keys = ["model", "task", "instruction_id", "wording", "layer", "first", "second", "explained"]
    return figure, pd.concat([curves, places[keys]], ignore_index=True)
