"""Conditions compared on the same samples: attention blocked, an unrelated instruction, the other property asked, the
positive control, and the spread over prompt variations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from levelt.studies.estimates import Estimates, Resampling, pairs_of, stack
from levelt.studies.quantities import COMPARED
from levelt.studies.scope import (
    INTERVENED,
    MODEL_COLUMNS,
    OTHER_ASKED,
    PUBLISHED_VARIATIONS,
    UNRELATED,
    interventions_among,
    shared_samples,
)
from levelt.vocabulary import UNTRAINED

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CONTRASTS = (("output", "sample"), ("decision", "sample"))
"""Differences between roles: is a change larger where the model speaks than where it reads?"""

_CELL = ["task", "quantity", "role", "target", "condition"]
_CHANGE = ["n", "groups", "before", "change", "ci_low", "ci_high"]


def condition_changes(estimates: Estimates, conditions: Sequence[str]) -> Estimates:
    """Estimates in each of ``conditions`` minus those of the same cell in the condition instruction_first."""
    pairs = [_pairs_of_conditions(estimates, name, INTERVENED) for name in conditions]
    left = np.concatenate([np.empty(0, np.int64), *[pair[0] for pair in pairs]])
    right = np.concatenate([np.empty(0, np.int64), *[pair[1] for pair in pairs]])
    names = np.repeat(np.asarray(conditions, dtype=object), [len(pair[0]) for pair in pairs])
    return estimates.changes(left, right, estimates.rows.iloc[left].assign(condition=names))


def _pairs_of_conditions(estimates: Estimates, first: str, second: str) -> tuple[Ints, Ints]:
    """Positions (left, right) of the cells in two conditions: those on the same samples where some samples lack a role
    in one condition (`levelt.studies.quantities.layer_estimates`), which would else be compared with others.
    """
    on = [name for name in estimates.keys if name != "condition"]
    left, right = pairs_of(estimates.rows, on, "condition", first, second)
    names = shared_samples(first, second), shared_samples(second, first)
    shared = pairs_of(estimates.rows, on, "condition", *names)
    if not len(shared[0]):
        return left, right
    cell = estimates.rows.groupby(on, sort=False, dropna=False, observed=True).ngroup().to_numpy()
    place = {int(number): at for at, number in enumerate(cell[shared[0]])}
    chosen = np.array([place.get(int(number), -1) for number in cell[left]], dtype=np.int64)
    found = chosen >= 0
    return np.where(found, shared[0][chosen], left), np.where(found, shared[1][chosen], right)


def with_contrasts(estimates: Estimates) -> Estimates:
    """Followed by the differences between roles, named ``output - sample`` and so on."""
    return stack([estimates, *[estimates.contrast("role", first, second) for first, second in CONTRASTS]])


def blocking_table(
    outcomes: Estimates, information: Estimates, resampling: Resampling, control_tasks: Sequence[str]
) -> pd.DataFrame:
    """What each intervention changes, against the same prompts without it (methods/1 section 9, rows 8 and 9).

    Quantities: rates of answers, and the information at a role about a target (the probes are fitted within each
    condition). ``change`` is the paired difference, ``before`` the value without the intervention, ``p`` from sign
    flips.
    """
    found = interventions_among(outcomes.rows["condition"])
    changes = with_contrasts(stack([condition_changes(part, found) for part in (outcomes, information)]))
    table = resampling.table(changes.with_means(control_tasks), "change", test=True)
    return table[[*MODEL_COLUMNS, *_CELL, *_CHANGE, "p"]]


def blocking_layers_table(layers: Estimates, resampling: Resampling, control_tasks: Sequence[str]) -> pd.DataFrame:
    """The same by layer, for each task and the mean over tasks; ``p_adjusted`` covers the layers of a row's cell."""
    changes = condition_changes(layers, interventions_among(layers.rows["condition"]))
    return _by_layer(changes, resampling, control_tasks)


