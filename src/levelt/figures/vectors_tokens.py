"""Figure: which token of an instruction holds it? Effect of patching each token's vectors in, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, chance_line, legend
from levelt.figures.vectors_ladder import ladder, of_models, sides


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Gain of the instruction's own answer over the other instruction's, against layer; a line per token."""
    patching = tables["patching"]
    models = ladder(patching)
    chosen = (patching["measure"] == "specific") & (patching["second"] == 0)
    chosen &= patching["receiver"] == patching["receiver"].iloc[0]
    drawn = of_models(patching[chosen], models)
    columns, tokens = sides(drawn), sorted(set(drawn["token"]))
    colours = dict(zip(tokens, sns.color_palette("viridis", len(tokens)), strict=True))
    size = (FULL_WIDTH, 1.4 * len(models) + 0.5)
    figure, axes = plt.subplots(len(models), len(columns), figsize=size, squeeze=False, sharex=True, sharey=True)
    for row, model in enumerate(models):
        for column, (task, instruction) in enumerate(columns):
            axis = axes[row, column]
            chance_line(axis, 0.0)
            part = drawn[
                (drawn["model"] == model) & (drawn["task"] == task) & (drawn["instruction_id"] == instruction)
            ]
            for token, line in part.groupby("token"):
                axis.fill_between(line["first"], line["ci_low"], line["ci_high"], color=colours[token], alpha=0.25)
                axis.plot(line["first"], line["mean"], color=colours[token])
            if row == 0:
                axis.set_title(f"{task}: {instruction}")
        axes[row, 0].set_ylabel(f"{model}\nlogits")
    for axis in axes[-1]:
        axis.set_xlabel("layer")
    names = {0: "last token"}
    legend(figure, [(names.get(token, str(token)), {"color": colours[token]}) for token in tokens])
    return figure, drawn
