"""Figure: the three studies on one model and one depth axis."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.recall import ANSWERS, last_model
from levelt.figures.style import FULL_WIDTH, GREY, ROLE_COLOURS, chance_line

_COLOURS = {"attention": ROLE_COLOURS["output"], "mlp": ROLE_COLOURS["sample"], "residual": GREY}
PANELS = {
    "decoded": "label decoded\n(balanced accuracy)",
    "written": "instruction vector,\nspecific effect (logit)",
    "promoted": "next answer\nover control (logit)",
    "suppressed": "given answers\nover control (logit)",
}
"""Panel -> what its axis says."""


def decoded(probes: pd.DataFrame, model: str) -> pd.DataFrame:
    """Balanced accuracy of the asked label by role and depth, instruction first, mean over the tasks of the model.

    Tasks have different samples: squared half widths add up.
    """
    chosen = probes[(probes["model"] == model) & (probes["condition"] == "instruction_first")]
    chosen = chosen[(chosen["target"] == "label") & chosen["role"].isin(list(ROLE_COLOURS))]
    chosen = chosen.assign(squared=((chosen["ci_high"] - chosen["ci_low"]) / 2) ** 2)
    means = chosen.groupby(["role", "layer", "depth"], sort=False).agg(
        value=("balanced_accuracy", "mean"), squared=("squared", "sum"), tasks=("task", "nunique")
    )
    table: pd.DataFrame = means.reset_index().rename(columns={"role": "line"})
    half = np.sqrt(table.pop("squared")) / table.pop("tasks")
    return table.assign(panel="decoded", ci_low=table["value"] - half, ci_high=table["value"] + half)


def written(patching: pd.DataFrame, model: str) -> pd.DataFrame:
    """Specific effect of the last instruction token, each layer alone; mean over tasks and instructions."""
    chosen = patching[(patching["model"] == model) & (patching["measure"] == "specific") & (patching["token"] == 0)]
    layers = chosen["first"].max()
    chosen = chosen[(chosen["second"] == 0) & (chosen["receiver"] == chosen["receiver"].iloc[0])]
    chosen = chosen.assign(squared=((chosen["ci_high"] - chosen["ci_low"]) / 2) ** 2)
    means = chosen.groupby("first", sort=True).agg(
        value=("mean", "mean"), squared=("squared", "sum"), n=("squared", "size")
    )
    table: pd.DataFrame = means.reset_index().rename(columns={"first": "layer"})
    half = np.sqrt(table.pop("squared")) / table.pop("n")
    table = table.assign(panel="written", line="instruction token", depth=table["layer"] / layers)
    return table.assign(ci_low=table["value"] - half, ci_high=table["value"] + half)


def recalled(lens: pd.DataFrame) -> pd.DataFrame:
    """What attention and MLPs of each layer, and the residual so far, give the next answer and those given (step 3)."""
    last = lens["step"].max()
    chosen = lens[(lens["step"] == last) & (lens["group"] == "all") & lens["component"].isin(list(_COLOURS))]
    parts = []
    for panel, tokens in (("promoted", ANSWERS[last - 1 : last]), ("suppressed", ANSWERS[: last - 1])):
        of_panel = chosen[chosen["token"].isin(tokens)]
        # the given answers' intervals are those of their mean, as wide as if they always moved together
        columns = ["over_control", "over_control_ci_low", "over_control_ci_high"]
        means = of_panel.groupby(["component", "layer", "depth"], sort=False)[columns].mean().reset_index()
        parts.append(
            means.set_axis(["line", "layer", "depth", "value", "ci_low", "ci_high"], axis=1).assign(panel=panel)
        )
    together: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return together


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Panels from above: what is decoded where; where the instruction is written; what recall promotes and suppresses.

    The last model of the recall study; a panel is drawn if its table is given and has this model.
    """
    lens = last_model(tables["lens"])
    model = str(lens["model"].iloc[0])
    parts = [recalled(lens)]
    for name, make in (("patching", written), ("probes", decoded)):
        if name in tables and model in set(tables[name]["model"]):
            parts.insert(0, make(tables[name], model))
    drawn = pd.concat(parts, ignore_index=True).assign(model=model)
    panels = [name for name in PANELS if name in set(drawn["panel"])]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(FULL_WIDTH * 0.6, 0.4 + 1.35 * len(panels)), sharex=True, squeeze=False
    )
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        chance_line(axis, 0.5 if panel == "decoded" else 0.0)
        for line, curve in drawn[drawn["panel"] == panel].groupby("line", sort=False):
            colour = {**ROLE_COLOURS, **_COLOURS}.get(str(line), GREY)
            axis.plot(curve["depth"], curve["value"], color=colour, marker=".", markersize=3, label=str(line))
            axis.fill_between(curve["depth"], curve["ci_low"], curve["ci_high"], color=colour, alpha=0.15, linewidth=0)
        axis.set_ylabel(PANELS[panel])
        axis.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[-1][0].set_xlabel("depth (layer / layers)")
    axes[0][0].set_title(model)
    return figure, drawn
