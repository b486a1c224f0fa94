"""Block plans of the same prompts: where each is in every prompt, and what the runs under two of them have in common.

By causality, two runs of a prompt agree at every position in front of the first one whose blocked edges differ, in all
layers. A run may therefore start there, from the other's keys and values.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from levelt.engine.attention import check_plan
from levelt.engine.plans import OPEN, Layers, Plan, Ranges, covers, difference
from levelt.engine.run import Prompt

Placed = tuple[tuple[Ranges, Ranges], ...]
"""The positions (queries, keys) of each block of a plan in one prompt."""


class PlacedPlans:
    """Block plans in prompts. Prompts of one length with their groups at the same positions are looked at once."""

    def __init__(
        self, prompts: Sequence[Prompt], plans: Mapping[str, Plan | Sequence[Plan]], layers: int, label: str
    ) -> None:
        """Find the positions of every plan in every prompt.

        Args:
            prompts: any objects with ``input_ids`` and ``groups``.
            plans: by name: one plan for all prompts, or one for each.
            layers: layers of the model.
            label: what a prompt is called in errors, in front of its number.

        Raises:
            InputError: see `levelt.engine.attention.check_plan`.
        """
        layouts: dict[object, int] = {}
        self._layouts = np.array(
            [layouts.setdefault((prompt.groups, len(prompt.input_ids)), len(layouts)) for prompt in prompts]
        )
        self._lengths = np.array([len(prompt.input_ids) for prompt in prompts])
        self._layers = layers
        known: dict[Plan, int] = {Plan(): 0}
        self._plans: dict[str | None, Int64[np.ndarray, " n"]] = {None: np.zeros(len(prompts), np.int64)}
        self._placed: dict[tuple[int, int], Placed] = {(0, layout): () for layout in layouts.values()}
        for name, plan in plans.items():
            if isinstance(plan, Plan):
                ids = np.full(len(prompts), known.setdefault(plan, len(known)))
            else:
                ids = np.array([known.setdefault(one, len(known)) for one in plan])
            self._plans[name] = ids
            listed = list(known)
            for row, key in enumerate(zip(ids.tolist(), self._layouts.tolist(), strict=True)):
                if key not in self._placed:
                    prompt, where = prompts[row], f"{label} {row}"
                    length = len(prompt.input_ids)
                    self._placed[key] = check_plan(listed[key[0]], prompt.groups, length, layers, where)
        self._blocks = [tuple(block.layers for block in plan.blocks) for plan in known]

    def positions(self, name: str, rows: Sequence[int]) -> list[Placed]:
        """Where a plan is in some of the prompts."""
        keys = zip(self._plans[name][rows].tolist(), self._layouts[rows].tolist(), strict=True)
        return [self._placed[key] for key in keys]

    def first(self, name: str, other: str | None = None) -> Int64[np.ndarray, " n"]:
        """Per prompt, the first position at which two plans (by default a plan and the plain run) block other edges.

        The prompt's length, where there is none.
        """
        mine, theirs = self._plans[name], self._plans[other]
        count, layouts = len(self._blocks), int(self._layouts.max()) + 1
        kinds, inverse = np.unique((mine * count + theirs) * layouts + self._layouts, return_inverse=True)
        found = [
            self._first((kind // layouts // count, kind // layouts % count), kind % layouts) for kind in kinds.tolist()
        ]
        positions: np.ndarray = np.minimum(np.array(found)[inverse], self._lengths)
        return positions

    def _first(self, plans: tuple[int, int], layout: int) -> int:
        one, other = ((self._blocks[plan], self._placed[plan, layout]) for plan in plans)
        return first_difference(one, other, self._layers)

    def starts(self, names: Sequence[str]) -> dict[str, tuple[str | None, Int64[np.ndarray, " n"]]]:
        """From which run each plan's run should start, and at which position of each prompt.

        None is the plain run; otherwise it is an earlier plan that starts from the plain run itself, where that leaves
        fewer positions to run.
        """
        chosen: dict[str, tuple[str | None, Int64[np.ndarray, " n"]]] = {}
        for name in names:
            sources = [None, *(other for other, (source, _) in chosen.items() if source is None)]
            found = [(source, self.first(name, source)) for source in sources]
            chosen[name] = max(found, key=lambda pair: int(pair[1].sum()))  # of equals the first
        return chosen


def first_difference(one: tuple[Sequence[Layers], Placed], other: tuple[Sequence[Layers], Placed], layers: int) -> int:
    """The first position of a prompt at which two plans block other edges in some layer; OPEN if there is none.

    Args:
        one, other: the layers of a plan's blocks, and their positions in the prompt. Keys behind a query do not count:
            causality blocks them in any case.
        layers: layers of the model.
    """
    in_force = {
        tuple(tuple(pair for bounds, pair in zip(*plan, strict=True) if covers(bounds, layer)) for plan in (one, other))
        for layer in range(layers)
    }
    return min(_first_apart(*both) for both in in_force)


def _first_apart(one: Placed, other: Placed) -> int:
    bounds = sorted({at for queries, _ in (*one, *other) for span in queries for at in span})
    for start, stop in itertools.pairwise(bounds):
        mine, theirs = (
            tuple(span for queries, keys in plan if any(a <= start < b for a, b in queries) for span in keys)
            for plan in (one, other)
        )
        apart = (*difference(mine, theirs), *difference(theirs, mine))
        at = max(start, min((first for first, _ in apart), default=OPEN))
        if at < stop:
            return at
    return OPEN
