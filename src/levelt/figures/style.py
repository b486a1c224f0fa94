"""The look that all figures share: sizes of a two-column page, colour-blind safe colours, names for readers."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

FULL_WIDTH = 7.0
"""Inches: the text width of the report."""

_COLOURS = sns.color_palette("colorblind")
VARIATION_COLOURS = {
    "instruction_first": _COLOURS[0],
    "sample_first": _COLOURS[1],
    "demonstrations": _COLOURS[2],
}
CONDITION_COLOURS = {
    "instruction_first": _COLOURS[0],
    "sample_first": _COLOURS[1],
    "unrelated_instruction": _COLOURS[5],
    "block_instruction_to_all": _COLOURS[3],
    "block_instruction_to_sample": _COLOURS[9],
    "isolate_sample": _COLOURS[4],
}
"""Colours of conditions where they are compared with each other; the variations have theirs."""
ROLE_COLOURS = {"sample": _COLOURS[0], "output": _COLOURS[3], "decision": _COLOURS[4]}
VERDICT_COLOURS = {"supported": _COLOURS[2], "contradicted": _COLOURS[3], "undecided": "0.55"}
GREY = "0.45"


def use_style() -> None:
    """Set matplotlib's defaults for this process: one figure is drawn per process."""
    mpl.use("Agg")
    sns.set_theme(
        context="paper",
        style="ticks",
        rc={
            "font.size": 8,
            "axes.titlesize": 8,
            "axes.labelsize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "lines.linewidth": 1.2,
            "figure.constrained_layout.use": True,
            "pdf.fonttype": 42,  # text stays text
            "svg.hashsalt": "levelt",
        },
    )


def words(name: str) -> str:
    """A name of the config as a reader sees it: ``instruction_first`` -> ``instruction first``."""
    return name.replace("_", " ")


def chance_line(axis: Axes, value: float = 0.5, *, horizontal: bool = True) -> None:
    """A thin line at chance."""
    (axis.axhline if horizontal else axis.axvline)(value, color="0.75", linewidth=0.6, zorder=0)


def legend(figure: Figure, entries: Sequence[tuple[str, dict[str, object]]], columns: int | None = None) -> None:
    """One legend above all panels: (name, line properties) each."""
    handles = [Line2D([], [], label=label, **properties) for label, properties in entries]  # type: ignore[arg-type]
    figure.legend(handles=handles, loc="outside upper center", ncols=columns or len(entries), frameon=False)
