"""Estimates that are means over samples, kept as what each group (pair) contributes, so that everything made of them by
adding, subtracting and averaging has its interval and its sign-flip test without touching the samples again.

An estimate is the sum of its groups' contributions c. For intervals, bootstrap draws are applied to the influences
u = c - estimate * (the group's share of the weight): the ratio of sums to first order, and exactly where all groups
weigh the same. A balanced accuracy is a mean of such ratios, one per class, and so are its influences. For tests, the
signs of the contributions are flipped. Tasks have different samples and are resampled independently; models share the
samples of a task and are resampled together. Models are not resampled: intervals say what other samples would give,
not what other models would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array

from levelt.config import Statistics
from levelt.randomness import generator
from levelt.statistics.permutation import SLACK, max_t, sign_flip_test, sign_flips
from levelt.statistics.resampling import cluster_draws
from levelt.studies.evidence import Samples
from levelt.studies.scope import MODEL_COLUMNS
from levelt.vocabulary import ALL, UNTRAINED

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

CHUNK = 4096
"""Rows whose draws are held at once: with 2000 draws, 33 MB."""

COUNTS = ("n", "groups")


@dataclass(frozen=True)
class Part:
    """What the groups of one task contribute to some rows: the rows' positions [m], and two arrays [m, groups]."""

    rows: Ints
    contributions: Singles
    influences: Singles


@dataclass(frozen=True)
class Estimates:
    """Linear estimates.

    Attributes:
        rows: what each estimate is of: key columns, and n and groups.
        values: [rows].
        parts: by task; a row that is a mean over tasks is in several.
        companions: columns of ``rows`` that are averaged like the estimates (``before`` of a change).
    """

    rows: pd.DataFrame
    values: Floats
    parts: Mapping[str, Part]
    companions: tuple[str, ...] = ()

    @property
    def keys(self) -> list[str]:
        """The columns that say what an estimate is of."""
        return [str(name) for name in self.rows if name not in (*COUNTS, *self.companions)]

    def take(self, positions: Ints) -> Estimates:
        """The rows at these positions."""
        return self.combine(_selector(positions, len(self.values)), self.rows.iloc[positions])

    def where(self, mask: npt.ArrayLike) -> Estimates:
        """The rows where ``mask`` [rows] is true."""
        return self.take(np.flatnonzero(np.asarray(mask, dtype=bool)))

    def combine(self, weights: csr_array, rows: pd.DataFrame, companions: tuple[str, ...] | None = None) -> Estimates:
        """Linear combinations: ``weights`` [new rows, rows] of estimates, described by ``rows``."""
        parts = {}
        for task, part in self.parts.items():
            of_task = csr_array(weights[:, part.rows])
            used = np.flatnonzero(np.diff(of_task.indptr))
            if len(used):
                of_task = csr_array(of_task[used]).astype(np.float32)
                parts[task] = Part(used, of_task @ part.contributions, of_task @ part.influences)
        kept = self.companions if companions is None else companions
        return Estimates(rows.reset_index(drop=True), weights @ self.values, parts, kept)

    def mean(self, over: Sequence[str]) -> Estimates:
        """Means over the columns ``over``, each nested in the ones before: families weigh the same, so do models within
        a family and tasks within a model. Those columns, and what else describes a model, become "all".

        n and groups add up over tasks; models of one task share its samples.
        """
        if not len(self.values):
            return self
        blank = [*over, *(["size", "parameters", "seed"] if "model" in over else [])]
        by = [name for name in self.keys if name not in blank]
        weight, level = np.ones(len(self.rows)), list(by)
        for column in over:
            if column in self.rows:
                weight /= self.rows.groupby(level, dropna=False, observed=True)[column].transform("nunique").to_numpy()
                level.append(column)
        grouped = self.rows.groupby(by, sort=False, dropna=False, observed=True)
        number = grouped.ngroup().to_numpy()
        rows = grouped.head(1).reset_index(drop=True)
        for name in blank:
            if name in rows:
                rows[name] = pd.array([pd.NA] * len(rows), "Int64") if name in ("parameters", "seed") else ALL
        for name in COUNTS:
            of_task = self.rows.assign(_group=number).groupby(["_group", "task"], observed=True)[name].max()
            rows[name] = of_task.groupby(level=0).sum().to_numpy()
        matrix = csr_array((weight, (number, np.arange(len(number)))), shape=(len(rows), len(number)))
        for name in self.companions:
            rows[name] = matrix @ self.rows[name].to_numpy(dtype=float)
        return self.combine(matrix, rows)

    def without(self, column: str) -> Estimates:
        """Without a key column that the others determine."""
        return Estimates(self.rows.drop(columns=column), self.values, self.parts, self.companions)

    def with_task_means(self, control_tasks: Sequence[str]) -> Estimates:
        """Followed by each model's means over tasks, without the control tasks."""
        return stack([self, self.where(~self.rows["task"].isin(control_tasks).to_numpy()).mean(["task"])])

    def with_means(self, control_tasks: Sequence[str]) -> Estimates:
        """Followed by their means: over tasks, over models of a stage, over both, and over both within each family.

        Control tasks are kept out of means over tasks, untrained models out of means over models.
        """
        judged = self.where(~self.rows["task"].isin(control_tasks).to_numpy())
        trained = self.where(self.rows["stage"].to_numpy(dtype=str) != UNTRAINED)
        both = judged.where(judged.rows["stage"].to_numpy(dtype=str) != UNTRAINED)
        means = [
            judged.mean(["task"]),
            trained.mean(["family", "model"]),
            both.mean(["model", "task"]),
            both.mean(["family", "model", "task"]),
        ]
        return stack([self, *means])

    def contrast(self, column: str, first: str, second: str) -> Estimates:
        """``first`` minus ``second`` of a key column, where both exist; the column becomes "first - second"."""
        left, right = pairs_of(self.rows, [name for name in self.keys if name != column], column, first, second)
        rows = self.rows.iloc[left].assign(**{column: f"{first} - {second}"})
        for name in COUNTS:
            rows[name] = np.minimum(rows[name].to_numpy(), self.rows[name].to_numpy()[right])
        for name in self.companions:
            rows[name] = rows[name].to_numpy() - self.rows[name].to_numpy()[right]
        return self.combine(_selector(left, len(self.values)) - _selector(right, len(self.values)), rows)

    def changes(self, left: Ints, right: Ints, rows: pd.DataFrame) -> Estimates:
        """Paired differences: the estimates at ``left`` minus those at ``right``, with the latter as ``before``."""
        described = rows.assign(before=self.values[right])
        for name in COUNTS:
            both = (self.rows[name].to_numpy()[left], self.rows[name].to_numpy()[right])
            described[name] = np.minimum(*both)
        weights = _selector(left, len(self.values)) - _selector(right, len(self.values))
        return self.combine(weights, described, ("before",))


