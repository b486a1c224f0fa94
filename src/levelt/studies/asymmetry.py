"""The asymmetry study: do instructions change what a model knows at the sample tokens, or at the output tokens?

Pure functions from raw results (behaviour and probe rows of all models and tasks) to the study's tables. Definitions
follow methods/1: behaviour is exact match (section 5), correlations are Kendall's tau-b (section 7).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from levelt.config import Statistics
from levelt.randomness import generator
from levelt.statistics.correlation import kendall
from levelt.statistics.resampling import cluster_draws, mean_interval, percentile_interval
from levelt.studies.information import INTERVENED, VARIATIONS, without_interventions

MODEL_COLUMNS = ["model", "family", "size", "parameters", "stage"]


def describe_models(manifests: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per model: model, family, size, parameters, stage, layers."""
    rows = [
        {"model": manifest["id"], **{key: manifest[key] for key in ("family", "size", "parameters", "stage", "layers")}}
        for manifest in manifests
    ]
    return pd.DataFrame(rows)


def behaviour_table(behaviour: pd.DataFrame, models: pd.DataFrame, statistics: Statistics, seed: int) -> pd.DataFrame:
    """Exact match, share answered and preference accuracy by model, task, condition and polarity of the question.

    ``exact_match`` counts a reply outside the options as wrong (as published); ``answered`` says how often, and
    ``preferred`` is the accuracy of the sign of the options' logit difference, which needs no format.
    Intervals resample pairs; the draws are shared by all models and conditions of a task.
    """
    rows = []
    keys = ["model", "task", "condition", "template"]
    for (model, task, condition, template), cell in behaviour.groupby(keys, sort=False, observed=True):
        parts = {"all": cell, **{str(p): part for p, part in cell.groupby("polarity", sort=True)}}
        if len(parts) == 2:  # one polarity only: the same rows again
            parts.popitem()
        for polarity, part in parts.items():
            codes, groups = pd.factorize(part["pair_id"])
            draws = cluster_draws(len(groups), statistics.draws, generator(seed, "behaviour", str(task), str(polarity)))
            values = part[["exact_match", "answered", "preferred"]].to_numpy(dtype=float)
            mean, low, high = mean_interval(values, codes, draws, statistics.level)
            row = {"model": model, "task": task, "condition": condition, "template": template, "polarity": polarity}
            row |= {"n": len(part), "groups": len(groups)}
            for i, name in enumerate(["exact_match", "answered", "preferred"]):
                row |= {name: mean[i], f"{name}_ci_low": low[i], f"{name}_ci_high": high[i]}
            rows.append(row)
    return _with_models(pd.DataFrame(rows), models)


def agreement_table(behaviour: pd.DataFrame, models: pd.DataFrame, statistics: Statistics, seed: int) -> pd.DataFrame:
    """Share of samples with the same outcome (right or wrong) under two, and under all, variations.

    Methods/1 section 7. ``expected`` is the agreement that independent variations of the same accuracies would have:
    agreement says something only above it.
    """
    rows = []
    for (model, task), cell in behaviour.groupby(["model", "task"], sort=False, observed=True):
        outcomes = cell.pivot(index=["sample_id", "pair_id"], columns="condition", values="exact_match").astype(float)
        conditions = [name for name in dict.fromkeys(cell["condition"]) if name in VARIATIONS]
        combinations = list(itertools.combinations(conditions, 2))
        if len(conditions) > 2:
            combinations.append(tuple(conditions))
        codes, groups = pd.factorize(outcomes.index.get_level_values("pair_id"))
        draws = cluster_draws(len(groups), statistics.draws, generator(seed, "agreement", str(task)))
        for combination in combinations:
            values = outcomes[list(combination)].to_numpy()
            same = (values == values[:, :1]).all(axis=1).astype(float)
            mean, low, high = mean_interval(same[:, None], codes, draws, statistics.level)
            right = values.mean(axis=0)
            row = {"model": model, "task": task, "conditions": " + ".join(combination), "n": len(values)}
            row |= {"agreement": mean[0], "ci_low": low[0], "ci_high": high[0]}
            rows.append(row | {"expected": right.prod() + (1 - right).prod()})
    columns = ["model", "task", "conditions", "n", "agreement", "ci_low", "ci_high", "expected"]
    return _with_models(pd.DataFrame(rows, columns=columns), models)


