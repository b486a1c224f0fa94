"""The quantities that comparisons are about, as linear estimates: rates of answers, and information by layer.

Information is the balanced accuracy of out-of-fold probes. How the published numbers reduce layers is unknown
(methods/1 section 6); here one number per cell is the mean over layers 1..L for every role, without the embedding
layer, which the output role does not have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from levelt.studies.estimates import COUNTS, Builder, Estimates, Resampling, stack
from levelt.studies.evidence import OUTCOMES, Evidence
from levelt.studies.scope import INTERVENTIONS, MODEL_COLUMNS, OTHER_ASKED, PUBLISHED_VARIATIONS, UNRELATED

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
    """Information of every layer: keys ``layer`` and ``depth`` (layer / layers)."""
    builder = Builder(evidence.samples)
    layers_of = dict(zip(evidence.models["model"], evidence.models["layers"], strict=True))
    for (model, task, condition, role, target), hits in evidence.hits.items():
        if condition not in COMPARED:
            continue
        present = ~np.isnan(hits.shares[:, 0])
        layers = list(range(hits.first_layer, hits.first_layer + hits.shares.shape[1]))
        named = {"model": model, "condition": condition, "quantity": "information", "role": role, "target": target}
        weights = evidence.weights(task, condition, target, present)
        builder.add(
            task,
            hits.shares,
            weights,
            named | {"layer": layers, "depth": [layer / layers_of[model] for layer in layers]},
        )
    return builder.build(evidence.models, [*KEYS, "layer", "depth"])


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
    both = stack([outcomes, information]).with_means(control_tasks)
    table = resampling.table(both)
    return table[[*MODEL_COLUMNS, "task", *KEYS, *COUNTS, "estimate", "ci_low", "ci_high"]]
