"""Figure: what instruction vectors do at every pair of layers, and whether the two layers act together."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from levelt.figures.style import FULL_WIDTH
from levelt.figures.vectors_ladder import ladder, of_models, sides


def strongest_token(patching: pd.DataFrame) -> int:
    """The instruction token whose vectors act most specifically at single layers, over all models shown."""
    chosen = patching[(patching["measure"] == "specific") & (patching["second"] == 0)]
    means = chosen.groupby("token")["mean"].mean()
    return int(means.index[int(means.to_numpy().argmax())])


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Signed heatmaps: above the diagonal and on it the mean effect, below it the interaction of the pair.

    Two blocks of rows: vectors of the last instruction token, and of the token that acts most.
    """
    patching, interaction = tables["patching"], tables["interaction"]
    main = patching["receiver"].iloc[0]
    models = ladder(patching)
    patching = of_models(patching[patching["receiver"] == main], models)
    interaction = of_models(interaction[interaction["receiver"] == main], models)
    tokens = list(dict.fromkeys([0, strongest_token(patching)]))
    effects = patching[(patching["measure"] == "effect") & (patching["third"] == 0) & patching["token"].isin(tokens)]
    pairs = interaction[(interaction["third"] == 0) & interaction["token"].isin(tokens)]
    keys = ["model", "task", "instruction_id", "token", "first", "second"]
    drawn = pd.concat(
        [
            effects[[*keys, "mean", "ci_low", "ci_high"]].assign(quantity="effect"),
            pairs[[*keys, "interaction", "ci_low", "ci_high", "p_holm"]]
            .rename(columns={"interaction": "mean"})
            .assign(quantity="interaction"),
        ],
        ignore_index=True,
    )
    columns = sides(patching)
    depth = int(patching["first"].max())
    rows = [(token, model) for token in tokens for model in models]
    size = (FULL_WIDTH, FULL_WIDTH / max(len(columns), 3) * 0.9 * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False, sharex=True, sharey=True)
    for token_rows in (range(at, at + len(models)) for at in range(0, len(rows), len(models))):
        token = rows[token_rows[0]][0]
        limit = max(float(drawn.loc[drawn["token"] == token, "mean"].abs().max()), 1e-9)
        for row in token_rows:
            for column, (task, instruction) in enumerate(columns):
                axis = axes[row, column]
                cell = drawn[
                    (drawn["model"] == rows[row][1])
                    & (drawn["token"] == token)
                    & (drawn["task"] == task)
                    & (drawn["instruction_id"] == instruction)
                ]
                image = axis.imshow(_grid(cell, depth), cmap="RdBu_r", vmin=-limit, vmax=limit, origin="upper")
                axis.set_xticks(range(depth), range(1, depth + 1))
                axis.set_yticks(range(depth), range(1, depth + 1))
                if row == 0:
                    axis.set_title(f"{task}: {instruction}")
            axes[row, 0].set_ylabel(f"{rows[row][1]}\n{'last token' if token == 0 else f'token {token}'}")
        figure.colorbar(image, ax=list(axes[list(token_rows)].flat), label="logits", shrink=0.8)
    figure.supxlabel("layer (above the diagonal: effect of both; on it: of one; below: interaction)", fontsize=8)
    return figure, drawn


def _grid(cell: pd.DataFrame, depth: int) -> np.ndarray:
    grid = np.full((depth, depth), np.nan)
    for quantity, first, second, mean in cell[["quantity", "first", "second", "mean"]].itertuples(index=False):
        if quantity == "effect":
            grid[first - 1, (second or first) - 1] = mean
        else:
            grid[second - 1, first - 1] = mean
    return grid
