"""Kendall's tau-b between information at each role and behaviour, and between roles (methods/1 section 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from levelt.statistics.correlation import Correlation, cronbach_alpha, kendall, largest_tau
from levelt.statistics.resampling import bca_interval, cluster_draws
from levelt.studies.estimates import Estimates, Resampling
from levelt.studies.evidence import Evidence
from levelt.studies.scope import PUBLISHED_ROLES, PUBLISHED_VARIATIONS
from levelt.vocabulary import ALL, UNTRAINED

Floats = npt.NDArray[np.float64]

PAIRS = [("sample", "behaviour"), ("output", "behaviour"), ("decision", "behaviour"), ("sample", "output")]

FEWEST = 5
"""A tau needs this many samples off the most frequent value of each variable; below, a few of them would decide it."""

COLUMNS = ["level", "stage", "task", "first", "second", "n", "tau", "ci_low", "ci_high", "reliability", "largest_tau"]
COLUMNS += ["cells", "undefined"]


@dataclass(frozen=True)
class Cell:
    """The correlation of one model, task and variation, with the reliability of its variables and the largest tau."""

    stage: str
    task: str
    correlation: Correlation | None
    reliability: float = float("nan")
    largest: float = float("nan")
    n: int = 0


def correlations_table(
    evidence: Evidence,
    outcomes: Estimates,
    information: Estimates,
    resampling: Resampling,
    control_tasks: Sequence[str],
) -> pd.DataFrame:
    """Tau-b between label information and behaviour in the published variations, without untrained models.

    Level ``instances``: samples of one task; x is the share of layers 1..L whose out-of-fold probe is right, y is exact
    match. Estimated within each model and variation (a pooled tau would mix in the differences between them) and
    averaged over those cells where it is defined; task ``all`` is the mean over tasks. Intervals resample pairs,
    jointly for the cells of a task. Cells where a variable has fewer than 5 values off its mode are ``undefined``.

    Level ``cells``: one point per model, task and variation (information against exact match rate); intervals resample
    tasks, or models where there is one task, and are as coarse as that.

    Control tasks are in neither ``all``. ``stage`` is one stage of training, or ``all`` trained models together.
    ``reliability`` is that of x (times that of y, between roles): Cronbach's alpha over layers, or for cells the share
    of variance that is not sampling error (times that of y). ``largest_tau`` is what a perfect dependence would give.
    """
    rows = _instance_rows(evidence, resampling, control_tasks)
    rows += _cell_rows(outcomes, information, resampling, control_tasks)
    return pd.DataFrame(rows, columns=COLUMNS)


def _instance_rows(evidence: Evidence, resampling: Resampling, control_tasks: Sequence[str]) -> list[dict[str, Any]]:
    cells: dict[tuple[str, str], list[Cell]] = {pair: [] for pair in PAIRS}
    stages = dict(zip(evidence.models["model"], evidence.models["stage"].astype(str), strict=True))
    for (model, task, condition), answers in evidence.outcomes.items():
        if condition not in PUBLISHED_VARIATIONS or stages[model] == UNTRAINED:
            continue
        found = {role: evidence.hits.get((model, task, condition, role, "label")) for role in PUBLISHED_ROLES}
        items = {role: np.asarray(hits.inner, dtype=np.float64) for role, hits in found.items() if hits is not None}
        items["behaviour"] = answers[:, :1]
        for first, second in PAIRS:
            if first in items and second in items:
                cell = _correlate(items[first], items[second], second, evidence.samples[task].codes, resampling, task)
                cells[first, second].append(Cell(stages[model], task, **cell))
    rows = []
    for (first, second), of_pair in cells.items():
        tasks = list(dict.fromkeys(cell.task for cell in of_pair))
        for stage in [ALL, *dict.fromkeys(cell.stage for cell in of_pair)]:
            for task in [*tasks, ALL]:
                chosen = [
                    cell
                    for cell in of_pair
                    if stage in (ALL, cell.stage)
                    and (cell.task == task or (task == ALL and cell.task not in control_tasks))
                ]
                if chosen:
                    row = {"level": "instances", "stage": stage, "task": task, "first": first, "second": second}
                    rows.append(row | _average(chosen, resampling.statistics.level))
    return sorted(rows, key=lambda row: (row["stage"] != ALL, row["task"] == ALL))


def _correlate(
    first: Floats, second: Floats, named: str, codes: npt.NDArray[np.int64], resampling: Resampling, task: str
) -> dict[str, Any]:
    present = ~(np.isnan(first[:, 0]) | np.isnan(second[:, 0]))
    x, y = (mean_of_items(items[present]) for items in (first, second))
    if min(off_mode(x), off_mode(y)) < FEWEST:
        return {"correlation": None}
    reliability = cronbach_alpha(first[present]) * (1.0 if named == "behaviour" else cronbach_alpha(second[present]))
    draws = resampling.draws(task).astype(np.float64)
    result = kendall(x, y, codes[present], draws, resampling.statistics.level)
    largest = largest_tau(x, y, reliability)
    return {"correlation": result, "reliability": reliability, "largest": largest, "n": int(present.sum())}


def mean_of_items(items: Floats) -> Floats:
    """Means over items [n, items]. Shares of layers are sums of a few hits: rounding makes equal ones equal."""
    mean: Floats = np.round(items.mean(axis=1), 6)
    return mean


def off_mode(values: Floats) -> int:
    """How many values are not the most frequent one."""
    return len(values) - int(np.unique(values, return_counts=True)[1].max(initial=0))


def _average(cells: Sequence[Cell], level: float) -> dict[str, Any]:
    """Mean over the cells of each task where tau is defined, then over tasks, with a BCa interval."""
    defined = [cell for cell in cells if cell.correlation is not None]
    by_task: dict[str, list[Cell]] = {}
    for cell in defined:
        by_task.setdefault(cell.task, []).append(cell)
    counts = {"n": sum(cell.n for cell in defined), "cells": len(defined), "undefined": len(cells) - len(defined)}
    if not defined:
        return counts
    results = [[cell.correlation for cell in of_task if cell.correlation] for of_task in by_task.values()]
    tau, low, high = average_of_tasks(results, level)
    values = {"tau": tau, "ci_low": low, "ci_high": high}
    reliability = np.mean([np.mean([cell.reliability for cell in of_task]) for of_task in by_task.values()])
    largest = np.mean([np.mean([cell.largest for cell in of_task]) for of_task in by_task.values()])
    # rounded, since a reliability of zero is clipped from sums that are only nearly zero
    return counts | values | {"reliability": reliability.round(9), "largest_tau": largest.round(9)}


def average_of_tasks(tasks: Sequence[Sequence[Correlation]], level: float) -> tuple[float, float, float]:
    """Mean over the correlations of each task, then over tasks: (tau, ci_low, ci_high), the interval BCa.

    The correlations of a task come from the same draws; tasks are resampled independently.
    """
    draws, influences, taus = [], [], []
    for results in tasks:
        taus.append(np.mean([result.tau for result in results]))
        # a model can be constant in a draw: the mean is then over the others, as it is for the estimate
        drawn = np.array([result.draws for result in results])
        with np.errstate(invalid="ignore"):
            draws.append(np.nansum(drawn, axis=0) / (~np.isnan(drawn)).sum(axis=0))
        groups = len(results[0].influence)
        influences.append(np.mean([result.influence for result in results], axis=0) * (groups - 1) / groups)
    low, high = bca_interval(
        np.mean(draws, axis=0)[:, None], [np.mean(taus)], np.concatenate(influences)[:, None] / len(tasks), level
    )
    return float(np.mean(taus)), float(low[0]), float(high[0])


def _cell_rows(
    outcomes: Estimates, information: Estimates, resampling: Resampling, control_tasks: Sequence[str]
) -> list[dict[str, Any]]:
    keys = ["model", "stage", "task", "condition"]
    frames = []
    for estimates, name in ((outcomes, "exact_match"), (information, "information")):
        variance = np.zeros(len(estimates.values))
        for part in estimates.parts.values():
            variance[part.rows] += (part.influences.astype(np.float64) ** 2).sum(axis=1)
        described = estimates.rows.assign(value=estimates.values, variance=variance)
        of_label = (described["target"] == "label") | (name == "exact_match")
        frames.append(described[(described["quantity"] == name) & of_label])
    table = pd.concat(frames, ignore_index=True)
    kept = table["condition"].isin(PUBLISHED_VARIATIONS) & ~table["task"].isin(control_tasks)
    table = table[kept & (table["stage"] != UNTRAINED) & table["role"].isin([*PUBLISHED_ROLES, "behaviour"])]
    known = set(table["role"])
    values, variances = (table.pivot(index=keys, columns="role", values=name) for name in ("value", "variance"))
    wide = pd.concat([values, variances.add_suffix(" variance")], axis=1).reset_index()
    rows: list[dict[str, Any]] = []
    for stage in [ALL, *dict.fromkeys(table["stage"])]:
        chosen = wide if stage == ALL else wide[wide["stage"] == stage]
        for first, second in PAIRS:
            if first in known and second in known:
                cells = chosen.dropna(subset=[first, second])
                row = {"level": "cells", "stage": stage, "task": ALL, "first": first, "second": second}
                rows.append(row | {"n": len(cells)} | _cell_correlation(cells, first, second, resampling))
    return rows


def _cell_correlation(cells: pd.DataFrame, first: str, second: str, resampling: Resampling) -> dict[str, Any]:
    cluster = "task" if cells["task"].nunique() > 1 else "model"
    codes, groups = pd.factorize(cells[cluster])
    undefined = {"cells": 0, "undefined": len(cells)}
    if len(groups) < 2:
        return undefined
    # sums over groups leave rounding errors, which must not part cells with the same rate
    x, y = (cells[name].to_numpy().round(9) for name in (first, second))
    draws = cluster_draws(len(groups), resampling.statistics.draws, resampling.generator("correlations", cluster))
    result = kendall(x, y, codes, draws, resampling.statistics.level)
    if result.reason:
        return undefined
    reliability = 1.0
    for name, values in ((first, x), (second, y)):
        reliability *= float(np.clip(1 - cells[f"{name} variance"].mean() / values.var(), 0, 1))
    row = {"tau": result.tau, "ci_low": result.ci_low, "ci_high": result.ci_high, "cells": len(cells), "undefined": 0}
    return row | {"reliability": reliability, "largest_tau": largest_tau(x, y, reliability)}