def unrelated_table(
    outcomes: Estimates, information: Estimates, resampling: Resampling, control_tasks: Sequence[str]
) -> pd.DataFrame:
    """What an instruction unrelated to the label changes, against the task's own (methods/1 section 9, row 18)."""
    found = [name for name in (UNRELATED,) if (outcomes.rows["condition"] == name).any()]
    changes = with_contrasts(stack([condition_changes(part, found) for part in (outcomes, information)]))
    table = resampling.table(changes.with_means(control_tasks), "change", test=True)
    return table[[*MODEL_COLUMNS, *_CELL, *_CHANGE, "p"]]


def codebook_table(
    outcomes: Estimates, information: Estimates, resampling: Resampling, control_tasks: Sequence[str]
) -> pd.DataFrame:
    """The positive control, a task whose texts mean nothing without the instruction: information must be at the sample
    if the instruction comes first, and cannot be there if it comes last or is hidden.

    Every condition has its value with an interval, and its change against instruction_first; the latter has none.
    """
    both = stack([outcomes, information])
    others = both.rows["condition"].isin(list(OTHER_ASKED.values()))  # another question, so another right answer
    both = both.where((both.rows["task"].isin(control_tasks) & ~others).to_numpy())
    compared = both.where(both.rows["condition"].isin(COMPARED).to_numpy())
    values = resampling.table(_with_model_means(compared))
    conditions = [name for name in dict.fromkeys(compared.rows["condition"]) if name != INTERVENED]
    changes = _with_model_means(condition_changes(both, conditions))
    columns = {"ci_low": "change_ci_low", "ci_high": "change_ci_high"}
    tested = resampling.table(changes, "change", test=True).rename(columns=columns)
    keys = compared.keys
    merged = values.merge(tested[[*keys, "change", *columns.values(), "p"]], on=keys, how="left")
    shown = ["n", "groups", "estimate", "ci_low", "ci_high", "change", *columns.values(), "p"]
    return merged[[*MODEL_COLUMNS, *_CELL, *shown]]


def _with_model_means(estimates: Estimates) -> Estimates:
    trained = estimates.where((estimates.rows["stage"] != UNTRAINED).to_numpy())
    return stack([estimates, trained.mean(["family", "model"])])


def selection_table(information: Estimates, resampling: Resampling, control_tasks: Sequence[str]) -> pd.DataFrame:
    """Information about a property when it is asked minus when the other property of the same texts is asked: does the
    instruction select what is decodable at a role?"""
    table = resampling.table(selection(information).with_means(control_tasks), test=True)
    return _named_selection(table)[[*MODEL_COLUMNS, *_SELECTION, "p"]]


def selection_layers_table(layers: Estimates, resampling: Resampling, control_tasks: Sequence[str]) -> pd.DataFrame:
    """The same by layer, for each task and the mean over tasks; ``p_adjusted`` covers the layers of a row's cell."""
    table = _by_layer(selection(layers), resampling, control_tasks).rename(columns={"change": "estimate"})
    return _named_selection(table)[[*MODEL_COLUMNS, *_SELECTION, "layer", "depth", "p", "p_adjusted"]]


_SELECTION = ["task", "condition", "role", "target", "n", "groups", "asked", "other", "estimate", "ci_low", "ci_high"]


def selection(estimates: Estimates) -> Estimates:
    """Information about a property when it is asked minus when the other one is (as ``before``), paired by sample.

    The properties of a text differ in kind, so one is never compared with the other. ``condition`` is that of the
    instruction_first prompts; ``target`` is the ``label`` (asked there), the ``unasked`` property (asked by
    other_instruction), and ``all``, the mean of both, in which differences between properties and questions cancel.
    """
    parts = []
    for condition, other in OTHER_ASKED.items():
        for target, asked, unasked in (("label", condition, other), ("unasked", other, condition)):
            of_target = estimates.where((estimates.rows["target"] == target).to_numpy())
            left, right = _pairs_of_conditions(of_target, asked, unasked)
            parts.append(of_target.changes(left, right, of_target.rows.iloc[left].assign(condition=condition)))
    found = stack(parts)
    cell = [name for name in found.keys if name != "target"]
    both = found.rows.groupby(cell, dropna=False, observed=True)["target"].transform("nunique").to_numpy() == 2
    return stack([found, found.where(both).mean(["target"])])


