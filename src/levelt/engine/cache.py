"""Key-value caches as values: a changed copy shares what it does not change, and the original stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


def empty_cache(model: PreTrainedModel) -> Any:
    """A cache for a model; made from its config, so that sliding layers get sliding caches."""
    return DynamicCache(config=model.config)


def forgets(model: PreTrainedModel) -> bool:
    """Whether the model has sliding windows, whose cache drops old positions: it cannot be cut off or shared."""
    return any(getattr(layer, "is_sliding", False) for layer in empty_cache(model).layers)


def changed_cache(cache: Any, change: Callable[[Tensor], Tensor] = lambda states: states) -> Any:
    """A copy whose keys and values [rows, heads, columns, d] are changed; running on it leaves the original alone."""
    changed = copy.copy(cache)
    changed.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in changed.layers:
        if layer.is_initialized:
            layer.keys, layer.values = change(layer.keys), change(layer.values)
    return changed


def repeated(cache: Any, count: int) -> Any:
    """A cache of one row for so many rows, as views."""
    return changed_cache(cache, lambda states: states.expand(count, -1, -1, -1))


def begun(cache: Any, columns: int) -> Any:
    """The first columns of a cache, as views."""
    return changed_cache(cache, lambda states: states[:, :, :columns])


@torch.inference_mode()
def run_prefix(model: PreTrainedModel, ids: Int[Tensor, "rows seq"]) -> Any:
    """Run the first tokens of rows of one length and keep their keys and values, of sliding windows too.

    The cache is made without the model's config, so that it forgets nothing and can be cut; the windows stay in
    force, since the model's mask knows them.
    """
    cache = DynamicCache()
    if ids.shape[1]:
        model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache
