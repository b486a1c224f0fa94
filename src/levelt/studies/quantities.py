"""The quantities that comparisons are about, as linear estimates: rates of answers, and information by layer.

Information is the balanced accuracy of out-of-fold probes. How the published numbers reduce layers is unknown
(methods/1 section 6); here one number per cell is the mean over layers 1..L for every role, without the embedding
layer, which the output role does not have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array

from levelt.studies.estimates import COUNTS, Builder, Estimates, Resampling, stack
from levelt.studies.evidence import OUTCOMES, Evidence, Hits
from levelt.studies.scope import (
    INTERVENED,
    INTERVENTIONS,
    MODEL_COLUMNS,
    OTHER_ASKED,
    PUBLISHED_VARIATIONS,
    UNRELATED,
    shared_samples,
)

COMPARED = (*PUBLISHED_VARIATIONS, *INTERVENTIONS, UNRELATED, *OTHER_ASKED.values())
"""The conditions that are compared; others are controls of the probes, and stay in the table of probes."""

KEYS = ["condition", "quantity", "role", "target"]


def outcome_estimates(evidence: Evidence) -> Estimates:
    """Rates of exact match, answered and preferred answers: role ``behaviour``, target ``answer``."""
    builder = Builder(evidence.samples)
    for (model, task, condition), values in evidence.outcomes.items():
        if condition in COMPARED:
            present = ~np.isnan(values[:, 0])
            named = {"model": model, "condition": condition, "role": "behaviour", "target": "answer"}
            builder.add(task, values, present / present.sum(), named | {"quantity": list(OUTCOMES)})
    return builder.build(evidence.models, KEYS)


def layer_estimates(evidence: Evidence) -> Estimates:
    """Information of every layer: keys ``layer`` and ``depth`` (layer / layers).

    Where a role is missing in some samples of one of two conditions that are compared (a model may stop at once), both
    are there once more, on the samples that have it in both (`levelt.studies.scope.shared_samples` names them).
    """
    builder = Builder(evidence.samples)
    layers_of = dict(zip(evidence.models["model"], evidence.models["layers"], strict=True))

    def add(cell: tuple[str, str, str, str, str], hits: Hits, present: npt.NDArray[np.bool_], condition: str) -> None:
        model, task, own, role, target = cell
        layers = list(range(hits.first_layer, hits.first_layer + hits.shares.shape[1]))
        named = {"model": model, "condition": condition, "quantity": "information", "role": role, "target": target}
        depths = {"layer": layers, "depth": [layer / layers_of[model] for layer in layers]}
        weights = evidence.weights(task, own, target, present)
        builder.add(task, hits.shares, weights, named | depths, evidence.classes[task, own, target])

    present = {cell: ~np.isnan(hits.shares[:, 0]) for cell, hits in evidence.hits.items() if cell[2] in COMPARED}
    for cell, here in present.items():
        add(cell, evidence.hits[cell], here, cell[2])
    for cell, here in present.items():
        model, task, condition, role, target = cell
        for reference in dict.fromkeys(_references(condition)):
            other = (model, task, reference, role, target)
            if other not in present or np.array_equal(here, present[other]):
                continue
            both = here & present[other]
            if both.any():
                add(cell, evidence.hits[cell], both, shared_samples(condition, reference))
                add(other, evidence.hits[other], both, shared_samples(reference, condition))
    return builder.build(evidence.models, [*KEYS, "layer", "depth"])


def _references(condition: str) -> list[str]:
    """The conditions that a condition is compared with, each pair once."""
    asked = [first for first, second in OTHER_ASKED.items() if second == condition]
    return [*([INTERVENED] if condition != INTERVENED else []), *asked]


def layer_means(layers: Estimates) -> Estimates:
    """Information of a cell: the mean over layers 1..L."""
    inner = layers.where(layers.rows["layer"].to_numpy(dtype=float) > 0)
    if not len(inner.values):
        return inner.without("layer").without("depth")
    keys = [name for name in inner.keys if name not in ("layer", "depth")]
    grouped = inner.rows.groupby(keys, sort=False, dropna=False, observed=True)
    number, size = grouped.ngroup().to_numpy(), grouped["layer"].transform("size").to_numpy()
    rows = grouped.head(1).drop(columns=["layer", "depth"])
    weights = csr_array((1 / size, (number, np.arange(len(number)))), shape=(len(rows), len(number)))
    return inner.combine(weights, rows)


def information_table(
    outcomes: Estimates, information: Estimates, resampling: Resampling, control_tasks: Sequence[str]
) -> pd.DataFrame:
    """Rates of answers, and information (mean over layers 1..L), with means over tasks, models and families."""
    own = information.where(information.rows["condition"].isin(COMPARED).to_numpy())
    both = stack([outcomes, own]).with_means(control_tasks)
    table = resampling.table(both)
    return table[[*MODEL_COLUMNS, "task", *KEYS, *COUNTS, "estimate", "ci_low", "ci_high"]]