def _named_selection(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(asked=table["before"] + table["estimate"], other=table["before"])


def _by_layer(changes: Estimates, resampling: Resampling, control_tasks: Sequence[str]) -> pd.DataFrame:
    both = changes.with_task_means(control_tasks)
    table = resampling.table(both, "change", test=True)
    within = [name for name in both.keys if name not in ("layer", "depth")]
    table["p_adjusted"] = resampling.adjusted(both, within)
    return table[[*MODEL_COLUMNS, *_CELL, "layer", "depth", *_CHANGE, "p", "p_adjusted"]]


def spread_table(
    outcomes: Estimates, information: Estimates, resampling: Resampling, control_tasks: Sequence[str]
) -> pd.DataFrame:
    """Largest deviation of a variation from the mean over the published variations (methods/1 section 9, row 1).

    A spread is never negative, so noise alone makes one: ``chance`` is the mean spread when the variations of each
    group are exchanged at random, and ``p`` how often it is as large. The bootstrap of a spread fails near zero; the
    interval is instead the spread, plus and minus the largest deviation that noise reaches (at the level of the
    intervals). It covers at least at its level everywhere. Rows of the kind ``output - sample`` compare roles.
    """
    both = stack([outcomes.where((outcomes.rows["quantity"] == "exact_match").to_numpy()), information])
    both = both.where(both.rows["condition"].isin(PUBLISHED_VARIATIONS).to_numpy()).with_means(control_tasks)
    keys = [name for name in both.keys if name != "condition"]
    columns = [*keys, "variations", "n", "groups", "estimate", "ci_low", "ci_high", "chance", "p"]
    grouped = both.rows.groupby(keys, sort=False, dropna=False, observed=True)
    size, cell = grouped["task"].transform("size").to_numpy(), grouped.ngroup().to_numpy()
    tables = []
    for variations in sorted({int(value) for value in size if value > 1}, reverse=True):
        rows = np.flatnonzero(size == variations)
        cells = rows[np.argsort(cell[rows], kind="stable")].reshape(-1, variations)
        spreads = deviation(both.values[cells])
        noise = deviation(resampling.noise(both.take(cells.ravel())).reshape(*cells.shape, -1).swapaxes(1, 2))
        chance, p = resampling.exchanged(both, cells, deviation)
        described = both.rows.iloc[cells[:, 0]].drop(columns="condition").reset_index(drop=True)
        described = described.assign(variations=variations, estimate=spreads, chance=chance, p=p)
        level = resampling.statistics.level
        tables += [_margins(described, noise, level), *_spread_contrasts(described, noise, level)]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def deviation(values: npt.NDArray[np.floating]) -> Floats:
    """Largest absolute deviation from the mean over the last axis."""
    largest: Floats = np.abs(values - values.mean(axis=-1, keepdims=True)).max(axis=-1)
    return largest


def _margins(described: pd.DataFrame, noise: Floats, level: float) -> pd.DataFrame:
    margin = np.quantile(noise, level, axis=1)
    low = described["estimate"] - margin
    signed = described["role"].str.contains(" - ").to_numpy()
    return described.assign(ci_low=np.where(signed, low, low.clip(lower=0)), ci_high=described["estimate"] + margin)


def _spread_contrasts(described: pd.DataFrame, noise: Floats, level: float) -> list[pd.DataFrame]:
    on = [*MODEL_COLUMNS, "task", "quantity", "target"]
    out = []
    for first, second in CONTRASTS:
        left, right = pairs_of(described, on, "role", first, second)
        estimate = described["estimate"].to_numpy()
        rows = described.iloc[left].assign(role=f"{first} - {second}", chance=np.nan, p=np.nan)
        rows = rows.assign(estimate=estimate[left] - estimate[right])
        out.append(_margins(rows, noise[left] + noise[right], level))
    return [part for part in out if len(part)]
