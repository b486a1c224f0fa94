"""Keys and values of a run as something to start other runs from: chosen rows, repeated, up to a position."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


@torch.inference_mode()
def run_prefix(model: PreTrainedModel, ids: Int[Tensor, "rows seq"]) -> DynamicCache:
    """Run the first tokens of rows of one length and keep their keys and values, for sliding windows too.

    The cache is made without the model's config: a sliding cache would forget what later positions no longer see, and
    could not be cut. The windows stay in force, since the model's mask knows them.
    """
    cache = DynamicCache()
    if ids.shape[1]:
        model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def part_of(cache: DynamicCache, rows: Int[Tensor, " some"], stop: int) -> DynamicCache:
    """A new cache of the given rows (repeated as often as they are named), positions before ``stop``."""
    chosen = DynamicCache()
    if stop:
        for index, layer in enumerate(cache.layers):
            chosen.update(layer.keys[rows, :, :stop], layer.values[rows, :, :stop], index)
    return chosen
