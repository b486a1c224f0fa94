"""Reading any site at any token group of many prompts: one forward pass per batch, no cache, no output matrix.

What is kept is gathered inside the hooks, so memory grows with the positions asked for and never with sequence
length x layers. The logits of given tokens are computed from the positions read and the rows of the output matrix
asked for; logits over the vocabulary are never made.

    readings = capture(decoder, prompts, [Read("residual", "sample"), Read("attention", "sample", each=True)])
    readings["sample.residual"]                      # [n, layers + 1, d]
    readings.row("sample.attention.each", 3)         # [positions, layers, d] of prompt 3
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64
from torch import Tensor, nn

from levelt.engine.attention import Blocked, blocked_kernel, blocking
from levelt.engine.cache import begun, empty_cache, forgets, repeated
from levelt.engine.generate import Batch, plan_batches
from levelt.engine.layers import Passing, last_layer_at
from levelt.engine.plans import Plan
from levelt.engine.run import Change, Prompt, common_prefix
from levelt.engine.sharing import PlacedPlans
from levelt.engine.sites import Positions, Ranges, Selection
from levelt.files import InputError
from levelt.models import hooks
from levelt.models.anatomy import Parts
from levelt.models.linear import FrozenNorm, head_matrices
from levelt.models.loading import Decoder

Site = Literal["embedding", "residual", "attention", "mlp", "head", "weights", "logits"]
"""What is read at a position.

embedding [d]: what enters the first layer (learned positions and embedding scaling included).
residual [layers + 1, d]: entry 0 the embedding, entry l the stream after layer l, before any final norm.
attention, mlp [layers, d]: what the block adds to the stream, behind the block's own norm where it has one.
head [layers, heads, d]: what each query head adds: its output through its share of the output projection, then, in
    models with a norm behind the attention block, through that norm with its scale frozen. The heads and the
    projection's bias (if any) add up to attention.
weights [layers, heads, keys]: attention weights of the query position; key t is token t of the prompt, keys beyond
    the prompt are zero. Eager attention only.
logits [tokens]: of the token ids given, scale and soft-capping included.
"""

NARROW = 0.8
"""The last layer is run only where it is read, if that is at most this part of the columns: a gather, and a mask where
there was none, cost a little."""


@dataclass(frozen=True)
class Read:
    """One thing to read: a site at a token group, as the mean over its positions or each of them.

    layers: entries of the site's layer axis to keep, counted from 0 (residual: 0 the embedding, l after layer l;
        attention, mlp, head, weights: 0 the first layer); None for all.
    """

    site: Site
    group: str
    each: bool = False
    layers: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The key of the values: sample.residual, or sample.residual.each."""
        return f"{self.group}.{self.site}" + (".each" if self.each else "")


@dataclass(frozen=True)
class Captured:
    """What was read, in the order of the prompts.

    values: per read (by its name) a float32 array: [n, ...] for means, [positions of all prompts, ...] for single
        positions; the other axes are those of the `Site`.
    offsets: per group read position by position: [n + 1]; prompt i has rows offsets[i] to offsets[i + 1].
    tokens: of the prompts. padded: positions really run, pads included, what was shared or copied not.
    batches: of prompts.
    """

    values: Mapping[str, Float32[np.ndarray, "n ..."]]
    offsets: Mapping[str, Int64[np.ndarray, " n_and_one"]]
    tokens: int
    padded: int
    batches: int

    def __getitem__(self, name: str) -> Float32[np.ndarray, "n ..."]:
        if name not in self.values:
            raise KeyError(f"{name!r} was not read; there are {', '.join(self.values)}")
        return self.values[name]

    def row(self, name: str, prompt: int) -> Float32[np.ndarray, "n ..."]:
        """The values of one prompt: [...] for a mean, [positions, ...] for single positions."""
        values: np.ndarray = self[name]
        if not name.endswith(".each"):
            return np.asarray(values[prompt])
        offsets = self.offsets[name.split(".")[0]]
        return np.asarray(values[offsets[prompt] : offsets[prompt + 1]])


def capture(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    reads: Sequence[Read],
    *,
    token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
    batch_tokens: int = 4096,
    plan: Plan | Sequence[Plan] | Change | None = None,
    label: str = "",
) -> Captured:
    """Run prompts through a model once and keep what is asked for.

    Tokens that all prompts begin with, in front of the first group read and of the first blocked position, are run
    once: causality leaves them the same in every prompt.

    Args:
        decoder: the loaded model.
        prompts: any objects with ``input_ids`` and ``groups``.
        reads: what to keep.
        token_ids: whose logits to read: the same for every prompt, or one equally long list per prompt.
        batch_tokens: padded tokens of a batch.
        plan: a block plan, a block plan for each prompt, another change to the run, or None.
        label: names the prompts in errors.

    Raises:
        InputError: nothing to read, an unknown site, a layer the model lacks, a prompt that cannot be run or lacks
            a group, logits without token ids, attention weights from a kernel that does not give them, or a block
            plan that removes nothing of some prompt.
    """
    return sweep(decoder, prompts, {"": plan}, reads, token_ids=token_ids, batch_tokens=batch_tokens, label=label)[""]


@torch.inference_mode()
def sweep(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    plans: Mapping[str, Plan | Sequence[Plan] | Change | None],
    reads: Sequence[Read],
    *,
    token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
    batch_tokens: int = 4096,
    label: str = "",
) -> dict[str, Captured]:
    """Capture the same prompts under several plans, running again only what a plan can change.

    By causality, a row's positions in front of its first blocked query are those of the plain run: their keys and
    values come from its cache, and what is read there is copied from it. So with two plans, in front of the first
    position at which they differ: a plan starts from the plain run, or from a plan named before it, whichever leaves
    less to run. (Values may then differ by rounding from those the plan has alone. Models with sliding windows, whose
    cache forgets, attention weights, and plans that are no block plans run from the common prefix on.)

    Args and errors as for `capture`; plans: by name, None for the plain run.

    Returns:
        What was read, by the name of the plan.
    """
    ranges = _check(decoder, prompts, reads, label)
    chosen = _token_table(decoder, token_ids, len(prompts)) if any(read.site == "logits" for read in reads) else None
    job = _Job(decoder, prompts, reads, ranges, chosen, plans, label)
    reused = len(plans) > 1 and not job.windowed and not any(read.site == "weights" for read in reads)
    starts = job.placed.starts([name for name in plans if job.reusable(name)]) if reused else {}
    prefix, shared = job.prefix()
    # a cached position costs memory in every row, if less than a running one
    batches = plan_batches([length - shared + shared // 4 for length in job.lengths.tolist()], batch_tokens, 0)
    outputs = {name: job.outputs() for name in plans}
    padded = dict.fromkeys(plans, 0)
    sources = {source for source, _ in starts.values()}
    blocks = [name for name, plan in plans.items() if isinstance(plan, Plan | Sequence)]
    by_kernel = (False, [name for name in plans if name not in blocks]), (True, blocks)  # a switch costs a little
    for rows in batches:
        runs: dict[str | None, _Run] = {}
        if starts:
            runs[None] = job.plain(rows, prefix)
        for blocked, names in by_kernel:
            with blocked_kernel(decoder.model) if blocked and names else nullcontext():
                for name in names:
                    if name in starts:
                        source, first = starts[name]
                        run = job.rerun(rows, name, runs[source], first[rows])
                    elif starts and plans[name] is None:
                        run = runs[None]
                    else:
                        run = job.run(rows, name, prefix)
                    if name in sources:
                        runs[name] = run
                    job.store(outputs[name], rows, run.values)
                    padded[name] += run.padded
    tokens = sum(len(prompt.input_ids) for prompt in prompts)
    return {name: Captured(values, job.offsets, tokens, padded[name], len(batches)) for name, values in outputs.items()}


_Values = list[tuple[Read, np.ndarray]]
"""What one batch gave: per read, its rows (or positions) in the batch's order."""


@dataclass(frozen=True)
class _Run:
    """A batch that has been run: what was read, and what another run needs to start from it.

    cache: keys and values: of ``cached`` columns in front (position p at column p), and of those run.
    starts: [rows] the position that was run first.
    """

    values: _Values
    padded: int
    cache: Any
    cached: int
    starts: Int64[np.ndarray, " rows"]
    blocked: Blocked | None

    def before(self, first: Int64[np.ndarray, " rows"]) -> Bool[np.ndarray, "rows columns"]:
        """Which columns of the cache, as far as they are needed, hold each row's positions in front of ``first``."""
        ran = first - self.starts
        columns = np.arange(self.cached + ran.max() if ran.max() > 0 else first.max())
        front = columns < np.minimum(first, self.starts)[:, None]
        here: np.ndarray = front | ((columns >= self.cached) & (columns < self.cached + ran[:, None]))
        return here


@dataclass(frozen=True)
class _Prefix:
    """The cache of the tokens that all prompts begin with."""

    cache: Any
    count: int


class _Job:
    """What the passes of one call share."""

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Prompt],
        reads: Sequence[Read],
        ranges: dict[str, Int64[np.ndarray, "n 2"]],
        chosen: Int64[np.ndarray, "n tokens"] | None,
        plans: Mapping[str, Plan | Sequence[Plan] | Change | None],
        label: str,
    ) -> None:
        self.decoder, self.prompts, self.reads, self.ranges, self.chosen = decoder, prompts, reads, ranges, chosen
        self.plans, self.label = plans, f"{label} prompt".strip()
        self.lengths = np.array([len(prompt.input_ids) for prompt in prompts])
        self.offsets = {
            read.group: np.concatenate([[0], np.cumsum(ranges[read.group][:, 1] - ranges[read.group][:, 0])])
            for read in reads
            if read.each
        }
        self.windowed = forgets(decoder.model)
        blocks = {name: plan for name, plan in plans.items() if isinstance(plan, Plan | Sequence)}
        self.placed = PlacedPlans(prompts, blocks, len(decoder.parts.layers), self.label)

    def outputs(self) -> dict[str, np.ndarray]:
        """Arrays for everything that is read."""
        parts = self.decoder.parts
        shapes = _shapes(parts, int(self.lengths.max()), 0 if self.chosen is None else self.chosen.shape[1])
        values: dict[str, np.ndarray] = {}
        for read in self.reads:
            count = int(self.offsets[read.group][-1]) if read.each else len(self.prompts)
            layers = _layers(read, parts)
            inner = (len(layers), *shapes[read.site]) if layers else shapes[read.site]
            values[read.name] = np.zeros((count, *inner), np.float32)
        return values

    def store(self, outputs: dict[str, np.ndarray], rows: Sequence[int], values: _Values) -> None:
        """Put the values of a batch where its rows belong."""
        for read, part in values:
            # weights: the keys axis is as wide as this batch
            outputs[read.name][self._places(read, rows), ..., : part.shape[-1]] = part

    def _places(self, read: Read, rows: Sequence[int]) -> Int64[np.ndarray, " places"]:
        if not read.each:
            return np.asarray(rows)
        starts = self.offsets[read.group]
        return np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])

    # --- what can be shared

    def first_changed(self, name: str) -> int:
        """The first position that a plan can change in some prompt."""
        match self.plans[name]:
            case None:
                return int(self.lengths.min())
            case Plan() | Sequence() as plan:
                opened = any(one.open_future is not None for one in ([plan] if isinstance(plan, Plan) else plan))
                return 0 if opened else int(self.placed.first(name).min())
            case _:
                return 0

    def prefix(self) -> tuple[_Prefix, int]:
        """What all prompts begin with, in front of every group read; and how much of it every plan leaves alone."""
        common = 0
        if len(self.prompts) > 1 and not (self.windowed and any(read.site == "weights" for read in self.reads)):
            limit = int(self.lengths.min()) - 1
            limit = min(limit, *(int(spans[:, 0].min()) for spans in self.ranges.values()))
            common = self._paying(common_prefix([prompt.input_ids for prompt in self.prompts], limit))
        shared = self._paying(min([common, *map(self.first_changed, self.plans)]))
        count = shared if self.windowed else common  # a cache that forgets cannot be cut off
        if not count:
            return _Prefix(None, 0), 0
        ids = np.asarray(self.prompts[0].input_ids[:count], dtype=np.int64)[None]
        model = self.decoder.model
        cache = empty_cache(model)
        model.base_model(input_ids=torch.from_numpy(ids).to(model.device), past_key_values=cache, use_cache=True)
        return _Prefix(cache, count), shared

    def _paying(self, count: int) -> int:
        """Behind a prefix, attention needs an explicit mask: a short one does not pay."""
        return count if count >= self.lengths.mean() / 8 else 0

    def reusable(self, name: str) -> bool:
        """Whether a plan can start from another run's cache: a block plan that blocks something.

        An empty plan is a control of the kernel, so it has to run.
        """
        plan = self.plans[name]
        if isinstance(plan, Plan):
            return bool(plan.blocks) and plan.open_future is None
        return isinstance(plan, Sequence) and all(bool(one.blocks) and one.open_future is None for one in plan)

    # --- passes

    def plain(self, rows: Sequence[int], prefix: _Prefix) -> _Run:
        """Run without a plan and keep the cache."""
        cache = repeated(prefix.cache, len(rows)) if prefix.count else empty_cache(self.decoder.model)
        return self._pass(rows, None, self.reads, np.full(len(rows), prefix.count), cache)

    def rerun(self, rows: Sequence[int], name: str, source: _Run, first: Int64[np.ndarray, " rows"]) -> _Run:
        """Run each row from its ``first`` position on under a plan; what is read in front is the source's."""
        first = np.minimum(first, self.lengths[rows] - 1)
        changed = [read for read in self.reads if (self.ranges[read.group][rows][:, 1] > first).any()]
        for read in changed:
            first = np.minimum(first, self.ranges[read.group][rows][:, 0])
        run = self._pass(rows, name, changed, first, None, source)
        return replace(run, values=run.values + [(read, part) for read, part in source.values if read not in changed])

    def run(self, rows: Sequence[int], name: str, prefix: _Prefix) -> _Run:
        """Run from the common prefix on, as far as the plan leaves it alone."""
        count = self._paying(min(prefix.count, self.first_changed(name)))
        cache = (
            repeated(prefix.cache if count == prefix.count else begun(prefix.cache, count), len(rows))
            if count
            else None
        )
        return self._pass(rows, name, self.reads, np.full(len(rows), count), cache)

    def _pass(
        self,
        rows: Sequence[int],
        name: str | None,
        reads: Sequence[Read],
        starts: Int64[np.ndarray, " rows"],
        cache: Any,
        source: _Run | None = None,
    ) -> _Run:
        """One forward pass over each row's positions from its start on, their predecessors in a cache or the source's.

        Without a change that wants the engine's left-padded batches, rows are padded on the right: causality hides
        the pads, so that the plain run needs no mask, and positions are columns, also for windows and prefixes. Where
        rows start at different positions, their cache has holes, which the mask hides (no windows then).
        """
        decoder, device = self.decoder, self.decoder.model.device
        ids = [self.prompts[row].input_ids for row in rows]
        plan = None if name is None else self.plans[name]
        inputs: dict[str, Any] = {}
        changed: AbstractContextManager[Any] = nullcontext()
        blocked: Blocked | None = None
        before = np.ones((len(rows), int(starts.max())), bool) if source is None else source.before(starts)
        if source is not None and before.shape[1]:
            cache = begun(source.cache, before.shape[1])
        if plan is None or isinstance(plan, Plan | Sequence):
            counts = self.lengths[rows] - starts
            table = np.zeros((len(rows), int(counts.max())), np.int64)
            for at, prompt in enumerate(ids):
                table[at, : counts[at]] = prompt[starts[at] :]
            shift = -starts
            inputs["input_ids"] = torch.from_numpy(table).to(device)
            if plan is not None:
                assert name is not None
                plans = plan if isinstance(plan, Plan) else [plan[row] for row in rows]
                groups, lengths = [self.prompts[row].groups for row in rows], [len(prompt) for prompt in ids]
                layers, placed = len(decoder.parts.layers), self.placed.positions(name, rows)
                blocked = Blocked(plans, groups, lengths, layers, device, self.label, rows, placed)
                if source is not None and source.blocked is not None:
                    blocked.inherit(source.blocked, torch.from_numpy(starts - source.starts).to(device))
                changed = blocking(decoder.model, blocked)
                # the plan's kernel takes the position of a column from the mask, and counts no edges of pads
                column = np.arange(table.shape[1])
                real = np.concatenate([before, column < counts[:, None]], axis=1)
                places = np.minimum(starts[:, None] + column, self.lengths[rows][:, None] - 1)
                inputs["attention_mask"] = torch.from_numpy(real.astype(np.int64)).to(device)
                inputs["position_ids"] = torch.from_numpy(places).to(device)
        else:
            batch = Batch.of(ids, device)
            shift = np.asarray(batch.offsets)
            changed = plan.applied(decoder, batch, rows)
            inputs |= {"input_ids": batch.ids, "attention_mask": batch.mask, "position_ids": batch.positions()}
        spans = {read.group: self.ranges[read.group][rows] + shift[:, None] for read in reads}
        chosen = None if self.chosen is None else torch.from_numpy(self.chosen[rows]).to(device)
        narrow = None
        # GPT-2 gives what leaves its last layer the shape of its input
        config = decoder.model.config
        if plan is None and config._attn_implementation in ("sdpa", "eager") and config.model_type != "gpt2":
            narrow = _Narrow.of(reads, spans, inputs["input_ids"].shape[1], device)
        taps = list(_taps(decoder.parts, reads, spans, shift, chosen, device, narrow))
        with ExitStack() as stack:
            stack.enter_context(changed)
            if narrow is not None:
                stack.enter_context(last_layer_at(decoder.parts.layers[-1], narrow.columns))
                cache = Passing() if cache is None else cache
            for tap in taps:
                stack.enter_context(tap.listening())
            # without the output matrix: its rows are used one by one
            final = decoder.model.base_model(
                **inputs, past_key_values=cache, use_cache=cache is not None
            ).last_hidden_state
        if blocked is not None:
            blocked.check()
        values: _Values = []
        for tap in taps:
            tap.finish(final)
            values += tap.split()
        return _Run(values, inputs["input_ids"].numel(), cache, before.shape[1], starts, blocked)


@dataclass(frozen=True)
class _Narrow:
    """The columns of each row that are read: the only ones at which the last layer has to be run.

    columns: filled up with the last one. place: where each column is among them (only those read count).
    """

    columns: Int[Tensor, "rows read"]
    place: Int[Tensor, "rows seq"]

    @classmethod
    def of(cls, reads: Sequence[Read], spans: Ranges, width: int, device: torch.device) -> _Narrow | None:
        """None where it does not pay, or where attention weights are read (which are not narrowed)."""
        column = np.arange(width)
        bounds = [np.asarray(one)[:, :, None] for one in spans.values()]
        wanted = np.any([(column >= one[:, 0]) & (column < one[:, 1]) for one in bounds], axis=0)
        counts = wanted.sum(1)
        if counts.max() > NARROW * width or any(read.site == "weights" for read in reads):
            return None
        order = np.argsort(~wanted, axis=1, kind="stable")[:, : counts.max()]
        columns = np.take_along_axis(order, np.minimum(np.arange(counts.max()), counts[:, None] - 1), axis=1)
        place = np.maximum(wanted.cumsum(1) - 1, 0)
        return cls(torch.from_numpy(columns).to(device), torch.from_numpy(place).to(device))


# --- taps: what listens during one forward pass ---------------------------------------------------------------------


