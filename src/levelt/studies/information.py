"""Information: what linear probes decode from one model on one task, by condition, role, target and layer.

Three targets are reported apart, since a label that is decodable everywhere cannot show what an instruction does:
``label`` (the asked property of the text), ``answer`` (the right answer, which differs from the label when the question
is negated) and ``unasked`` (the text's other property). ``appended`` is the option that the condition random_answer
puts behind the prompt: nobody chose it, so whoever decodes it reads it off the input.
"""

from __future__ import annotations

import logging
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from levelt.config import Probes, Statistics, Variation
from levelt.engine.roles import ROLE_SITES
from levelt.files import InputError
from levelt.probes.folds import FoldError, check_folds, deal_folds
from levelt.probes.grid import OutOfFold, out_of_fold
from levelt.probes.memory import Room
from levelt.probes.scores import auc, rates
from levelt.probes.selection import out_of_fold_chosen
from levelt.randomness import generator
from levelt.statistics.resampling import balanced_accuracy_interval, cluster_draws
from levelt.studies.blocks import Block, frame
from levelt.studies.scope import INTERVENED, OTHER, OTHER_ASKED

log = logging.getLogger(__name__)

Codes = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

VARIATIONS: tuple[str, ...] = typing.get_args(Variation)


def variation_of(condition: str) -> str:
    """The prompt variation of a condition: itself, or the one whose prompts an intervention changes."""
    if condition in VARIATIONS:
        return condition
    return OTHER if condition in OTHER_ASKED.values() else INTERVENED


FIRST_LAYER = {"residual": 0, "attention": 1}
"""The layer of a site's first entry: the residual stream starts with the embeddings, attention with layer 1."""


SCORES = [
    *["condition", "role", "site", "target", "template", "layer", "n", "groups", "left_out"],
    *["accuracy", "balanced_accuracy", "ci_low", "ci_high", "auc", "macro_f1", "bound"],
]
HITS = ["prompt_id", "pair_id", "condition", "role", "site", "target", "first_layer", "hits"]


@dataclass(frozen=True)
class TaskInformation:
    """Probe results of one model and task.

    Attributes:
        probes: one row per condition, role, target and layer: n, groups, rows left out, accuracy, balanced_accuracy
            with ci_low and ci_high, auc, macro_f1, bound.
        hits: one row per prompt, condition, role and target; ``hits`` lists, by layer, the share of repeats in which
            the row's out-of-fold probe was right.
    """

    probes: pd.DataFrame
    hits: pd.DataFrame


def targets_of(prompts: pd.DataFrame, wanted: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[np.object_]]]:
    """The targets that exist for these prompts, with their values.

    A target without a value in some row is skipped (``unasked`` of tasks whose texts have one property), and
    ``answer`` where it is the label in every row.
    """
    for target in wanted:
        if target not in prompts or prompts[target].isna().any():
            continue
        values = prompts[target].to_numpy(dtype=object)
        if target == "answer" and (values == prompts["label"].to_numpy(dtype=object)).all():
            continue
        yield target, values


def labels_of(prompts: pd.DataFrame, arrays: Mapping[str, npt.NDArray[Any]], wanted: Iterable[str]) -> dict[str, Codes]:
    """Targets by name, 1 where the value is the first option (yes): [n] each."""
    options = prompts["options"].iloc[0]
    if "appended" in arrays:  # the index of the option, as the engine stores it
        drawn = np.asarray(options, dtype=object)[np.asarray(arrays["appended"], dtype=np.int64)]
        prompts = prompts.assign(appended=drawn)
    return {name: (values == options[0]).astype(np.int64) for name, values in targets_of(prompts, wanted)}


class TaskFolds:
    """The folds of one task: the same for every model, condition, role and target, so that these can be compared.

    Pairs stay together; folds are balanced over the combinations of the samples' targets.
    """

    def __init__(self, prompts: pd.DataFrame, probes: Probes, seed: int, task: str) -> None:
        samples = prompts.drop_duplicates("sample_id")
        parts = [samples[name].astype(str) for name in ("label", "answer", "unasked") if name in samples]
        strata = pd.factorize(pd.MultiIndex.from_arrays(parts))[0]
        draw = generator(seed, "probes", task, "folds")
        self.folds = probes.folds
        self._at = pd.Index(samples["sample_id"])
        self._of = np.stack([deal_folds(strata, samples["pair_id"], probes.folds, draw) for _ in range(probes.repeats)])

    def of(self, rows: pd.DataFrame, labels: Mapping[str, Codes]) -> npt.NDArray[np.int64]:
        """The folds of these rows, [repeats, n].

        Raises:
            FoldError: a fold lacks a class of a target.
        """
        found = self._of[:, self._at.get_indexer(rows["sample_id"])]
        for assignment in found:
            for codes in labels.values():
                check_folds(assignment, codes, self.folds)
        return found


