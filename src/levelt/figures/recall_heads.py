"""Figure: how often each head promotes and suppresses subject and answers; right and released projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.recall import last_model
from levelt.figures.style import FULL_WIDTH

PROJECTIONS = {"right": "right projection", "as_released": "transposed, as released"}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """A dot per head, coloured by depth: promotion rate against suppression rate, a column per step; the last model."""
    drawn = last_model(tables["heads"]).reset_index(drop=True)
    projections = [name for name in PROJECTIONS if name in set(drawn["projection"])]
    steps = sorted(drawn["step"].unique())
    figure, axes = plt.subplots(
        len(projections),
        len(steps),
        figsize=(FULL_WIDTH, 0.5 + 1.9 * len(projections)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    dots: Any = None
    for i, projection in enumerate(projections):
        for j, step in enumerate(steps):
            axis, panel = axes[i][j], drawn[(drawn["projection"] == projection) & (drawn["step"] == step)]
            axis.errorbar(
                panel["promotion"],
                panel["suppression"],
                xerr=[panel["promotion"] - panel["promotion_ci_low"], panel["promotion_ci_high"] - panel["promotion"]],
                yerr=[
                    panel["suppression"] - panel["suppression_ci_low"],
                    panel["suppression_ci_high"] - panel["suppression"],
                ],
                fmt="none",
                ecolor="0.8",
                elinewidth=0.5,
                zorder=1,
            )
            dots = axis.scatter(
                panel["promotion"],
                panel["suppression"],
                c=panel["depth"],
                cmap="viridis",
                vmin=0,
                vmax=1,
                s=10,
                zorder=2,
            )
            if i == 0:
                axis.set_title(f"step {step}")
            if i == len(projections) - 1:
                axis.set_xlabel("promotion rate")
            if j == 0:
                axis.set_ylabel(f"{PROJECTIONS[projection]}\nsuppression rate")
    figure.colorbar(dots, ax=axes, label="depth (layer / layers)")
    return figure, drawn