def blocking_table(
    behaviour: pd.DataFrame, hits: pd.DataFrame, models: pd.DataFrame, statistics: Statistics, seed: int
) -> pd.DataFrame:
    """What each intervention changes, against the same prompts without it (methods/1 section 9, rows 8 and 9).

    One row per model, task, intervention and quantity: ``exact_match``, or the information at a role about a target
    (accuracy of the out-of-fold probes, mean over layers 1..L; the probes are fitted within each condition). ``change``
    is the mean of the paired differences, ``before`` the value without the intervention; intervals resample pairs.
    A study without interventions has no rows.
    """
    quantities = [
        behaviour[["model", "task", "condition", "prompt_id", "pair_id"]].assign(
            quantity="exact_match", role="behaviour", target="answer", value=behaviour["exact_match"].astype(float)
        ),
        hits[["model", "task", "condition", "prompt_id", "pair_id", "role", "target"]].assign(
            quantity="information", value=_shares(hits)
        ),
    ]
    table = pd.concat(quantities, ignore_index=True)
    keys = ["model", "task", "quantity", "role", "target"]
    before = table[table["condition"] == INTERVENED].drop(columns=["condition", "pair_id"])
    blocked = table[~table["condition"].isin(VARIATIONS)]
    paired = blocked.merge(before, on=[*keys, "prompt_id"], suffixes=("", "_before"), validate="many_to_one")
    rows = []
    for cell, part in paired.groupby([*keys, "condition"], sort=False, observed=True):
        codes, groups = pd.factorize(part["pair_id"])
        draws = cluster_draws(len(groups), statistics.draws, generator(seed, "blocking", str(cell[1])))
        change = (part["value"] - part["value_before"]).to_numpy()[:, None]
        mean, low, high = mean_interval(change, codes, draws, statistics.level)
        rows.append(
            dict(zip([*keys, "condition"], cell, strict=True))
            | {"n": len(part), "groups": len(groups), "before": part["value_before"].mean()}
            | {"change": mean[0], "ci_low": low[0], "ci_high": high[0]}
        )
    columns = [*keys, "condition", "n", "groups", "before", "change", "ci_low", "ci_high"]
    return _with_models(pd.DataFrame(rows, columns=columns), models)


def _shares(hits: pd.DataFrame) -> list[float]:
    """Share of layers 1..L whose out-of-fold probe is right, by row."""
    return [
        float(np.asarray(values)[max(0, 1 - first) :].mean())
        for values, first in zip(hits["hits"], hits["first_layer"], strict=True)
    ]


