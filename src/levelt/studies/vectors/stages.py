"""What the claims about instruction vectors rest on: one number per task and quantity, over the models of a stage.

Every quantity is a mean over queries with its resampling draws. Models that read the same queries share their draws,
tasks are drawn independently; means run over tasks, then models, then families, as in the asymmetry study, and two
stages are compared on the models that have both.

Quantities (docs/vectors.md): followed, full, effect_last, specific_last, specific_other, last_minus_other,
early_minus_late, interaction_last, interaction_other, paths_last_minus_other, error_exact, error_paper,
late.<measure>.<source>, later.<measure>.<source>, separable.<method>.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from levelt.config import Statistics
from levelt.randomness import generator
from levelt.statistics.resampling import Floats, cluster_draws, percentile_interval
from levelt.studies.vectors.circuits import compare, head_maps
from levelt.studies.vectors.columns import MEAN_OF_LAYERS, NONE
from levelt.studies.vectors.patching import by_cell, means_by_query
from levelt.vocabulary import ALL, STAGES, UNTRAINED

SPLITS = 200
"""Halvings of the queries that head maps are compared over."""

Read = Callable[[str], pd.DataFrame]


@dataclass(frozen=True)
class Measured:
    """A mean with its resampling draws [draws]; n queries."""

    estimate: float
    draws: Floats
    n: int


def stages_table(folders: Mapping[str, Path], models: pd.DataFrame, statistics: Statistics, seed: int) -> pd.DataFrame:
    """Every quantity by stage, and its change between stages.

    Args:
        folders: by model, the folder that `levelt vectors` wrote.
        models: from `levelt.studies.scope.describe_models`.

    Returns:
        stage, earlier_stage (none: the mean of the stage; else the change since then, over models that have both),
        task (all: their mean), quantity, models, n (queries of all tasks, of one model), estimate, ci_low, ci_high.
    """
    known = models[models["model"].isin(folders) & (models["stage"] != UNTRAINED)]
    found = {}
    for model in known["model"]:
        folder = folders[model]
        found[model] = quantities(
            lambda file, folder=folder: pd.read_parquet(folder / f"{file}.parquet"),  # type: ignore[misc]
            statistics,
            seed,
        )
    stages = sorted(dict.fromkeys(known["stage"]), key=lambda name: STAGES.index(name) if name in STAGES else -1)
    rows = []
    for later, stage in enumerate(stages):
        of_stage = known[known["stage"] == stage]
        rows += _rows({m: found[m] for m in of_stage["model"]}, of_stage, statistics, stage, NONE)
        for earlier in stages[:later]:
            pairs = of_stage.merge(
                known[known["stage"] == earlier], on=["family", "size", "seed"], suffixes=("", "_of")
            )
            changes = {
                row.model: dict(_changes(found[row.model], found[row.model_of]))
                for row in pairs.itertuples(index=False)
            }
            if changes:
                rows += _rows(changes, pairs, statistics, stage, earlier)
    for stage in stages:
        chosen = known[known["stage"] == stage]["model"]
        rows += _separable({m: pd.read_parquet(folders[m] / "separability.parquet") for m in chosen}, stage)
    columns = ["stage", "earlier_stage", "task", "quantity", "models", "n", "estimate", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns)


Quantities = dict[tuple[str, str], Measured]
"""By task and quantity."""


def _changes(later: Quantities, earlier: Quantities) -> Iterator[tuple[tuple[str, str], Measured]]:
    for key, one in later.items():
        if key in earlier:
            other = earlier[key]
            yield key, Measured(one.estimate - other.estimate, one.draws - other.draws, min(one.n, other.n))


def _rows(
    found: Mapping[str, Quantities], models: pd.DataFrame, statistics: Statistics, stage: str, earlier: str
) -> list[dict[str, object]]:
    family = dict(zip(models["model"], models["family"], strict=True))
    rows: list[dict[str, object]] = []
    for quantity in dict.fromkeys(name for of_model in found.values() for _, name in of_model):
        having = {m: {t: one for (t, name), one in of.items() if name == quantity} for m, of in found.items()}
        having = {m: of for m, of in having.items() if of}
        tasks = list(dict.fromkeys(task for of in having.values() for task in of))
        for task in [*tasks, ALL]:
            chosen = {m: [one for t, one in of.items() if task in (t, ALL)] for m, of in having.items()}
            chosen = {m: several for m, several in chosen.items() if several}
            families: dict[str, list[str]] = {}
            for model in chosen:
                families.setdefault(family[model], []).append(model)
            weights = {m: 1 / (len(families) * len(families[family[m]]) * len(of)) for m, of in chosen.items()}
            estimate = sum(weights[m] * one.estimate for m, of in chosen.items() for one in of)
            draws = np.sum([weights[m] * one.draws for m, of in chosen.items() for one in of], axis=0)
            low, high = percentile_interval(draws, statistics.level)
            n = max(sum(one.n for one in of) for of in chosen.values())
            names = {"stage": stage, "earlier_stage": earlier, "task": task, "quantity": quantity}
            rows.append(
                names
                | {"models": len(chosen), "n": n, "estimate": estimate, "ci_low": float(low), "ci_high": float(high)}
            )
    return rows


def _separable(tables: Mapping[str, pd.DataFrame], stage: str) -> list[dict[str, object]]:
    """Held-out accuracy over layers minus the highest that shuffled labels reach in any layer: mean over models.

    Models read the same wordings, so bounds are averaged, too: as wide as if all models erred on the same ones.
    """
    rows: list[dict[str, object]] = []
    methods = dict.fromkeys(name for table in tables.values() for name in table["method"])
    for method in methods:
        found = []
        for table in tables.values():
            part = table[(table["method"] == method) & (table["split"] == "held_out")]
            true = part[(part["labels"] == "true") & (part["layer"] == MEAN_OF_LAYERS)]
            chance = part[(part["labels"] == "shuffled") & (part["layer"] > 0)]["ci_high"].max()
            found.append([*(true[["accuracy", "ci_low", "ci_high"]].iloc[0] - chance), true["n"].iloc[0]])
        estimate, low, high, n = np.mean(found, axis=0)
        names = {"stage": stage, "earlier_stage": NONE, "task": ALL, "quantity": f"separable.{method}"}
        rows.append(names | {"models": len(found), "n": int(n), "estimate": estimate, "ci_low": low, "ci_high": high})
    return rows


def quantities(read: Read, statistics: Statistics, seed: int) -> Quantities:
    """Every quantity of one model. ``read`` gives the files of `levelt vectors` by name."""
    values = dict(_behaviour(read("behaviour")))
    effects = read("effects")
    values |= dict(means_by_query(effects, seed)) | dict(_layers(effects))
    values |= dict(_tokens(read("tokens"))) | dict(_sums(read("sums")))
    found = {}
    for (task, quantity), of_queries in values.items():
        kept = of_queries[~np.isnan(of_queries)]
        if len(kept) >= 2:
            drawn = generator(seed, "vectors", "stages", task, len(kept))
            draws = cluster_draws(len(kept), statistics.draws, drawn) @ kept / len(kept)
            found[task, quantity] = Measured(float(kept.mean()), draws, len(kept))
    return found | dict(_circuits(read("heads"), seed))


Values = Iterator[tuple[tuple[str, str], Floats]]
"""(task, quantity) and its values, one per query; nan where it is undefined."""


def _by_sample(part: pd.DataFrame, column: str) -> Floats:
    """Mean of a column over the rows of each sample."""
    return np.asarray(part.groupby("sample")[column].mean(), dtype=np.float64)


def _behaviour(behaviour: pd.DataFrame) -> Values:
    used = behaviour[behaviour["wording"] == 0]
    for task, part in used.groupby("task", sort=False):
        yield (str(task), "followed"), _by_sample(part.assign(correct=part["correct"].astype(float)), "correct")


def _layers(effects: pd.DataFrame) -> Values:
    """The last token's effect over layers, and how much more of its specific effect the first half of layers has.

    Beside them what the full prompt gives the answer over the plain receiver, which is all that there is to gain.
    """
    main = effects[(effects["receiver"] == effects["receiver"].iloc[0]) & (effects["token"] == 0)]
    main = main.assign(specific=main["effect"] - main["other_effect"])
    depth = int(main["first"].max())
    for task, of_task in main.groupby("task", sort=False):
        raw, early, full = [], [], []
        for _, part in of_task.groupby("instruction_id", sort=False):
            names, specific = by_cell(part, "specific")
            effect = by_cell(part, "effect")[1]
            acting = {c[0]: at for c, at in names.items() if len(c) == 1 and np.abs(specific[:, at]).max() > 0}
            halves = [[at for layer, at in acting.items() if (layer > depth / 2) == later] for later in (False, True)]
            full.append((effect - by_cell(part, "to_full")[1])[:, 0])
            if acting:
                raw.append(effect[:, list(acting.values())].mean(1))
            if all(halves):
                early.append(specific[:, halves[0]].mean(1) - specific[:, halves[1]].mean(1))
        for quantity, several in (("full", full), ("effect_last", raw), ("early_minus_late", early)):
            if several:
                yield (str(task), quantity), np.mean(several, axis=0)


def _tokens(tokens: pd.DataFrame) -> Values:
    """Share of high-ranking paths: of those from the last instruction token, minus of those from its other tokens."""
    used = tokens[(tokens["mode"] == "exact") & (tokens["wording"] == 0)]
    used = used[used["keys"] == used["keys"].min()]
    used = used.assign(share=used["high"] / used["paths"].where(used["paths"] > 0))
    for task, part in used.groupby("task", sort=False):
        shares = part.pivot_table(index=["sample", "instruction_id"], columns="group", values="share", dropna=False)
        if {"instruction_last", "instruction"} <= set(shares):
            difference = (shares["instruction_last"] - shares["instruction"]).groupby("sample").mean()
            yield (str(task), "paths_last_minus_other"), difference.to_numpy(dtype=np.float64)


def _sums(sums: pd.DataFrame) -> Values:
    """How far the logits summed over all paths are from the model's: log10, relative to the largest logit."""
    logged = sums.assign(size=np.log10(sums["error"].clip(lower=1e-12)))
    for (task, mode), part in logged.groupby(["task", "mode"], sort=False):
        if mode in ("exact", "paper"):
            yield (str(task), f"error_{mode}"), _by_sample(part, "size")


