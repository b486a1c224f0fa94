"""Patches and noise: vectors written into a run at chosen sites, layers and positions.

A patch is a list of *cells*. Each names a row, a layer and a position, and what to write there, so that one forward
pass evaluates as many cells as it has rows (every row its own), or writes a whole layer at once (a cell for each
position). Positions are those of the row's own prompt; padding and a key-value cache are accounted for. Layers are
counted from 0, as in block plans; the site ``embedding`` is what enters layer 0, and its layer is always 0.

Cells write into what a hook sees before any reading hook that is added later, so a reading shows the changed run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from levelt.files import InputError
from levelt.models.anatomy import Parts

Site = Literal["embedding", "residual", "attention", "mlp"]


class Located(Protocol):
    """What a patch needs of a decoder."""

    @property
    def parts(self) -> Parts:
        """The modules of the model."""
        ...


class Columns(Protocol):
    """What a patch needs of a batch."""

    @property
    def offsets(self) -> Sequence[int]:
        """Pads before each row: token t of row r is at column offsets[r] + t."""
        ...


@dataclass(frozen=True, eq=False)
class Patch:
    """Cells to write at one site.

    site: embedding (what enters layer 0), residual (what leaves a layer), attention or mlp (what a block adds to the
        residual).
    rows, layers, positions: [cells] where to write: prompt, layer from 0, token of that prompt.
    values: [cells, d] what to write. None: what the row of ``sources`` has there, in the same pass.
    sources: [cells] rows of the same batch to copy from, at the same position (a clean row beside corrupted ones).
    add: add the values, instead of replacing what is there.
    """

    site: Site
    rows: Int[np.ndarray, " cells"]
    layers: Int[np.ndarray, " cells"]
    positions: Int[np.ndarray, " cells"]
    values: Float[Tensor, "cells d"] | None = None
    sources: Int[np.ndarray, " cells"] | None = None
    add: bool = False

    def __post_init__(self) -> None:
        for name in ("rows", "layers", "positions", "sources"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64))
        cells = self.rows.shape
        given = [self.layers.shape, self.positions.shape]
        given += [self.values.shape[:1]] if self.values is not None else []
        given += [self.sources.shape] if self.sources is not None else []
        if len(cells) != 1 or any(tuple(shape) != cells for shape in given):
            raise InputError(f"patch: expected one row, layer, position and value for each cell, found shapes {given}")
        if (self.values is None) == (self.sources is None):
            raise InputError("patch: name either the values to write, or the rows to copy them from")
        if self.site == "embedding" and self.layers.any():
            raise InputError("patch: the embedding is what enters layer 0; its layer is always 0")
        if min(self.rows.min(initial=0), self.layers.min(initial=0), self.positions.min(initial=0)) < 0:
            raise InputError("patch: rows, layers and positions are counted from 0")
        cell = np.stack([self.rows, self.layers, self.positions])
        if not self.add and np.unique(cell, axis=1).shape[1] < len(self.rows):
            raise InputError("patch: two cells replace the same row, layer and position")

    def to_json(self) -> dict[str, Any]:
        """The patch as plain JSON values; of the values to write, their hash, shape and dtype."""
        cells = {name: getattr(self, name).tolist() for name in ("rows", "layers", "positions")}
        sources = self.sources.tolist() if self.sources is not None else None
        values = None
        if self.values is not None:
            dtype = str(self.values.dtype).removeprefix("torch.")
            values = {"sha256": tensor_hash(self.values), "shape": list(self.values.shape), "dtype": dtype}
        return {"site": self.site, **cells, "values": values, "sources": sources, "add": self.add}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], tensors: Sequence[Float[Tensor, "cells d"]] = ()) -> Patch:
        """The patch that `to_json` wrote; its values are found among ``tensors`` by their hash.

        Raises:
            InputError: it is not one, or none of the tensors holds its values.
        """
        try:
            found = None
            if value["values"] is not None:
                wanted = value["values"]["sha256"]
                found = next((tensor for tensor in tensors if tensor_hash(tensor) == wanted), None)
                if found is None:
                    raise InputError(f"patch: none of {len(tensors)} tensors has the hash {wanted[:12]} of its values")
            if value["site"] not in get_args(Site):
                raise InputError(f"patch: no site {value['site']!r}; there are {', '.join(get_args(Site))}")
            rows, layers, positions = (np.asarray(value[name]) for name in ("rows", "layers", "positions"))
            sources = None if value["sources"] is None else np.asarray(value["sources"])
            return cls(value["site"], rows, layers, positions, found, sources, bool(value["add"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a patch: {json.dumps(value, default=str)[:80]} ({error})") from None

    @property
    def digest(self) -> str:
        """SHA-256 of the patch's JSON: two patches with one digest write the same values into the same cells."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @contextmanager
    def applied(self, decoder: Located, batch: Columns, rows: Sequence[int]) -> Iterator[None]:
        """In force for one batch (`levelt.engine.run.Change`); cells of prompts that are not in it are left out.

        Raises:
            InputError: see `patching`; or a cell's source is in another batch.
        """
        place = {row: index for index, row in enumerate(rows)}
        here = np.array([row in place for row in self.rows.tolist()], dtype=bool)
        placed = np.array([place[row] for row in self.rows[here].tolist()], dtype=np.int64)
        sources = None
        if self.sources is not None:
            absent = [row for row in self.sources[here].tolist() if row not in place]
            if absent:
                raise InputError(f"patch: row {absent[0]} is a source, but runs in another batch")
            sources = np.array([place[row] for row in self.sources[here].tolist()], dtype=np.int64)
        values = self.values[torch.from_numpy(here)] if self.values is not None else None
        cells = Patch(self.site, placed, self.layers[here], self.positions[here], values, sources, self.add)
        with patching(decoder.parts, [cells], batch.offsets):
            yield


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    about = f"{plain.dtype} {tuple(plain.shape)} ".encode()
    return hashlib.sha256(about + plain.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


def noise(
    rows: Sequence[int], positions: Sequence[int], scale: float, width: int, generator: np.random.Generator
) -> Patch:
    """Gaussian noise on the embeddings of chosen positions, the same in every row that is named.

    A clean row is one that is not named. The same generator state gives the same noise, so that the cells of a trace,
    in one batch or in many, differ in nothing else.

    Args:
        rows: rows that are corrupted.
        positions: tokens whose embedding gets noise, the same in each of these rows.
        scale: standard deviation.
        width: hidden size of the model.
        generator: where the noise is drawn, [positions, width] in one draw.
    """
    drawn = torch.from_numpy(generator.standard_normal((len(positions), width)).astype(np.float32)) * scale
    cells = len(rows) * len(positions)
    return Patch(
        "embedding",
        np.repeat(np.asarray(rows, np.int64), len(positions)),
        np.zeros(cells, np.int64),
        np.tile(np.asarray(positions, np.int64), len(rows)),
        drawn.repeat(len(rows), 1),
        add=True,
    )


@contextmanager
def patching(parts: Parts, patches: Sequence[Patch], offsets: Sequence[int], seen: int = 0) -> Iterator[None]:
    """Write cells into every forward pass that runs through their columns; cached steps behind them are left alone.

    Patches take effect in their order; all of a patch's cells read their sources before any is written.

    Args:
        parts: of the model.
        patches: rows are rows of the batch.
        offsets: column of each row's first token.
        seen: columns already in the key-value cache.

    Raises:
        InputError: a layer, a row or the width of the values is not the model's; or, at the end, a cell's column was
            in none of the passes.
    """
    written = [np.zeros(len(patch.rows), dtype=bool) for patch in patches]
    column = _Columns(seen)
    with ExitStack() as stack:
        stack.enter_context(column.counted(parts.layers[0]))
        for patch, done in zip(patches, written, strict=True):
            _check(patch, parts, len(offsets))
            begins = np.asarray(offsets, dtype=np.int64)
            columns = patch.positions + begins[patch.rows]
            copied = patch.positions + begins[patch.sources] if patch.sources is not None else None
            for layer in np.unique(patch.layers).tolist():
                cells = np.flatnonzero(patch.layers == layer)
                write = _writer(patch, cells, columns, copied, column, done)
                module, before = _module(parts, patch.site, layer)
                stack.enter_context(_rewriting(module, write, before))
        yield
    for patch, done in zip(patches, written, strict=True):
        if not done.all():
            cell = int(np.flatnonzero(~done)[0])
            raise InputError(
                f"patch: position {patch.positions[cell]} of row {patch.rows[cell]} was in none of the forward passes"
            )


def _check(patch: Patch, parts: Parts, rows: int) -> None:
    layers = len(parts.layers)
    if patch.layers.max(initial=0) >= layers:
        raise InputError(f"patch: layer {patch.layers.max()} of a model with layers 0..{layers - 1}")
    named = patch.rows if patch.sources is None else np.concatenate([patch.rows, patch.sources])
    if named.max(initial=0) >= max(rows, 1) or named.min(initial=0) < 0:
        raise InputError(f"patch: row {named.max()} of a batch of {rows} rows")
    if patch.values is not None and (patch.values.dim() != 2 or patch.values.shape[1] != parts.hidden_size):
        raise InputError(f"patch: values {tuple(patch.values.shape)}, expected vectors of {parts.hidden_size}")


class _Columns:
    """Which columns of the batch the current forward pass holds."""

    def __init__(self, seen: int) -> None:
        self.start = self.stop = seen

    @contextmanager
    def counted(self, first: nn.Module) -> Iterator[None]:
        def hook(_module: nn.Module, positional: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            hidden = positional[0] if positional else named["hidden_states"]
            self.start, self.stop = self.stop, self.stop + hidden.shape[1]

        handle = first.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _writer(
    patch: Patch,
    cells: Int[np.ndarray, " some"],
    columns: Int[np.ndarray, " cells"],
    copied: Int[np.ndarray, " cells"] | None,
    at: _Columns,
    done: Bool[np.ndarray, " cells"],
) -> Callable[[Float[Tensor, "rows seq d"]], Tensor | None]:
    def write(hidden: Float[Tensor, "rows seq d"]) -> Tensor | None:
        chosen = cells[(columns[cells] >= at.start) & (columns[cells] < at.stop)]
        if not len(chosen):
            return None
        done[chosen] = True

        def index(rows: Int[np.ndarray, " cells"], columns: Int[np.ndarray, " cells"]) -> tuple[Tensor, Tensor]:
            if columns[chosen].min() < at.start or columns[chosen].max() >= at.stop:
                raise InputError("patch: a cell and its source are in different forward passes")
            row, column = (torch.from_numpy(part[chosen]).to(hidden.device) for part in (rows, columns - at.start))
            return row, column

        if patch.sources is not None and copied is not None:
            values = hidden[index(patch.sources, copied)]
        else:
            assert patch.values is not None
            values = patch.values[torch.from_numpy(chosen).to(patch.values.device)].to(hidden.device, hidden.dtype)
        changed = hidden.clone()
        return changed.index_put_(index(patch.rows, columns), values, accumulate=patch.add)

    return write


def _module(parts: Parts, site: Site, layer: int) -> tuple[nn.Module, bool]:
    """The module whose output (or, if so marked, input) is a site."""
    match site:
        case "embedding":
            return parts.layers[0], True
        case "residual":
            return parts.layers[layer], False
        case "attention":
            return parts.attention_contribution[layer], False
        case "mlp":
            return parts.mlp_contribution[layer], False


@contextmanager
def _rewriting(
    module: nn.Module, write: Callable[[Float[Tensor, "rows seq d"]], Tensor | None], before: bool
) -> Iterator[None]:
    def rewrite_input(
        _module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        changed = write(positional[0] if positional else named["hidden_states"])
        if changed is None:
            return None
        return ((changed, *positional[1:]), named) if positional else (positional, named | {"hidden_states": changed})

    def rewrite_output(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        changed = write(output[0] if isinstance(output, tuple) else output)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    if before:
        handle = module.register_forward_pre_hook(rewrite_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(rewrite_output)
    try:
        yield
    finally:
        handle.remove()
