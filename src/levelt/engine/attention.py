"""Blocking attention: a plan's edges are taken out of the mask that the model itself made.

Two attention implementations are registered with transformers, `levelt_blocked_sdpa` and `levelt_blocked_eager`
(public API: `AttentionInterface`, `AttentionMaskInterface`). They are the model's own kernels, with a mask that is
always materialised: the model's mask (causality, padding, sliding window) *and not* the plan's edges. So nothing that
a mask does is lost, and the empty plan runs the same kernel as any other.

Positions are found from the two-dimensional attention mask, not from offsets: a token's position is the number of
real tokens before it. Left or right padding, a prefix cache and cached decoding therefore need nothing of their own.
Keys are counted from the right, because sliding caches drop old ones.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from levelt.engine.plans import Block, Plan, Ranges, covers
from levelt.files import InputError
from levelt.models.selfcheck import TOLERANCES
from levelt.prompts.spans import Span, TokenGroups

BLOCKED = {"sdpa": "levelt_blocked_sdpa", "eager": "levelt_blocked_eager"}
"""Ordinary kernel -> its blocked twin. The name contains sdpa so that transformers refuses it where sdpa is wrong."""


class Blocked:
    """Plans in force on one batch, a plan for each row, and what they took away.

    removed: [rows, layers] edges that causality, padding and window allowed and the row's plan removed, over all
        forward passes in which the row was counted.
    kept: [rows, layers] positions that would have attended to nothing, and kept themselves.
    counted: [rows] rows whose edges count, or None for all: a row that has ended its answer runs on as padding.
    """

    def __init__(
        self,
        plans: Plan | Sequence[Plan],
        groups: Sequence[TokenGroups],
        lengths: Sequence[int],
        layers: int,
        device: torch.device,
        label: str = "row",
        rows: Sequence[int] | None = None,
        placed: Sequence[tuple[tuple[Ranges, Ranges], ...]] | None = None,
    ) -> None:
        """Find the positions of the plans' groups in each row.

        Args:
            plans: what to block: one plan, or one for each row.
            groups: token groups of each row, in positions of its own prompt.
            lengths: tokens of each row's prompt.
            layers: layers of the model.
            device: where it runs.
            label: what a row is called in errors, with ``rows``, the numbers of the rows (default 0, 1, ...).
            placed: what `check_plan` says of each row, where that is known.

        Raises:
            InputError: see `check_plan`.
        """
        self.plans = (plans,) * len(lengths) if isinstance(plans, Plan) else tuple(plans)
        self._names = [f"{label} {row}" for row in (rows if rows is not None else range(len(lengths)))]
        positions: dict[Block, list[tuple[Ranges, Ranges]]] = {
            block: [((), ())] * len(lengths) for plan in self.plans for block in plan.blocks
        }
        self._prompt_queries = []  # whether a row's plan has queries in the prompt itself
        for row, (plan, group, length) in enumerate(zip(self.plans, groups, lengths, strict=True)):
            found = placed[row] if placed else check_plan(plan, group, length, layers, self._names[row])
            for block, pair in zip(plan.blocks, found, strict=True):
                positions[block][row] = pair
            self._prompt_queries.append(any(queries and queries[0][0] < length for queries, _ in found))
        self._bounds = [
            tuple(_bounds([pair[side] for pair in pairs], device) for side in (0, 1)) for pairs in positions.values()
        ]
        opened = [tuple(_opens(plan, layer) for plan in self.plans) for layer in range(layers)]
        self._opened = {key: torch.tensor(key, device=device)[:, None, None] for key in opened if any(key)}
        self._layers = [
            (tuple(i for i, block in enumerate(positions) if covers(block.layers, layer)), opened[layer])
            for layer in range(layers)
        ]
        self.removed = torch.zeros((len(lengths), layers), dtype=torch.int64, device=device)
        self.kept = torch.zeros((len(lengths), layers), dtype=torch.int64, device=device)
        self.counted: Bool[Tensor, " rows"] | None = None
        self._positions: Int[Tensor, "rows columns"] | None = None
        self._masks: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._first_pass: dict[int, tuple[Int[Tensor, "rows q"], Int[Tensor, "rows q"]]] = {}

    def inherit(self, other: Blocked, columns: Int[Tensor, " rows"]) -> None:
        """Count what another plan took away at the first columns of each row, in its first pass.

        For a run that starts behind these columns, from the other's cache: they lost the same edges under both plans.
        """
        for layer, counts in other._first_pass.items():
            for total, by_query in zip((self.removed, self.kept), counts, strict=True):
                here = torch.arange(by_query.shape[1], device=by_query.device) < columns[:, None]
                total[:, layer] += (by_query * here).sum(1)

    def begin(self, positions: Int[Tensor, "rows columns"]) -> None:
        """A forward pass begins: the position of every column so far, pads -1."""
        self._positions = positions
        self._masks.clear()

    def mask(self, layer: int, mask: Bool[Tensor, "rows 1 q k"]) -> Bool[Tensor, "rows 1 q k"]:
        """The model's mask of a layer without the plan's edges, which are counted."""
        blocks, opened = self._layers[layer]
        key = (id(mask), blocks, opened)
        if key not in self._masks:  # most layers share one; the entry keeps the tensor, and so its id, alive
            combined, removed, kept = self._combine(mask, blocks, opened)
            self._masks[key] = combined, removed, kept, (removed.sum(1), kept.sum(1)), mask
        mask, removed, kept, totals, _ = self._masks[key]
        self.removed[:, layer] += totals[0]
        self.kept[:, layer] += totals[1]
        self._first_pass.setdefault(layer, (removed, kept))
        return mask

    def _combine(
        self, mask: Bool[Tensor, "rows 1 q k"], blocks: tuple[int, ...], opened: tuple[bool, ...]
    ) -> tuple[Bool[Tensor, "rows 1 q k"], Int[Tensor, "rows q"], Int[Tensor, "rows q"]]:
        if self._positions is None or mask is None or mask.dtype != torch.bool:
            raise RuntimeError("the blocked attention kernel got a mask that levelt did not make")
        count, keys = mask.shape[-2:]
        query_at, key_at = self._positions[:, -count:], self._positions[:, -keys:]
        allowed = mask[:, 0]
        if opened in self._opened:
            future = (key_at[:, None] > query_at[..., None]) & (query_at[..., None] >= 0)
            allowed = allowed | (future & self._opened[opened])
        left, live = allowed, torch.zeros(query_at.shape, dtype=torch.int64, device=mask.device)
        if blocks:
            edges = [
                [_inside(at, by) for at, by in zip((query_at, key_at), self._bounds[i], strict=True)] for i in blocks
            ]
            blocked = functools.reduce(
                torch.logical_or, (queries[..., None] & wanted[:, None] for queries, wanted in edges)
            )
            left = allowed & ~blocked
            live = (allowed ^ left).sum(2)
        nothing = ~left.any(-1)
        # A row of a softmax must not be empty: sdpa and eager would give zeros, NaN, or the mean of every key, the
        # future's too. It keeps itself; pads as well, whose NaN on some kernels would spread.
        if nothing.any():
            itself = torch.arange(keys - count, keys, device=mask.device)
            left = left | (nothing[..., None] & (torch.arange(keys, device=mask.device) == itself[:, None]))
        kept = (nothing & (query_at >= 0)).long()
        if self.counted is not None:
            live, kept = live * self.counted[:, None], kept * self.counted[:, None]
        return left[:, None], live, kept

    def check(self) -> None:
        """Refuse a plan that changed nothing.

        Called once the prompt has been run. A row whose queries are all generated positions is left alone: it may
        end at once and have none.

        Raises:
            InputError: a row's plan has blocks, and removed no edge.
        """
        if not any(self._prompt_queries):
            return
        for row in (self.removed.sum(1) == 0).nonzero()[:, 0].tolist():
            if self._prompt_queries[row]:
                raise InputError(f"{self._names[row]}: {_void(self.plans[row])} inside the model's attention windows")


def check_plan(
    plan: Plan, groups: TokenGroups, length: int, layers: int, where: str
) -> tuple[tuple[Ranges, Ranges], ...]:
    """The positions (queries, keys) of each block of a plan in one prompt.

    Raises:
        InputError: a group is missing, a layer does not exist, or causality alone makes the plan void.
    """
    try:
        return plan_positions(plan, groups, length, layers)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


@lru_cache(maxsize=1 << 14)  # a sweep asks several times, and prompts of one layout and length are alike
def plan_positions(plan: Plan, groups: TokenGroups, length: int, layers: int) -> tuple[tuple[Ranges, Ranges], ...]:
    """As `check_plan`, without the prompt's name in errors."""
    for bounds in [*(block.layers for block in plan.blocks), *([plan.open_future] if plan.open_future else [])]:
        if max(bounds[0], bounds[1] or 0) >= layers:
            raise InputError(f"the plan names layers {bounds[0]}..{bounds[1]}, but the model's are 0..{layers - 1}")
    found = tuple((b.queries.ranges(groups, length), b.keys.ranges(groups, length)) for b in plan.blocks)
    if found and not any(
        queries and keys and (plan.open_future is not None or queries[-1][1] - 1 >= keys[0][0])
        for queries, keys in found
    ):
        raise InputError(_void(plan))
    return found


