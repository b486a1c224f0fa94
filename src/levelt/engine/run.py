"""Reading prompts: all that the study takes from one model for one set of prompts, in one pass over them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64

from levelt.config import Engine, Role
from levelt.engine.attention import Blocked, blocking, check_plan
from levelt.engine.generate import Batch, decode, plan_batches
from levelt.engine.plans import Plan
from levelt.engine.sites import Selection
from levelt.files import InputError
from levelt.models.loading import Decoder
from levelt.prompts.spans import DECISION, TokenGroups

log = logging.getLogger(__name__)


class Prompt(Protocol):
    """What the engine needs of a prompt: its tokens, and where its groups are."""

    @property
    def input_ids(self) -> Sequence[int]:
        """Token ids, special tokens included."""
        ...

    @property
    def groups(self) -> TokenGroups:
        """Token groups; the roles read are groups by these names."""
        ...


class Change(Protocol):
    """A change to a run that is not a block plan (patching, noise): in force while a batch is run, then undone."""

    def applied(self, decoder: Decoder, batch: Batch, rows: Sequence[int]) -> AbstractContextManager[Any]:
        """A context that changes the decoder for this batch; ``rows`` are the prompts' indices, in its order."""
        ...


@dataclass(frozen=True)
class Edges:
    """What a block plan took out of a run, one row per prompt; layers are counted from 0.

    plans: digest of each prompt's plan.
    removed: attention edges (query, key) that causality, padding and window allowed, and the plan removed. Every
        forward pass of the row counts: its prompt, and each generated token that was fed.
    kept: positions the plan left nothing to attend to, and which therefore attend to themselves.
    """

    plans: tuple[str, ...]
    removed: Int64[np.ndarray, "n layers"]
    kept: Int64[np.ndarray, "n layers"]

    def counts(self) -> dict[str, Any]:
        """What the manifest tells: totals by layer, the least any row lost, the rows that kept a position."""
        return {
            "plans": sorted(set(self.plans)),
            "removed_edges": self.removed.sum(0).tolist(),
            "fewest_removed_edges": int(self.removed.sum(1).min()),
            "self_kept_positions": self.kept.sum(0).tolist(),
            "self_kept_rows": int((self.kept.sum(1) > 0).sum()),
        }


