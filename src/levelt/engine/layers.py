"""Calling one layer of a model by itself: as the model calls it, with other hidden states and another cache.

A layer's output at some positions needs the keys and values of all, and nothing else of the others. In the last layer,
whose output no further layer reads, only the positions that are read need more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache

Pair = tuple[Tensor, Tensor]
"""Keys and values, [rows, heads, columns, width]."""

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer is called with beside the hidden states: masks, position embeddings, the cache."""


class Enough(Exception):
    """What a call was for is there, so it ends."""


class Passing(DynamicCache):  # type: ignore[misc]
    """A cache that keeps nothing, for one pass over whole prompts in which `last_layer_at` needs some cache."""

    def update(self, key_states: Tensor, value_states: Tensor, *_others: Any, **_named: Any) -> Pair:
        """What has been computed is all there is."""
        return key_states, value_states


class Known:
    """Stands in for a cache that has all keys and values, those of the asking positions too."""

    def __init__(self, known: Pair) -> None:
        self.known = known

    def update(self, *_others: Any, **_named: Any) -> Pair:
        """What is known."""
        return self.known


class _Stop:
    """Stands in for a cache that ends the call of a layer when it gets the keys and values."""

    def __init__(self, behind: Cache | None) -> None:
        self.behind = behind

    found: Pair

    def update(self, keys: Tensor, values: Tensor, *others: Any, **named: Any) -> Pair:
        """Keeps them, and those in front of them."""
        self.found = keys, values
        if self.behind is not None:
            self.found = self.behind.update(keys, values, *others, **named)
        raise Enough


def call_of(positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Float[Tensor, "rows columns d"], Call]:
    """The hidden states that a layer is called with, and the rest."""
    hidden: Tensor = positional[0] if positional else named["hidden_states"]
    return hidden, (positional[1:], {name: each for name, each in named.items() if name != "hidden_states"})


def changed(call: Call, change: Callable[[Any], Any]) -> Call:
    """A call with every argument changed; members of tuples one by one."""

    def within(value: Any) -> Any:
        return tuple(map(within, value)) if isinstance(value, tuple) else change(value)

    return within(call[0]), {name: within(value) for name, value in call[1].items()}


def with_cache(call: Call, cache: object) -> Call:
    """A call with another cache."""
    return changed(call, lambda value: cache if isinstance(value, Cache) else value)


def keys_of(layer: nn.Module, rows: Float[Tensor, "rows columns d"], call: Call, cache: Cache | None = None) -> Pair:
    """Keys and values of rows in a layer, which is not run any further; behind those in a cache, which is extended."""
    stop = _Stop(cache)
    with suppress(Enough):
        through(layer, rows, call, stop)
    return stop.found


def through(layer: nn.Module, rows: Float[Tensor, "rows columns d"], call: Call, cache: object) -> Tensor:
    """Rows behind a layer, with another cache. Hooks of the layer itself are not called."""
    positional, named = with_cache(call, cache)
    output = layer.forward(rows, *positional, **named)
    behind: Tensor = output[0] if isinstance(output, tuple) else output
    return behind


@contextmanager
def last_layer_at(layer: nn.Module, columns: Int[Tensor, "rows asked"]) -> Iterator[None]:
    """While a model runs, its last layer gives its output at some columns of each row only, in their order.

    Args:
        layer: the model's last one. The model must be run with a cache (`Passing`, if none is wanted), and with an
            attention kernel whose mask is a tensor, or None for plain causality (sdpa, eager).
        columns: of the hidden states that the model runs.
    """

    def narrow(_module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        hidden, call = call_of(positional, named)
        caches: list[Cache] = []
        changed(call, lambda value: caches.append(value) if isinstance(value, Cache) else None)
        keys, values = keys_of(layer, hidden, call, caches[0])
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]

        def asked(value: Any) -> Any:
            """Masks [rows or 1, 1, queries, keys], embeddings [.., positions, d], positions [.., positions]."""
            if not isinstance(value, Tensor) or value.dim() < 2:
                return value
            each = value.expand(len(hidden), *value.shape[1:])
            return each[:, 0][rows, columns][:, None] if value.dim() == 4 else each[rows, columns]

        others, by_name = with_cache(changed(call, asked), Known((keys, values)))
        if by_name["attention_mask"] is None:
            column = torch.arange(keys.shape[2], device=hidden.device)
            causal = column <= columns[..., None] + (keys.shape[2] - hidden.shape[1])
            by_name["attention_mask"] = causal[:, None]
        return (hidden[rows, columns], *others), by_name

    handle = layer.register_forward_pre_hook(narrow, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
