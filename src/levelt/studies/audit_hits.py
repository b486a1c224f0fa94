"""What the correlations of the methods audit are made of: hits of the label probes of each published variation, probed
as the study does and with each defect that concerns plain prompts.

The study's own folds are used, so that what is right here is the study's number for the same model and task.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from levelt.config import Probes, Role
from levelt.engine.roles import ROLE_SITES
from levelt.engine.run import Readings
from levelt.probes.grid import out_of_fold
from levelt.probes.released import quarters, released_out_of_fold
from levelt.randomness import generator
from levelt.studies.audit_rows import PROBED, ROLES, SEEDS, role_values
from levelt.studies.information import FIRST_LAYER, TaskFolds

RELEASED_ROLES: dict[Role, Role] = {"sample": "sample_as_released", "output": "output"}
"""Where the release reads a role."""

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def variation_hits(
    table: pd.DataFrame, readings: Mapping[str, Readings], probes: Probes, seed: int, task: str
) -> pd.DataFrame:
    """Hits of the label probes of one model and task, in the columns that `evidence.collect` reads.

    Args:
        table: all prompts of the model and task, of every variation, as the study probes them.
        readings: by variation, in the order of its prompts in the table.
        probes, seed, task: settings.

    Returns:
        One row per prompt and probing; its name is in the column ``role``: a role probed right, or
        "<defect>: <role>". ``second`` says whether the label is the second option (no).
    """
    folds = TaskFolds(table, probes, seed, task)
    frames = []
    for variation, found in readings.items():
        rows = table[table["condition"] == variation].reset_index(drop=True)
        second = rows["label"] == rows["options"].iloc[0][1]
        label = (~second).to_numpy(dtype=np.int64)
        assigned = folds.of(rows, {"label": label})
        random = generator(seed, "audit", task, "hits", variation)
        for name, role, shares in _probings(found, label, assigned, probes, random):
            present = np.isfinite(shares[:, 0])
            frames.append(
                pd.DataFrame(
                    {
                        "condition": variation,
                        "role": name,
                        "target": "label",
                        "first_layer": FIRST_LAYER[ROLE_SITES[role]],
                        "prompt_id": rows["prompt_id"][present],
                        "second": second[present],
                        "hits": list(shares[present].astype(np.float32)),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def _probings(
    found: Readings, label: Labels, assigned: Labels, probes: Probes, random: np.random.Generator
) -> list[tuple[str, Role, Floats]]:
    """(name, role, hits [n, layers], nan without the role) of every probing of one variation."""
    leaking = quarters(len(label), probes.folds)[None]

    def right(role: Role, folds: Labels) -> Floats:
        values, present = role_values(found, role)
        of = label[present]
        fitted = out_of_fold(
            values[present], of[None], folds[:, present], penalty=probes.penalty, bound=probes.bound
        ).logits[0]
        return _spread(present, ((fitted > 0) == of[:, None]).mean(axis=0))

    def released(role: Role, folds: Labels) -> Floats:
        values, present = role_values(found, role)
        of = label[present]
        said = released_out_of_fold(values[present], of, folds[0, present], SEEDS, random)
        return _spread(present, (said == of[:, None]).mean(axis=0))

    probings = [(str(role), role, right(role, assigned)) for role in ROLES]
    for role in PROBED:
        probings.append((f"trainer: {role}", role, released(role, assigned)))
        probings.append((f"leaking_folds: {role}", role, right(role, leaking)))
    for role, place in RELEASED_ROLES.items():
        probings.append((f"probing_together: {role}", place, released(place, leaking)))
    return probings


def _spread(present: npt.NDArray[np.bool_], hits: Floats) -> Floats:
    out = np.full((len(present), hits.shape[1]), np.nan)
    out[present] = hits
    return out