@dataclass(frozen=True)
class Readings:
    """What was read, one row per prompt, in the order of the prompts.

    residual: for roles sample and decision, [n, layers + 1, d]: entry 0 the embeddings, entry l after layer
        l, before any final norm. sample is the mean over the sample's tokens, decision the last prompt
        position.
    attention: [n, layers, d], the output role: the mean, over the answer positions (see `engine.generate`),
        of what the attention block adds to the residual stream; NaN for a row without answer positions.
        None if not asked.
    positions: [n] answer positions of each row.
    generated: ids of each answer, without the token that ended it.
    stopped: per row, "end" (an end token) or "length" (max_new_tokens).
    logit_difference: [n] logit of the first option minus logit of the second, at the decision position.
    tokens, padded: prompt tokens run, without and with padding. batches: forward passes over prompts.
    edges: what a block plan removed; None without one.
    """

    residual: dict[str, Float32[np.ndarray, "n layers_and_embedding d"]]
    attention: Float32[np.ndarray, "n layers d"] | None
    positions: Int32[np.ndarray, " n"]
    generated: tuple[tuple[int, ...], ...]
    stopped: tuple[Literal["end", "length"], ...]
    logit_difference: Float32[np.ndarray, " n"]
    tokens: int
    padded: int
    batches: int
    edges: Edges | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The readings under the names of the activation files (data/<study>/activations)."""
        arrays: dict[str, np.ndarray] = {f"{role}.residual": values for role, values in self.residual.items()}
        if self.attention is not None:
            arrays |= {"output.attention": self.attention, "output.positions": self.positions}
        return arrays

    def counts(self) -> dict[str, Any]:
        """What the manifest of the activation files tells about the rows."""
        blocked = self.edges.counts() if self.edges else {}
        return {
            "rows": len(self.generated),
            "without_output_positions": int((self.positions == 0).sum()),
            "stopped_by_length": self.stopped.count("length"),
            "batches": self.batches,
            "prompt_tokens": self.tokens,
            "padded_tokens": self.padded,
            **blocked,
        }


def read_prompts(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    roles: Sequence[Role],
    option_ids: Sequence[Sequence[int]],
    settings: Engine,
    plan: Plan | Sequence[Plan] | Change | None = None,
    label: str = "",
) -> Readings:
    """Run prompts through a model: read representations, decode answers, compare the options' logits.

    Args:
        decoder: the loaded model.
        prompts: any objects with ``input_ids`` and ``groups``.
        roles: what to read: sample, output, decision.
        option_ids: per prompt, the first token ids of the two options.
        settings: ``batch_tokens`` and ``max_new_tokens`` are used here.
        plan: a block plan, a block plan for each prompt, another change to the run, or None.
        label: names the prompts in the log and in errors.

    Raises:
        InputError: see `check_prompts`, which is called first; or a block plan removes nothing of some prompt.
        FloatingPointError: the logits are not finite.
    """
    blocks: Sequence[Plan] | None = None
    change: Change | None = None
    match plan:
        case Plan():
            blocks = [plan] * len(prompts)
        case Sequence():
            blocks = plan
        case _:
            change = plan
    ranges = check_prompts(decoder, prompts, roles, option_ids, settings, label, blocks)
    model, parts = decoder.model, decoder.parts
    device = model.device
    lengths = [len(prompt.input_ids) for prompt in prompts]
    count, layers, width = len(prompts), len(parts.layers), parts.hidden_size
    residual = {role: np.empty((count, layers + 1, width), np.float32) for role in ranges}
    attention = np.empty((count, layers, width), np.float32) if "output" in roles else None
    positions = np.empty(count, np.int32)
    difference = np.empty(count, np.float32)
    generated: list[tuple[int, ...]] = [()] * count
    stopped: list[Literal["end", "length"]] = ["end"] * count
    edges = Edges(tuple(p.digest for p in blocks), *np.zeros((2, count, layers), np.int64)) if blocks else None
    batches = plan_batches(lengths, settings.batch_tokens, settings.max_new_tokens)
    progress = _Progress(label, count)
    padded = 0
    for rows in batches:
        batch = Batch.of([prompts[row].input_ids for row in rows], device)
        padded += batch.ids.numel()
        selection = None
        if ranges:
            shifted = {
                role: [
                    (spans[row][0] + offset, spans[row][1] + offset)
                    for row, offset in zip(rows, batch.offsets, strict=True)
                ]
                for role, spans in ranges.items()
            }
            selection = Selection.of(shifted, device)
        blocked = None
        changed: AbstractContextManager[Any] = nullcontext()
        if blocks is not None:
            here = [blocks[row] for row in rows], [prompts[row].groups for row in rows], [lengths[row] for row in rows]
            blocked = Blocked(*here, layers, device, f"{label} prompt".strip(), rows)
            changed = blocking(model, blocked)
        elif change is not None:
            changed = change.applied(decoder, batch, rows)
        with changed:
            decoded = decode(
                model,
                parts,
                batch,
                selection,
                decoder.stop_ids,
                settings.max_new_tokens,
                read_attention=attention is not None,
            )
        if selection is not None and decoded.residuals is not None:
            values = decoded.residuals.cpu().numpy()
            for index, role in enumerate(selection.roles):
                residual[role][rows] = values[:, index]
        if attention is not None and decoded.attention is not None:
            attention[rows] = decoded.attention.cpu().numpy()
        options = torch.tensor([list(option_ids[row]) for row in rows], device=device)
        chosen = decoded.decision.gather(1, options)
        difference[rows] = (chosen[:, 0] - chosen[:, 1]).cpu().numpy()
        tokens, answer = decoded.tokens.cpu().numpy(), decoded.answer.cpu().numpy()
        positions[rows] = answer.sum(1)
        for index, row in enumerate(rows):
            generated[row] = tuple(int(token) for token in tokens[index][answer[index]])
            stopped[row] = "length" if len(generated[row]) == settings.max_new_tokens else "end"
        if edges is not None and blocked is not None:
            edges.removed[rows], edges.kept[rows] = blocked.removed.cpu().numpy(), blocked.kept.cpu().numpy()
        progress.add(len(rows))
    return Readings(
        residual,
        attention,
        positions,
        tuple(generated),
        tuple(stopped),
        difference,
        sum(lengths),
        padded,
        len(batches),
        edges,
    )


def check_prompts(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    roles: Sequence[Role],
    option_ids: Sequence[Sequence[int]],
    settings: Engine,
    label: str = "",
    plans: Sequence[Plan] | None = None,
) -> dict[str, list[tuple[int, int]]]:
    """Refuse, before any work, what would crash late or be silently wrong.

    Returns:
        For each role read from the prompt itself, the half-open token range of each prompt.

    Raises:
        InputError: there are no prompts, or one is empty, too long for the model, has ids outside the
            vocabulary, lacks a group, has one outside its tokens, or its options begin with the same token; or
            the block plan cannot remove anything of it.
    """
    label = f"{label} " if label else ""
    if not prompts:
        raise InputError(f"{label}no prompts to read")
    if plans is not None and len(plans) != len(prompts):
        raise InputError(f"{label}found {len(plans)} plans for {len(prompts)} prompts")
    vocabulary = decoder.model.config.vocab_size
    longest = getattr(decoder.model.config, "max_position_embeddings", None)
    ranges: dict[str, list[tuple[int, int]]] = {role: [] for role in roles if role != "output"}
    for row, (prompt, options) in enumerate(zip(prompts, option_ids, strict=True)):
        ids, where = np.asarray(prompt.input_ids), f"{label}prompt {row}"
        if not len(ids):
            raise InputError(f"{where} has no tokens")
        if len(options) != 2 or options[0] == options[1]:
            raise InputError(f"{where}: expected two different option tokens, found {list(options)}")
        if min(ids.min(), *options) < 0 or max(ids.max(), *options) >= vocabulary:
            raise InputError(f"{where} has token ids outside the model's vocabulary of {vocabulary}")
        if longest is not None and len(ids) + settings.max_new_tokens > longest:
            raise InputError(
                f"{where} has {len(ids)} tokens; with {settings.max_new_tokens} generated ones that is more than "
                f"the {longest} positions of the model"
            )
        for role, spans in ranges.items():
            if role not in prompt.groups:
                raise InputError(f"{where} has no token group {role}, only {', '.join(prompt.groups.names)}")
            span = prompt.groups[role]
            if not 0 <= span.start < span.stop <= len(ids):
                raise InputError(f"{where}: {role} is [{span.start}, {span.stop}) of {len(ids)} tokens")
            if role == DECISION and span.start != len(ids) - 1:
                raise InputError(f"{where}: the decision is token {span.start}, not the last of {len(ids)}")
            spans.append((span.start, span.stop))
        if plans is not None:
            check_plan(plans[row], prompt.groups, len(ids), len(decoder.parts.layers), where)
    return ranges


class _Progress:
    """A line in the log about every five seconds: rows done, rate, remaining time."""

    def __init__(self, label: str, rows: int, every: float = 5.0) -> None:
        self._label, self._rows, self._every = label, rows, every
        self._done = 0
        self._begin = self._last = time.monotonic()

    def add(self, rows: int) -> None:
        self._done += rows
        now = time.monotonic()
        if now - self._last >= self._every or self._done == self._rows:
            rate = self._done / max(now - self._begin, 1e-9)
            left = (self._rows - self._done) / rate
            log.info("%s %d/%d rows, %.0f rows/s, %.0f s left", self._label, self._done, self._rows, rate, left)
            self._last = now
