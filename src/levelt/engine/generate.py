"""Batched greedy decoding with a key-value cache, and what it reads on the way.

A prompt is run once: one prefill gives the residual readings, the decision logits and the first answer token. A
prefill may start from a cache: from tokens that all prompts begin with, or from the plain run of the same prompts, of
which causality keeps everything in front of the first position that a condition changes.

Answer positions. The answer of a row is its generated tokens before the first end token, at most `max_new_tokens`.
Its positions are those whose *input* is one of these tokens, every one of them: "yes<end>" has one position (where
"yes" is fed), a row that never stops has `max_new_tokens`, a row that ends at once has none. The last answer token
is therefore fed too, though no token is chosen from it. (The published code leaves it out where an answer is cut
off, so that 20 tokens give 19 positions, and it counts the padding of rows that ended before their batch mates.)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from transformers import PreTrainedModel

from levelt.engine.attention import in_force
from levelt.engine.cache import changed_cache
from levelt.engine.sites import Selection, adding_attention, reading_last_attention, reading_residuals
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
    """Prompts that end at the last column. Pads stand in front of each row, or behind a prefix that all rows share.

    ids, mask: the mask is one at real tokens.
    offsets: pads of each row: token t of row r is at column offsets[r] + t, or at column t if it is in the prefix.
    shared: columns of the prefix.
    """

    ids: Int[Tensor, "rows seq"]
    mask: Int[Tensor, "rows seq"]
    offsets: tuple[int, ...]
    shared: int = 0

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], device: torch.device, shared: int = 0) -> Batch:
        """Pad prompts, which have their first ``shared`` tokens in common. Pads are token 0; the mask hides them."""
        width = max(map(len, prompts))
        offsets = tuple(width - len(prompt) for prompt in prompts)
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, offsets[row] + shared :] = prompt[shared:]
        ids[:, :shared] = prompts[0][:shared]
        column = np.arange(width)
        mask = ((column >= shared + np.array(offsets)[:, None]) | (column < shared)).astype(np.int64)
        return cls(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device), offsets, shared)

    def positions(self) -> Int[Tensor, "rows seq"]:
        """Position of each token in its own prompt (0 at pads); models with learned positions need it."""
        return (self.mask.cumsum(1) - 1).clamp_min(0)

    def columns(self, positions: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
        """The column of one position of each row."""
        return positions + np.where(positions < self.shared, 0, np.array(self.offsets))


@dataclass(frozen=True)
class Prefill:
    """A batch of prompts that has been run.

    residuals: [rows, roles, layers + 1, d] means over the selection, or None.
    attention: [rows, layers, d] what each attention block adds at the last prompt position, or None.
    decision: [rows, vocabulary] logits of the last prompt position.
    cache: keys and values of all columns.
    """

    residuals: Float[Tensor, "rows roles layers_and_embedding d"] | None
    attention: Float[Tensor, "rows layers d"] | None
    decision: Float[Tensor, "rows vocabulary"]
    cache: Any


@dataclass(frozen=True)
class Generated:
    """The answers to a batch of prompts.

    attention: [rows, layers, d] the attention contribution summed over the answer positions, or None.
    tokens, answer: [rows, steps] ids, and which of them belong to the answer (before the first end token).
    """

    attention: Float[Tensor, "rows layers d"] | None
    tokens: Int[Tensor, "rows steps"]
    answer: Bool[Tensor, "rows steps"]


@torch.inference_mode()
def prefill(
    model: PreTrainedModel,
    parts: Parts,
    batch: Batch,
    selection: Selection | None,
    read_attention: bool,
    cache: Any,
    start: int = 0,
) -> Prefill:
    """Run the columns of a batch from ``start`` on, whose predecessors are in the cache (which is extended).

    Selected positions are columns of the batch, none of them in front of ``start``.

    Raises:
        InputError: a plan is in force (`levelt.engine.attention.blocking`) and removes nothing of some row.
    """
    with ExitStack() as stack:
        residuals = stack.enter_context(reading_residuals(parts, selection.shifted(-start))) if selection else None
        attention = None
        if read_attention:
            attention = stack.enter_context(reading_last_attention(parts, len(batch.ids), batch.ids.device))
        logits = model(
            input_ids=batch.ids[:, start:],
            attention_mask=batch.mask,
            position_ids=batch.positions()[:, start:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
    if blocked := in_force():
        blocked.check()
    return Prefill(residuals, attention, logits.float(), cache)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    parts: Parts,
    batch: Batch,
    prompt: Prefill,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    read_attention: bool,
    appended: Int[Tensor, " rows"] | None = None,
) -> Generated:
    """Decode greedily after a prefill, whose cache stays as it is.

    ``appended``: a token for each row that is fed instead of the model's answer, which is then not decoded.

    Raises:
        FloatingPointError: the logits are not finite, so an argmax would be meaningless.
    """
    rows, width = batch.ids.shape
    device = batch.ids.device
    ends = torch.tensor(stop_ids, dtype=torch.long, device=device)
    token = _argmax(prompt.decision)
    running = ~torch.isin(token, ends)
    if appended is not None:
        token, running, max_new_tokens = appended, torch.ones_like(running), 1
    mask = torch.ones((rows, width + max_new_tokens), dtype=torch.long, device=device)
    mask[:, :width] = batch.mask
    position = batch.mask.sum(1, keepdim=True) - 1
    blocked = in_force()
    cache = changed_cache(prompt.cache)
    total = torch.zeros((rows, len(parts.layers), parts.hidden_size), device=device) if read_attention else None
    tokens, answer = [token], [running]
    for step in range(1, max_new_tokens + 1):
        final = step == max_new_tokens
        if not running.any() or (final and not read_attention):
            break
        # the last answer token is fed for its attention only: the model without its head will do
        network = model.base_model if final else model
        if blocked:
            blocked.counted = running  # what a finished row computes beside its batch mates is not its own
        with adding_attention(parts, running, total) if total is not None else nullcontext():
            output = network(
                input_ids=token[:, None],
                attention_mask=mask[:, : width + step],
                position_ids=position + step,
                past_key_values=cache,
                use_cache=True,
            )
        if final:
            break
        token = _argmax(output.logits[:, -1])
        running = running & ~torch.isin(token, ends)
        tokens.append(token)
        answer.append(running)
    return Generated(total, torch.stack(tokens, dim=1), torch.stack(answer, dim=1))


def _argmax(logits: Float[Tensor, "rows vocabulary"]) -> Int[Tensor, " rows"]:
    best = logits.max(dim=-1)  # NaN propagates through max, so one look at the maxima is enough
    if not bool(best.values.isfinite().all()):
        raise FloatingPointError(
            "the model's logits are not finite; try attention: eager, or dtype: float32 (engine settings)"
        )
    return best.indices
