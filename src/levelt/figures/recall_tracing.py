"""Figure: which tokens' modules bring a disturbed answer back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.recall import last_model
from levelt.figures.style import FULL_WIDTH, words

_PARTS = ("first", "middle", "last")


def place_order(place: str) -> tuple[int, int, int]:
    """Where a place stands: before, relation, subject, answers, decision; a group in front of what follows it."""
    if place in ("before", "decision"):
        return (0 if place == "before" else 99, 0, 0)
    after = place.startswith("after_")
    name = place.removeprefix("after_")
    part = 0 if after else _PARTS.index(name.rsplit("_", 1)[1])
    group = name if after else name.rsplit("_", 1)[0]
    rank = {"relation": 1, "subject": 2}.get(group)
    if rank is None:
        rank = 2 + int(group.removeprefix("answer_"))
    return rank, 1 if after else 0, part


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Rise of the answer's probability over the disturbed run, by place and centre layer; the last model.

    Columns: step and what is disturbed; rows: attention, MLP. A star marks the disturbed places.
    """
    drawn = last_model(tables["tracing"]).reset_index(drop=True)
    cells = list(dict.fromkeys(zip(drawn["step"], drawn["noised"], strict=True)))
    places = sorted(set(drawn["place"]), key=place_order)
    sites = ["attention", "mlp"]
    height = 0.6 + len(sites) * (0.35 + 0.13 * len(places))
    figure, axes = plt.subplots(
        len(sites), len(cells), figsize=(FULL_WIDTH, height), sharex=True, sharey=True, squeeze=False
    )
    layers = sorted(drawn["layer"].unique())
    for i, site in enumerate(sites):
        shown: Any = None
        top = float(drawn.loc[drawn["site"] == site, "effect"].max())
        for j, (step, noised) in enumerate(cells):
            axis = axes[i][j]
            panel = drawn[(drawn["site"] == site) & (drawn["step"] == step) & (drawn["noised"] == noised)]
            grid = panel.pivot(index="place", columns="layer", values="effect").reindex(index=places, columns=layers)
            shown = axis.imshow(
                grid.to_numpy(), aspect="auto", cmap="Reds" if i == 0 else "Greens", vmin=0.0, vmax=max(top, 1e-6)
            )
            axis.set_facecolor("0.95")  # places this step does not have
            axis.set_xticks(range(len(layers))[:: max(1, len(layers) // 4)], layers[:: max(1, len(layers) // 4)])
            starred = [f"{words(name)} *" if name.startswith(noised) else words(name) for name in places]
            if j == 0:
                axis.set_yticks(range(len(places)), [words(name) for name in places], fontsize=6)
            for at, name in enumerate(starred):
                if name.endswith("*") and np.isfinite(grid.to_numpy()[at]).any():
                    axis.text(-0.5, at, "*", ha="right", va="center", fontsize=8)
            if i == 0:
                axis.set_title(f"step {step}\n{words(noised)}", fontsize=7)
            else:
                axis.set_xlabel("layer")
        figure.colorbar(shown, ax=list(axes[i]), label=f"{'MLP' if site == 'mlp' else site}: rise of P(answer)")
    return figure, drawn