def _void(plan: Plan) -> str:
    block = plan.blocks[0]
    return f"the plan removes nothing: no position of {block.queries} could have attended to {block.keys}"


def _opens(plan: Plan, layer: int) -> bool:
    return plan.open_future is not None and covers(plan.open_future, layer)


def _bounds(rows: Sequence[Ranges], device: torch.device) -> Int[Tensor, "rows ranges 2"]:
    """Ranges of each row as one tensor; rows with fewer are filled up with empty ranges."""
    table = np.zeros((len(rows), max((len(row) for row in rows), default=0), 2), dtype=np.int64)
    for index, row in enumerate(rows):
        for slot, (start, stop) in enumerate(row):
            table[index, slot] = start, stop
    return torch.from_numpy(table).to(device)


def _inside(at: Int[Tensor, "rows columns"], bounds: Int[Tensor, "rows ranges 2"]) -> Bool[Tensor, "rows columns"]:
    starts, stops = bounds[:, None, :, 0], bounds[:, None, :, 1]
    return ((at[..., None] >= starts) & (at[..., None] < stops)).any(-1)


_IN_FORCE: ContextVar[Blocked | None] = ContextVar("levelt_plan", default=None)
_SWITCHED: ContextVar[PreTrainedModel | None] = ContextVar("levelt_switched", default=None)