@dataclass
class Resampling:
    """Bootstrap draws and sign flips of every task, made once: derived from the study seed and the task's name."""

    samples: Mapping[str, Samples]
    statistics: Statistics
    seed: int
    _draws: dict[str, Singles] = field(default_factory=dict)
    _flips: dict[tuple[str, ...], Floats] = field(default_factory=dict)

    def draws(self, task: str) -> Singles:
        """Bootstrap counts of the groups of a task, [draws, groups]."""
        if task not in self._draws:
            random = generator(self.seed, "tables", task, "bootstrap")
            self._draws[task] = cluster_draws(self.samples[task].groups, self.statistics.draws, random).astype(
                np.float32
            )
        return self._draws[task]

    def flips(self, *tasks: str) -> Floats:
        """Sign flips of the groups of these tasks, one after the other: [draws, groups], or all where they are few."""
        if tasks not in self._flips:
            groups = sum(self.samples[task].groups for task in tasks)
            random = generator(self.seed, "tables", *tasks, "flips")
            self._flips[tasks] = sign_flips(groups, self.statistics.draws, random)
        return self._flips[tasks]

    def noise(self, estimates: Estimates) -> Singles:
        """Bootstrap values of all estimates minus the estimates, [rows, draws]. For many rows use `intervals`."""
        out = np.zeros((len(estimates.values), self.statistics.draws), dtype=np.float32)
        for task, part in estimates.parts.items():
            out[part.rows] += part.influences @ self.draws(task).T
        return out

    def generator(self, *labels: str) -> np.random.Generator:
        """A generator for another draw of the tables."""
        return generator(self.seed, "tables", *labels)

    def bootstrap(self, estimates: Estimates) -> Floats:
        """Bootstrap values of all estimates, [rows, draws]. For many rows use `intervals`."""
        values: Floats = estimates.values[:, None] + self.noise(estimates)
        return values

    def intervals(self, estimates: Estimates) -> tuple[Floats, Floats]:
        """Percentile intervals (low, high), each [rows]."""
        low, high = np.full((2, len(estimates.values)), np.nan)
        tail = (1 - self.statistics.level) / 2
        for start in range(0, len(low), CHUNK):
            here = np.arange(start, min(start + CHUNK, len(low)))
            some = estimates.take(here) if len(here) < len(low) else estimates
            # along rows, in single precision and in place: half of the time of all tables goes into these quantiles
            ends = np.quantile(self.noise(some), [tail, 1 - tail], axis=1, overwrite_input=True)
            low[here], high[here] = some.values + ends
        return low, high

    def p_values(self, estimates: Estimates) -> Floats:
        """Two-sided sign-flip p-values of "there is no difference", [rows]."""
        out = np.full(len(estimates.values), np.nan)
        for tasks, rows in _by_tasks(estimates):
            for start in range(0, len(rows), CHUNK):
                here = rows[start : start + CHUNK]
                out[here] = sign_flip_test(_sums(estimates, tasks, here), self.flips(*tasks))
        return out

    def adjusted(self, estimates: Estimates, within: Sequence[str]) -> Floats:
        """p-values adjusted by step-down max-T over the rows that agree in the columns ``within``, [rows]."""
        out = np.full(len(estimates.values), np.nan)
        family = estimates.rows.groupby(list(within), sort=False, dropna=False, observed=True).ngroup().to_numpy()
        for tasks, rows in _by_tasks(estimates):
            members = rows[np.argsort(family[rows], kind="stable")]
            sizes = np.bincount(family[members])[family[members]]
            for size in np.unique(sizes):
                families = members[sizes == size].reshape(-1, size)
                step = max(1, CHUNK // size)
                for some in (families[start : start + step] for start in range(0, len(families), step)):
                    sums = _sums(estimates, tasks, some.ravel())
                    out[some] = max_t(sums.reshape(-1, *some.shape), self.flips(*tasks))
        return out

    def exchanged(
        self, estimates: Estimates, cells: Ints, statistic: Callable[[Floats], Floats]
    ) -> tuple[Floats, Floats]:
        """A statistic of several conditions when each group's conditions are exchanged at random: (mean, p), [cells].

        Args:
            cells: positions of the rows compared, [cells, conditions].
            statistic: of values [..., conditions]; large ones speak against "the condition does not matter".
        """
        conditions = cells.shape[1]
        orders = np.array(list(itertools.permutations(range(conditions))))
        mean, p = np.full((2, len(cells)), np.nan)
        place = np.full(len(estimates.values), -1)
        place[cells[:, 0]] = np.arange(len(cells))
        for tasks, rows in _by_tasks(estimates):
            some = place[rows][place[rows] >= 0]
            groups = sum(self.samples[task].groups for task in tasks)
            random = generator(self.seed, "tables", *tasks, "exchange", conditions)
            order = orders[random.integers(0, len(orders), size=(self.statistics.draws, groups))]
            order[0] = np.arange(conditions)
            sums = [_sums(estimates, tasks, cells[some, source]).astype(np.float32) for source in range(conditions)]
            drawn = np.zeros((conditions, self.statistics.draws, len(some)), dtype=np.float32)
            for target, source in itertools.product(range(conditions), repeat=2):
                drawn[target] += (order[..., target] == source).astype(np.float32) @ sums[source]
            values = statistic(np.moveaxis(drawn, 0, -1).astype(np.float64))
            mean[some], p[some] = values.mean(axis=0), (values >= values[0] * (1 - SLACK)).mean(axis=0)
        return mean, p

    def table(self, estimates: Estimates, name: str = "estimate", test: bool = False) -> pd.DataFrame:
        """The rows with their estimates as ``name``, intervals ci_low and ci_high, and with ``test`` p-values p."""
        low, high = self.intervals(estimates)
        table = estimates.rows.assign(**{name: estimates.values, "ci_low": low, "ci_high": high})
        return table.assign(p=self.p_values(estimates)) if test else table


def linear(
    values: npt.ArrayLike, weights: Floats, samples: Samples, classes: Ints | None = None
) -> tuple[Floats, Singles, Singles]:
    """Weighted means over samples: (estimates [cells], contributions [cells, groups], influences [cells, groups]).

    Args:
        values: [n, cells]; rows whose weight is zero do not count and may be nan.
        weights: [n], summing to 1.
        classes: of the samples, [n], where the mean is one of means over each class; a draw that has more of a class
            does not weigh it more.
    """
    counted = np.where(weights[:, None] > 0, np.asarray(values, dtype=np.float64), 0.0) * weights[:, None]
    contributions = (samples.members @ counted).T
    estimates = contributions.sum(axis=1)
    if classes is None:
        influences = contributions - estimates[:, None] * (samples.members @ weights)
    else:
        influences = contributions.copy()
        for label in np.unique(classes[weights > 0]):
            share = np.where(classes == label, weights, 0.0)
            rates = counted[classes == label].sum(axis=0) / share.sum()
            influences -= rates[:, None] * (samples.members @ share)
    return estimates, contributions.astype(np.float32), influences.astype(np.float32)


@dataclass
class Builder:
    """Collects linear estimates cell by cell."""

    samples: Mapping[str, Samples]
    _columns: dict[str, list[Any]] = field(default_factory=dict)
    _parts: dict[str, list[tuple[Floats, Singles, Singles]]] = field(default_factory=dict)

    def add(
        self, task: str, values: npt.ArrayLike, weights: Floats, rows: Mapping[str, Any], classes: Ints | None = None
    ) -> None:
        """Weighted means of ``values`` [n, cells] over the samples of ``task``, described by ``rows``: for each column
        one value, or a list of one per cell. Every call names the same columns. classes: see `linear`."""
        samples = self.samples[task]
        estimates, contributions, influences = linear(values, weights, samples, classes)
        groups = len(np.unique(samples.codes[weights > 0]))
        for name, value in {"task": task, **rows, "n": int((weights > 0).sum()), "groups": groups}.items():
            of_cells = value if isinstance(value, list) else [value] * len(estimates)
            self._columns.setdefault(name, []).extend(of_cells)
        self._parts.setdefault(task, []).append((estimates, contributions, influences))

    def build(self, models: pd.DataFrame, columns: Sequence[str], companions: tuple[str, ...] = ()) -> Estimates:
        """All estimates, with the models' columns first; ``columns`` are there even if nothing was added."""
        names = [*MODEL_COLUMNS, "task", *columns, *COUNTS]
        if not self._columns:
            return Estimates(pd.DataFrame(columns=names), np.empty(0), {}, companions)
        rows = pd.DataFrame(self._columns)
        rows = rows.merge(models[MODEL_COLUMNS], on="model", how="left", validate="many_to_one")[names]
        values, parts = np.full(len(rows), np.nan), {}
        tasks = rows["task"].to_numpy(dtype=str)
        for task, cells in self._parts.items():
            positions = np.flatnonzero(tasks == task)
            values[positions] = np.concatenate([cell[0] for cell in cells])
            parts[task] = Part(positions, *(np.concatenate([cell[i] for cell in cells]) for i in (1, 2)))
        return Estimates(rows, values, parts, companions)


def stack(several: Sequence[Estimates]) -> Estimates:
    """Estimates one after the other."""
    filled = [part for part in several if len(part.values)]
    if len(filled) < 2:
        return filled[0] if filled else several[0]
    starts = np.cumsum([0, *[len(part.values) for part in filled]])
    pieces: dict[str, list[Part]] = {}
    for start, estimates in zip(starts, filled, strict=False):
        for task, part in estimates.parts.items():
            pieces.setdefault(task, []).append(Part(part.rows + start, part.contributions, part.influences))
    parts = {
        task: Part(
            np.concatenate([part.rows for part in of_task]),
            np.concatenate([part.contributions for part in of_task]),
            np.concatenate([part.influences for part in of_task]),
        )
        for task, of_task in pieces.items()
    }
    rows = pd.concat([part.rows for part in filled], ignore_index=True)
    return Estimates(rows, np.concatenate([part.values for part in filled]), parts, filled[0].companions)


def pairs_of(rows: pd.DataFrame, on: Sequence[str], column: str, first: str, second: str) -> tuple[Ints, Ints]:
    """Positions (left, right) of the rows that agree in ``on`` and have ``first`` and ``second`` in ``column``."""
    numbered = rows.assign(_at=np.arange(len(rows)))
    left, right = (numbered[numbered[column] == value] for value in (first, second))
    both = left.merge(right, on=list(on), suffixes=("", "_right"), validate="one_to_one")
    return both["_at"].to_numpy(dtype=np.int64), both["_at_right"].to_numpy(dtype=np.int64)


def _selector(positions: Ints, count: int) -> csr_array:
    return csr_array((np.ones(len(positions)), (np.arange(len(positions)), positions)), shape=(len(positions), count))


def _by_tasks(estimates: Estimates) -> Iterator[tuple[tuple[str, ...], Ints]]:
    """Rows by the tasks they are made of."""
    tasks = list(estimates.parts)
    made_of = np.zeros((len(estimates.values), len(tasks)), dtype=bool)
    for column, task in enumerate(tasks):
        made_of[estimates.parts[task].rows, column] = True
    patterns, number = np.unique(made_of, axis=0, return_inverse=True)
    for at, pattern in enumerate(patterns):
        yield tuple(task for task, there in zip(tasks, pattern, strict=True) if there), np.flatnonzero(number == at)


def _sums(estimates: Estimates, tasks: Sequence[str], rows: Ints) -> Floats:
    """Contributions of the groups of all tasks to some rows, [groups, rows]."""
    parts = [estimates.parts[task] for task in tasks]
    blocks = [part.contributions[np.searchsorted(part.rows, rows)].T for part in parts]
    return np.concatenate(blocks).astype(np.float64)
