"""Macro averages with intervals over subjects.

The mean over the examples of a relation and template, then over templates, then over relations with equal weights, as
the paper weighs them (its code counts template 1 twice: `as_released`). A bootstrap draw resamples the subjects of
each relation; a subject's prompts, in all templates, stay together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from levelt.randomness import generator
from levelt.statistics.resampling import cluster_draws, group_sums, percentile_interval

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mean:
    """An average [...] and its bootstrap draws [draws, ...]; the draws are nan where there is one subject."""

    value: Floats
    draws: Floats

    def interval(self, level: float) -> tuple[Floats, Floats]:
        """Percentile interval."""
        return percentile_interval(self.draws, level)


class Averages:
    """Averages over the rows of one step: `rows` has the columns relation, template, subject.

    everyone: the subjects of each relation that are resampled, if there are others than those of `rows`: several models
    that answered about different ones share their draws, so that their averages can be averaged draw by draw.
    """

    def __init__(
        self, rows: pd.DataFrame, draws: int, seed: int, everyone: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.rows = rows.reset_index(drop=True)
        self.relations = list(dict.fromkeys(rows["relation"]))
        self.templates = list(dict.fromkeys(rows["template"]))
        self._codes = np.zeros(len(rows), np.int64)
        self._draws: dict[str, Floats | None] = {}
        self._subjects: dict[str, int] = {}
        self._cells: dict[tuple[str, str], npt.NDArray[np.bool_]] = {}
        for relation in self.relations:
            here = (self.rows["relation"] == relation).to_numpy()
            present = set(self.rows["subject"][here])
            names = sorted(present.union(everyone.get(relation, []) if everyone else []))
            self._codes[here] = [names.index(name) for name in self.rows["subject"][here]]
            rng = generator(seed, "recall", "subjects", relation)
            self._draws[relation] = cluster_draws(len(names), draws, rng) if len(names) > 1 else None
            self._subjects[relation] = len(present)
            for template in self.templates:
                self._cells[relation, template] = here & (self.rows["template"] == template).to_numpy()
        self._count = draws

    def subjects(self, relation: str = "all") -> int:
        """How many subjects there are."""
        return sum(self._subjects.values()) if relation == "all" else self._subjects[relation]

    def halves(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """The rows of every other subject of each relation, and the rest."""
        even = self._codes % 2 == 0
        return even, ~even

    def mean(
        self,
        values: npt.ArrayLike,
        relation: str = "all",
        template: str = "all",
        only: npt.NDArray[np.bool_] | None = None,
        as_released: bool = False,
    ) -> Mean:
        """Average of ``values`` [n, ...]; nan marks what a prompt does not have.

        Args:
            values: one row per prompt, in the order of `rows`.
            relation, template: one of them, or all.
            only: rows to use. None: all.
            as_released: template 1 counted twice, divided by the number of templates.
        """
        data = np.asarray(values, np.float64)
        flat = data.reshape(len(data), -1)
        relations = self.relations if relation == "all" else [relation]
        templates = self.templates if template == "all" else [template]
        totals, total_draws = [], []
        for name in relations:
            cells, cell_draws = [], []
            for index, wording in enumerate(templates):
                chosen = self._cells[name, wording] if only is None else self._cells[name, wording] & only
                if not chosen.any():
                    continue
                value, draws = self._cell(flat[chosen], self._codes[chosen], self._draws[name])
                repeats = 2 if as_released and index == 0 else 1
                cells += [value] * repeats
                cell_draws += [draws] * repeats
            if cells and as_released:
                totals.append(np.sum(cells, axis=0) / len(templates))
                total_draws.append(np.sum(cell_draws, axis=0) / len(templates))
            elif cells:
                totals.append(_nanmean(cells))
                total_draws.append(_nanmean(cell_draws))
        shape = data.shape[1:]
        if not totals:
            return Mean(np.full(shape, np.nan), np.full((self._count, *shape), np.nan))
        value, draws = _nanmean(totals), _nanmean(total_draws)
        return Mean(value.reshape(shape), draws.reshape(self._count, *shape))

    def _cell(self, values: Floats, codes: npt.NDArray[np.int64], draws: Floats | None) -> tuple[Floats, Floats]:
        present = np.isfinite(values)
        filled = np.where(present, values, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = filled.sum(0) / present.sum(0)
            if draws is None:
                return value, np.full((self._count, values.shape[1]), np.nan)
            sums = group_sums(filled, codes, draws.shape[1])
            counts = group_sums(present, codes, draws.shape[1])
            return value, (draws @ sums) / (draws @ counts)


def mean_of(parts: Sequence[Mean]) -> Mean:
    """The mean of averages over the same draws, each counting the same; what is undefined in one is left out."""
    return Mean(_nanmean([part.value for part in parts]), _nanmean([part.draws for part in parts]))


def _nanmean(parts: Sequence[Floats]) -> Floats:
    """Mean over parts, those left out that are nan (a place that the prompts of a relation or template do not have)."""
    stacked = np.stack(parts)
    present = np.isfinite(stacked)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Floats = np.where(present, stacked, 0.0).sum(0) / present.sum(0)
    return mean
