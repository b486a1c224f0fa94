"""Patching vectors at every tuple of layers, for the price of a few passes.

A cell patches one position of a prompt behind each layer of a tuple (single layers, pairs, triples): what leaves
the layer there is replaced. Cells that agree up to a layer are the same run up to there, so the layers are walked once
and a run is split where a patch makes a difference: a cell (i, j) starts as the cell (i), which starts as the plain
run. All runs alive at a layer, of all prompts of a batch, go through it as rows of one batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from levelt.engine.paths import ranks
from levelt.files import InputError
from levelt.models import hooks
from levelt.models.anatomy import Parts
from levelt.models.loading import Decoder
from levelt.models.selfcheck import readout

Cell = tuple[int, ...]
"""Layers, from 0, in rising order; the empty tuple is the plain run."""


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
        receivers: prompts; all watch equally many tokens. Those of one length share a batch; nothing is padded.
        donors: what replaces the residual behind each layer; several for each receiver, which share its plain run.
        order: largest number of layers patched together.
        batch_tokens: tokens of all rows of a batch in the widest layer.
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
    by_length: dict[int, list[int]] = {}
    for row, receiver in enumerate(receivers):
        by_length.setdefault(len(receiver.input_ids), []).append(row)
    widest = max(1, len(cells_of(depth - 1, order))) * donors.shape[1]
    for length, rows in by_length.items():
        called = _calls(decoder, receivers[rows[0]].input_ids)
        step = max(1, batch_tokens // (widest * length))
        for begin in range(0, len(rows), step):
            some = rows[begin : begin + step]
            last = _run(decoder, [receivers[row] for row in some], donors[some], cells, called)
            chosen = torch.from_numpy(watched[some]).to(last.device)[:, None].expand(-1, donors.shape[1], -1)
            for index, residual in enumerate(last):
                everything = readout(parts, residual).float()
                kept = everything.gather(-1, chosen)
                logits[some, :, index] = kept.cpu().numpy()
                of_each = [ranks(everything, kept[..., token]) for token in range(ranked)]
                rank[some, :, index] = torch.stack(of_each, -1).cpu().numpy()
    return Grid(cells, logits, rank)


_Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer is called with beside the hidden states: masks, position embeddings."""


def _calls(decoder: Decoder, input_ids: Sequence[int]) -> list[_Call]:
    """How the model calls its layers for one prompt of this length; the same for all others, row by row."""
    found: list[_Call] = []

    def hook(_module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append((positional[1:], {name: value for name, value in named.items() if name != "hidden_states"}))

    with ExitStack() as stack:
        for layer in decoder.parts.layers:
            stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        ids = torch.tensor([list(input_ids)], device=decoder.model.device)
        decoder.model.base_model(input_ids=ids, use_cache=False)
    return found


def _run(
    decoder: Decoder,
    receivers: Sequence[Receiver],
    donors: Float[Tensor, "rows donors layers d"],
    cells: Sequence[Cell],
    called: Sequence[_Call],
) -> Float[Tensor, "cells rows donors d"]:
    """The last position's last residual in every cell."""
    parts = decoder.parts
    order = len(cells[-1])
    device = decoder.model.device
    plain: list[Tensor] = []
    with hooks.outputs(parts.layers, lambda _layer, hidden: plain.append(hidden)):
        ids = torch.tensor([list(receiver.input_ids) for receiver in receivers], device=device)
        decoder.model.base_model(input_ids=ids, use_cache=False)
    several = (-1, donors.shape[1], -1, -1)
    at = torch.tensor([receiver.position for receiver in receivers], device=device)[:, None]
    rows, columns = (torch.arange(count, device=device) for count in donors.shape[:2])
    donors = donors.to(device, plain[0].dtype)
    alive: list[Cell] = []
    states = plain[0].new_empty(0, len(ids), donors.shape[1], *plain[0].shape[1:])
    with _last_position_only(parts):
        for index, (layer, (positional, named)) in enumerate(zip(parts.layers, called, strict=True)):
            if alive:
                output = layer(states.flatten(0, 2), *positional, **named)
                states = (output[0] if isinstance(output, tuple) else output).view_as(states)
            whole = plain[index][:, None].expand(several)[None]
            if index == len(plain) - 1:  # from here on only the last position counts
                states, whole, at = states[..., -1:, :], whole[..., -1:, :], at - plain[index].shape[1] + 1
            split = [place for place, cell in enumerate(alive) if len(cell) < order]
            patched = torch.cat([whole, states[split]])
            inside = at[:, 0] >= 0
            patched[:, rows[inside, None], columns, at[inside]] = donors[inside, :, index]
            alive += [(index,), *((*alive[place], index) for place in split)]
            states = torch.cat([states, patched])
    place = {cell: index for index, cell in enumerate(alive)}
    return torch.stack([(states[place[cell]] if cell else whole[0])[:, :, -1] for cell in cells])


@contextmanager
def _last_position_only(parts: Parts) -> Iterator[None]:
    """In the last layer, what follows attention is computed for the last position: the others have no use.

    What the blocks add there is then broadcast over the other positions, whose residual is wrong and never read.
    """

    def cut(_module: nn.Module, positional: tuple[Any, ...]) -> tuple[Any, ...]:
        return (positional[0][:, -1:], *positional[1:])

    with ExitStack() as stack:
        for module in (parts.projection[-1], parts.mlp[-1]):
            stack.callback(module.register_forward_pre_hook(cut).remove)
        yield