def probes_table(probes: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """Probe results with the models' columns and relative depth (layer / number of layers)."""
    table = _with_models(probes, models, extra=["layers"])
    table.insert(list(table.columns).index("layer") + 1, "depth", table["layer"] / table["layers"])
    return table.drop(columns="layers")


def information(probes: pd.DataFrame) -> pd.DataFrame:
    """One number per model, task, condition, role and target: mean balanced accuracy over layers 1..L.

    How the published numbers reduce layers is unknown (methods/1 section 6); the mean over the same layers for every
    role is used, without the embedding layer, which the output role does not have.
    """
    keys = [*MODEL_COLUMNS, "task", "condition", "role", "target"]
    inner = probes[probes["layer"] > 0]
    return inner.groupby(keys, sort=False, observed=True)["balanced_accuracy"].mean().reset_index(name="information")


def correlations_table(
    behaviour: pd.DataFrame, hits: pd.DataFrame, information: pd.DataFrame, statistics: Statistics, seed: int
) -> pd.DataFrame:
    """Kendall's tau-b between label information at each role and behaviour, and between roles; no interventions.

    Level ``instances``: rows of one task; x is the share of layers 1..L whose out-of-fold probe is right, y is exact
    match. Estimated within each model and condition (a pooled tau would mix in the differences between conditions) and
    averaged over those cells where it is defined; intervals resample pairs jointly over the cells of a task.
    Level ``cells``: one point per model, task and condition (information against exact match rate); intervals resample
    tasks, or models where there is one task, and are as coarse as that.

    Returns:
        level, task, first, second, tau, ci_low, ci_high, n, cells, undefined (cells where a variable is constant).
    """
    pairs = [("sample", "behaviour"), ("output", "behaviour"), ("decision", "behaviour"), ("sample", "output")]
    behaviour, hits, information = map(without_interventions, (behaviour, hits, information))
    rows = _instance_correlations(behaviour, hits, pairs, statistics, seed)
    rows += _cell_correlations(behaviour, information, pairs, statistics, seed)
    columns = ["level", "task", "first", "second", "tau", "ci_low", "ci_high", "n", "cells", "undefined"]
    return pd.DataFrame(rows, columns=columns)


def _instance_correlations(
    behaviour: pd.DataFrame, hits: pd.DataFrame, pairs: list[tuple[str, str]], statistics: Statistics, seed: int
) -> list[dict[str, Any]]:
    label = hits[hits["target"] == "label"].copy()
    label["share"] = _shares(label)
    keys = ["model", "task", "condition", "prompt_id"]
    wide = label.pivot(index=keys, columns="role", values="share").reset_index()
    merged = behaviour.merge(wide, on=keys, how="inner", validate="one_to_one")
    merged["behaviour"] = merged["exact_match"].astype(float)
    rows = []
    for task, of_task in merged.groupby("task", sort=False, observed=True):
        groups = pd.Index(of_task["pair_id"].unique())
        draws = cluster_draws(len(groups), statistics.draws, generator(seed, "correlations", str(task)))
        for first, second in pairs:
            if first not in of_task or (second not in of_task):
                continue
            results = []
            for _, cell in of_task.groupby(["model", "condition"], sort=False, observed=True):
                rows_of_cell = cell.dropna(subset=[first, second])
                if len(rows_of_cell) > 1:
                    codes = groups.get_indexer(rows_of_cell["pair_id"])
                    results.append(kendall(rows_of_cell[first], rows_of_cell[second], codes, draws, statistics.level))
            rows.append(
                {"level": "instances", "task": task, "first": first, "second": second}
                | _average([r for r in results if not r.reason], statistics.level)
                | {"n": sum(r.n for r in results), "undefined": sum(bool(r.reason) for r in results)}
            )
    return rows


def _average(results: list[Any], level: float) -> dict[str, Any]:
    if not results:
        return {"tau": np.nan, "ci_low": np.nan, "ci_high": np.nan, "cells": 0}
    low, high = percentile_interval(np.mean([r.draws for r in results], axis=0)[:, None], level)
    return {
        "tau": float(np.mean([r.tau for r in results])),
        "ci_low": float(low[0]),
        "ci_high": float(high[0]),
        "cells": len(results),
    }


def _cell_correlations(
    behaviour: pd.DataFrame,
    information: pd.DataFrame,
    pairs: list[tuple[str, str]],
    statistics: Statistics,
    seed: int,
) -> list[dict[str, Any]]:
    keys = ["model", "task", "condition"]
    label = information[information["target"] == "label"]
    wide = label.pivot(index=keys, columns="role", values="information").reset_index()
    rates = behaviour.groupby(keys, sort=False, observed=True)["exact_match"].mean().reset_index(name="behaviour")
    cells = wide.merge(rates, on=keys, validate="one_to_one")
    cluster = "task" if cells["task"].nunique() > 1 else "model"
    codes, groups = pd.factorize(cells[cluster])
    rows = []
    for first, second in pairs:
        if first not in cells or second not in cells:
            continue
        row: dict[str, Any] = {"level": "cells", "task": "all", "first": first, "second": second, "n": len(cells)}
        if len(groups) > 1:
            draws = cluster_draws(len(groups), statistics.draws, generator(seed, "correlations", "cells"))
            result = kendall(cells[first], cells[second], codes, draws, statistics.level)
            row |= {"tau": result.tau, "ci_low": result.ci_low, "ci_high": result.ci_high}
            row |= {"cells": len(cells), "undefined": int(bool(result.reason))}
        else:
            row |= {"tau": np.nan, "ci_low": np.nan, "ci_high": np.nan, "cells": len(cells), "undefined": 1}
        rows.append(row)
    return rows


def _with_models(table: pd.DataFrame, models: pd.DataFrame, extra: Sequence[str] = ()) -> pd.DataFrame:
    """The table with the models' columns first, rows in the order of the models."""
    described = models[[*MODEL_COLUMNS, *extra]]
    merged = described.merge(table, on="model", how="inner", validate="one_to_many")
    return merged[[*MODEL_COLUMNS, *[column for column in merged if column not in MODEL_COLUMNS]]]
