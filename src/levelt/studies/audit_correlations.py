"""What each defect of the release does to the correlations between information and behaviour.

Kendall's tau-b as in `studies.correlations`, at its two levels, corrected and with a defect, from the same draws: so
their difference has an interval too. Defects of the masks do not concern plain prompts, and have no rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from levelt.statistics.correlation import Correlation, kendall
from levelt.statistics.resampling import cluster_draws
from levelt.studies.audit import f1
from levelt.studies.audit_hits import RELEASED_ROLES
from levelt.studies.audit_rows import PROBED
from levelt.studies.correlations import FEWEST, PAIRS, average_of_tasks, mean_of_items, off_mode
from levelt.studies.estimates import Resampling
from levelt.studies.evidence import Evidence
from levelt.studies.scope import PUBLISHED_VARIATIONS
from levelt.vocabulary import ALL, UNTRAINED

Floats = npt.NDArray[np.float64]
Key = tuple[str, str, str]
"""Model, task and variation."""

BEHAVIOUR = "behaviour"

ONE_CLASS = "one_class_f1"
"""This defect scores the corrected probes otherwise, which changes cells and no instances."""

COLUMNS = ["level", "task", "defect", "first", "second", "instead", "n", "cells", "undefined"]
COLUMNS += [f"{side}{end}" for side in ("corrected", "released") for end in ("", "_low", "_high")]
COLUMNS += ["difference", "ci_low", "ci_high"]


@dataclass(frozen=True)
class Comparison:
    """One defect and one pair of variables: the probings (see `audit_hits`) that either side correlates.

    ``instead`` is what the corrected side reads instead of the output role, if that is the defect.
    """

    defect: str
    pair: tuple[str, str]
    corrected: tuple[str, str]
    released: tuple[str, str]
    instead: str = ""


def comparisons() -> list[Comparison]:
    """All comparisons, in the order of the table."""
    swapped: list[tuple[str, dict[str, str], str]] = [("shifted_span", {"sample": "sample_as_released"}, "")]
    swapped += [(defect, {role: f"{defect}: {role}" for role in PROBED}, "") for defect in ("trainer", "leaking_folds")]
    swapped += [("probing_together", {role: f"probing_together: {role}" for role in RELEASED_ROLES}, "")]
    swapped += [(ONE_CLASS, {role: role for role in PROBED}, "")]
    found = [
        Comparison("answer_in_output", pair, _exchanged(pair, {"output": right}), pair, right)
        for right in ("output_with_decision", "decision")
        for pair in PAIRS
        if "output" in pair
    ]
    for defect, by_role, instead in swapped:
        concerned = [pair for pair in PAIRS if any(role in by_role for role in pair)]
        found += [Comparison(defect, pair, pair, _exchanged(pair, by_role), instead) for pair in concerned]
    return found


def _exchanged(pair: tuple[str, str], by_role: Mapping[str, str]) -> tuple[str, str]:
    return by_role.get(pair[0], pair[0]), by_role.get(pair[1], pair[1])


def second_options(evidence: Evidence, hits: Iterable[pd.DataFrame]) -> dict[str, npt.NDArray[np.bool_]]:
    """By task, which samples have the second option (no) as their label, [n], from frames of `variation_hits`."""
    out = {task: np.zeros(len(samples.ids), dtype=bool) for task, samples in evidence.samples.items()}
    for frame in hits:
        for task, part in frame.groupby("task", sort=False):
            prompts = evidence.samples[str(task)].prompts
            out[str(task)][prompts[part["prompt_id"]].to_numpy()] = part["second"]
    return out


def audit_correlations(
    evidence: Evidence,
    second: Mapping[str, npt.NDArray[np.bool_]],
    resampling: Resampling,
    control_tasks: Sequence[str],
) -> pd.DataFrame:
    """Tau-b corrected and with each defect, and the difference, with intervals; see `correlations_table` for levels.

    Args:
        evidence: hits under the names of `audit_hits`; untrained models are left out.
        second: from `second_options`.
        resampling, control_tasks: as in `correlations_table`.

    A cell counts where both sides have a tau: ``undefined`` are the others.
    """
    stages = dict(zip(evidence.models["model"], evidence.models["stage"].astype(str), strict=True))
    keys = [key for key in evidence.outcomes if key[2] in PUBLISHED_VARIATIONS and stages[key[0]] != UNTRAINED]
    judged = [key for key in keys if key[1] not in control_tasks]
    level = resampling.statistics.level
    rows = []
    for compared in comparisons():
        named = {"defect": compared.defect, "first": compared.pair[0], "second": compared.pair[1]}
        named["instead"] = compared.instead
        rows.append({"level": "cells", "task": ALL, **named, **_cells(evidence, second, compared, judged, resampling)})
        if compared.defect == ONE_CLASS:
            continue
        found = {key: _instances(evidence, compared, key, resampling) for key in keys}
        for task in [*dict.fromkeys(key[1] for key in keys), ALL]:
            chosen = judged if task == ALL else [key for key in keys if key[1] == task]
            row = _row([(key[1], found[key]) for key in chosen], level)
            rows.append({"level": "instances", "task": task, **named, **row})
    ordered = sorted(rows, key=lambda row: (str(row["level"]), row["task"] != ALL))
    return pd.DataFrame(ordered, columns=COLUMNS)


@dataclass(frozen=True)
class _Taus:
    """Both correlations of the same rows, from the same draws."""

    corrected: Correlation
    released: Correlation

    @classmethod
    def of(cls, variables: Floats, codes: npt.NDArray[np.int64], draws: Floats, level: float) -> _Taus:
        """Of four variables [4, n]: both of the corrected side, both of the other."""
        first, second, other_first, other_second = variables
        right = kendall(first, second, codes, draws, level)
        return cls(right, kendall(other_first, other_second, codes, draws, level))

    @property
    def difference(self) -> Correlation:
        """Released minus corrected; its interval is left to `average_of_tasks`."""
        one, other = self.released, self.corrected
        draws, influence = one.draws - other.draws, one.influence - other.influence
        return replace(one, tau=one.tau - other.tau, draws=draws, influence=influence)


def _row(cells: Sequence[tuple[str, _Taus | None]], level: float) -> dict[str, Any]:
    """Both taus and their difference: means over the cells of each task, then over tasks."""
    by_task: dict[str, list[_Taus]] = {}
    for task, taus in cells:
        if taus is not None:
            by_task.setdefault(task, []).append(taus)
    defined = [taus for of_task in by_task.values() for taus in of_task]
    row: dict[str, Any] = {"n": sum(taus.corrected.n for taus in defined)}
    row |= {"cells": len(defined), "undefined": len(cells) - len(defined)}
    if not defined:
        return row
    sides: list[tuple[str, list[str], Callable[[_Taus], Correlation]]] = [
        ("corrected", ["corrected_low", "corrected_high"], lambda taus: taus.corrected),
        ("released", ["released_low", "released_high"], lambda taus: taus.released),
        ("difference", ["ci_low", "ci_high"], lambda taus: taus.difference),
    ]
    for name, ends, side in sides:
        values = average_of_tasks([[side(taus) for taus in of_task] for of_task in by_task.values()], level)
        row |= dict(zip([name, *ends], values, strict=True))
    return row


def _instances(evidence: Evidence, compared: Comparison, key: Key, resampling: Resampling) -> _Taus | None:
    """Tau over the samples of one cell, or none if a side lacks a variable, or one is nearly constant."""
    sides = [[_items(evidence, key, name) for name in names] for names in (compared.corrected, compared.released)]
    items = [one for side in sides for one in side if one is not None]
    if len(items) < 4:
        return None
    present = ~np.any([np.isnan(one[:, 0]) for one in items], axis=0)
    means = np.array([mean_of_items(one[present]) for one in items])
    if min(off_mode(values) for values in means) < FEWEST:
        return None
    codes, draws = evidence.samples[key[1]].codes[present], resampling.draws(key[1]).astype(np.float64)
    return _Taus.of(means, codes, draws, resampling.statistics.level)


def _items(evidence: Evidence, key: Key, name: str) -> Floats | None:
    if name == BEHAVIOUR:
        return evidence.outcomes[key][:, :1]
    hits = evidence.hits.get((*key, name, "label"))
    return None if hits is None else np.asarray(hits.inner, dtype=np.float64)


def _cells(
    evidence: Evidence,
    second: Mapping[str, npt.NDArray[np.bool_]],
    compared: Comparison,
    keys: Sequence[Key],
    resampling: Resampling,
) -> dict[str, Any]:
    """Tau over the cells of all models, tasks and variations; tasks are resampled, or models where there is one."""
    sides = [(compared.corrected, None), (compared.released, second if compared.defect == ONE_CLASS else None)]
    values = np.array(
        [[_rate(evidence, key, name, of_one) for names, of_one in sides for name in names] for key in keys]
    )
    whole = np.isfinite(values).all(axis=1) if len(values) else np.zeros(0, dtype=bool)
    here = [key for key, known in zip(keys, whole, strict=True) if known]
    at, cluster = (1, "task") if len({key[1] for key in here}) > 1 else (0, "model")
    codes, groups = pd.factorize(np.array([key[at] for key in here], dtype=object))
    undefined = {"n": len(here), "cells": 0, "undefined": len(keys)}
    if len(groups) < 2:
        return undefined
    draws = cluster_draws(len(groups), resampling.statistics.draws, resampling.generator("correlations", cluster))
    # as in the table of correlations: rounding errors must not part cells with the same rate
    level = resampling.statistics.level
    taus = _Taus.of(values[whole].T.round(9), codes.astype(np.int64), draws, level)
    if taus.corrected.reason or taus.released.reason:
        return undefined
    return _row([(ALL, taus)], level) | {"n": len(here), "cells": len(here), "undefined": len(keys) - len(here)}


def _rate(evidence: Evidence, key: Key, name: str, second: Mapping[str, npt.NDArray[np.bool_]] | None) -> float:
    """The exact match rate of a cell; or its information, the mean over layers 1..L of the balanced accuracy of the
    probes, or of the F1 of the second class; nan without such probes."""
    items = _items(evidence, key, name)
    if items is None:
        return float("nan")
    present = ~np.isnan(items[:, 0])
    if name == BEHAVIOUR:
        return float(items[present].mean())
    if second is None:
        return float((evidence.weights(key[1], key[2], "label", present)[present] @ items[present]).mean())
    return float(np.mean(f1_of_second(items[present], second[key[1]][present])))


def f1_of_second(hits: Floats, second: npt.NDArray[np.bool_]) -> Floats:
    """F1 of the second class by layer, from shares of right answers [n, layers] and whose label it is [n]."""
    wrong = 1 - hits
    counts = {"tp": hits[second], "fn": wrong[second], "fp": wrong[~second], "tn": hits[~second]}
    return f1({name: part.sum(axis=0) for name, part in counts.items()})
