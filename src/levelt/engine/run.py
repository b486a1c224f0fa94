"""Reading prompts: all that the study takes from one model for one set of prompts, in one pass over them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64

from levelt.config import Engine, Role
from levelt.engine.attention import Blocked, blocking, check_plan
from levelt.engine.cache import begun, empty_cache, forgets, repeated
from levelt.engine.generate import Batch, Prefill, generate, plan_batches, prefill
from levelt.engine.plans import Plan
from levelt.engine.roles import GENERATED, role_range
from levelt.engine.sites import Selection
from levelt.files import InputError
from levelt.models.loading import Decoder
from levelt.prompts.spans import TokenGroups

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
class Appended:
    """A condition: a token is fed behind each prompt instead of the model's own answer, which is not decoded.

    What a probe reads at the output positions about a token drawn at random, it reads off the input (methods/1,
    defects, A5).
    """

    tokens: tuple[int, ...]


Condition = Plan | Sequence[Plan] | Change | Appended | None
"""What distinguishes one reading of the prompts from another: block plans, another change, an appended token."""


@dataclass(frozen=True)
class Readings:
    """What was read, one row per prompt, in the order of the prompts.

    residual: by role, [n, layers + 1, d]: entry 0 the embeddings, entry l after layer l, before any final norm.
    attention: by role, [n, layers, d]: what the attention block adds to the residual stream; NaN where a row has no
        position of the role (an answer may end at once). `levelt.engine.roles` says which positions a role has.
    positions: [n] answer positions of each row.
    generated: ids of each answer, without the token that ended it.
    stopped: per row, "end" (an end token) or "length" (max_new_tokens).
    logit_difference: [n] logit of the first option minus logit of the second, at the decision position.
    tokens: of the prompts. padded: positions really run, pads included, and without what was taken from a cache.
    batches: passes over prompts.
    edges: what a block plan removed; None without one.
    """

    residual: dict[str, Float32[np.ndarray, "n layers_and_embedding d"]]
    attention: dict[str, Float32[np.ndarray, "n layers d"]]
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
        if self.attention:
            arrays |= {f"{role}.attention": values for role, values in self.attention.items()}
            arrays["output.positions"] = self.positions
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
    plan: Condition = None,
    label: str = "",
) -> Readings:
    """Read prompts in one condition: `read_conditions` with this one alone."""
    return read_conditions(decoder, prompts, {"": plan}, roles, option_ids, settings, label)[""]


def read_conditions(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    conditions: Mapping[str, Condition],
    roles: Sequence[Role],
    option_ids: Sequence[Sequence[int]],
    settings: Engine,
    label: str = "",
    ranges: Mapping[Role, Int64[np.ndarray, "n 2"]] | None = None,
) -> dict[str, Readings]:
    """Run prompts through a model in several conditions: read representations, decode answers, compare the options.

    Tokens that all prompts begin with are run once. A block plan starts from the cache of the plain run, at the first
    position it can change: causality leaves everything in front of it as it is. (Models with sliding windows, whose
    cache forgets, run every condition in full.)

    Args:
        decoder: the loaded model.
        prompts: any objects with ``input_ids`` and ``groups``.
        conditions: by name: block plans, one for all prompts or one for each; another change; an appended token; or
            None for the plain run.
        roles: what to read (`levelt.engine.roles`).
        option_ids: per prompt, the first token ids of the two options.
        settings: ``batch_tokens`` and ``max_new_tokens`` are used here.
        label: names the prompts in the log and in errors.
        ranges: what `check_prompts` returned for these very arguments, if it has been called.

    Returns:
        The readings by name of the condition.

    Raises:
        InputError: see `check_prompts`, which is called first where there are no ``ranges``; or a block plan
            removes nothing of some prompt.
        FloatingPointError: the logits are not finite.
    """
    if ranges is None:
        ranges = check_prompts(decoder, prompts, conditions, roles, option_ids, settings, label)
    reader = _Reader(decoder, prompts, ranges, roles, option_ids, settings, label)
    made = {name: reader.condition(name, condition) for name, condition in conditions.items()}
    batches = plan_batches(reader.lengths.tolist(), settings.batch_tokens, settings.max_new_tokens)
    more = f" and {len(conditions) - 1} more" if len(conditions) > 1 else ""
    progress = _Progress(f"{label} {next(iter(conditions))}{more}:".strip(" :") + ":", len(prompts))
    for rows in batches:
        reader.read(rows, made)
        progress.add(len(rows))
    return {name: one.readings(int(reader.lengths.sum()), len(batches)) for name, one in made.items()}


@dataclass
class _Made:
    """One condition, and what has been read in it so far."""

    name: str
    blocks: Sequence[Plan] | None
    change: Change | None
    appended: Appended | None
    first: Int64[np.ndarray, " n"] | None
    """First position of each prompt that a plan can change, if it can start from the plain run; None if it cannot."""
    residual: dict[str, np.ndarray]
    attention: dict[str, np.ndarray]
    positions: np.ndarray
    difference: np.ndarray
    generated: list[tuple[int, ...]]
    stopped: list[Literal["end", "length"]]
    edges: Edges | None
    padded: int = 0

    @property
    def plain(self) -> bool:
        """Whether the prompts are run as they are."""
        return self.blocks is None and self.change is None

    def readings(self, tokens: int, batches: int) -> Readings:
        generated, stopped = tuple(self.generated), tuple(self.stopped)
        read = self.residual, self.attention, self.positions, generated, stopped, self.difference
        return Readings(*read, tokens, self.padded, batches, self.edges)


@dataclass(frozen=True)
class _Plain:
    """A batch's plain run."""

    batch: Batch
    prefill: Prefill
    ran: int


