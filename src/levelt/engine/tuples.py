"""Patching vectors at every tuple of layers, for the price of a few passes.

A cell patches one position of a prompt behind each layer of a tuple (single layers, pairs, triples): what leaves
the layer there is replaced. Cells that agree up to a layer are the same run up to there, so the layers are walked once
and a run is split where a patch makes a difference: a cell (i, j) starts as the cell (i), which starts as the plain
run. All runs alive at a layer, of all prompts of a batch, go through it as rows of one batch. Tokens in front of the
patched position are run once for all cells; in the last layer only the last token is run whole, of the others only the
keys and values, which a just patched cell shares with its parent; and cells with one last residual are read once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from levelt.engine.cache import changed_cache
from levelt.engine.layers import Call, Enough, Known, Pair, call_of, changed, keys_of, through
from levelt.engine.paths import ranks
from levelt.files import InputError
from levelt.models.loading import Decoder
from levelt.models.selfcheck import readout

Cell = tuple[int, ...]
"""Layers, from 0, in rising order; the empty tuple is the plain run."""

FEWEST_KEYS = 16
"""Eager attention over fewer keys is padded to this many: where a row is shorter than the widest vector registers,
torch takes its softmax number by number, which is ten times as slow."""


def cells_of(layers: int, order: int) -> tuple[Cell, ...]:
    """The plain run, then all tuples of up to ``order`` layers: singles, pairs, triples."""
    return tuple(cell for size in range(order + 1) for cell in itertools.combinations(range(layers), size))


@dataclass(frozen=True)
class Receiver:
    """A prompt that is patched at one position, and the tokens whose logits at its last position are kept."""

    input_ids: tuple[int, ...]
    position: int
    watched: tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """What the cells did. cells: the plain run first. logits: of the watched tokens; rank (from 1): of the ranked."""

    cells: tuple[Cell, ...]
    logits: Float[np.ndarray, "n donors cells watched"]
    rank: Int[np.ndarray, "n donors cells ranked"]


@torch.inference_mode()
def patch_tuples(
    decoder: Decoder,
    receivers: Sequence[Receiver],
    donors: Float[Tensor, "n donors layers d"],
    order: int = 2,
    batch_tokens: int = 8192,
    ranked: int = 1,
) -> Grid:
    """Patch each receiver with each of its donors' vectors at every tuple of up to ``order`` layers.

    Args:
        receivers: prompts; all watch equally many tokens. Those of one length and position share a batch.
        donors: what replaces the residual behind each layer; several for each receiver, which share its plain run.
        order: largest number of layers patched together.
        batch_tokens: tokens that a batch runs in the widest layer.
        ranked: how many of the watched tokens (the first ones) are also ranked among all.

    Raises:
        InputError: a position is outside its prompt, or the donors' shape is not the model's.
    """
    parts = decoder.parts
    depth = len(parts.layers)
    if donors.dim() != 4 or (len(donors), *donors.shape[2:]) != (len(receivers), depth, parts.hidden_size):
        raise InputError(
            f"patching: donors have shape {tuple(donors.shape)}, "
            f"expected ({len(receivers)}, donors, {depth}, {parts.hidden_size})"
        )
    for row, receiver in enumerate(receivers):
        if not 0 <= receiver.position < len(receiver.input_ids):
            raise InputError(
                f"patching: position {receiver.position} of prompt {row}, which has {len(receiver.input_ids)} tokens"
            )
    cells = cells_of(depth, order)
    watched = np.array([receiver.watched for receiver in receivers], dtype=np.int64).reshape(len(receivers), -1)
    shape = (len(receivers), donors.shape[1], len(cells), watched.shape[1])
    logits, rank = np.zeros(shape, np.float32), np.zeros((*shape[:-1], ranked), np.int64)
    groups: dict[tuple[int, int], list[int]] = {}
    for row, receiver in enumerate(receivers):
        groups.setdefault((len(receiver.input_ids), receiver.position), []).append(row)
    for (length, position), rows in groups.items():
        alive = (len(cells_of(depth - 1, order)) - 1) * donors.shape[1]
        step = max(1, batch_tokens // max(length, alive * (length - position)))
        ends = [_end(cell, depth, position == length - 1) for cell in cells]
        for begin in range(0, len(rows), step):
            some = rows[begin : begin + step]
            ids = torch.tensor([receivers[row].input_ids for row in some], device=decoder.model.device)
            last = _run(decoder, ids, position, donors[some], order)
            chosen = torch.from_numpy(watched[some]).to(ids.device)[:, None]
            for end in dict.fromkeys(ends):
                everything = readout(parts, last[end]).float()
                kept = everything.gather(-1, chosen.expand(-1, everything.shape[1], -1))
                ranking = [ranks(everything, kept[..., token]) for token in range(ranked)]
                at = [index for index, other in enumerate(ends) if other == end]
                block = np.ix_(some, range(donors.shape[1]), at)
                logits[block] = kept.cpu().numpy()[:, :, None]
                rank[block] = torch.stack(ranking, -1).cpu().numpy()[:, :, None]
    return Grid(cells, logits, rank)


def _end(cell: Cell, depth: int, last: bool) -> Cell:
    """The cell whose last residual is also this one's, which may be patched behind the last layer.

    There a patch replaces all that is read, or (away from the last position) nothing.
    """
    if cell[-1:] != (depth - 1,):
        return cell
    return cell[-1:] if last else cell[:-1]


def _run(
    decoder: Decoder,
    ids: Int[Tensor, "rows seq"],
    position: int,
    donors: Float[Tensor, "rows donors layers d"],
    order: int,
) -> dict[Cell, Float[Tensor, "rows donors_or_one d"]]:
    """The last position's last residual in every cell without the last layer, and in that of the last layer alone.

    Nothing in front of the patched position changes: its keys and values are computed once, for the plain run, and
    only the positions from there on are rows of the batch. In the last layer only the last position asks.
    """
    layers, depth = decoder.parts.layers, len(decoder.parts.layers)
    batch = _Batch.of(decoder, ids)
    position += batch.pads
    cache = DynamicCache()  # without the config: it forgets nothing, and the windows are in the model's masks
    plain = _entering(decoder, batch, cache)
    calls = _entering(decoder, batch.behind(position), changed_cache(cache, lambda kept: kept[:1, :, :position]))
    donors = donors.to(ids.device, plain[0][0].dtype)
    count, width = donors.shape[1], plain[0][0].shape[-1]
    alive: list[Cell] = []
    states = plain[0][0].new_empty(0, len(ids), count, batch.ids.shape[1] - position, width)
    split: list[int] = []
    for index, layer in enumerate(layers[:-1]):
        if alive:
            before = tuple(kept[:, None, :, :position] for kept in _kept(cache, index))
            states = through(layer, states.flatten(0, 2), calls[index][1], _Prefix(count, before)).view_as(states)
        split = [place for place, cell in enumerate(alive) if len(cell) < order]
        states = _split(states, split, plain[index + 1][0][:, position:], donors[:, :, index])
        alive += [(index,), *((*alive[place], index) for place in split)]
    entering, call = plain[-1]
    known = _last_keys(layers[-1], call, states, keys_of(layers[-1], entering, call), position, split)
    asking = torch.cat([states[..., -1, :].flatten(0, 2), entering[:, -1]])[:, None]
    ended = through(layers[-1], asking, _cut(call, slice(-1, None)), Known(known))[:, 0]
    ends = dict(zip(alive, ended[: -len(ids)].view(*states.shape[:3], width), strict=True))
    return {(): ended[-len(ids) :, None], (depth - 1,): donors[:, :, -1], **ends}


@dataclass(frozen=True)
class _Batch:
    """Prompts of one length, or their ends, behind columns that the model's mask hides. real: [rows, all columns]."""

    ids: Int[Tensor, "rows columns"]
    real: Int[Tensor, "rows all_columns"]
    pads: int

    @classmethod
    def of(cls, decoder: Decoder, ids: Int[Tensor, "rows seq"]) -> _Batch:
        """With pads in front if the model's attention is slow without."""
        pads = max(0, FEWEST_KEYS - ids.shape[1]) if decoder.model.config._attn_implementation == "eager" else 0
        return cls(F.pad(ids, (pads, 0)), F.pad(torch.ones_like(ids), (pads, 0)), pads)

    def behind(self, column: int) -> _Batch:
        """The first prompt from a column on."""
        return _Batch(self.ids[:1, column:], self.real[:1], self.pads)

    def positions(self) -> Int[Tensor, "rows columns"]:
        """Of each column in its prompt; 0 at pads."""
        return (self.real.cumsum(1) - 1).clamp_min(0)[:, -self.ids.shape[1] :]


