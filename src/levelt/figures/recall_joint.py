"""Figure: the three studies on the same models and one depth axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from levelt.figures.recall import ANSWERS
from levelt.figures.style import FULL_WIDTH, GREY, ROLE_COLOURS, chance_line
from levelt.vocabulary import latest_stage

_COLOURS = sns.color_palette("colorblind")
_PARTS = {"attention": "attention adds", "mlp": "MLP adds", "residual": "logit so far"}
_DISTANCES = {"instructions": "two instructions", "other_queries": "other queries", "rephrased": "rephrased"}
_LAST, _MOST = "last token", "strongest token"
COLUMNS = 2
"""Models shown at most."""

PANELS = {
    "decoded": "label decoded\n(balanced accuracy)",
    "selected": "asked − not asked\n(balanced accuracy)",
    "written": "instruction vector\npatched in (logit)",
    "split": "paths of instructions\n(distance)",
    "promoted": "next answer\n(logit, over control)",
    "suppressed": "given answers\n(logit, over control)",
}
"""Panel -> what its axis says."""

LINES: dict[str, tuple[object, str, str]] = {
    **{role: (colour, "-", marker) for (role, colour), marker in zip(ROLE_COLOURS.items(), "osD", strict=False)},
    _LAST: (_COLOURS[1], "--", "s"),
    _MOST: (_COLOURS[2], "-", "o"),
    "two instructions": (_COLOURS[3], "-", "o"),
    "rephrased": (_COLOURS[0], "--", "s"),
    "other queries": (_COLOURS[2], ":", "D"),
    "attention adds": (_COLOURS[3], "-", "o"),
    "MLP adds": (_COLOURS[0], "-", "s"),
    "logit so far": (GREY, "--", ""),
}
"""Line -> colour, style, marker: readable without colours."""


def _mean(rows: pd.DataFrame, keys: Sequence[str], value: str, low: str = "ci_low", high: str = "ci_high") -> pd.DataFrame:
    """Mean over the other columns (tasks, instructions) with the interval of a mean of independent estimates."""
    rows = rows.assign(squared=((rows[high] - rows[low]) / 2) ** 2)
    means = rows.groupby(list(keys), sort=False).agg(
        value=(value, "mean"), squared=("squared", "sum"), parts=("squared", "size")
    )
    table: pd.DataFrame = means.reset_index()
    half = np.sqrt(table.pop("squared")) / table.pop("parts")
    return table.assign(ci_low=table["value"] - half, ci_high=table["value"] + half)


def decoded(probes: pd.DataFrame) -> pd.DataFrame:
    """The asked label by role, instruction first, mean over tasks."""
    chosen = probes[(probes["condition"] == "instruction_first") & (probes["target"] == "label")]
    chosen = chosen[chosen["role"].isin(list(ROLE_COLOURS))]
    return _mean(chosen, ["role", "depth"], "balanced_accuracy").rename(columns={"role": "line"})


def selected(selection: pd.DataFrame) -> pd.DataFrame:
    """How much better a property is decoded when it is asked than when the other one is, by role, mean over tasks."""
    chosen = selection[(selection["condition"] == "instruction_first") & (selection["task"] == "all")]
    chosen = chosen[chosen["target"] == "all"]
    chosen = chosen[chosen["role"].isin(list(ROLE_COLOURS))]
    return _mean(chosen, ["role", "depth"], "estimate").rename(columns={"role": "line"})


def written(patching: pd.DataFrame) -> pd.DataFrame:
    """Specific effect of an instruction token's vector at each layer alone, mean over tasks and instructions: of the
    last token, and of the one that acts most (the highest mean of any layer)."""
    chosen = patching[(patching["measure"] == "specific") & (patching["second"] == 0)].sort_values("first")
    places = chosen.groupby("receiver", sort=False)["token"].nunique()
    chosen = chosen[chosen["receiver"] == places.idxmax()]
    means = _mean(chosen, ["token", "first"], "mean")
    most = int(means["token"].iloc[int(means["value"].argmax())])
    named: dict[int, str] = {most: _MOST} | {0: _LAST}
    means = means[means["token"].isin(list(named))]
    return means.assign(line=means["token"].map(named), depth=means["first"] / means["first"].max())


def split(circuits: pd.DataFrame) -> pd.DataFrame:
    """Distance between the head maps of two instructions on the same queries, and what it must exceed.

    Head maps: activity on exact paths from the query to the answer.
    """
    chosen = circuits[(circuits["mode"] == "exact") & (circuits["keys"] == circuits["keys"].min())]
    chosen = chosen[(chosen["measure"] == "activity") & (chosen["source"] == "query")]
    means = _mean(chosen[chosen["comparison"].isin(list(_DISTANCES))], ["comparison", "layer"], "distance")
    return means.assign(line=means["comparison"].map(_DISTANCES), depth=means["layer"] / means["layer"].max())


def _recalled(lens: pd.DataFrame, given: bool) -> pd.DataFrame:
    """What attention and MLPs of each layer add to the next answer, or to those given, at the last step."""
    last = int(lens["step"].max())
    tokens = ANSWERS[: last - 1] if given else ANSWERS[last - 1 : last]
    chosen = lens[(lens["step"] == last) & (lens["group"] == "all") & (lens["relation"] == "all")]
    chosen = chosen[chosen["component"].isin(list(_PARTS)) & chosen["token"].isin(tokens)]
    # the given answers' intervals are those of their mean, as wide as if they always moved together
    columns = ["over_control", "over_control_ci_low", "over_control_ci_high"]
    means = chosen.groupby(["component", "depth"], sort=False)[columns].mean().reset_index()
    means.columns = ["line", "depth", "value", "ci_low", "ci_high"]
    return means.assign(line=means["line"].map(_PARTS))


def promoted(lens: pd.DataFrame) -> pd.DataFrame:
    """The answer that comes next."""
    return _recalled(lens, given=False)


def suppressed(lens: pd.DataFrame) -> pd.DataFrame:
    """The answers given before."""
    return _recalled(lens, given=True)


SOURCES: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
    "decoded": ("probes", decoded),
    "selected": ("selection_layers", selected),
    "written": ("patching", written),
    "split": ("circuits", split),
    "promoted": ("lens", promoted),
    "suppressed": ("lens", suppressed),
}
"""Panel -> its table, and what is taken from the rows of one model."""


def shown(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The models of the recall study that most of the tables have, of the latest stage, one of each family."""
    lens = tables["lens"][["model", "family", "stage"]].drop_duplicates()
    counts = lens["model"].map(lambda name: sum(name in set(table["model"]) for table in tables.values()))
    most = lens[counts == counts.max()]
    latest = most[most["stage"] == latest_stage(most["stage"])]
    return list(latest.drop_duplicates("family")["model"])[:COLUMNS]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Rows: what is decoded where; what the instruction selects; where its vectors act and its paths split; what recall
    promotes and suppresses. A column per model; a row is drawn if its table is given and has these models."""
    parts = []
    models = shown(tables)
    for panel, (name, make) in SOURCES.items():
        for model in models:
            if name in tables and model in set(tables[name]["model"]):
                found = make(tables[name][tables[name]["model"] == model])
                parts.append(found[["line", "depth", "value", "ci_low", "ci_high"]].assign(panel=panel, model=model))
    drawn = pd.concat(parts, ignore_index=True)
    panels = [name for name in PANELS if name in set(drawn["panel"])]
    width = FULL_WIDTH * (0.62 if len(models) == 1 else 1.0)
    figure, axes = plt.subplots(
        len(panels), len(models), figsize=(width, 0.5 + 1.15 * len(panels)), sharex=True, sharey="row", squeeze=False
    )
    for i, panel in enumerate(panels):
        for j, model in enumerate(models):
            axis = axes[i][j]
            chance_line(axis, 0.5 if panel == "decoded" else 0.0)
            here = drawn[(drawn["panel"] == panel) & (drawn["model"] == model)]
            for line, curve in here.groupby("line", sort=False):
                colour, style, marker = LINES[str(line)]
                axis.fill_between(curve["depth"], curve["ci_low"], curve["ci_high"], color=colour, alpha=0.18, linewidth=0)
                axis.plot(curve["depth"], curve["value"], color=colour, linestyle=style, marker=marker, markersize=3, label=str(line))
            if i == 0:
                axis.set_title(model)
            if i == len(panels) - 1:
                axis.set_xlabel("depth (layer / layers)")
        axes[i][0].set_ylabel(PANELS[panel])
        lines = {name: line for axis in axes[i] for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
        axes[i][-1].legend(lines.values(), lines.keys(), frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.2)
    figure.align_ylabels(axes[:, 0])
    return figure, drawn
