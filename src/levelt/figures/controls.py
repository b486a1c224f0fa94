"""Figure: are the probes to be trusted? Controls, other classifiers, and less data."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH, GREY, ROLE_COLOURS, chance_line, legend
from levelt.vocabulary import UNTRAINED, latest_stage

KINDS = {
    "probe": "probe",
    "ridge": "ridge classifier",
    "lda": "shrinkage LDA",
    "mean_difference": "mean difference",
    "fixed_penalty": "probe*",
    "nested_penalty": "penalty chosen in folds*",
    "hidden_1": "1 hidden layer*",
    "hidden_2": "2 hidden layers*",
    "untrained": "probe, random weights",
    "embedding": "probe, embeddings",
    "bag_of_sample": "words of the sample",
    "bag_of_prompt": "words of the prompt",
    "random_text": "random label by text",
    "random_words": "random label by words",
    "permuted": "permuted labels",
}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Left: balanced accuracy of the probes beside every control, by role (mean over layers, tasks, models; bars: range
    over models; * on the models and tasks of `probes.controls` only). Middle: against training rows. Right: online code length in bits per label. Instruction first.
    """
    table = tables["controls"]
    stage = latest_stage(table["stage"])
    table = table[(table["condition"] == "instruction_first") & table["target"].isin(["label", "random"])]
    untrained = table[(table["stage"] == UNTRAINED) & (table["kind"] == "probe")].assign(kind="untrained")
    latest = table[table["stage"] == stage]
    drawn = pd.concat([latest, untrained], ignore_index=True)
    roles = [role for role in [*ROLE_COLOURS, "before"] if role in set(drawn["role"])]
    colours = {**ROLE_COLOURS, "before": GREY, "none": "0.2"}
    kinds = [kind for kind in KINDS if kind in set(drawn["kind"])]
    figure, axes = plt.subplots(1, 3, figsize=(FULL_WIDTH, 0.9 + 0.19 * max(len(kinds), 8)), width_ratios=[1.3, 1, 0.7])
    left, middle, right = axes
    chance_line(left, horizontal=False)
    offsets = dict(zip([*roles, "none"], [*np.linspace(-0.25, 0.25, len(roles)), 0.0], strict=True))
    for role, offset in offsets.items():
        rows = drawn[(drawn["role"] == role) & drawn["kind"].isin(kinds)]
        heights = np.array([kinds.index(kind) for kind in rows["kind"]]) + offset
        left.hlines(heights, rows["lowest"], rows["highest"], color=colours[role], linewidth=0.8)
        left.plot(rows["balanced_accuracy"], heights, "o", color=colours[role], markersize=2.8)
    left.set_yticks(range(len(kinds)), [KINDS[kind] for kind in kinds])
    left.set_ylim(len(kinds) - 0.5, -0.5)
    left.tick_params(axis="y", length=0)
    left.set_xlim(0.35, 1.02)
    left.set_xlabel("balanced accuracy")
    chance_line(middle)
    for of_role, line in drawn[drawn["kind"] == "size"].groupby("role", sort=False):
        ordered = line.sort_values("train_rows")
        middle.plot(ordered["train_rows"], ordered["balanced_accuracy"], ".-", color=colours[str(of_role)], linewidth=1)
    middle.set_xlabel("training rows")
    middle.set_ylabel("balanced accuracy")
    middle.set_ylim(0.42, 1.02)
    code = drawn[(drawn["kind"] == "online_code") & drawn["role"].isin(roles)]
    bars = [code[code["role"] == role]["compression"].mean() for role in roles]
    right.bar(range(len(roles)), bars, color=[colours[role] for role in roles], width=0.6)
    chance_line(right, 1.0)
    right.set_xticks(range(len(roles)), roles, rotation=45, ha="right")
    right.set_ylabel("compression by online code")
    entries: list[tuple[str, dict[str, object]]] = [
        (role, {"color": colours[role], "marker": "o", "markersize": 3}) for role in roles
    ]
    if (drawn["role"] == "none").any():
        entries.append(("no model", {"color": colours["none"], "marker": "o", "markersize": 3}))
    legend(figure, entries)
    return figure, drawn