def _circuits(heads: pd.DataFrame, seed: int) -> Iterator[tuple[tuple[str, str], Measured]]:
    """How much farther apart two instructions' head maps are than the larger null (other queries, other wording).

    late: in the later half of the layers; later: there minus in the earlier half. Draws: halvings of the queries.
    """
    plans = heads[(heads["mode"] == "exact") & (heads["wording"] == 1)]
    plans = plans[plans["source"].isin(["query", "instruction"])]
    for plan in plans[["task", "mode", "keys", "source", "measure"]].drop_duplicates().itertuples(index=False):
        maps = head_maps(heads, plan)
        count = min((len(values) for values in maps.values()), default=0)
        if count < 4:
            continue
        found = compare(maps, SPLITS, generator(seed, "vectors", "circuits", *map(str, plan)))
        if "rephrased" not in found:
            continue
        excess = found["instructions"] - np.maximum(found["other_queries"], found["rephrased"])
        layer = np.arange(excess.shape[1]) + 1
        late = layer > excess.shape[1] / 2
        draws = {"late": excess[:, late].mean(1)}
        if late.any() and not late.all():
            draws["later"] = draws["late"] - excess[:, ~late].mean(1)
        for name, values in draws.items():
            key = str(plan.task), f"{name}.{plan.measure}.{plan.source}"
            yield key, Measured(float(values.mean()), values, count)