class _Tap:
    """Reads of one site with the same layers, all means or all single positions: one gather per layer for them."""

    def __init__(
        self, parts: Parts, reads: Sequence[Read], taking: Selection | Positions, last: Selection | Positions
    ) -> None:
        """``last``: ``taking``, in what leaves the last layer."""
        self.parts, self.reads, self.taking, self.last = parts, reads, taking, last
        self.layers = _layers(reads[0], parts)
        self.kept: list[Tensor] = []

    def listening(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def finish(self, final: Float[Tensor, "rows seq d"]) -> None:
        """Take what only exists after the pass."""

    def keep(self, _: int, hidden: Float[Tensor, "rows seq d"]) -> None:
        self.kept.append(self.take(hidden))

    def take(self, hidden: Float[Tensor, "rows seq d"]) -> Float[Tensor, "kept d"]:
        """The vectors (or their means) that are kept, in float32, of the next one of the tap's layers."""
        depth = len(self.parts.layers) - (self.reads[0].site != "residual")
        taking = self.last if self.layers and self.layers[len(self.kept)] == depth else self.taking
        return taking.reduce(taking.gather(hidden))

    def split(self) -> Iterator[tuple[Read, np.ndarray]]:
        """The values of each read, for the rows of the batch in their order."""
        kept = (torch.stack(self.kept, dim=1) if self.layers else self.kept[0]).cpu()
        self.kept = []
        parts = self.taking.split(kept)
        for read, part in zip(self.reads, parts, strict=True):
            yield read, part.numpy()


class _Residual(_Tap):
    """The embedding and the stream after each layer."""

    def listening(self) -> AbstractContextManager[Any]:
        stack = ExitStack()
        if 0 in self.layers or not self.layers:
            stack.enter_context(hooks.inputs(self.parts.layers[0], partial(self.keep, 0)))
        after = [self.parts.layers[layer - 1] for layer in self.layers if layer > 0]
        stack.enter_context(hooks.outputs(after, self.keep))
        return stack


class _Contribution(_Tap):
    """What the attention blocks or the MLPs add."""

    def listening(self) -> AbstractContextManager[Any]:
        site = self.reads[0].site
        modules = self.parts.attention_contribution if site == "attention" else self.parts.mlp_contribution
        return hooks.outputs([modules[layer] for layer in self.layers], self.keep)


class _Heads(_Tap):
    """Each head's contribution: averaged in the heads' own width first, projected after."""

    def listening(self) -> AbstractContextManager[Any]:
        stack = ExitStack()
        for layer in self.layers:
            projection = self.parts.projection[layer]
            handle = projection.register_forward_hook(partial(self._see, layer))
            stack.callback(handle.remove)
        return stack

    def _see(self, layer: int, projection: nn.Module, inputs: tuple[Tensor, ...], projected: Tensor) -> None:
        matrices = head_matrices(projection, self.parts.heads)
        norm = self.parts.attention_contribution[layer]
        frozen = None if norm is self.parts.attention[layer] else FrozenNorm.of(norm, self.parts.norm)
        # the scale differs by position, so it belongs inside the mean
        heads = inputs[0] if frozen is None else inputs[0] * frozen.scale(projected)
        kept = self.take(heads).reshape(-1, *matrices.shape[:2])
        added = torch.einsum("khw,hwd->khd", kept, matrices)
        self.kept.append(added if frozen is None else frozen.linear(added))


class _Weights(_Tap):
    """Attention weights of the query positions, keys moved to the tokens of each prompt."""

    def __init__(
        self, parts: Parts, reads: Sequence[Read], taking: Selection | Positions, pads: Int[Tensor, " rows"]
    ) -> None:
        super().__init__(parts, reads, taking, taking)
        self.pads = pads

    def listening(self) -> AbstractContextManager[Any]:
        stack = ExitStack()
        for layer in self.layers:
            stack.callback(self.parts.attention[layer].register_forward_hook(self._see).remove)
        return stack

    def _see(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if weights is None:
            raise InputError(f"this {type(module).__name__} gives no attention weights; load with attention: eager")
        weights = weights.transpose(1, 2)  # [rows, queries, heads, keys]
        width = weights.shape[-1]
        # to the left by each row's pads; what would come in from the right is zero
        columns = torch.arange(width, device=weights.device) + self.pads[:, None]
        moved = weights.gather(3, columns.clamp_max(width - 1)[:, None, None].expand(weights.shape))
        moved = moved.masked_fill((columns >= width)[:, None, None], 0.0)
        self.kept.append(self.take(moved.flatten(2)).view(-1, *moved.shape[2:]))


class _Logits(_Tap):
    """Logits of a few tokens, from the final norm's output and the rows of the output matrix for them."""

    def __init__(
        self,
        parts: Parts,
        reads: Sequence[Read],
        taking: Selection | Positions,
        last: Selection | Positions,
        ids: Int[Tensor, "rows tokens"],
    ) -> None:
        super().__init__(parts, reads, taking, last)
        self.ids = ids

    def finish(self, final: Float[Tensor, "rows seq d"]) -> None:
        # the mean of logits; with soft-capping it is not the logit of the mean, so the cap comes first
        hidden, ids = self.last.gather(final), self.ids[self.last.rows]
        self.kept.append(self.last.reduce(token_logits(self.parts, hidden, ids)))


def token_logits(
    parts: Parts, normed: Float[Tensor, "positions d"], ids: Int[Tensor, "positions tokens"]
) -> Float[Tensor, "positions tokens"]:
    """Logits of given tokens at vectors behind the final norm; only these rows of the output matrix are touched."""
    rows: Tensor = parts.head.weight  # type: ignore[assignment]
    unique, inverse = torch.unique(ids, return_inverse=True)
    logits = (normed.float() @ rows[unique].float().T).gather(1, inverse)
    bias = getattr(parts.head, "bias", None)
    if isinstance(bias, Tensor):
        logits = logits + bias.float()[ids]
    logits = logits * parts.logit_scale
    return logits if parts.softcap is None else parts.softcap * torch.tanh(logits / parts.softcap)


def _taps(
    parts: Parts,
    reads: Sequence[Read],
    spans: Ranges,
    shift: Int64[np.ndarray, " rows"],
    chosen: Int[Tensor, "rows tokens"] | None,
    device: torch.device,
    narrow: _Narrow | None,
) -> Iterator[_Tap]:
    """What listens in one pass: spans and shift (column of the first token) are those of its batch."""
    made: dict[tuple[bool, tuple[str, ...]], Selection | Positions] = {}

    def key(read: Read) -> tuple[str, bool, tuple[int, ...]]:
        return read.site, read.each, _layers(read, parts)

    for (site, each, _), grouped in itertools.groupby(sorted(reads, key=key), key=key):
        same = list(grouped)
        names = (each, tuple(read.group for read in same))
        if names not in made:
            chosen_spans = {read.group: spans[read.group] for read in same}
            made[names] = Positions.of(chosen_spans, device) if each else Selection.of(chosen_spans, device)
        taking = made[names]
        last = taking if narrow is None else taking.placed(narrow.place)
        match site:
            case "embedding" | "residual":
                yield _Residual(parts, same, taking, last)
            case "attention" | "mlp":
                yield _Contribution(parts, same, taking, last)
            case "head":
                yield _Heads(parts, same, taking, last)
            case "weights":
                yield _Weights(parts, same, taking, torch.from_numpy(shift).clamp_min(0).to(device))
            case _:
                assert chosen is not None
                yield _Logits(parts, same, taking, last, chosen)


# --- checks ---------------------------------------------------------------------------------------------------------


def _layers(read: Read, parts: Parts) -> tuple[int, ...]:
    """Entries of the layer axis, in rising order; none for sites without that axis."""
    if read.site in ("embedding", "logits"):
        return ()
    depth = len(parts.layers) + (read.site == "residual")
    return tuple(range(depth)) if read.layers is None else tuple(sorted(set(read.layers)))


def _shapes(parts: Parts, longest: int, tokens: int) -> dict[Site, tuple[int, ...]]:
    width = parts.hidden_size
    return {
        "embedding": (width,),
        "residual": (width,),
        "attention": (width,),
        "mlp": (width,),
        "head": (parts.heads, width),
        "weights": (parts.heads, longest),
        "logits": (tokens,),
    }


def _check(
    decoder: Decoder, prompts: Sequence[Prompt], reads: Sequence[Read], label: str
) -> dict[str, Int64[np.ndarray, "n 2"]]:
    """The half-open token range of each group read, by prompt; refuses what cannot be read, before any work."""
    label = f"{label} " if label else ""
    parts, config = decoder.parts, decoder.model.config
    if not prompts or not reads:
        raise InputError(f"{label}no {'prompts' if not prompts else 'reads'}: nothing to read")
    for read in reads:
        if read.site not in get_args(Site):
            raise InputError(f"{label}unknown site {read.site!r}; there are {', '.join(get_args(Site))}")
        depth = len(parts.layers) + (read.site == "residual")
        absent = [layer for layer in read.layers or () if not 0 <= layer < depth]
        if absent or (read.layers is not None and (not read.layers or not _layers(read, parts))):
            raise InputError(f"{label}{read.name}: layers {list(read.layers or ())}, expected some of 0 to {depth - 1}")
    names = [read.name for read in reads]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"{label}{min(twice)} is asked for twice")
    longest = getattr(config, "max_position_embeddings", None)
    ranges = {read.group: np.empty((len(prompts), 2), np.int64) for read in reads}
    for row, prompt in enumerate(prompts):
        ids, where = np.asarray(prompt.input_ids), f"{label}prompt {row}"
        if not len(ids):
            raise InputError(f"{where} has no tokens")
        if ids.min() < 0 or ids.max() >= config.vocab_size:
            raise InputError(f"{where} has token ids outside the model's vocabulary of {config.vocab_size}")
        if longest is not None and len(ids) > longest:
            raise InputError(f"{where} has {len(ids)} tokens, more than the {longest} positions of the model")
        for group, spans in ranges.items():
            if group not in prompt.groups:
                raise InputError(f"{where} has no token group {group}, only {', '.join(prompt.groups.names)}")
            span = prompt.groups[group]
            if not 0 <= span.start < span.stop <= len(ids):
                raise InputError(f"{where}: {group} is [{span.start}, {span.stop}) of {len(ids)} tokens")
            spans[row] = span.start, span.stop
    return ranges


def _token_table(
    decoder: Decoder, token_ids: Sequence[int] | Sequence[Sequence[int]] | None, count: int
) -> Int64[np.ndarray, "n tokens"]:
    if token_ids is None or not len(token_ids):
        raise InputError("logits are read for given tokens only: token_ids is missing")
    try:
        table = np.asarray(token_ids, dtype=np.int64)
    except (TypeError, ValueError):  # ragged
        table = np.empty(0, dtype=np.int64)
    if table.ndim == 1:
        table = np.broadcast_to(table, (count, table.size)).copy()
    if table.ndim != 2 or len(table) != count or not table.size:
        raise InputError(f"token_ids must be one list of ids, or {count} lists of the same length, one per prompt")
    vocabulary = decoder.model.config.vocab_size
    if table.min() < 0 or table.max() >= vocabulary:
        raise InputError(f"token_ids holds ids outside the model's vocabulary of {vocabulary}")
    return table