def _split(
    states: Float[Tensor, "cells n donors columns d"],
    split: Sequence[int],
    plain: Float[Tensor, "n columns d"],
    vectors: Float[Tensor, "n donors d"],
) -> Float[Tensor, "more_cells n donors columns d"]:
    """The cells, then what becomes of the plain run and of some of the cells when the first column is patched."""
    cells = len(states)
    more = states.new_empty(cells + 1 + len(split), *states.shape[1:])
    more[:cells] = states
    more[cells] = plain[:, None]
    for place, parent in enumerate(split, cells + 1):
        more[place] = states[parent]
    more[cells:, ..., 0, :] = vectors
    return more


def _kept(cache: Any, layer: int) -> Pair:
    return cache.layers[layer].keys, cache.layers[layer].values


def _last_keys(
    layer: nn.Module,
    call: Call,
    states: Float[Tensor, "cells n donors columns d"],
    plain: Pair,
    position: int,
    split: Sequence[int],
) -> Pair:
    """Keys and values of the last layer, [cells x n x donors + n, heads, seq, width]: of the cells, then the plain run.

    A cell that was just patched has its parent's, but at the patched position; and there all these cells have the same.

    Args:
        call: how the plain run calls the layer.
        states: the older cells, the child of the plain run, and the children of the older cells ``split``.
        plain: the plain run's, [n, heads, seq, width].
    """
    cells, count, donors = states.shape[:3]
    if not cells:
        return plain
    older = cells - 1 - len(split)
    patched = keys_of(layer, states[older, :, :, :1].flatten(0, 1), _cut(call, slice(position, position + 1)))
    computed = keys_of(layer, states[:older].flatten(0, 2), _cut(call, slice(position, None))) if older else patched
    found = []
    for of_plain, of_patched, of_older in zip(plain, patched, computed, strict=True):
        whole = of_plain.new_empty((cells * donors + 1) * count, *of_plain.shape[1:])
        whole[-count:] = of_plain
        of_cells = whole[:-count].view(cells, count, donors, *of_plain.shape[1:])
        of_cells[..., :position, :] = of_plain[:, None, :, :position]
        behind = of_cells[..., position:, :]
        if older:
            behind[:older] = of_older.view(older, count, donors, *of_older.shape[1:])
            for place, parent in enumerate(split, older + 1):
                behind[place] = behind[parent]
        behind[older] = of_plain[:, None, :, position:]
        behind[older:, ..., :1, :] = of_patched.view(count, donors, *of_patched.shape[1:])
        found.append(whole)
    return found[0], found[1]


