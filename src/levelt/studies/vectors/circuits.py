"""Does an instruction select heads? Distances between head maps of two instructions on the same queries, with nulls.

A head map holds a number per head and query (`levelt.studies.vectors.tracing`): how many of the high-ranking paths
from some source tokens use it, or what flows through it from there. The distance of two sets of maps in a layer is the
mean over heads of the absolute difference of their means over queries; flows are first divided by the summed absolute
flow of the query's whole map, so that it is their pattern that counts.

Comparisons, all with half of the queries on either side, so that their noise is the same:

instructions: one instruction on one half, the other instruction on the same half.
other_queries: the same instruction on the two halves (null: no difference but the queries').
rephrased: the same instruction in two wordings on the same half (null: no difference but the wording).
permuted: two instructions on the same half, the heads of a layer permuted in each map (null: no head has an identity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from levelt.config import Statistics
from levelt.randomness import generator
from levelt.statistics.permutation import holm
from levelt.statistics.resampling import Floats, cluster_draws, mean_interval, percentile_interval

COMPARISONS = ("instructions", "other_queries", "rephrased", "permuted")


PLAN = ["task", "mode", "keys", "source", "measure"]
"""What a set of head maps is told by."""


def head_maps(heads: pd.DataFrame, plan: Sequence[Any]) -> dict[tuple[str, int], Floats]:
    """[samples, layers, heads] by instruction and wording, of the samples that have a map in every one of them.

    Args:
        heads: of one model.
        plan: values of `PLAN`.
    """
    chosen = heads[np.logical_and.reduce([heads[column] == value for column, value in zip(PLAN, plan, strict=True)])]
    measure = plan[-1]
    maps: dict[tuple[str, int], Floats] = {}
    samples = np.unique(chosen["sample"])
    places = chosen[["instruction_id", "wording"]].drop_duplicates()
    for instruction, wording in places.itertuples(index=False):
        part = chosen[(chosen["instruction_id"] == instruction) & (chosen["wording"] == wording)]
        table = part.pivot(index="sample", columns=["layer", "head"], values="value").sort_index(axis=1)
        table = table.reindex(samples)  # prompts with too many paths have no map
        values = table.to_numpy(dtype=np.float64).reshape(len(table), part["layer"].nunique(), -1)
        if measure == "flow":
            size = np.abs(values).sum((1, 2), keepdims=True)
            values = np.divide(values, size, out=np.zeros_like(values), where=size > 0)
        maps[str(instruction), int(wording)] = values
    if not maps:
        return {}
    complete = np.logical_and.reduce([~np.isnan(values).any((1, 2)) for values in maps.values()])
    return {key: values[complete] for key, values in maps.items()}


def distance(first: Floats, second: Floats) -> Floats:
    """Mean absolute difference of mean maps, by layer: [layers]."""
    value: Floats = np.abs(first.mean(0) - second.mean(0)).mean(-1)
    return value


def compare(maps: Mapping[tuple[str, int], Floats], splits: int, drawn: np.random.Generator) -> dict[str, Floats]:
    """The distances of every comparison, over random halves of the queries: [splits, layers] each."""
    one, other = sorted({name for name, _ in maps})
    count = len(maps[one, 0])
    found: dict[str, list[Floats]] = {name: [] for name in COMPARISONS}
    for _ in range(splits):
        order = drawn.permutation(count)
        half, rest = order[: count // 2], order[count // 2 : 2 * (count // 2)]
        found["instructions"].append(distance(maps[one, 0][half], maps[other, 0][half]))
        found["other_queries"].append(
            np.mean([distance(maps[name, 0][half], maps[name, 0][rest]) for name in (one, other)], axis=0)
        )
        if (one, 1) in maps and (other, 1) in maps:
            found["rephrased"].append(
                np.mean([distance(maps[name, 0][half], maps[name, 1][half]) for name in (one, other)], axis=0)
            )
        found["permuted"].append(distance(*(drawn.permuted(maps[name, 0][half], axis=2) for name in (one, other))))
    return {name: np.array(values) for name, values in found.items() if values}


def exchange_test(first: Floats, second: Floats, draws: int, drawn: np.random.Generator) -> Floats:
    """p-value, by layer, of "the instruction makes no difference": maps are exchanged between the two instructions,
    query by query, which then would not change their distance: [layers]."""
    differences = first - second
    signs = 1.0 - 2.0 * drawn.integers(0, 2, size=(draws, len(differences)))
    signs[0] = 1.0
    flipped = np.abs(np.tensordot(signs, differences, axes=1)).mean(-1)
    p: Floats = (flipped >= flipped[0] * (1 - 1e-9)).mean(0)
    return p


def circuits_table(heads: pd.DataFrame, statistics: Statistics, seed: int, splits: int = 200) -> pd.DataFrame:
    """Distances by layer, for every task, mode, number of keys and measure.

    Returns:
        task, mode, keys, source, measure, comparison, layer, n (queries), distance, ci_low, ci_high (percentiles
        over halves), excess (mean over halves of: instructions minus this null), excess_low, excess_high, p, p_holm
        (exchange test of the instructions, over layers; missing for the nulls).
    """
    rows = []
    for plan in heads[heads["wording"] == 0][PLAN].drop_duplicates().itertuples(index=False):
        maps = head_maps(heads, plan)
        count = min((len(values) for values in maps.values()), default=0)
        if count < 4:
            continue
        drawn = generator(seed, "vectors", "circuits", *map(str, plan))
        found = compare(maps, splits, drawn)
        one, other = sorted({name for name, _ in maps})
        p = exchange_test(maps[one, 0], maps[other, 0], statistics.draws, drawn)
        for comparison, values in found.items():
            low, high = percentile_interval(values, statistics.level)
            excess = found["instructions"] - values
            excess_low, excess_high = percentile_interval(excess, statistics.level)
            main = comparison == "instructions"
            rows.append(
                pd.DataFrame(
                    {
                        **dict(zip(PLAN, plan, strict=True)),
                        "comparison": comparison,
                        "layer": np.arange(values.shape[1]) + 1,
                        "n": count,
                        "distance": values.mean(0),
                        "ci_low": low,
                        "ci_high": high,
                        "excess": np.nan if main else excess.mean(0),
                        "excess_low": np.nan if main else excess_low,
                        "excess_high": np.nan if main else excess_high,
                        "p": p if main else np.nan,
                        "p_holm": holm(p) if main else np.nan,
                    }
                )
            )
    columns = [*PLAN, "comparison", "layer", "n", "distance", "ci_low", "ci_high"]
    columns += ["excess", "excess_low", "excess_high", "p", "p_holm"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def activity_table(heads: pd.DataFrame, statistics: Statistics, seed: int) -> pd.DataFrame:
    """Mean head maps with intervals over queries.

    Returns:
        task, mode, keys, source, measure, instruction_id, wording, layer, head, n, mean, ci_low, ci_high.
    """
    rows = []
    for plan in heads[PLAN].drop_duplicates().itertuples(index=False):
        for (instruction, wording), values in head_maps(heads, plan).items():
            count, layers, width = values.shape
            if count < 2:
                continue
            draws = cluster_draws(count, statistics.draws, generator(seed, "vectors", "activity", plan[0]))
            mean, low, high = mean_interval(values.reshape(count, -1), np.arange(count), draws, statistics.level)
            layer, head = np.indices((layers, width))
            rows.append(
                pd.DataFrame(
                    {
                        **dict(zip(PLAN, plan, strict=True)),
                        "instruction_id": instruction,
                        "wording": wording,
                        "layer": layer.ravel() + 1,
                        "head": head.ravel(),
                        "n": count,
                        "mean": mean,
                        "ci_low": low,
                        "ci_high": high,
                    }
                )
            )
    columns = [*PLAN, "instruction_id", "wording", "layer", "head", "n", "mean", "ci_low", "ci_high"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def robustness_table(heads: pd.DataFrame) -> pd.DataFrame:
    """How the activity maps of one key and of one more per head agree.

    Returns:
        task, source, instruction_id, keys, more_keys, n (heads of all layers), spearman (of mean activities), jaccard
        (of the heads that are active in more than 0.3 of the paths).
    """
    from scipy.stats import spearmanr

    rows = []
    activities = heads[(heads["mode"] == "exact") & (heads["measure"] == "activity") & (heads["wording"] == 0)]
    for (task, source, instruction), part in activities.groupby(["task", "source", "instruction_id"], sort=False):
        means = part.pivot_table(index=["layer", "head"], columns="keys", values="value")
        if means.shape[1] != 2 or means.isna().any(axis=None):
            continue
        fewer, more = means.columns
        active = means > 0.3
        union = int((active[fewer] | active[more]).sum())
        rows.append(
            {
                "task": task,
                "source": source,
                "instruction_id": instruction,
                "keys": fewer,
                "more_keys": more,
                "n": len(means),
                "spearman": float(spearmanr(means[fewer], means[more]).statistic),
                "jaccard": float((active[fewer] & active[more]).sum() / union) if union else np.nan,
            }
        )
    columns = ["task", "source", "instruction_id", "keys", "more_keys", "n", "spearman", "jaccard"]
    return pd.DataFrame(rows, columns=columns)