def in_force() -> Blocked | None:
    """What is blocked at the moment, or None."""
    return _IN_FORCE.get()


@contextmanager
def blocked_kernel(model: PreTrainedModel) -> Iterator[None]:
    """Switch to the blocked twin of the model's kernel, and back afterwards, whatever happens.

    Inside, `blocking` need not switch for every pass; a pass without a plan is an error.

    Raises:
        InputError: the model's kernel has no blocked twin.
    """
    ordinary = model.config._attn_implementation
    if _SWITCHED.get() is model:
        yield
        return
    if ordinary not in BLOCKED:
        raise InputError(f"attention cannot be blocked with the {ordinary} kernel; choose one of {', '.join(BLOCKED)}")
    if ordinary == "eager" and getattr(model.config, "reorder_and_upcast_attn", False):
        raise InputError("attention cannot be blocked in a GPT-2 with reorder_and_upcast_attn and the eager kernel")
    token = _SWITCHED.set(model)
    try:
        model.set_attn_implementation(BLOCKED[ordinary])
        if model.config._attn_implementation != BLOCKED[ordinary]:
            raise InputError(f"attention cannot be blocked in {model.config.model_type} models: no attention interface")
        yield
    finally:
        model.set_attn_implementation(ordinary)
        _SWITCHED.reset(token)


@contextmanager
def blocking(model: PreTrainedModel, blocked: Blocked) -> Iterator[Blocked]:
    """Run the model with a plan in force; the ordinary kernel is back afterwards, whatever happens.

    Raises:
        InputError: the model's kernel has no blocked twin.
    """
    if _IN_FORCE.get() is not None:
        raise RuntimeError("a plan is already in force; put all blocks into one plan")
    with blocked_kernel(model):
        token = _IN_FORCE.set(blocked)
        try:
            yield blocked
        finally:
            _IN_FORCE.reset(token)


