"""What the figures of the recall study share: which rows they draw, colours of answers, curves with intervals."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from levelt.figures.style import GREY

_COLOURS = sns.color_palette("colorblind")
ANSWERS = ("answer_1", "answer_2", "answer_3")
TOKEN_COLOURS = {"answer_1": _COLOURS[0], "answer_2": _COLOURS[1], "answer_3": _COLOURS[2], "subject": GREY}
"""Of the readouts; a control has its answer's colour, dashed."""


def last_model(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last model, the most trained one, over all relations."""
    chosen: pd.DataFrame = table[table["model"] == table["model"].iloc[-1]]
    return chosen[chosen["relation"] == "all"] if "relation" in table else chosen


def entries() -> list[tuple[str, dict[str, object]]]:
    """Of the legend: the readouts."""
    named: list[tuple[str, dict[str, object]]] = [
        (name.replace("_", " "), {"color": colour}) for name, colour in TOKEN_COLOURS.items()
    ]
    return [*named, ("controls: another subject's answers", {"color": GREY, "linestyle": "--", "linewidth": 0.8})]


def curves(axis: Axes, panel: pd.DataFrame, value: str) -> None:
    """A line by depth for each readout, with its interval; controls dashed."""
    axis.axhline(0.0, color="0.8", linewidth=0.6, zorder=0)
    for token, line in panel.groupby("token", sort=False):
        answer = str(token).replace("control", "answer")
        colour, control = TOKEN_COLOURS[answer], str(token).startswith("control")
        style = {"linestyle": "--", "linewidth": 0.8} if control else {"linestyle": "-", "linewidth": 1.2}
        axis.plot(line["depth"], line[value], color=colour, marker=".", markersize=2.5, **style)  # type: ignore[arg-type]
        if not control:
            axis.fill_between(line["depth"], line["ci_low"], line["ci_high"], color=colour, alpha=0.15, linewidth=0)
