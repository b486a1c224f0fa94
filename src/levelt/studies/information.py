"""Information: what linear probes decode from one model on one task, by condition, role, target and layer.

Three targets are reported apart, since a label that is decodable everywhere cannot show what an instruction does:
``label`` (the asked property of the text), ``answer`` (the right answer, which differs from the label when the question
is negated) and ``unasked`` (the text's other property).
"""

from __future__ import annotations

import logging
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import roc_auc_score

from levelt.config import Probes, Statistics, Variation
from levelt.files import InputError
from levelt.probes.grid import out_of_fold
from levelt.randomness import generator
from levelt.statistics.resampling import balanced_accuracy_interval, cluster_draws

log = logging.getLogger(__name__)

SITES = {"sample": "residual", "output": "attention", "decision": "residual"}
"""The site read at each role (design.md, *role*; the output role as published: methods/1 section 3)."""

VARIATIONS: tuple[str, ...] = typing.get_args(Variation)


INTERVENED = "instruction_first"
"""The variation whose prompts the interventions are applied to."""


def variation_of(condition: str) -> str:
    """The prompt variation of a condition: itself, or the one whose prompts an intervention changes."""
    return condition if condition in VARIATIONS else INTERVENED


def without_interventions(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the prompt variations."""
    return table[table["condition"].isin(VARIATIONS)]


FIRST_LAYER = {"residual": 0, "attention": 1}
"""The layer of a site's first entry: the residual stream starts with the embeddings, attention with layer 1."""


@dataclass(frozen=True)
class TaskInformation:
    """Probe results of one model and task.

    Attributes:
        probes: one row per condition, role, target and layer: n, groups, rows left out, accuracy, balanced_accuracy
            with ci_low and ci_high, auc, bound.
        hits: one row per prompt, condition, role and target; ``hits`` lists, by layer, the share of repeats in which
            the row's out-of-fold probe was right.
    """

    probes: pd.DataFrame
    hits: pd.DataFrame


def targets_of(prompts: pd.DataFrame, wanted: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[np.object_]]]:
    """The targets that exist for these prompts, with their values.

    ``unasked`` is skipped for tasks whose texts have one property, ``answer`` where it is the label in every row.
    """
    for target in wanted:
        values = prompts[target].to_numpy(dtype=object)
        if target == "unasked" and prompts[target].isna().any():
            continue
        if target == "answer" and (values == prompts["label"].to_numpy(dtype=object)).all():
            continue
        yield target, values


def probe_task(
    prompts: pd.DataFrame,
    activations: Mapping[str, Mapping[str, npt.NDArray[np.float32]]],
    probes: Probes,
    statistics: Statistics,
    seed: int,
    task: str,
) -> TaskInformation:
    """Probe every condition, role, target and layer of one model on one task.

    Args:
        prompts: rows of data/<study>/prompts/<model>/<task>.parquet.
        activations: condition -> {"<role>.<site>": [n, layers, d]} in the order of that condition's prompts.
        probes, statistics: settings.
        seed: the study seed; folds and bootstrap draws depend on (seed, task) only, so that models and conditions
            are compared on the same folds and the same draws.

    Raises:
        InputError: no row of a role has activations, or the rows cannot be folded; the message names the cell.
    """
    scores: list[pd.DataFrame] = []
    hits: list[pd.DataFrame] = []
    for condition, arrays in activations.items():
        chosen = prompts[prompts["condition"] == variation_of(condition)].reset_index(drop=True)
        affirmative = chosen["options"].iloc[0][0]
        for role in probes.roles:
            site = SITES[role]
            values = arrays[f"{role}.{site}"]
            if len(values) != len(chosen):
                raise InputError(f"{task}, {condition}: {len(values)} activation rows for {len(chosen)} prompts")
            finite = np.isfinite(values).all(axis=(1, 2))
            if not finite.any():
                raise InputError(
                    f"{task}, {condition}: no prompt has a token in role {role} (did the model stop at once?); "
                    "raise engine.max_new_tokens or leave the role out of probes.roles"
                )
            rows = chosen[finite]
            codes, groups = pd.factorize(rows["pair_id"])
            draws = cluster_draws(len(groups), statistics.draws, generator(seed, "probes", task, "bootstrap"))
            for target, text in targets_of(chosen, probes.targets):
                labels = (text[finite] == affirmative).astype(np.int64)
                try:
                    result = out_of_fold(
                        values[finite],
                        labels,
                        codes,
                        folds=probes.folds,
                        repeats=probes.repeats,
                        penalty=probes.penalty,
                        bound=probes.bound,
                        generator=generator(seed, "probes", task, "folds"),
                    )
                except ValueError as error:
                    raise InputError(f"{task}, {condition}, {role}, {target}: {error}") from None
                right = ((result.logits > 0) == labels[None, :, None]).mean(axis=0)
                balanced, low, high = balanced_accuracy_interval(right, labels, codes, draws, statistics.level)
                first = FIRST_LAYER[site]
                cell = {"condition": condition, "role": role, "site": site, "target": target}
                scores.append(
                    pd.DataFrame(
                        {
                            **cell,
                            "template": rows["template"].iloc[0],
                            "layer": np.arange(first, first + right.shape[1]),
                            "n": len(rows),
                            "groups": len(groups),
                            "left_out": int((~finite).sum()),
                            "accuracy": right.mean(axis=0),
                            "balanced_accuracy": balanced,
                            "ci_low": low,
                            "ci_high": high,
                            "auc": [roc_auc_score(labels, result.logits.mean(axis=0)[:, i]) for i in range(len(low))],
                            "bound": result.bounds,
                        }
                    )
                )
                hits.append(
                    pd.DataFrame(
                        {"prompt_id": rows["prompt_id"], "pair_id": rows["pair_id"], **cell, "first_layer": first}
                    ).assign(hits=list(right.astype(np.float32)))
                )
        log.info("%s, %s: probed", task, condition)
    return TaskInformation(pd.concat(scores, ignore_index=True), pd.concat(hits, ignore_index=True))