def _entering(decoder: Decoder, batch: _Batch, cache: Cache) -> list[tuple[Float[Tensor, "rows columns d"], Call]]:
    """What enters each layer, and how the model calls it; the cache is extended. The last layer is not run."""
    found: list[tuple[Tensor, Call]] = []

    def listen(_module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(call_of(positional, named))
        if len(found) == len(decoder.parts.layers):
            raise Enough

    with ExitStack() as stack, suppress(Enough):
        for layer in decoder.parts.layers:
            stack.callback(layer.register_forward_pre_hook(listen, with_kwargs=True).remove)
        decoder.model.base_model(
            input_ids=batch.ids,
            attention_mask=batch.real,
            position_ids=batch.positions(),
            past_key_values=cache,
            use_cache=True,
        )
    return found


def _cut(call: Call, columns: slice) -> Call:
    """A call for some columns of any row, in front of which all keys are known.

    Tensors are masks [rows, 1, queries, keys], embeddings [rows, positions, d] and positions [rows, positions].
    """

    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value[:1] if value.dim() > 1 else value
        return value[..., columns, :] if value.dim() > 2 else value[..., columns]

    return changed(call, cut)


class _Prefix:
    """Stands in for a cache: what a prompt's first tokens left, for all rows that are runs of the prompt."""

    def __init__(self, count: int, before: Sequence[Float[Tensor, "n 1 heads columns width"]]) -> None:
        self.count, self.before = count, before

    def update(self, keys: Tensor, values: Tensor, *_others: Any, **_named: Any) -> Pair:
        """Keys and values of the rows [cells x prompts x donors, heads, columns, width], behind the prefix."""
        return self._behind(keys, 0), self._behind(values, 1)

    def _behind(self, now: Tensor, which: int) -> Tensor:
        before = self.before[which]
        now = now.view(-1, len(before), self.count, *now.shape[1:])
        return torch.cat([before.expand(len(now), -1, self.count, -1, -1, -1), now], -2).flatten(0, 2)
