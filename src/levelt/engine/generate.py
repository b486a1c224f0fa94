"""Batched greedy decoding with a key-value cache, and what it reads on the way.

A prompt is run once: one prefill gives the residual readings, the decision logits and the first answer token.

Answer positions. The answer of a row is its generated tokens before the first end token, at most `max_new_tokens`.
Its positions are those whose *input* is one of these tokens, every one of them: "yes<end>" has one position (where
"yes" is fed), a row that never stops has `max_new_tokens`, a row that ends at once has none. The last answer token
is therefore fed too, though no token is chosen from it. (The published code leaves it out where an answer is cut
off, so that 20 tokens give 19 positions, and it counts the padding of rows that ended before their batch mates.)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from levelt.engine.attention import in_force
from levelt.engine.sites import Selection, adding_attention, reading_residuals
from levelt.models.anatomy import Parts


def plan_batches(lengths: Sequence[int], batch_tokens: int, new_tokens: int) -> list[list[int]]:
    """Group rows into batches of at most ``batch_tokens`` padded tokens, the longest rows first.

    A row counts with the tokens it may generate. Rows of one length keep their order, so batches depend on nothing
    but the lengths and the two numbers. The longest come first: what does not fit in memory fails at once. A row
    that is longer than ``batch_tokens`` by itself gets a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches: list[list[int]] = []
    for row in order:
        width = lengths[batches[-1][0]] + new_tokens if batches else 0
        if batches and (len(batches[-1]) + 1) * width <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


@dataclass(frozen=True)
class Batch:
    """Left-padded prompts: real tokens end at the last column, where mask is one."""

    ids: Int[Tensor, "rows seq"]
    mask: Int[Tensor, "rows seq"]
    offsets: tuple[int, ...]
    """Pads before each row: token t of row r is at column offsets[r] + t."""

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], device: torch.device) -> Batch:
        """Pad prompts on the left. Pads are token 0; the mask hides them, so any id would do."""
        width = max(map(len, prompts))
        offsets = tuple(width - len(prompt) for prompt in prompts)
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, offsets[row] :] = prompt
        mask = (np.arange(width) >= np.array(offsets)[:, None]).astype(np.int64)
        return cls(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device), offsets)

    def positions(self) -> Int[Tensor, "rows seq"]:
        """Position of each token in its own prompt (0 at pads); models with learned positions need it."""
        return (self.mask.cumsum(1) - 1).clamp_min(0)


@dataclass(frozen=True)
class Decoded:
    """One batch, decoded.

    residuals: [rows, roles, layers + 1, d] means over the selection, or None.
    attention: [rows, layers, d] mean attention contribution over the answer positions, NaN where there is
        none; None if not asked for.
    decision: [rows, vocabulary] logits of the last prompt position.
    tokens, answer: [rows, steps] generated ids, and which of them belong to the answer (before the first
        end token).
    """

    residuals: Float[Tensor, "rows roles layers_and_embedding d"] | None
    attention: Float[Tensor, "rows layers d"] | None
    decision: Float[Tensor, "rows vocabulary"]
    tokens: Int[Tensor, "rows steps"]
    answer: Bool[Tensor, "rows steps"]


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    parts: Parts,
    batch: Batch,
    selection: Selection | None,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    read_attention: bool,
) -> Decoded:
    """Run a batch of prompts and decode greedily, reading what is asked for.

    Raises:
        FloatingPointError: the logits are not finite, so an argmax would be meaningless.
        InputError: a plan is in force (`levelt.engine.attention.blocking`) and removes nothing of some row.
    """
    rows, width = batch.ids.shape
    device = batch.ids.device
    ends = torch.tensor(stop_ids, dtype=torch.long, device=device)
    mask = torch.ones((rows, width + max_new_tokens), dtype=torch.long, device=device)
    mask[:, :width] = batch.mask
    positions = batch.positions()
    blocked = in_force()
    cache = DynamicCache(config=model.config)  # with the config, so that sliding layers get sliding caches

    reading = reading_residuals(parts, selection) if selection else nullcontext()
    with reading as residuals:
        logits = model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
    if blocked:
        blocked.check()
    decision = logits.float()
    total = torch.zeros((rows, len(parts.layers), parts.hidden_size), device=device)
    token = _argmax(logits)
    running = ~torch.isin(token, ends)
    tokens, answer = [token], [running]
    for step in range(1, max_new_tokens + 1):
        final = step == max_new_tokens
        if not running.any() or (final and not read_attention):
            break
        # the last answer token is fed for its attention only: the model without its head will do
        network = model.base_model if final else model
        if blocked:
            blocked.counted = running  # what a finished row computes beside its batch mates is not its own
        with adding_attention(parts, running, total) if read_attention else nullcontext():
            output = network(
                input_ids=token[:, None],
                attention_mask=mask[:, : width + step],
                position_ids=positions[:, -1:] + step,
                past_key_values=cache,
                use_cache=True,
            )
        if final:
            break
        token = _argmax(output.logits[:, -1])
        running = running & ~torch.isin(token, ends)
        tokens.append(token)
        answer.append(running)
    answered = torch.stack(answer, dim=1)
    # 0 / 0 is NaN: a row without answer positions has no mean
    attention = total / answered.sum(1)[:, None, None] if read_attention else None
    return Decoded(residuals, attention, decision, torch.stack(tokens, dim=1), answered)


def _argmax(logits: Float[Tensor, "rows vocabulary"]) -> Int[Tensor, " rows"]:
    best = logits.max(dim=-1)  # NaN propagates through max, so one look at the maxima is enough
    if not bool(best.values.isfinite().all()):
        raise FloatingPointError(
            "the model's logits are not finite; try attention: eager, or dtype: float32 (engine settings)"
        )
    return best.indices
