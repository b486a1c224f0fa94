"""What is read while a model runs: weighted means over chosen positions, taken inside the hooks.

A hook sees the residual stream of a whole batch [rows, seq, d] and keeps [rows, roles, d] of it, so that
memory grows with the positions asked for and never with sequence x layers. Pads are never touched: a pad's
value (it may be NaN on some kernels) cannot enter a mean, not even with weight zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from levelt.models import hooks
from levelt.models.anatomy import Parts

Ranges = Mapping[str, "Sequence[tuple[int, int]] | Int64[np.ndarray, 'rows 2']"]
"""For each role or group, one half-open, non-empty range of positions per row."""


@dataclass(frozen=True)
class Selection:
    """Token ranges of each row, one per role, as slots to gather and weights that average them.

    index: [rows, slots] positions in the padded batch.
    weights: [rows, roles, slots]; each (row, role) sums to one.
    """

    roles: tuple[str, ...]
    index: Int[Tensor, "rows slots"]
    weights: Float[Tensor, "rows roles slots"]

    @classmethod
    def of(cls, ranges: Ranges, device: torch.device) -> Selection:
        """Select half-open, non-empty ranges of positions: for each role, one (start, stop) per row."""
        indices, weights = [], []
        for spans in ranges.values():
            start, stop = np.asarray(spans, dtype=np.int64).reshape(-1, 2).T[..., None]
            slot = np.arange((stop - start).max())
            indices.append(np.minimum(start + slot, stop - 1))  # unused slots repeat the last position
            weights.append(np.where(start + slot < stop, 1.0 / (stop - start), 0.0).astype(np.float32))
        widths = [weight.shape[1] for weight in weights]
        table = np.zeros((len(weights[0]), len(widths), sum(widths)), dtype=np.float32)
        for role, weight in enumerate(weights):
            first = sum(widths[:role])
            table[:, role, first : first + widths[role]] = weight
        index = torch.from_numpy(np.concatenate(indices, axis=1)).to(device)
        return cls(tuple(ranges), index, torch.from_numpy(table).to(device))

    def shifted(self, by: int) -> Selection:
        """The same positions in a pass whose first column is another."""
        return replace(self, index=self.index + by) if by else self

    def placed(self, place: Int[Tensor, "rows seq"]) -> Selection:
        """The same positions where a position of the batch is found at another place."""
        return replace(self, index=place.gather(1, self.index))

    def mean(self, hidden: Float[Tensor, "rows seq d"]) -> Float[Tensor, "rows roles d"]:
        """The mean of each role's positions, in float32: one gather and one small batched product."""
        rows, roles, _ = self.weights.shape
        return self.reduce(self.gather(hidden)).view(rows, roles, -1)

    @property
    def rows(self) -> Int[Tensor, " slots_of_all_rows"]:
        """The row of each gathered vector."""
        rows, slots = self.index.shape
        return torch.arange(rows, device=self.index.device).repeat_interleave(slots)

    def gather(self, hidden: Float[Tensor, "rows seq d"]) -> Float[Tensor, "slots_of_all_rows d"]:
        """The vectors at all slots, in float32."""
        rows, seq, _ = hidden.shape
        first = torch.arange(0, rows * seq, seq, device=hidden.device)[:, None]
        return hidden.flatten(0, 1).index_select(0, (first + self.index).flatten()).float()

    def reduce(self, gathered: Float[Tensor, "slots_of_all_rows d"]) -> Float[Tensor, "rows_and_roles d"]:
        """The mean over each role's slots."""
        return torch.bmm(self.weights, gathered.view(*self.index.shape, -1)).flatten(0, 1)

    def split(self, kept: Float[Tensor, " rows_and_roles *rest"]) -> list[Float[Tensor, " rows *rest"]]:
        """The values of each role."""
        rows, roles, _ = self.weights.shape
        return list(kept.view(rows, roles, *kept.shape[1:]).unbind(1))


