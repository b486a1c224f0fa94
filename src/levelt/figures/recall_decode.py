"""Figure: what is promoted and suppressed at the last token, layer by layer, at each answer step."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.recall import curves, entries, last_model
from levelt.figures.style import FULL_WIDTH, legend

ROWS = {"residual": "logit so far", "attention": "attention adds", "mlp": "MLP adds"}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Early decoding of the residual, attention and MLP (rows) at steps 1 to 3 (columns), last model of the table."""
    table = last_model(tables["lens"])
    drawn = table[(table["group"] == "all") & table["component"].isin(list(ROWS))].reset_index(drop=True)
    steps = sorted(drawn["step"].unique())
    figure, axes = plt.subplots(
        len(ROWS), len(steps), figsize=(FULL_WIDTH, 4.6), sharex=True, sharey="row", squeeze=False
    )
    for i, (component, name) in enumerate(ROWS.items()):
        for j, step in enumerate(steps):
            axis = axes[i][j]
            curves(axis, drawn[(drawn["component"] == component) & (drawn["step"] == step)], "logit")
            if i == 0:
                axis.set_title(f"step {step}: answer {step} comes next")
            if j == 0:
                axis.set_ylabel(f"{name}\n(logit)")
            if i == len(ROWS) - 1:
                axis.set_xlabel("depth (layer / layers)")
    legend(figure, entries())
    return figure, drawn