@dataclass(frozen=True)
class Cell:
    """One role in one condition: the prompts that have it, their activations, labels and folds; ``room`` is for the
    solver's arrays, shared by all cells of a task."""

    condition: str
    role: str
    rows: pd.DataFrame
    values: npt.NDArray[np.float32]
    labels: Mapping[str, Codes]
    folds: npt.NDArray[np.int64]
    left_out: int
    room: Room

    @property
    def site(self) -> str:
        """What is read at the role."""
        return ROLE_SITES[self.role]

    @property
    def layers(self) -> npt.NDArray[np.int64]:
        """Layers of the values."""
        first = FIRST_LAYER[self.site]
        return np.arange(first, first + self.values.shape[1])


def cells_of(
    prompts: pd.DataFrame,
    activations: Mapping[str, Mapping[str, npt.NDArray[Any]]],
    probes: Probes,
    seed: int,
    task: str,
) -> Iterator[Cell]:
    """The cells of one model on one task (see `probe_task`)."""
    folds, room = TaskFolds(prompts, probes, seed, task), Room()
    for condition, arrays in activations.items():
        chosen = prompts[prompts["condition"] == variation_of(condition)].reset_index(drop=True)
        labels = labels_of(chosen, arrays, probes.targets)
        for role in probes.roles:
            values = arrays[f"{role}.{ROLE_SITES[role]}"]
            if len(values) != len(chosen):
                raise InputError(f"{task}, {condition}: {len(values)} activation rows for {len(chosen)} prompts")
            finite = np.isfinite(values).all(axis=(1, 2))
            rows = chosen[finite]
            kept = {name: codes[finite] for name, codes in labels.items()}
            try:
                if not finite.any():
                    raise FoldError(
                        f"no prompt has a token in role {role} (did the model stop at once?); "
                        "raise engine.max_new_tokens or leave the role out of probes.roles"
                    )
                assignments = folds.of(rows, kept)
            except ValueError as error:
                if condition not in VARIATIONS:  # an intervention can silence a model: that is a finding, not a mistake
                    log.warning("%s, %s, %s: no probes, %s", task, condition, role, error)
                    continue
                raise InputError(f"{task}, {condition}, {role}: {error}") from None
            yield Cell(condition, role, rows, values[finite], kept, assignments, int((~finite).sum()), room)


def probe_task(
    prompts: pd.DataFrame,
    activations: Mapping[str, Mapping[str, npt.NDArray[Any]]],
    probes: Probes,
    statistics: Statistics,
    seed: int,
    task: str,
) -> TaskInformation:
    """Probe every condition, role, target and layer of one model on one task.

    Args:
        prompts: rows of data/<study>/prompts/<model>/<task>.parquet.
        activations: condition -> {"<role>.<site>": [n, layers, d]} in the order of that condition's prompts, and
            "appended" [n], the index of the option appended, in the condition random_answer.
        probes, statistics: settings.
        seed: the study seed; folds and bootstrap draws depend on (seed, task) only, so that models and conditions
            are compared on the same folds and the same draws.

    Raises:
        InputError: no row of a role has activations, or the rows cannot be folded; the message names the cell.
    """
    scores: list[Block] = []
    hits: list[Block] = []
    draws: dict[int, Floats] = {}
    for cell in cells_of(prompts, activations, probes, seed, task):
        codes, groups = pd.factorize(cell.rows["pair_id"])
        if len(groups) not in draws:
            draws[len(groups)] = cluster_draws(
                len(groups), statistics.draws, generator(seed, "probes", task, "bootstrap")
            )
        fitted = _fitted(cell, probes, task)
        template = cell.rows["template"].iloc[0]
        ids = {name: cell.rows[name].to_numpy(dtype=object) for name in ("prompt_id", "pair_id")}
        for at, (target, labels) in enumerate(cell.labels.items()):
            logits = fitted.logits[at]
            said = logits > 0
            right = (said == labels[None, :, None]).mean(axis=0)
            balanced, low, high = balanced_accuracy_interval(right, labels, codes, draws[len(groups)], statistics.level)
            accuracy, _, macro = rates(labels, said)
            names = {"condition": cell.condition, "role": cell.role, "site": cell.site, "target": target}
            scores.append(
                {
                    **names,
                    "template": template,
                    "layer": cell.layers,
                    "n": len(cell.rows),
                    "groups": len(groups),
                    "left_out": cell.left_out,
                    "accuracy": accuracy,
                    "balanced_accuracy": balanced,
                    "ci_low": low,
                    "ci_high": high,
                    "auc": auc(labels, logits.mean(axis=0)),
                    "macro_f1": macro,
                    "bound": fitted.bounds[at],
                }
            )
            hits.append({**ids, **names, "first_layer": FIRST_LAYER[cell.site], "hits": [*right.astype(np.float32)]})
    log.info("%s: probed", task)
    return TaskInformation(frame(scores, SCORES), frame(hits, HITS))


def _fitted(cell: Cell, probes: Probes, task: str) -> OutOfFold:
    labels = np.stack(list(cell.labels.values()))
    try:
        if probes.penalties:
            return out_of_fold_chosen(
                cell.values, labels, cell.folds, penalties=probes.penalties, bound=probes.bound, room=cell.room
            ).scores
        return out_of_fold(cell.values, labels, cell.folds, penalty=probes.penalty, bound=probes.bound, room=cell.room)
    except ValueError as error:
        raise InputError(f"{task}, {cell.condition}, {cell.role}: {error}") from None