class _Reader:
    """What the passes of one call share."""

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Prompt],
        ranges: Mapping[Role, Int64[np.ndarray, "n 2"]],
        roles: Sequence[Role],
        option_ids: Sequence[Sequence[int]],
        settings: Engine,
        label: str,
    ) -> None:
        self.decoder, self.prompts, self.ranges, self.settings, self.label = decoder, prompts, ranges, settings, label
        self.generated = [role for role in roles if role in GENERATED]
        self.device = decoder.model.device
        self.lengths = np.array([len(prompt.input_ids) for prompt in prompts])
        self.options = torch.tensor(np.asarray(option_ids, dtype=np.int64), device=self.device)
        self.windowed = forgets(decoder.model)
        self.shared = 0 if self.windowed else self._common()
        self.prefix = self._run_prefix() if self.shared else None

    def _common(self) -> int:
        """How many tokens all prompts begin with, in front of everything that is read."""
        limit = min([int(self.lengths.min()) - 1, *(int(spans[:, 0].min()) for spans in self.ranges.values())])
        found = common_prefix([prompt.input_ids for prompt in self.prompts], limit)
        # behind a prefix, attention needs an explicit mask: a short one does not pay
        return found if len(self.prompts) > 1 and found >= self.lengths.mean() / 8 else 0

    def condition(self, name: str, condition: Condition) -> _Made:
        """Room for what is read in a condition."""
        count, layers, width = len(self.prompts), len(self.decoder.parts.layers), self.decoder.parts.hidden_size
        blocks: Sequence[Plan] | None = None
        change: Change | None = None
        match condition:
            case Plan():
                blocks = [condition] * count
            case Sequence():
                blocks = condition
            case None | Appended():
                pass
            case _:
                change = condition
        first = None
        if blocks is not None and not self.windowed and all(plan.blocks and not plan.open_future for plan in blocks):
            first = np.array([self._first(row, plan) for row, plan in enumerate(blocks)])
        edges = None
        if blocks is not None:
            digests = {plan: plan.digest for plan in set(blocks)}
            edges = Edges(tuple(digests[plan] for plan in blocks), *np.zeros((2, count, layers), np.int64))
        return _Made(
            name,
            blocks,
            change,
            condition if isinstance(condition, Appended) else None,
            first,
            {role: np.empty((count, layers + 1, width), np.float32) for role in self.ranges},
            {role: np.empty((count, layers, width), np.float32) for role in self.generated},
            np.empty(count, np.int32),
            np.empty(count, np.float32),
            [()] * count,
            ["end"] * count,
            edges,
        )

    def _first(self, row: int, plan: Plan) -> int:
        length = int(self.lengths[row])
        found = check_plan(plan, self.prompts[row].groups, length, len(self.decoder.parts.layers), f"prompt {row}")
        # the last position is run in any case: its logits begin the answer
        return min([length - 1, *(queries[0][0] for queries, _ in found if queries)])

    # --- passes

    def read(self, rows: Sequence[int], conditions: Mapping[str, _Made]) -> None:
        """One batch of prompts in every condition."""
        alone = len(conditions) == 1
        plain: _Plain | None = None
        if any(one.plain or (one.first is not None and not alone) for one in conditions.values()):
            plain = self._plain(rows)
        for one in conditions.values():
            if one.plain:
                assert plain is not None
                one.padded += plain.ran
                self._answer(one, rows, plain.batch, plain.prefill)
            elif one.change is not None:
                batch = self._batch(rows, 0)
                with one.change.applied(self.decoder, batch, rows):
                    self._full(one, rows, batch)
            else:
                assert one.blocks is not None
                groups = [self.prompts[row].groups for row in rows]
                here = [one.blocks[row] for row in rows], groups, self.lengths[rows].tolist()
                blocked = Blocked(*here, len(self.decoder.parts.layers), self.device, self._where(one.name), rows)
                with blocking(self.decoder.model, blocked):
                    if plain is not None and one.first is not None:
                        self._rerun(one, rows, plain, one.first[rows])
                    else:
                        # a plan that changes the prefix cannot use it
                        empty = not any(plan.blocks or plan.open_future for plan in here[0])
                        self._full(one, rows, self._batch(rows, self.shared if empty else 0))
                assert one.edges is not None
                one.edges.removed[rows] = blocked.removed.cpu().numpy()
                one.edges.kept[rows] = blocked.kept.cpu().numpy()

    def _where(self, condition: str) -> str:
        named = f"{self.label} {condition}".strip()
        return f"{named}: prompt" if named else "prompt"

    def _batch(self, rows: Sequence[int], shared: int) -> Batch:
        return Batch.of([self.prompts[row].input_ids for row in rows], self.device, shared)

    def _plain(self, rows: Sequence[int]) -> _Plain:
        batch = self._batch(rows, self.shared)
        found, ran = self._prefill(rows, batch)
        return _Plain(batch, found, ran)

    def _full(self, one: _Made, rows: Sequence[int], batch: Batch) -> None:
        found, ran = self._prefill(rows, batch)
        one.padded += ran
        self._answer(one, rows, batch, found)

    def _prefill(self, rows: Sequence[int], batch: Batch) -> tuple[Prefill, int]:
        """Run a batch from behind the prefix on; and how many positions that were."""
        model, parts = self.decoder.model, self.decoder.parts
        cache = repeated(self.prefix, len(rows)) if batch.shared else empty_cache(model)
        selection = self._selection(rows, batch, list(self.ranges))
        found = prefill(model, parts, batch, selection, bool(self.generated), cache, batch.shared)
        return found, batch.ids[:, batch.shared :].numel()

    @torch.inference_mode()
    def _run_prefix(self) -> Any:
        ids = torch.tensor([list(self.prompts[0].input_ids[: self.shared])], device=self.device)
        cache = empty_cache(self.decoder.model)
        self.decoder.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    def _rerun(self, one: _Made, rows: Sequence[int], plain: _Plain, first: Int64[np.ndarray, " rows"]) -> None:
        """Run a batch from the first column on that the plan can change; what is read in front is the plain run's."""
        model, parts, batch = self.decoder.model, self.decoder.parts, plain.batch
        changed = [role for role, spans in self.ranges.items() if (spans[rows, 1] > first).any()]
        starts = [first, *(self.ranges[role][rows, 0] for role in changed)]
        start = min(int(batch.columns(positions).min()) for positions in starts)
        selection = self._selection(rows, batch, changed)
        found = prefill(model, parts, batch, selection, bool(self.generated), begun(plain.prefill.cache, start), start)
        if plain.prefill.residuals is not None:
            residuals = plain.prefill.residuals.clone()
            if found.residuals is not None:
                residuals[:, [list(self.ranges).index(role) for role in changed]] = found.residuals
            found = replace(found, residuals=residuals)
        one.padded += batch.ids[:, start:].numel()
        self._answer(one, rows, batch, found)

    def _selection(self, rows: Sequence[int], batch: Batch, roles: Sequence[Role]) -> Selection | None:
        if not roles:
            return None
        shift = np.array(batch.offsets)[:, None]
        return Selection.of({role: self.ranges[role][rows] + shift for role in roles}, self.device)

    def _answer(self, one: _Made, rows: Sequence[int], batch: Batch, prompt: Prefill) -> None:
        """Decode after a prefill, and keep what was read."""
        decoder = self.decoder
        appended = None
        if one.appended is not None:
            appended = torch.tensor([one.appended.tokens[row] for row in rows], device=self.device)
        limit = self.settings.max_new_tokens
        found = generate(
            decoder.model, decoder.parts, batch, prompt, decoder.stop_ids, limit, bool(self.generated), appended
        )
        if prompt.residuals is not None:
            values = prompt.residuals.cpu().numpy()
            for index, role in enumerate(self.ranges):
                one.residual[role][rows] = values[:, index]
        count = found.answer.sum(1)[:, None, None]
        for role in self.generated:
            assert found.attention is not None and prompt.attention is not None
            if role == "output":
                mean = found.attention / count  # 0 / 0 is NaN: a row without answer positions has no mean
            else:
                mean = (found.attention + prompt.attention) / (count + 1)
            one.attention[role][rows] = mean.cpu().numpy()
        chosen = prompt.decision.gather(1, self.options[rows])
        one.difference[rows] = (chosen[:, 0] - chosen[:, 1]).cpu().numpy()
        tokens, answer = found.tokens.cpu().numpy(), found.answer.cpu().numpy()
        lengths = answer.sum(1)
        one.positions[rows] = lengths
        limit = limit if appended is None else 1
        for row, ids, length in zip(rows, tokens.tolist(), lengths.tolist(), strict=True):
            one.generated[row] = tuple(ids[:length])  # answer positions come first
            one.stopped[row] = "length" if length == limit else "end"


