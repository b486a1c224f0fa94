"""Causal tracing: which token's attention or MLP output, in which layers, brings a disturbed answer back?

Some tokens' embeddings are disturbed by Gaussian noise, so that the answer becomes unlikely. Then, one cell at a time,
what a module adds at one token in a window of layers is put back to its value in the clean run. The score of a cell is
the probability of the answer, averaged over several draws of the noise, which are the same for every cell.

The straightforward way is one pass per cell over the whole prompt. Causality leaves little of that to do:

- in front of the disturbed tokens nothing differs: those positions are run once, and cells there score ``low``;
- a cell at token t leaves the positions before t as they are in the disturbed run, whose keys and values are kept, so
  that it runs from t on;
- a cell whose window begins at layer l leaves the layers below as they are in the disturbed run, whose states are kept;
- in layer l itself only its own position differs, and no position there sees what is put back at another: what comes
  out at every position is had for all tokens and layers l at once, from one pass in which each layer gets its input in
  the disturbed run and the module's clean output at every position. The cell enters at l + 1. (The layers below run on
  a single row, which is thrown away, so that the model's own forward makes masks and positions, whatever the
  architecture; the cells' rows take its place.);
- in front of the last token, what happens in the last layer can reach nothing that is read: a cell of that layer alone
  is ``low``, and the layer's projection and MLP run on the last position only.

Batches hold prompts of one length with the disturbed tokens at the same place, so nothing is padded.

Source: Meng et al., NeurIPS 2022 (method); Yan and Jia, EMNLP 2025 (modules, windows, averages).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from levelt.engine.cache import begun, changed_cache, run_prefix
from levelt.files import InputError
from levelt.models import hooks
from levelt.models.loading import Decoder

Site = Literal["attention", "mlp"]
SITES: tuple[Site, ...] = ("attention", "mlp")


@dataclass(frozen=True)
class Disturbed:
    """A prompt, the half-open token range that gets noise, and the token whose probability is followed.

    noise: [draws, stop - start, d], added to the token embeddings (the output of the embedding matrix).
    """

    input_ids: Sequence[int]
    start: int
    stop: int
    target: int
    noise: Float32[np.ndarray, "draws tokens d"]


@dataclass(frozen=True)
class Traced:
    """What came back in one prompt.

    high: probability of the target in the clean run. low: its mean over the noise draws, nothing restored.
    scores: [sites, tokens, windows] mean probability with one cell restored, sites in the order asked for.
    """

    high: float
    low: float
    scores: Float32[np.ndarray, "sites tokens windows"]


def windows(layers: int, width: int) -> list[tuple[int, int]]:
    """The half-open range of layers restored around each centre layer: [l - width // 2, l - width // 2 + width), cut
    at the ends of the model. With the published width of 10 that is [l - 5, l + 5)."""
    return [(max(0, layer - width // 2), min(layers, layer - width // 2 + width)) for layer in range(layers)]


def embedding_spread(decoder: Decoder, ids: Sequence[int]) -> float:
    """Standard deviation of all entries of the tokens' embeddings, repeated tokens counted as often as they occur.

    Raises:
        InputError: no token.
    """
    if not len(ids):
        raise InputError("no tokens to measure the spread of embeddings on")
    return float(_embedded(decoder, torch.tensor([list(ids)])).float().std())


@torch.inference_mode()
def trace(
    decoder: Decoder,
    prompts: Sequence[Disturbed],
    layers: Sequence[tuple[int, int]],
    sites: Sequence[Site] = SITES,
    batch_tokens: int = 4096,
) -> list[Traced]:
    """Trace every token, module and window of layers of each prompt.

    Args:
        decoder: the loaded model.
        prompts: what to disturb in which prompt.
        layers: windows, half-open ranges of layers counted from 0 (see `windows`).
        sites: attention, mlp.
        batch_tokens: tokens of a pass: rows (cells x noise draws) x positions run.

    Raises:
        InputError: no prompts or windows, a window outside the model, or a range, target or noise that does not fit.
    """
    _check(decoder, prompts, layers, sites)

    def layout(index: int) -> tuple[int, int, int, int]:
        one = prompts[index]
        return len(one.input_ids), one.start, one.stop, len(one.noise)

    found: dict[int, Traced] = {}
    for (length, start, _, draws), same in groupby(sorted(range(len(prompts)), key=layout), key=layout):
        rows = list(same)
        # a batch's largest pass: the cells that enter at one layer, from the first disturbed token on
        firsts = [first for first, _ in layers]
        size = max(1, batch_tokens // (draws * len(sites) * max(map(firsts.count, firsts)) * (length - start)))
        for begin in range(0, len(rows), size):
            chosen = rows[begin : begin + size]
            batch = _Batch(decoder, [prompts[row] for row in chosen], layers, sites, batch_tokens)
            found |= dict(zip(chosen, batch.traced(), strict=True))
    return [found[index] for index in range(len(prompts))]


class _Batch:
    """Prompts of one length, disturbed at the same place; rows of a pass are cells x prompts x draws."""

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Disturbed],
        layers: Sequence[tuple[int, int]],
        sites: Sequence[Site],
        batch_tokens: int,
    ) -> None:
        self.decoder, self.windows, self.sites, self.batch_tokens = decoder, layers, sites, batch_tokens
        self.parts, device = decoder.parts, decoder.model.device
        self.start, self.length = prompts[0].start, len(prompts[0].input_ids)
        self.draws, self.count = len(prompts[0].noise), len(prompts)
        self.ids = torch.tensor([list(prompt.input_ids) for prompt in prompts], device=device)
        self.targets = torch.tensor([prompt.target for prompt in prompts], device=device)
        clean = _embedded(decoder, self.ids)[:, self.start :]
        noise = torch.from_numpy(np.stack([prompt.noise for prompt in prompts])).to(device, clean.dtype)
        self.noisy = clean[:, None].repeat(1, self.draws, 1, 1)
        self.noisy[:, :, : noise.shape[2]] += noise  # the disturbed tokens come first
        self.contributions: dict[Site, list[Tensor]] = {site: [] for site in sites}
        self.entering: list[Float[Tensor, "prompts_and_draws seq d"]] = []
        self.leaving: dict[Site, list[Float[Tensor, "prompts_and_draws seq d"]]] = {}

    def modules(self, site: Site) -> tuple[nn.Module, ...]:
        return self.parts.attention_contribution if site == "attention" else self.parts.mlp_contribution

    def traced(self) -> list[Traced]:
        """The clean run, the disturbed runs, and every cell."""
        prefix = run_prefix(self.decoder.model, self.ids[:, : self.start])
        everyone = torch.arange(self.count, device=self.ids.device)
        with ExitStack() as stack:
            for site in self.sites:
                keep = partial(self._keep, site)
                stack.enter_context(hooks.outputs(self.modules(site), keep))
            cache = changed_cache(prefix)
            high = self._probability({"input_ids": self.ids[:, self.start :]}, cache, self.targets)
        repeated = everyone.repeat_interleave(self.draws)
        shared = changed_cache(prefix, lambda states: states[repeated])
        cache = changed_cache(shared)
        targets = self.targets[repeated]
        with ExitStack() as stack:
            for layer in self.parts.layers:
                stack.enter_context(hooks.inputs(layer, self.entering.append))
            low = self._probability({"inputs_embeds": self.noisy.flatten(0, 1)}, cache, targets)
        low = low.view(self.count, self.draws).mean(1)
        shape = (self.count, len(self.sites), self.length, len(self.windows))
        scores = low[:, None, None, None].expand(shape).clone()
        depth = len(self.parts.layers)
        for index, site in enumerate(self.sites):
            ends = self._first_layers(site, changed_cache(shared), repeated, targets)
            for window, (first, _) in enumerate(self.windows):
                if first == depth - 1:
                    scores[:, index, -1, window] = ends
        for token in range(self.start, self.length):
            size = max(1, self.batch_tokens // (len(repeated) * (self.length - token)))
            for entry in sorted({first + 1 for first, _ in self.windows} - {depth}):
                cells = [
                    (index, window)
                    for index in range(len(self.sites))
                    for window, (first, _) in enumerate(self.windows)
                    if first + 1 == entry
                ]
                for begin in range(0, len(cells), size):
                    chosen = cells[begin : begin + size]
                    restored = self._restored(token, entry, chosen, cache, repeated, targets)
                    for (index, window), values in zip(chosen, restored, strict=True):
                        scores[:, index, token, window] = values
        numbers = scores.float().cpu().numpy()
        return [Traced(*pair, numbers[row]) for row, pair in enumerate(zip(high.tolist(), low.tolist(), strict=True))]

    def _first_layers(
        self,
        site: Site,
        cache: Any,
        repeated: Int[Tensor, " prompts_and_draws"],
        targets: Int[Tensor, " prompts_and_draws"],
    ) -> Float[Tensor, " prompts"]:
        """Keep what each layer gives where it is the first one restored, for all positions at once.

        Returns:
            Mean probability of the target with the last layer restored.
        """
        kept: list[Float[Tensor, "prompts_and_draws seq d"]] = []
        with ExitStack() as stack:
            for layer, entering in zip(self.parts.layers, self.entering, strict=True):
                stack.enter_context(_replacing(layer, entering))
            for module, clean in zip(self.modules(site), self.contributions[site], strict=True):
                stack.enter_context(_overwriting(module, clean[repeated]))
            stack.enter_context(hooks.outputs(self.parts.layers, lambda _, hidden: kept.append(hidden)))
            found = self._probability({"inputs_embeds": self.noisy.flatten(0, 1)}, cache, targets)
        self.leaving[site] = kept
        return found.view(self.count, self.draws).mean(1)

    def _restored(
        self,
        token: int,
        entry: int,
        cells: Sequence[tuple[int, int]],
        disturbed: Any,
        repeated: Int[Tensor, " prompts_and_draws"],
        targets: Int[Tensor, " prompts_and_draws"],
    ) -> Float[Tensor, "cells prompts"]:
        """Mean probability of the target with each cell at this token restored, run from this token and layer on.

        entry: the layer behind the first one of the cells' windows.
        """
        count, place = len(cells), token - self.start
        cache = begun(disturbed, token)
        for index, layer in enumerate(cache.layers):
            if index < entry:
                layer.keys, layer.values = layer.keys[:1], layer.values[:1]
            else:
                cache.layers[index] = _Shared(layer.keys, layer.values)
        entering = self.entering[entry][:, place:].repeat(count, 1, 1)
        for rows, (index, _) in zip(entering.view(count, len(repeated), *entering.shape[1:]), cells, strict=True):
            rows[:, 0] = self.leaving[self.sites[index]][entry - 1][:, place]
        last = len(self.parts.layers) - 1
        with ExitStack() as stack:
            stack.enter_context(_replacing(self.parts.layers[entry], entering))
            if token < self.length - 1:
                for module in (self.parts.projection[last], self.parts.mlp[last]):
                    stack.enter_context(_last_position(module))
            for index, site in enumerate(self.sites):
                for layer, module in enumerate(self.modules(site)):
                    if layer < entry or (layer == last and token < self.length - 1):
                        continue
                    active = [
                        cell
                        for cell, (of, window) in enumerate(cells)
                        if of == index and layer < self.windows[window][1]
                    ]
                    if active:
                        clean = self.contributions[site][layer][:, place][repeated]
                        stack.enter_context(_restoring(module, clean, active, count))
            found = self._probability({"input_ids": self.ids[:1, token:]}, cache, targets.repeat(count))
        return found.view(count, self.count, self.draws).mean(2)

    def _keep(self, site: Site, _: int, hidden: Float[Tensor, "prompts seq d"]) -> None:
        self.contributions[site].append(hidden)

    def _probability(
        self, inputs: dict[str, Tensor], cache: Any, targets: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Probability of the targets behind the last position."""
        parts = self.parts
        hidden = self.decoder.model.base_model(**inputs, past_key_values=cache, use_cache=True).last_hidden_state
        logits = parts.head(hidden[:, -1]).float()
        if parts.logit_scale != 1:  # a pass over rows x vocabulary
            logits = logits * parts.logit_scale
        if parts.softcap is not None:
            logits = parts.softcap * torch.tanh(logits / parts.softcap)
        found: Tensor = logits.softmax(-1).gather(1, targets[:, None])[:, 0]
        return found


class _Shared(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """Keys and values that several blocks of rows begin with, written once beside those of all blocks."""

    def __init__(self, keys: Float[Tensor, "rows heads past d"], values: Float[Tensor, "rows heads past d"]) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self,
        key_states: Float[Tensor, "blocks_and_rows heads new d"],
        value_states: Float[Tensor, "blocks_and_rows heads new d"],
        *_args: Any,
        **_kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """All keys and values of each row."""
        self.keys, self.values = _behind(self.keys, key_states), _behind(self.values, value_states)
        return self.keys, self.values


def _behind(past: Float[Tensor, "rows heads past d"], new: Float[Tensor, "blocks_and_rows heads new d"]) -> Tensor:
    columns = past.shape[2]
    both = new.new_empty((*new.shape[:2], columns + new.shape[2], new.shape[3]))
    both.view(-1, len(past), *both.shape[1:])[:, :, :, :columns] = past
    both[:, :, columns:] = new
    return both


@contextmanager
def _replacing(layer: nn.Module, hidden: Float[Tensor, "rows seq d"]) -> Iterator[None]:
    """Let a layer see other hidden states than those that reach it, and as many rows of them as there are."""

    def write(
        _module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((hidden, *positional[1:]), named) if positional else (positional, named | {"hidden_states": hidden})

    handle = layer.register_forward_pre_hook(write, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _overwriting(module: nn.Module, hidden: Float[Tensor, "rows seq d"]) -> Iterator[None]:
    """Let a module give these values at every position."""

    def write(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = module.register_forward_hook(write)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _last_position(module: nn.Module) -> Iterator[None]:
    """Let a module see the last position alone; its output is added to every position, and right at the last one."""

    def cut(_module: nn.Module, positional: tuple[Any, ...]) -> tuple[Any, ...]:
        return (positional[0][:, -1:], *positional[1:])

    handle = module.register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _restoring(
    module: nn.Module, clean: Float[Tensor, "prompts_and_draws d"], active: Sequence[int], cells: int
) -> Iterator[None]:
    """Put clean values at the first position run, in the rows of the active cells."""

    def write(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        changed = hidden.clone()
        changed.view(cells, -1, *hidden.shape[1:])[list(active), :, 0] = clean
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = module.register_forward_hook(write)
    try:
        yield
    finally:
        handle.remove()


def _embedded(decoder: Decoder, ids: Int[Tensor, "rows seq"]) -> Float[Tensor, "rows seq d"]:
    """The output of the embedding matrix (positions and later scaling not in it)."""
    embed: Callable[[Tensor], Tensor] = decoder.parts.embedding
    return embed(ids.to(decoder.model.device)).detach()


def _check(
    decoder: Decoder, prompts: Sequence[Disturbed], layers: Sequence[tuple[int, int]], sites: Sequence[Site]
) -> None:
    depth, width = len(decoder.parts.layers), decoder.parts.hidden_size
    vocabulary, longest = decoder.model.config.vocab_size, decoder.model.config.max_position_embeddings
    if not prompts or not layers or not sites or set(sites) - set(SITES):
        raise InputError(f"tracing needs prompts, windows and sites (of {', '.join(SITES)}), found {list(sites)}")
    for first, stop in layers:
        if not 0 <= first < stop <= depth:
            raise InputError(f"window [{first}, {stop}) of a model with layers 0..{depth - 1}")
    for row, prompt in enumerate(prompts):
        length = len(prompt.input_ids)
        if not 0 < length <= longest:
            raise InputError(f"prompt {row} has {length} tokens, expected 1 to {longest}")
        if not 0 <= prompt.start < prompt.stop <= length:
            raise InputError(f"prompt {row}: the disturbed tokens are [{prompt.start}, {prompt.stop}) of {length}")
        if prompt.noise.shape[1:] != (prompt.stop - prompt.start, width) or not len(prompt.noise):
            raise InputError(
                f"prompt {row}: noise has shape {prompt.noise.shape}, expected [draws, {prompt.stop - prompt.start}, "
                f"{width}]"
            )
        if not all(0 <= token < vocabulary for token in (*prompt.input_ids, prompt.target)):
            raise InputError(f"prompt {row} has token ids outside the vocabulary of {vocabulary}")
