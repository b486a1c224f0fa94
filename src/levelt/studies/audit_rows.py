"""Rows of the methods audit of one model and task, from readings of its prompts: probes right and as released."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from levelt.config import Probes, Role, Statistics
from levelt.engine.roles import ROLE_SITES
from levelt.engine.run import Readings
from levelt.probes.folds import grouped_folds
from levelt.probes.grid import out_of_fold
from levelt.probes.released import quarters, released_out_of_fold
from levelt.randomness import generator
from levelt.statistics.resampling import cluster_draws
from levelt.studies.audit import MASKING, Measured, f1_row, masking_rows, paired_row

ROLES: tuple[Role, ...] = ("sample", "output", "decision", "output_with_decision", "sample_as_released")
"""Roles that the audit needs read."""

PROBED: tuple[Role, ...] = ("sample", "output", "decision")
"""Roles whose label is probed under every mask."""

SEEDS = 1
"""Released probes per layer and fold. The paper trains five and averages; that moves no mean."""

PLAIN = "plain"
"""The name of the readings without an intervention; the others are named by intervention, or "defect: intervention"."""

Floats = npt.NDArray[np.float64]


def audit_rows(
    table: pd.DataFrame,
    readings: Mapping[str, Readings],
    exact: Mapping[str, pd.Series],
    probes: Probes,
    statistics: Statistics,
    seed: int,
    task: str,
) -> pd.DataFrame:
    """All rows of the audit of one model and task.

    Args:
        table: the prompts, instruction first.
        readings, exact: readings and exact match by name: `PLAIN`, every intervention of `MASKING`, and each with
            its defect.
        probes, statistics, seed, task: settings.
    """
    return pd.DataFrame(_Audit(table, probes, statistics, seed, task).rows(readings, exact))


class _Audit:
    """The prompts of one task, their folds and draws, and the probes on what was read."""

    def __init__(self, table: pd.DataFrame, probes: Probes, statistics: Statistics, seed: int, task: str) -> None:
        affirmative = table["options"].iloc[0][0]
        self._label = (table["label"] == affirmative).to_numpy(dtype=np.int64)
        self._answer = (table["answer"] == affirmative).to_numpy(dtype=np.int64)
        self._codes, groups = pd.factorize(table["pair_id"])
        self._probes, self._level = probes, statistics.level
        self._draws = cluster_draws(len(groups), statistics.draws, generator(seed, "audit", task))
        dealt = generator(seed, "audit", task, "folds")
        self._folds = grouped_folds(self._label, self._codes, probes.folds, dealt)
        self._random = generator(seed, "audit", task, "released")

    def rows(self, readings: Mapping[str, Readings], exact: Mapping[str, pd.Series]) -> list[dict[str, object]]:
        """All rows of the audit of this task."""
        measured = {name: self._measured(found, exact[name]) for name, found in readings.items()}
        released = {masking: measured[f"{masking.defect}: {masking.block}"] for masking in MASKING}
        rows = masking_rows(measured[PLAIN], measured, released, self._codes, self._draws, self._level)
        plain = readings[PLAIN]
        return [*rows, *self._places(plain), *self._probing(plain)]

    def _places(self, plain: Readings) -> list[dict[str, object]]:
        """Where the vectors are taken from: the shifted span, and the output role that follows the answer."""
        shifted = (self._hits(plain, role, self._label) for role in ("sample", "sample_as_released"))
        rows = [self._paired("shifted_span", "label at sample", *shifted)]
        for name, target in (("label", self._label), ("answer", self._answer)):
            if name == "answer" and (self._answer == self._label).all():
                continue
            spoken = (self._hits(plain, role, target) for role in ("decision", "output"))
            rows.append(self._paired("answer_in_output", f"{name} at output", *spoken))
        return rows

    def _probing(self, plain: Readings) -> list[dict[str, object]]:
        """How probes are trained and scored: the released trainer, its F1, its folds."""
        rows = []
        contiguous = quarters(len(self._label), self._probes.folds)
        for role in PROBED:
            values, present = role_values(plain, role)
            label, folds = self._label[present], self._folds[present]
            right = self._hits(plain, role, self._label)
            said = released_out_of_fold(values[present], label, folds, SEEDS, self._random)
            theirs = np.full(len(present), np.nan)
            theirs[present] = _inner((said == label[None, :, None]).mean(axis=0), role)
            rows.append(self._paired("trainer", f"label at {role}", right, theirs))
            leaking = self._hits(plain, role, self._label, contiguous)
            rows.append(self._paired("leaking_folds", f"label at {role}", right, leaking))
            last = self._fit(values[present], label, folds)[:, -1] < 0  # the second class is "no"
            codes = self._codes[present]
            rows.append(f1_row(f"F1 at {role}, last layer", last, label == 0, codes, self._draws, self._level))
        return rows

    def _measured(self, found: Readings, exact: pd.Series) -> Measured:
        information = {f"label at {role}": self._hits(found, role, self._label) for role in PROBED}
        return Measured({"exact match": exact.to_numpy(dtype=float), **information})

    def _hits(
        self, found: Readings, role: Role, target: npt.NDArray[np.int64], folds: npt.NDArray[np.int64] | None = None
    ) -> Floats:
        """Share of layers 1..L whose out-of-fold probe is right, [n]; nan for a prompt without the role."""
        values, present = role_values(found, role)
        of = target[present]
        logits = self._fit(values[present], of, (self._folds if folds is None else folds)[present])
        out = np.full(len(target), np.nan)
        out[present] = _inner((logits > 0) == of[:, None], role)
        return out

    def _fit(self, values: Floats, target: npt.NDArray[np.int64], folds: npt.NDArray[np.int64]) -> Floats:
        probes = self._probes
        found = out_of_fold(values, target[None], folds[None], penalty=probes.penalty, bound=probes.bound)
        logits: Floats = found.logits[0, 0]
        return logits

    def _paired(self, defect: str, quantity: str, corrected: Floats, released: Floats) -> dict[str, object]:
        return paired_row(defect, quantity, corrected, released, self._codes, self._draws, self._level)


def role_values(found: Readings, role: Role) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """What was read at a role, [n, layers, d], and which prompts have it, [n]."""
    values = (found.residual if ROLE_SITES[role] == "residual" else found.attention)[role]
    return np.asarray(values, dtype=np.float64), np.isfinite(values).all(axis=(1, 2))


def _inner(hits: npt.ArrayLike, role: Role) -> Floats:
    """Mean over layers 1..L of hits [n, layers]: the residual stream begins with the embeddings, which do not count."""
    values = np.asarray(hits, dtype=np.float64)
    mean: Floats = values[:, 1 if ROLE_SITES[role] == "residual" else 0 :].mean(axis=1)
    return mean