def common_prefix(prompts: Sequence[Sequence[int]], limit: int) -> int:
    """How many tokens all prompts begin with, at most ``limit``."""
    first = prompts[0]
    for ids in prompts:
        limit = next((at for at in range(limit) if ids[at] != first[at]), limit)
    return max(limit, 0)


def check_prompts(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    conditions: Mapping[str, Condition],
    roles: Sequence[Role],
    option_ids: Sequence[Sequence[int]],
    settings: Engine,
    label: str = "",
) -> dict[Role, Int64[np.ndarray, "n 2"]]:
    """Refuse, before any work, what would crash late or be silently wrong.

    Returns:
        For each role read from the prompt itself, the half-open token range of each prompt.

    Raises:
        InputError: there are no prompts, or one is empty, too long for the model, has ids outside the
            vocabulary, lacks a group, has one outside its tokens, or its options begin with the same token; or
            a block plan cannot remove anything of it.
    """
    named = f"{label} {next(iter(conditions))}".strip()
    named = f"{named}: " if named else ""
    if not prompts:
        raise InputError(f"{named}no prompts to read")
    vocabulary = decoder.model.config.vocab_size
    longest = getattr(decoder.model.config, "max_position_embeddings", None)
    ranges = {role: np.empty((len(prompts), 2), np.int64) for role in roles if role not in GENERATED}
    for row, (prompt, options) in enumerate(zip(prompts, option_ids, strict=True)):
        ids, where = prompt.input_ids, f"{named}prompt {row}"
        if not len(ids):
            raise InputError(f"{where} has no tokens")
        if len(options) != 2 or options[0] == options[1]:
            raise InputError(f"{where}: expected two different option tokens, found {list(options)}")
        if min(min(ids), *options) < 0 or max(max(ids), *options) >= vocabulary:
            raise InputError(f"{where} has token ids outside the model's vocabulary of {vocabulary}")
        if longest is not None and len(ids) + settings.max_new_tokens > longest:
            raise InputError(
                f"{where} has {len(ids)} tokens; with {settings.max_new_tokens} generated ones that is more than "
                f"the {longest} positions of the model"
            )
        for role, spans in ranges.items():
            spans[row] = role_range(role, prompt.groups, len(ids), where)
    for name, condition in conditions.items():
        _check_condition(decoder, prompts, condition, f"{label} {name}".strip())
    return ranges


def _check_condition(decoder: Decoder, prompts: Sequence[Prompt], condition: Condition, name: str) -> None:
    where = f"{name}: " if name else ""
    count = len(prompts)
    if isinstance(condition, Appended):
        vocabulary = decoder.model.config.vocab_size
        if len(condition.tokens) != count or not all(0 <= token < vocabulary for token in condition.tokens):
            raise InputError(f"{where}expected a token of the vocabulary to append to each of {count} prompts")
    elif isinstance(condition, Plan | Sequence):
        plans = [condition] * count if isinstance(condition, Plan) else condition
        if len(plans) != count:
            raise InputError(f"{where}found {len(plans)} plans for {count} prompts")
        layers = len(decoder.parts.layers)
        for row, (prompt, plan) in enumerate(zip(prompts, plans, strict=True)):
            check_plan(plan, prompt.groups, len(prompt.input_ids), layers, f"{where}prompt {row}")


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
