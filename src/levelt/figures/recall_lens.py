"""Figure: what the last token's attention to each group brings, directly and through the MLPs."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.recall import curves, entries, last_model
from levelt.figures.style import FULL_WIDTH, legend, words


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Rows: attended group. Columns: token lens at each step, then the change of the MLPs' output by knocking it out.

    Weights are not renormalised, as published.
    """
    lens, knockout = last_model(tables["lens"]), last_model(tables["knockout"])
    lens = lens[(lens["component"] == "attention") & (lens["group"] != "all") & (lens["group"] != "rest")]
    knockout = knockout[(knockout["component"] == "mlp") & ~knockout["renormalised"]]
    columns = ["model", "step", "group", "token", "layer", "depth", "n", "ci_low", "ci_high"]
    drawn = pd.concat(
        [
            lens[[*columns, "logit"]].rename(columns={"logit": "value"}).assign(quantity="token lens"),
            knockout[[*columns, "effect"]].rename(columns={"effect": "value"}).assign(quantity="knockout"),
        ],
        ignore_index=True,
    )
    groups = [name for name in ("subject", "answer_1", "answer_2", "decision") if name in set(drawn["group"])]
    steps = sorted(drawn["step"].unique())
    figure, axes = plt.subplots(
        len(groups), 2 * len(steps), figsize=(FULL_WIDTH, 0.7 + 1.15 * len(groups)), sharex=True, squeeze=False
    )
    for i, group in enumerate(groups):
        for k, quantity in enumerate(("token lens", "knockout")):
            of_row = drawn[(drawn["group"] == group) & (drawn["quantity"] == quantity)]
            low, high = of_row["ci_low"].min(), of_row["ci_high"].max()
            for j, step in enumerate(steps):
                axis, panel = axes[i][k * len(steps) + j], of_row[of_row["step"] == step]
                if i == 0:
                    axis.set_title(f"{quantity}\nstep {step}" if j == 1 else f"\nstep {step}")
                if panel.empty:
                    axis.set_axis_off()
                    continue
                curves(axis, panel, "value")
                axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
                axis.tick_params(labelsize=5)
                if i == len(groups) - 1:
                    axis.set_xlabel("depth")
        first = next(axis for axis in axes[i] if axis.axison)
        first.set_ylabel(f"{'last token' if group == 'decision' else words(group)}\n(logit)")
    legend(figure, entries())
    return figure, drawn
