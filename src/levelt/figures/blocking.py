"""Figure: what changes when attention between token groups is blocked, or the instruction is an unrelated one?"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, ROLE_COLOURS, chance_line, legend, words
from levelt.vocabulary import ALL, UNTRAINED

QUANTITIES = {
    ("exact_match", "behaviour", "answer"): ("exact match", GREY, "D"),
    ("information", "sample", "label"): ("label at sample", ROLE_COLOURS["sample"], "o"),
    ("information", "decision", "label"): ("label at decision", ROLE_COLOURS["decision"], "o"),
    ("information", "decision", "unasked"): ("unasked at decision", ROLE_COLOURS["decision"], "x"),
    ("information", "output", "label"): ("label at output", ROLE_COLOURS["output"], "o"),
}
"""(quantity, role, target) -> name, colour and marker."""


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Change under each condition against the instruction_first prompts, mean over tasks; a panel per stage.

    Large markers with intervals are means over families and models, small pale ones single models.
    """
    table = pd.concat([tables[name] for name in ("blocking", "unrelated") if name in tables], ignore_index=True)
    keys = pd.MultiIndex.from_frame(table[["quantity", "role", "target"]])
    chosen = (table["task"] == ALL) & (table["stage"] != UNTRAINED) & keys.isin(list(QUANTITIES))
    # an unrelated question has no right answer among the options, so exact match says nothing there
    chosen &= (table["condition"] != "unrelated_instruction") | (table["quantity"] != "exact_match")
    whole = (table["family"] == ALL) == (table["model"] == ALL)  # not the means of single families
    drawn = table[chosen & whole].reset_index(drop=True)
    stages, conditions = list(dict.fromkeys(drawn["stage"])), list(dict.fromkeys(drawn["condition"]))
    height = 0.75 + 0.42 * len(conditions)
    figure, axes = plt.subplots(
        1, max(len(stages), 1), figsize=(FULL_WIDTH, height), sharex=True, sharey=True, squeeze=False
    )
    offsets = np.linspace(-0.32, 0.32, len(QUANTITIES))
    for axis, stage in zip(axes.flat, stages, strict=False):
        chance_line(axis, 0.0, horizontal=False)
        for row in range(1, len(conditions), 2):
            axis.axhspan(row - 0.5, row + 0.5, color="0.96", linewidth=0, zorder=-1)
        of_stage = drawn[drawn["stage"] == stage]
        for offset, (key, (_, colour, marker)) in zip(offsets, QUANTITIES.items(), strict=True):
            rows = of_stage[(of_stage[["quantity", "role", "target"]] == key).all(axis=1)]
            mean, single = rows[rows["model"] == ALL], rows[rows["model"] != ALL]
            heights = np.array([conditions.index(name) for name in single["condition"]]) + offset
            axis.plot(100 * single["change"], heights, marker, color=colour, markersize=2, alpha=0.3, linestyle="none")
            heights = np.array([conditions.index(name) for name in mean["condition"]]) + offset
            axis.hlines(heights, 100 * mean["ci_low"], 100 * mean["ci_high"], color=colour, linewidth=1.0)
            axis.plot(100 * mean["change"], heights, marker, color=colour, markersize=3.5, linestyle="none")
        axis.set_title(stage)
        axis.set_yticks(range(len(conditions)), [words(name) for name in conditions])
        axis.set_ylim(max(len(conditions), 1) - 0.5, -0.5)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("change (percentage points)")
    entries: list[tuple[str, dict[str, object]]] = [
        (name, {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1.0})
        for name, colour, marker in QUANTITIES.values()
    ]
    legend(figure, entries)
    return figure, drawn