@torch.inference_mode()
def check_blocking(model: PreTrainedModel, layers: int, tokens: int = 5) -> None:
    """Check on a few random tokens that blocking works in this model and with this kernel.

    The empty plan gives the plain run's logits; blocking the last position from the one before it changes its logits,
    and no other position's; every layer has lost one edge.

    Raises:
        InputError: one of these does not hold, so that no intervention on this model could be trusted.
    """
    name = f"{model.config.model_type} model, {model.config._attn_implementation} kernel: blocking attention failed"
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.device)
    groups = TokenGroups((Span("key", tokens - 2, tokens - 1), Span("decision", tokens - 1, tokens)))

    def logits(plan: Plan | None) -> Float[Tensor, "tokens vocabulary"]:
        at = torch.arange(tokens, device=model.device)[None]
        blocked = Blocked(plan or Plan(), [groups], [tokens], layers, model.device)
        with blocking(model, blocked) if plan is not None else nullcontext():
            whole: Tensor = model(ids, attention_mask=torch.ones_like(ids), position_ids=at, use_cache=False).logits[0]
        expected = len(plan.blocks) if plan else 0
        if plan is not None and blocked.removed.tolist() != [[expected] * layers]:
            raise InputError(f"{name}: {expected} edges should go in each layer, {blocked.removed[0].tolist()} did")
        return whole.float()

    plain, nothing, one = logits(None), logits(Plan()), logits(Plan((Block.of("decision", "key"),)))
    scale = float(plain.abs().max())
    if not float((nothing - plain).abs().max()) <= TOLERANCES[model.dtype] * scale:
        raise InputError(f"{name}: the empty plan changes the logits by {float((nothing - plain).abs().max()):.1e}")
    if not torch.equal(one[:-1], nothing[:-1]):
        raise InputError(f"{name}: positions in front of the blocked one change")
    if torch.equal(one[-1], nothing[-1]):
        raise InputError(f"{name}: a block has no effect")


# --- what transformers calls --------------------------------------------------------------------------------------


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    attention_mask: Bool[Tensor, "rows columns"] | None = None,
    **others: Any,
) -> Bool[Tensor, "rows 1 q k"]:
    """The model's own boolean mask, always materialised; on the way, learn which position each column is."""
    blocked = _IN_FORCE.get()
    if blocked is None:
        raise RuntimeError("the blocked attention kernel runs only inside `blocking`")
    device = others.get("device", "cpu")
    if attention_mask is None:
        total = int(q_offset) + q_length
        positions = torch.arange(total, device=device).expand(batch_size, -1)
    else:
        real = attention_mask.to(device=device, dtype=torch.int64)
        positions = torch.where(real > 0, real.cumsum(1) - 1, -1)
    blocked.begin(positions)
    wanted = others | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    made: Tensor = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        attention_mask=attention_mask,
        **wanted,
    )
    return made


def _without_edges(module: nn.Module, mask: Bool[Tensor, "rows 1 q k"]) -> Bool[Tensor, "rows 1 q k"]:
    blocked = _IN_FORCE.get()
    if blocked is None:
        raise RuntimeError("the blocked attention kernel runs only inside `blocking`")
    layer: Any = module.layer_idx
    return blocked.mask(layer, mask)


def _sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **others: Any
) -> tuple[Tensor, Tensor | None]:
    if others.get("softcap") is not None:
        raise InputError("attention soft-capping has no sdpa kernel (some transformers leave it out); choose eager")
    mask = _without_edges(module, attention_mask)
    if key.shape[1] == 1 < query.shape[1]:
        # transformers would expand the single head with stride 0, which a CUDA kernel gets wrong (pytorch#191937)
        heads = (-1, query.shape[1], -1, -1)
        mixed = F.scaled_dot_product_attention(
            query,
            key.expand(heads).contiguous(),
            value.expand(heads).contiguous(),
            attn_mask=mask,
            dropout_p=others.get("dropout", 0.0),
            scale=others.get("scaling"),
        )
        return mixed.transpose(1, 2).contiguous(), None
    run: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return run(module, query, key, value, mask, **others)


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **others: Any
) -> tuple[Tensor, Tensor | None]:
    mask = _without_edges(module, attention_mask)
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    added = torch.where(mask, zero, torch.finfo(query.dtype).min)  # a boolean would be added as 0 and 1
    run: Callable[..., tuple[Tensor, Tensor | None]] = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    return run(module, query, key, value, added, **others)


for _name, _function in ((BLOCKED["sdpa"], _sdpa), (BLOCKED["eager"], _eager)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, _mask)