@dataclass(frozen=True)
class Positions:
    """Token ranges of each row, one per group, every position by itself: group by group, row by row.

    rows, index: [positions] row and position in the padded batch. counts: positions of each group.
    """

    rows: Int[Tensor, " positions"]
    index: Int[Tensor, " positions"]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, ranges: Ranges, device: torch.device) -> Positions:
        """Select half-open, non-empty ranges of positions: for each group, one (start, stop) per row."""
        rows, index, counts = [], [], []
        for spans in ranges.values():
            start, stop = np.asarray(spans, dtype=np.int64).reshape(-1, 2).T
            lengths = stop - start
            before = np.cumsum(lengths) - lengths
            rows.append(np.repeat(np.arange(len(start)), lengths))
            index.append(np.arange(lengths.sum()) + np.repeat(start - before, lengths))
            counts.append(int(lengths.sum()))
        return cls(
            torch.from_numpy(np.concatenate(rows)).to(device),
            torch.from_numpy(np.concatenate(index)).to(device),
            tuple(counts),
        )

    def placed(self, place: Int[Tensor, "rows seq"]) -> Positions:
        """The same positions where a position of the batch is found at another place."""
        return replace(self, index=place[self.rows, self.index])

    def gather(self, hidden: Float[Tensor, "rows seq d"]) -> Float[Tensor, "positions d"]:
        """The vectors at all positions, in float32."""
        return hidden.flatten(0, 1).index_select(0, self.rows * hidden.shape[1] + self.index).float()

    def reduce(self, gathered: Float[Tensor, "positions d"]) -> Float[Tensor, "positions d"]:
        """Nothing to average."""
        return gathered

    def split(self, kept: Float[Tensor, " positions *rest"]) -> list[Float[Tensor, " positions_of_group *rest"]]:
        """The values of each group."""
        return list(torch.split(kept, list(self.counts)))


@contextmanager
def reading_residuals(
    parts: Parts, selection: Selection
) -> Iterator[Float[Tensor, "rows roles layers_and_embedding d"]]:
    """Yield a float32 tensor that the next full forward pass fills: the residual averaged over a selection.

    Entry 0 is what enters the first decoder layer (embeddings, with learned positions or scaling where the
    model has them); entry l is the output of decoder layer l, before any final norm, the last one included.
    """
    rows, roles, _ = selection.weights.shape
    shape = (rows, roles, len(parts.layers) + 1, parts.hidden_size)
    values = torch.full(shape, torch.nan, device=selection.weights.device)

    def after(layer: int, hidden: Float[Tensor, "rows seq d"]) -> None:
        values[:, :, layer + 1] = selection.mean(hidden)

    def before(hidden: Float[Tensor, "rows seq d"]) -> None:
        values[:, :, 0] = selection.mean(hidden)

    with hooks.inputs(parts.layers[0], before), hooks.outputs(parts.layers, after):
        yield values


@contextmanager
def reading_last_attention(parts: Parts, rows: int, device: torch.device) -> Iterator[Float[Tensor, "rows layers d"]]:
    """Yield a float32 tensor that the next pass fills: what each attention block adds at the last position."""
    values = torch.full((rows, len(parts.layers), parts.hidden_size), torch.nan, device=device)

    def keep(layer: int, contribution: Float[Tensor, "rows seq d"]) -> None:
        values[:, layer] = contribution[:, -1].float()

    with hooks.outputs(parts.attention_contribution, keep):
        yield values


@contextmanager
def adding_attention(
    parts: Parts, running: Bool[Tensor, " rows"], total: Float[Tensor, "rows layers d"]
) -> Iterator[None]:
    """During one decode step, add to ``total`` what each attention block adds to the residual of running rows."""

    def add(layer: int, contribution: Float[Tensor, "rows seq d"]) -> None:
        # where, not a product: what a finished row computes may be anything and must not enter
        total[:, layer] += torch.where(running[:, None], contribution[:, -1].float(), 0.0)

    with hooks.outputs(parts.attention_contribution, add):
        yield
