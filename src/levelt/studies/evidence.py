"""Raw results of all models and tasks as arrays over the samples of a task, so that comparisons pair by position."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array

from levelt.files import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

OUTCOMES = ("exact_match", "answered", "preferred")


@dataclass(frozen=True)
class Samples:
    """The samples of a task, in a fixed order that all arrays of the task share.

    Attributes:
        ids: sample ids [n].
        codes: group (pair) of each sample, integers in [0, groups), [n].
        members: [groups, n] with 1 where a sample belongs to a group: sums within groups are a product.
        prompts: prompt id -> position of its sample.
    """

    ids: pd.Index
    codes: Ints
    members: csr_array
    prompts: pd.Series

    @property
    def groups(self) -> int:
        """Number of groups."""
        return int(self.members.shape[0])


@dataclass(frozen=True)
class Hits:
    """Whether the out-of-fold probe of each layer is right: shares [n, layers], nan where a role had no token."""

    first_layer: int
    shares: npt.NDArray[np.float32]

    @property
    def inner(self) -> npt.NDArray[np.float32]:
        """Layers 1..L, without the embeddings."""
        return self.shares[:, max(0, 1 - self.first_layer) :]


@dataclass(frozen=True)
class Evidence:
    """Everything that comparisons are made from.

    Attributes:
        models: from `describe_models`.
        samples: by task.
        asked: (task, condition) -> one row per sample: template, polarity and targets (label, answer, unasked, ...).
        classes: (task, condition, target) -> class of the target of each sample, integers [n].
        outcomes: (model, task, condition) -> OUTCOMES, [n, 3], nan where there is no prompt.
        hits: (model, task, condition, role, target) -> probe hits.
    """

    models: pd.DataFrame
    samples: dict[str, Samples]
    asked: dict[tuple[str, str], pd.DataFrame]
    classes: dict[tuple[str, str, str], Ints]
    outcomes: dict[tuple[str, str, str], Floats]
    hits: dict[tuple[str, str, str, str, str], Hits]

    def weights(self, task: str, condition: str, target: str, present: npt.NDArray[np.bool_]) -> Floats:
        """Weights of samples [n] that make a weighted mean of hits the balanced accuracy over those present.

        Every class of the target has the same total weight, and all weights sum to 1.
        """
        if (task, condition, target) not in self.classes:
            raise InputError(f"{task}, {condition}: probes have the target {target}, but behaviour has no such column")
        of_sample = self.classes[task, condition, target]
        sizes = np.bincount(of_sample[present])
        weights = np.zeros(len(present))
        weights[present] = 1 / ((sizes > 0).sum() * sizes[of_sample[present]])
        return weights


def collect(models: pd.DataFrame, behaviour: Iterable[pd.DataFrame], hits: Iterable[pd.DataFrame]) -> Evidence:
    """Align raw results over the samples of each task.

    Args:
        models: from `describe_models`; results of other models are an error.
        behaviour: frames with model, task, condition, prompt_id, sample_id, pair_id, polarity, targets and outcomes.
        hits: frames with model, task, condition, role, target, prompt_id, first_layer and hits (a list by layer).

    Raises:
        InputError: a model without a description, a sample in two pairs, or hits of a prompt that behaviour lacks.
    """
    frames = list(behaviour)
    rows = pd.concat(frames, ignore_index=True)
    unknown = set(rows["model"]) - set(models["model"])
    if unknown:
        raise InputError(f"behaviour of model {min(unknown)}, which has no manifest here")
    samples = {str(task): _samples(str(task), part) for task, part in rows.groupby("task", sort=False, observed=True)}
    asked: dict[tuple[str, str], pd.DataFrame] = {}
    outcomes: dict[tuple[str, str, str], Floats] = {}
    targets = [name for name in ("template", "polarity", "label", "answer", "unasked", "appended") if name in rows]
    for (model, task, condition), part in rows.groupby(["model", "task", "condition"], sort=False, observed=True):
        of_task = samples[str(task)]
        positions = of_task.ids.get_indexer(pd.Index(part["sample_id"]))
        values = np.full((len(of_task.ids), len(OUTCOMES)), np.nan)
        values[positions] = part[list(OUTCOMES)].to_numpy(dtype=float)
        outcomes[str(model), str(task), str(condition)] = values
        known = asked.get((str(task), str(condition)))
        if known is None or known["polarity"].isna().any():
            of_model = part.set_index("sample_id")[targets].reindex(of_task.ids)
            asked[str(task), str(condition)] = of_model if known is None else known.combine_first(of_model)
    found: dict[tuple[str, str, str, str, str], Hits] = {}
    for frame in hits:
        for task, of_frame in frame.groupby("task", sort=False, observed=True):
            found |= _align(str(task), of_frame, samples[str(task)])
    order = list(models["model"])
    ranked = dict(sorted(found.items(), key=lambda item: order.index(item[0][0])))
    classes = {
        (task, condition, target): pd.factorize(table[target], use_na_sentinel=False)[0]
        for (task, condition), table in asked.items()
        for target in table.columns.difference(["template", "polarity"])
    }
    return Evidence(models, samples, asked, classes, outcomes, ranked)


def _align(task: str, rows: pd.DataFrame, samples: Samples) -> dict[tuple[str, str, str, str, str], Hits]:
    """Hits of one task by cell, in the order of its samples."""
    at = samples.prompts.index.get_indexer(pd.Index(rows["prompt_id"]))
    if (at < 0).any():
        lost = rows[at < 0].iloc[0]
        raise InputError(f"{lost['model']}, {task}: hits without behaviour of prompt {lost['prompt_id']}")
    positions, lists = samples.prompts.to_numpy()[at], rows["hits"].to_numpy()
    keys = ["model", "condition", "role", "target", "first_layer"]
    out = {}
    for cell, part in rows.groupby(keys, sort=False, observed=True).indices.items():
        model, condition, role, target, first = cast(tuple[str, str, str, str, int], cell)
        layers = np.concatenate(lists[part]).reshape(len(part), -1)
        shares = np.full((len(samples.ids), layers.shape[1]), np.nan, dtype=np.float32)
        shares[positions[part]] = layers
        out[model, task, condition, role, target] = Hits(int(first), shares)
    return out


def _samples(task: str, rows: pd.DataFrame) -> Samples:
    known = rows[["sample_id", "pair_id"]].drop_duplicates()
    twice = known["sample_id"].duplicated()
    if twice.any():
        raise InputError(f"{task}: sample {known.loc[twice, 'sample_id'].iloc[0]} is in two pairs")
    codes, groups = pd.factorize(known["pair_id"])
    ids = pd.Index(known["sample_id"])
    members = csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(len(groups), len(codes)))
    prompts = rows[["prompt_id", "sample_id"]].drop_duplicates()
    positions = pd.Series(ids.get_indexer(pd.Index(prompts["sample_id"])), index=pd.Index(prompts["prompt_id"]))
    return Samples(ids, codes.astype(np.int64), members, positions)
