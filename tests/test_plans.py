"""Block plans: what a selector means, and that the blocked kernels do exactly that and nothing else, in every family.

Oracles: masks written out by hand, one Python loop per edge; the plain kernel with such a mask put in by a hook
(route A); physically deleted tokens; Hugging Face's own states. Tolerance 1e-5 of the largest value, float32, where
batching or caching changes the order of additions; exactly 0 on the same kernel with the same mask.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from levelt.engine import attention
from levelt.engine.attention import BLOCKED, Blocked, blocking, check_blocking
from levelt.engine.plans import (
    CONDITIONS,
    Block,
    Plan,
    Released,
    Selector,
    condition,
    window,
)
from levelt.files import InputError
from levelt.models.anatomy import locate
from levelt.prompts.spans import Span, TokenGroups
from models_local import FAMILIES, kernel, ragged, tiny
from test_engine import NEW, OPTIONS, Prompt, decoder, gap, read

TOLERANCE = 1e-5
LAYERS = 3
WINDOW = 6
NOTHING = Plan()
AS_RELEASED = {
    name.removesuffix("_as_released"): plan for name, plan in CONDITIONS.items() if name.endswith("released")
}
RIGHT = {name: plan for name, plan in CONDITIONS.items() if not name.endswith("released")}
WINDOWED = {"mistral": (0, 1, 2), "olmo3": (0, 2), "gemma2": (0, 2), "gemma3_text": (0, 2)}
"""Layers with a sliding window, which is 6 wide (see models_local)."""
FULL = [family for family in FAMILIES if family not in WINDOWED]


def groups(length: int, instruction: tuple[int, int], sample: tuple[int, int], system: bool = False) -> TokenGroups:
    spans = [Span("system", 1, 2)] if system else []
    spans += [Span("instruction", *instruction), Span("sample", *sample), Span("decision", length - 1, length)]
    return TokenGroups(tuple(spans))


LENGTHS = [23, 13, 17, 14, 12, 26, 14, 12]
PROMPTS = [
    Prompt(ids, groups(len(ids), (2 + row % 2, 5 + row % 2), (7 + row % 2, len(ids) - 2)))
    for row, ids in enumerate(ragged(LENGTHS, seed=3))
]
TO_ALL = CONDITIONS["block_instruction_to_all"]
FROM_NEIGHBOURS = Plan((Block.of("after:instruction", "instruction + between:instruction:sample"),))
"""Live in every family, also through windows."""


# --- what a plan says ---------------------------------------------------------------------------------------------


def positions(selector: str, layout: TokenGroups, length: int, generated: int = 4) -> set[int]:
    found = Selector(selector).ranges(layout, length)
    assert all(a < b for a, b in found) and all(a[1] < b[0] for a, b in pairwise(found))
    return {p for start, stop in found for p in range(start, min(stop, length + generated))}


LAYOUT = groups(12, (2, 5), (7, 10), system=True)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("instruction", {2, 3, 4}),
        ("decision", {11}),
        ("output", {12, 13, 14, 15}),
        ("all", set(range(16))),
        ("after:instruction", set(range(5, 16))),
        ("before:sample", set(range(7))),
        ("from:sample", set(range(7, 16))),
        ("between:instruction:sample", {5, 6}),
        ("between:sample:decision", {10}),
        ("between:sample:instruction", set()),
        ("after:instruction - decision - output", set(range(5, 11))),
        ("after:instruction - sample", {5, 6, *range(10, 16)}),
        ("instruction + sample", {2, 3, 4, 7, 8, 9}),
        ("all - all + decision", {11}),
        ("sample[1:0]", {8, 9}),
        ("sample[1:1]", {8, 9, 10}),
        ("sample[3:0]", set()),
        ("after:sample[1:1]", set(range(11, 16))),
        ("between:instruction[0:1]:sample[1:0]", {6, 7}),
        ("demonstration_0? + decision", {11}),
        ("after:demonstration_0?", set()),
        ("system? + between:system?:instruction + instruction", {1, 2, 3, 4}),
        ("after:output", set()),
        ("before:output", set(range(12))),
    ],
)
def test_selectors(selector: str, expected: set[int]):
    assert positions(selector, LAYOUT, 12) == expected


@pytest.mark.parametrize(
    "text", ["", "After:sample", "sample -", "sample sample", "- sample", "between:a", "sample[1]"]
)
def test_what_is_not_a_selector(text: str):
    with pytest.raises(InputError, match="not a selection of positions"):
        Selector(text)


TERMS = ["all", "instruction", "sample", "decision", "output", "after:instruction", "before:sample", "from:decision"]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(TERMS)), min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
def test_selectors_are_set_algebra(terms: list[tuple[bool, str]]):
    text = terms[0][1] + "".join(f" {'+' if added else '-'} {term}" for added, term in terms[1:])
    expected = positions(terms[0][1], LAYOUT, 12)
    for added, term in terms[1:]:
        expected = (set.union if added else set.difference)(expected, positions(term, LAYOUT, 12))
    assert positions(text, LAYOUT, 12) == expected


def test_plans_are_values():
    plan = Plan((Block.of("after:instruction", "instruction", (1, 2)), Block.of("sample", "before:sample")))
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan and hash(again) == hash(plan) and again.digest == plan.digest
    assert len({plan.digest for plan in CONDITIONS.values()}) == len(CONDITIONS) == 11
    assert NOTHING.digest == CONDITIONS["block_nothing"].digest
    assert Plan(plan.blocks[:1]).digest != plan.digest
    assert Block.of("sample", " instruction  +  decision") == Block.of("sample", "instruction + decision")
    for plan in CONDITIONS.values():
        assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(AttributeError):
        plan.blocks = ()  # type: ignore[misc]
    for broken in [{}, {"blocks": [{}], "open_future": None}, {"blocks": 3, "open_future": None}]:
        with pytest.raises(InputError, match="not a plan"):
            Plan.from_json(broken)
    for layers in [(-1, 2), (2, 1)]:
        with pytest.raises(InputError, match="not a range of layers"):
            Block.of("sample", "instruction", layers)
    assert [window(centre, 10, 32) for centre in (0, 5, 16, 31)] == [(0, 4), (0, 9), (11, 20), (26, 31)]


def edges(plan: Plan, layout: TokenGroups, length: int, layer: int, generated: int = 0) -> set[tuple[int, int]]:
    """The (query, key) pairs that a plan names in a layer, whether or not they could ever be live."""
    found = set()
    for block in plan.blocks:
        if block.layers[0] <= layer <= (LAYERS - 1 if block.layers[1] is None else block.layers[1]):
            queries, keys = (positions(s.text, layout, length, generated) for s in (block.queries, block.keys))
            found |= set(product(queries, keys))
    return found


def by_query(plan: Plan, layer: int = 1) -> dict[int, set[int]]:
    """Live edges of LAYOUT (system 1, instruction 2-4, sample 7-9, decision 11) and two generated positions."""
    live = [(q, k) for q, k in edges(plan, LAYOUT, 12, layer, generated=2) if k <= q]
    return {q: {k for p, k in live if p == q} for q, _ in sorted(live)}


def test_the_conditions_block_what_they_say():
    whole, question, sample = {1, 2, 3, 4}, {2, 3, 4}, {7, 8, 9}
    assert by_query(CONDITIONS["block_nothing"]) == {}
    assert by_query(CONDITIONS["block_instruction_to_all"]) == dict.fromkeys(range(5, 14), whole)
    assert by_query(CONDITIONS["block_instruction_to_sample"]) == dict.fromkeys(range(5, 11), whole)
    assert by_query(CONDITIONS["block_instruction_to_output"]) == dict.fromkeys((11, 12, 13), whole)
    assert by_query(CONDITIONS["block_sample_to_output"]) == {q: sample | {10} for q in (11, 12, 13)}
    assert by_query(CONDITIONS["isolate_sample"]) == {q: set(range(7)) for q in sample}
    for plan in RIGHT.values():
        assert by_query(plan, layer=0) == by_query(plan) and plan.open_future is None
    # without a system message, the instruction is the question
    layout = groups(12, (2, 5), (7, 10))
    assert edges(TO_ALL, layout, 12, 0) == set(product(range(5, 12), question))


def test_plans_do_not_need_torch():
    code = "import sys, levelt.engine.plans; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_released_conditions_block_what_the_released_code_does():
    """methods/1, section 4: the table of prefill and decode-step edits, with Q = 2..4, S = 7..9, p = 11."""
    question = {2, 3, 4}
    assert by_query(AS_RELEASED["block_instruction_to_all"]) == dict.fromkeys(range(5, 14), question)
    assert by_query(AS_RELEASED["block_instruction_to_sample"]) == dict.fromkeys(range(5, 11), question)
    assert by_query(AS_RELEASED["block_instruction_to_output"]) == {11: {3, 4}, 12: question, 13: question}
    assert by_query(AS_RELEASED["block_sample_to_output"]) == {
        11: {8, 9, 10, 11},
        12: set(range(7, 13)),
        13: set(range(7, 14)),
    }
    for name, plan in AS_RELEASED.items():
        assert by_query(plan, layer=0) == {}, name
        assert plan.open_future == (1, None)
    shifted = condition("block_sample_to_output", Released(strict_columns=True, shifted_spans=True))
    assert by_query(shifted) == {11: {9, 10, 11}, 12: set(range(8, 13)), 13: set(range(8, 14))}
    isolated = condition("isolate_sample", Released(shifted_spans=True))
    assert by_query(isolated) == {q: set(range(8)) for q in (8, 9, 10)}
    with pytest.raises(InputError, match="no condition 'x'"):
        condition("x")


# --- oracles ------------------------------------------------------------------------------------------------------


def allowed_by_hand(family: str, plan: Plan, item: Prompt, layer: int, tokens: int) -> np.ndarray:
    """[tokens, tokens] of one prompt (and answer), edge by edge: causality, window, plan; nothing: itself."""
    named = edges(plan, item.groups, len(item.input_ids), layer, tokens - len(item.input_ids))
    table = np.zeros((tokens, tokens), dtype=bool)
    for query, key in product(range(tokens), repeat=2):
        near = layer not in WINDOWED.get(family, ()) or query - key < WINDOW
        table[query, key] = key <= query and near and (query, key) not in named
    table[~table.any(1)] = np.eye(tokens, dtype=bool)[~table.any(1)]
    return table


def live_by_hand(family: str, plan: Plan, item: Prompt, layer: int, tokens: int) -> int:
    free = allowed_by_hand(family, NOTHING, item, layer, tokens)
    return sum(
        bool(free[edge]) for edge in edges(plan, item.groups, len(item.input_ids), layer, tokens - len(item.input_ids))
    )


@contextmanager
def route_a(family: str, model: PreTrainedModel, masks: Sequence[torch.Tensor]) -> Iterator[None]:
    """Put a mask into each attention module by a hook: the plain kernel, no registry."""
    eager = model.config._attn_implementation == "eager"

    def edit(layer: int):
        added = torch.where(masks[layer], 0.0, torch.finfo(torch.float32).min) if eager else masks[layer]

        def hook(_module, positional, named):
            assert "attention_mask" in named
            return positional, named | {"attention_mask": added}

        return hook

    with ExitStack() as stack:
        for layer, module in enumerate(locate(model).attention):
            stack.callback(module.register_forward_pre_hook(edit(layer), with_kwargs=True).remove)
        yield


def padded(prompts: Sequence[Prompt], side: str = "left") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """ids, mask, position ids [rows, width], and the column of each row's first token."""
    width = max(len(item.input_ids) for item in prompts)
    ids, mask = torch.zeros((2, len(prompts), width), dtype=torch.long)
    begins = [width - len(item.input_ids) if side == "left" else 0 for item in prompts]
    for row, (item, begin) in enumerate(zip(prompts, begins, strict=True)):
        ids[row, begin : begin + len(item.input_ids)] = torch.tensor(list(item.input_ids))
        mask[row, begin : begin + len(item.input_ids)] = 1
    return ids, mask, (mask.cumsum(1) - 1).clamp_min(0), begins


def blocked_rows(plan: Plan | Sequence[Plan], prompts: Sequence[Prompt]) -> Blocked:
    lengths = [len(item.input_ids) for item in prompts]
    return Blocked(plan, [item.groups for item in prompts], lengths, LAYERS, torch.device("cpu"))


@torch.inference_mode()
def states(model: PreTrainedModel, prompts: Sequence[Prompt], side: str = "left") -> list[torch.Tensor]:
    """Residuals after each layer and the logits of each row's real tokens, concatenated: [tokens, layers * d + v]."""
    ids, mask, at, begins = padded(prompts, side)
    seen: list[torch.Tensor] = []
    parts = locate(model)
    with ExitStack() as stack:
        for layer in parts.layers:
            hook = layer.register_forward_hook(
                lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out)
            )
            stack.callback(hook.remove)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=at, use_cache=False).logits
    whole = torch.cat([*seen, logits], dim=-1)
    return [
        whole[row, begin : begin + len(item.input_ids)]
        for row, (item, begin) in enumerate(zip(prompts, begins, strict=True))
    ]


def blocked_states(
    model: PreTrainedModel, plan: Plan | Sequence[Plan], prompts: Sequence[Prompt], side: str = "left"
) -> list[torch.Tensor]:
    with blocking(model, blocked_rows(plan, prompts)):
        return states(model, prompts, side)


def worst(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    return max(gap(a, b) for a, b in zip(found, expected, strict=True))


KERNELS = [(family, name) for family in FAMILIES for name in dict.fromkeys((kernel(family), "eager"))]


@cache
def model_of(family: str, name: str) -> PreTrainedModel:
    return tiny(family, attention=name)


# --- the kernel ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "name"), KERNELS)
def test_blocking_nothing_is_the_plain_run(family: str, name: str):
    """Padding, causality and windows survive (traps 1, 2, 3): exactly, since kernel and mask are the same."""
    model = model_of(family, name)
    plain, nothing = states(model, PROMPTS), blocked_states(model, NOTHING, PROMPTS)
    assert worst(nothing, plain) == 0
    # one unpadded row: sdpa gets no mask at all in the plain run
    assert gap(blocked_states(model, NOTHING, PROMPTS[:1])[0], states(model, PROMPTS[:1])[0]) < 2e-6
    # twin: one edge less
    one = Plan((Block.of("decision", "between:sample:decision"),))
    assert worst(blocked_states(model, one, PROMPTS), plain) > 1e-3


@pytest.mark.parametrize(("family", "name"), KERNELS)
def test_both_routes_are_equal_bit_for_bit(family: str, name: str):
    """Route A: masks by hand, edge by edge, through pre-hooks on the plain kernel."""
    model = model_of(family, name)
    plan = Plan((*FROM_NEIGHBOURS.blocks, Block.of("decision", "sample", (1, 1)), Block.of("sample", "all", (2, None))))
    ids, _, _, begins = padded(PROMPTS)
    rows, width = ids.shape

    def by_hand(of: Plan) -> list[torch.Tensor]:
        masks = torch.eye(width, dtype=torch.bool).repeat(LAYERS, rows, 1, 1, 1)
        for layer, (row, item) in product(range(LAYERS), enumerate(PROMPTS)):
            table = allowed_by_hand(family, of, item, layer, len(item.input_ids))
            masks[layer, row, 0, begins[row] :, begins[row] :] = torch.from_numpy(table)
        return list(masks)

    with route_a(family, model, by_hand(plan)):
        expected = states(model, PROMPTS)
    assert worst(blocked_states(model, plan, PROMPTS), expected) == 0
    # twin: the same blocks, one of them a layer later
    moved = Plan((*plan.blocks[:1], Block.of("decision", "sample", (2, 2)), *plan.blocks[2:]))
    assert worst(blocked_states(model, moved, PROMPTS), expected) > 1e-3


@pytest.mark.parametrize("family", FULL)
def test_knocking_out_a_group_is_deleting_its_tokens(family: str):
    """Nothing after the instruction reads it, in every layer: as if its tokens were not there (positions kept)."""
    model = model_of(family, kernel(family))
    found = blocked_states(model, TO_ALL, PROMPTS)
    but_last = Plan((Block.of("after:instruction", "instruction[0:-1]"),))
    upper = Plan((Block.of("after:instruction", "instruction", (1, None)),))
    twins = [blocked_states(model, plan, PROMPTS) for plan in (but_last, upper)]
    for row, item in enumerate(PROMPTS):
        span = item.groups["instruction"]
        left = [p for p in range(len(item.input_ids)) if p not in range(span.start, span.stop)]
        ids = torch.tensor([[item.input_ids[p] for p in left]])
        with torch.inference_mode():
            logits = model(ids, attention_mask=torch.ones_like(ids), position_ids=torch.tensor([left])).logits[0]
        behind = left.index(span.stop)
        size = logits.shape[-1]
        assert gap(found[row][span.stop :, -size:], logits[behind:]) < TOLERANCE
        for twin in twins:
            assert gap(twin[row][span.stop :, -size:], logits[behind:]) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_before_the_first_blocked_query_are_unchanged(family: str):
    model = model_of(family, kernel(family))
    plain, found = blocked_states(model, NOTHING, PROMPTS), blocked_states(model, FROM_NEIGHBOURS, PROMPTS)
    for row, item in enumerate(PROMPTS):
        first = item.groups["instruction"].stop
        assert torch.equal(found[row][:first], plain[row][:first])
        assert gap(found[row][first + 1 :], plain[row][first + 1 :]) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batch_mates_do_not_matter_and_each_row_has_its_plan(family: str, side: str):
    """A ragged batch with another plan in each row against single, unpadded rows."""
    model = model_of(family, kernel(family))
    choice = [
        FROM_NEIGHBOURS,
        NOTHING,
        Plan((Block.of("sample", "before:sample"),)),
        Plan((Block.of("decision", "sample", (1, 1)),)),
    ]
    plans = [choice[row % len(choice)] for row in range(len(PROMPTS))]
    together = blocked_states(model, plans, PROMPTS, side)
    alone = [blocked_states(model, plan, [item])[0] for plan, item in zip(plans, PROMPTS, strict=True)]
    assert worst(together, alone) < TOLERANCE
    # twin: the plans of the row before
    others = [blocked_states(model, plan, [item])[0] for plan, item in zip(plans[1:], PROMPTS, strict=False)]
    assert all(gap(a, b) > 1e-3 for a, b in zip(together, others, strict=False))


@torch.inference_mode()
def cached(
    model: PreTrainedModel, blocked: Blocked, prompts: Sequence[Prompt], tail: torch.Tensor, pieces: Sequence[int]
):
    """Logits [rows, columns, vocabulary] of left-padded prompts and a tail, fed in pieces with a cache; its widths."""
    ids, mask, _, _ = padded(prompts)
    ids, mask = torch.cat([ids, tail], 1), torch.cat([mask, torch.ones_like(tail)], 1)
    at = (mask.cumsum(1) - 1).clamp_min(0)
    cache_, logits, begin = DynamicCache(config=model.config), [], 0
    with blocking(model, blocked):
        for piece in pieces:
            stop = begin + piece
            logits.append(
                model(
                    input_ids=ids[:, begin:stop],
                    attention_mask=mask[:, :stop],
                    position_ids=at[:, begin:stop],
                    past_key_values=cache_,
                    use_cache=True,
                ).logits
            )
            begin = stop
    assert begin == ids.shape[1]
    return torch.cat(logits, 1), [layer.keys.shape[2] for layer in cache_.layers]


class LeftIndexed(Blocked):
    """Twin for trap 5: keys counted from the left, as if a sliding cache never dropped any."""

    def mask(self, layer, mask):
        positions, width = self._positions, mask.shape[-1]
        count = mask.shape[-2]
        self._positions = torch.cat([positions[:, : width - count], positions[:, -count:]], 1)
        try:
            return super().mask(layer, mask)
        finally:
            self._positions = positions


TAIL = torch.tensor(ragged([4] * len(PROMPTS), seed=9))
WITH_OUTPUT = Plan((*FROM_NEIGHBOURS.blocks, Block.of("output", "decision + between:sample:decision")))


@pytest.mark.parametrize(("family", "name"), KERNELS)
def test_cached_runs_equal_full_ones(family: str, name: str):
    """Prompt then single steps, and a prefix cache then the rest; sliding caches drop keys (trap 5)."""
    model, width = model_of(family, name), max(LENGTHS)
    whole = blocked_rows(WITH_OUTPUT, PROMPTS)
    expected, _ = cached(model, whole, PROMPTS, TAIL, [width + 4])
    _, mask, _, _ = padded(PROMPTS)
    real = torch.cat([mask, torch.ones_like(TAIL)], 1).bool()
    for pieces in ([width, 1, 1, 1, 1], [width - 3, 3, 2, 2], [1] * (width + 4)):
        blocked = blocked_rows(WITH_OUTPUT, PROMPTS)
        found, widths = cached(model, blocked, PROMPTS, TAIL, pieces)
        assert gap(found[real], expected[real]) < TOLERANCE
        assert torch.equal(blocked.removed, whole.removed)
        assert [widths[layer] < width for layer in range(LAYERS)] == [
            layer in WINDOWED.get(family, ()) for layer in range(LAYERS)
        ]
        if family in WINDOWED:
            wrong = LeftIndexed(WITH_OUTPUT, [item.groups for item in PROMPTS], LENGTHS, LAYERS, torch.device("cpu"))
            assert gap(cached(model, wrong, PROMPTS, TAIL, pieces)[0][real], expected[real]) > 1e-3
    # twin: without the block of the generated positions
    found, _ = cached(model, blocked_rows(FROM_NEIGHBOURS, PROMPTS), PROMPTS, TAIL, [width, 1, 1, 1, 1])
    assert gap(found[:, -3:], expected[:, -3:]) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_live_edges_are_counted(family: str):
    """Per layer and row, prompt and generated positions, against a loop over all pairs."""
    model = model_of(family, kernel(family))
    blocked = blocked_rows(WITH_OUTPUT, PROMPTS)
    cached(model, blocked, PROMPTS, TAIL, [max(LENGTHS), 1, 1, 1, 1])
    expected = [
        [live_by_hand(family, WITH_OUTPUT, item, layer, len(item.input_ids) + 4) for layer in range(LAYERS)]
        for item in PROMPTS
    ]
    assert blocked.removed.tolist() == expected
    assert blocked.kept.sum() == 0
    wider = Plan((*WITH_OUTPUT.blocks, Block.of("decision", "decision", (2, 2))))
    assert [
        [live_by_hand(family, wider, item, layer, 4 + len(item.input_ids)) for layer in range(LAYERS)]
        for item in PROMPTS
    ] == [[first, second, third + 1] for first, second, third in expected]


@pytest.mark.parametrize(("family", "name"), KERNELS)
def test_a_position_with_nothing_left_keeps_itself(family: str, name: str):
    """Trap 4; the expected state is that of a hand-made mask with the diagonal, and the fallback is counted."""
    model = model_of(family, name)
    plan = Plan((Block.of("sample", "all", (1, 1)), Block.of("after:sample", "before:sample", (0, 0))))
    blocked = blocked_rows(plan, PROMPTS)
    with blocking(model, blocked):
        found = states(model, PROMPTS)
    same = Plan((Block.of("after:sample", "before:sample", (0, 0)),))
    sizes = [len(item.groups["sample"]) for item in PROMPTS]
    assert blocked.kept.tolist() == [[0, size, 0] for size in sizes]
    for row, item in enumerate(PROMPTS):
        length = len(item.input_ids)
        masks = [
            torch.from_numpy(allowed_by_hand(family, plan, item, layer, length))[None, None] for layer in range(LAYERS)
        ]
        with route_a(family, model, masks):
            assert gap(found[row], states(model, [item])[0]) < TOLERANCE
        # twin: what happens to such positions if nothing is kept (zeros, or the mean of all keys, the future's too)
        sample = item.groups["sample"]
        masks[1][0, 0, sample.start : sample.stop] = False
        with route_a(family, model, masks):
            assert not gap(found[row], states(model, [item])[0]) < 1e-3
    assert worst(found, blocked_states(model, same, PROMPTS)) > 1e-3


@pytest.mark.parametrize(("family", "name"), KERNELS)
def test_a_generated_position_with_nothing_left_keeps_itself(family: str, name: str):
    """Cached steps, whose own key is the last of many; and nothing of earlier passes is held on to."""
    model, width = model_of(family, name), max(LENGTHS)
    plan = Plan((Block.of("output", "all", (1, 1)),))
    whole, stepped = blocked_rows(plan, PROMPTS), blocked_rows(plan, PROMPTS)
    expected, _ = cached(model, whole, PROMPTS, TAIL, [width + 4])
    found, _ = cached(model, stepped, PROMPTS, TAIL, [width, 1, 1, 2])
    assert gap(found[:, width:], expected[:, width:]) < TOLERANCE
    assert whole.kept.tolist() == stepped.kept.tolist() == [[0, 4, 0]] * len(PROMPTS)
    assert len(stepped._masks) <= LAYERS
    but_itself = Plan((Block.of("output", "all - output", (1, 1)),))
    twin, _ = cached(model, blocked_rows(but_itself, PROMPTS), PROMPTS, TAIL, [width + 4])
    assert gap(found[:, width], twin[:, width]) < TOLERANCE  # the first one has only itself either way
    assert gap(found[:, width + 1 :], twin[:, width + 1 :]) > 1e-3


def changed_last_sample_token(item: Prompt) -> Prompt:
    ids = list(item.input_ids)
    last = item.groups["sample"].stop - 1
    ids[last] = (ids[last] - 3 + 40) % 94 + 3
    return Prompt(ids, item.groups)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_released_mask_reads_the_future_and_ours_does_not(family: str):
    """Defect A1: change the last sample word and look at the positions before it."""
    model = model_of(family, kernel(family))
    others = [changed_last_sample_token(item) for item in PROMPTS]

    def moved(plan: Plan, layer: int) -> float:
        pairs = zip(blocked_states(model, plan, PROMPTS), blocked_states(model, plan, others), PROMPTS, strict=True)
        before = slice(layer * 32, layer * 32 + 32)
        return max(float((a - b)[: item.groups["sample"].stop - 1, before].abs().max()) for a, b, item in pairs)

    released = {"nothing": AS_RELEASED["block_nothing"], "all": AS_RELEASED["block_instruction_to_sample"]}
    for plan in released.values():
        assert moved(plan, 0) == 0  # layer 0 is left open, and with it causal
        assert moved(plan, 1) > 1e-2 and moved(plan, 2) > 1e-2
    if family not in WINDOWED:
        assert all(moved(CONDITIONS["block_instruction_to_sample"], layer) == 0 for layer in range(LAYERS))
    assert all(moved(plan, layer) == 0 for plan in (NOTHING, FROM_NEIGHBOURS) for layer in range(LAYERS))
    # and the empty plan of the released mask is already far from the plain run, which is what made it an artefact
    assert worst(blocked_states(model, released["nothing"], PROMPTS), states(model, PROMPTS)) > 1e-2


def test_the_released_mask_is_all_true_where_nothing_is_padded():
    """encode.py 589-594, replayed by route A on one unpadded row: the mask None becomes all True in layers > 0."""
    model, item = model_of("llama", "sdpa"), PROMPTS[0]
    length, question = len(item.input_ids), item.groups["instruction"]
    masks = [torch.tril(torch.ones(1, 1, length, length)).bool()] + [torch.ones(1, 1, length, length).bool()] * 2
    masks[1] = masks[2] = masks[1].clone()
    masks[1][..., question.stop : length - 1, question.start : question.stop] = False
    with route_a("llama", model, masks):
        expected = states(model, [item])[0]
    assert gap(blocked_states(model, AS_RELEASED["block_instruction_to_sample"], [item])[0], expected) == 0
    correct = condition("block_instruction_to_sample", Released(first_layer_open=True, question_only=True))
    assert gap(blocked_states(model, correct, [item])[0], expected) > 1e-2


# --- traps of the library -----------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_kernel_without_its_mask_function_would_ignore_padding():
    """Trap 1, the twin of `test_blocking_nothing_is_the_plain_run`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("levelt_test_maskless", sdpa_attention_forward)
    model = tiny("llama")
    expected = states(model, PROMPTS)
    model.set_attn_implementation("levelt_test_maskless")
    found = states(model, PROMPTS)
    longest = LENGTHS.index(max(LENGTHS))
    assert gap(found[longest], expected[longest]) < 2e-6
    assert min(gap(found[row], expected[row]) for row in range(len(PROMPTS)) if row != longest) > 1e-2


@pytest.mark.parametrize("family", WINDOWED)
def test_one_causal_mask_for_all_layers_would_erase_the_window(family: str):
    """Trap 2, twin."""
    model, item = model_of(family, kernel(family)), PROMPTS[0]
    causal = torch.tril(torch.ones(1, 1, LENGTHS[0], LENGTHS[0])).bool()
    with route_a(family, model, [causal] * LAYERS):
        erased = states(model, [item])[0]
    assert gap(blocked_states(model, NOTHING, [item])[0], erased) > 1e-2


def test_a_boolean_mask_would_be_added_by_the_eager_kernel():
    """Trap 3, twin."""
    model, item = model_of("llama", "eager"), PROMPTS[0]
    causal = torch.tril(torch.ones(1, 1, LENGTHS[0], LENGTHS[0])).bool()

    def hook(_module, positional, named):
        return positional, named | {"attention_mask": causal}

    with ExitStack() as stack:
        for module in locate(model).attention:
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        wrong = states(model, [item])[0]
    assert gap(blocked_states(model, NOTHING, [item])[0], wrong) > 1e-2


def test_sdpa_is_refused_where_it_is_wrong():
    """Trap 10: the blocked kernel's name contains sdpa, so that transformers (5.23) checks that the model has one;
    older ones leave the soft-capping out without a word, and the kernel refuses itself."""
    assert "sdpa" in BLOCKED["sdpa"] and "sdpa" not in BLOCKED["eager"]
    model = tiny("gemma2")

    try:
        model.set_attn_implementation(BLOCKED["sdpa"])
    except ValueError as error:
        assert "scaled_dot_product_attention" in str(error)
    else:
        model.set_attn_implementation("sdpa")
        with pytest.raises(InputError, match="soft-capping has no sdpa kernel"):
            blocked_states(model, NOTHING, PROMPTS)
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(InputError, match="soft-capping has no sdpa kernel"):
        AttentionInterface()[BLOCKED["sdpa"]](torch.nn.Identity(), query, query, query, None, softcap=30.0)


@pytest.mark.parametrize(("family", "name"), KERNELS)
def test_the_check_of_a_loaded_model_passes(family: str, name: str):
    check_blocking(model_of(family, name), LAYERS)
    assert model_of(family, name).config._attn_implementation == name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_check_passes_in_half_precision(family: str, dtype: torch.dtype):
    check_blocking(tiny(family).to(dtype), LAYERS)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda mask: torch.ones_like(mask), "the empty plan changes the logits"),
        (lambda mask: mask.logical_or(torch.eye(5, dtype=torch.bool).roll(1, 1)), "changes the logits|in front of"),
        (lambda mask: mask.logical_or(torch.tril(torch.ones(5, 5)).bool()), "a block has no effect"),
    ],
)
def test_the_check_refuses_kernels_that_do_otherwise(damage, sentence: str, monkeypatch: pytest.MonkeyPatch):
    """Twins: a mask without causality, one edge into the future, and a plan that is not obeyed."""
    real = Blocked.mask
    monkeypatch.setattr(Blocked, "mask", lambda self, layer, mask: damage(real(self, layer, mask)))
    with pytest.raises(InputError, match=sentence):
        check_blocking(model_of("llama", "sdpa"), LAYERS)
    monkeypatch.undo()
    monkeypatch.setattr(Blocked, "mask", lambda self, layer, mask: mask)
    with pytest.raises(InputError, match=r"1 edges should go in each layer, \[0, 0, 0\] did"):
        check_blocking(model_of("llama", "sdpa"), LAYERS)


def test_a_single_key_value_head_is_expanded_contiguously(monkeypatch: pytest.MonkeyPatch):
    """Trap 12: no stride 0 reaches the kernel, and the numbers are those of the plain run."""
    model = tiny("llama", num_key_value_heads=1)
    strides: list[tuple[int, ...]] = []
    kernel_ = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **others):
        strides.append((*key.stride(), *value.stride()))
        return kernel_(query, key, value, **others)

    plain = states(model, PROMPTS)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    assert worst(blocked_states(model, NOTHING, PROMPTS), plain) < 2e-6
    assert len(strides) == LAYERS and all(0 not in stride for stride in strides)
    strides.clear()
    states(model, PROMPTS)
    assert any(0 in stride for stride in strides)  # twin: what transformers does by itself
    assert gap(blocked_states(model, FROM_NEIGHBOURS, PROMPTS)[0], plain[0]) > 1e-3


def test_pads_attend_to_themselves():
    """Trap 12: some kernels give NaN to a row that sees nothing, so no such row is handed to them."""
    blocked = blocked_rows(FROM_NEIGHBOURS, PROMPTS)
    seen: list[torch.Tensor] = []

    class Watched(Blocked):
        def mask(self, layer, mask):
            seen.append(super().mask(layer, mask))
            return seen[-1]

    blocked.__class__ = Watched
    with blocking(model_of("llama", "sdpa"), blocked):
        states(model_of("llama", "sdpa"), PROMPTS)
    assert all(mask.any(-1).all() for mask in seen) and blocked.kept.sum() == 0


def test_the_documentation_names_tests_and_conditions_that_exist(root: Path):
    text = (root / "docs/engine-traps.md").read_text(encoding="utf-8")
    written = "".join(path.read_text(encoding="utf-8") for path in sorted((root / "tests").glob("test_*.py")))
    named = set(re.findall(r"\btest_\w+(?!\.py)\b", text))
    assert len(named) > 12 and not [name for name in named if f"def {name}(" not in written]
    assert all(f"`{name}`" in text for name in RIGHT)
    assert all(f"`{field.name}`" in text for field in fields(Released))
    assert all(f"| {trap} | " in text for trap in range(1, 13))


# --- in force, and not any longer ---------------------------------------------------------------------------------


def test_the_plan_is_gone_afterwards_whatever_happens():
    model = tiny("qwen2")
    with pytest.raises(ZeroDivisionError), blocking(model, blocked_rows(NOTHING, PROMPTS)):
        assert model.config._attn_implementation == BLOCKED["sdpa"] and attention.in_force()
        with pytest.raises(RuntimeError, match="already in force"), blocking(model, blocked_rows(NOTHING, PROMPTS)):
            pass
        assert model.config._attn_implementation == BLOCKED["sdpa"] and attention.in_force()
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa" and attention.in_force() is None
    model.set_attn_implementation(BLOCKED["sdpa"])
    with pytest.raises(RuntimeError, match="only inside"):
        states(model, PROMPTS)
    with pytest.raises(InputError, match="cannot be blocked with the levelt_blocked_sdpa kernel"):
        blocking(model, blocked_rows(NOTHING, PROMPTS)).__enter__()
    upcast = tiny("gpt2", attention="eager", reorder_and_upcast_attn=True)
    with pytest.raises(InputError, match="reorder_and_upcast_attn"):
        blocking(upcast, blocked_rows(NOTHING, PROMPTS)).__enter__()


def plain_reading(family: str):
    return read(decoder(family), PROMPTS, option_ids=OPTIONS)


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_with_nothing_blocked_is_reading(family: str):
    plain, found = plain_reading(family), read(decoder(family), PROMPTS, plan=NOTHING)
    for name, values in plain.arrays().items():
        assert np.array_equal(np.isnan(found.arrays()[name]), np.isnan(values))
        assert gap(np.nan_to_num(found.arrays()[name]), np.nan_to_num(values)) < 2e-6
    assert found.generated == plain.generated and found.stopped == plain.stopped
    assert gap(found.logit_difference, plain.logit_difference) < 2e-6
    assert plain.edges is None and "removed_edges" not in plain.counts()
    assert found.counts() | {"plans": [NOTHING.digest]} == found.counts()
    assert found.counts()["removed_edges"] == [0] * LAYERS
    assert {name: found.counts()[name] for name in plain.counts()} == plain.counts()


def under(model: PreTrainedModel, plan: Plan, item: Prompt, tokens: Sequence[int]) -> torch.Tensor:
    """Logits of a prompt and an answer in one uncached pass with a plan: [tokens, vocabulary]."""
    ids = torch.tensor([[*item.input_ids, *tokens]])
    with torch.inference_mode(), blocking(model, blocked_rows(plan, [item])):
        return model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_under_a_plan_equal_an_uncached_loop(family: str):
    """Batched, left-padded, cached greedy decoding; the edges of rows that ended before their mates do not count."""
    from test_engine import stopping

    stops = stopping(family)
    reader = decoder(family, stops)
    found = read(reader, PROMPTS, plan=WITH_OUTPUT)
    for row, item in enumerate(PROMPTS):
        answer: list[int] = []
        while len(answer) < NEW:
            token = int(under(reader.model, WITH_OUTPUT, item, answer)[-1].argmax())
            if token in stops:
                break
            answer.append(token)
        assert found.generated[row] == tuple(answer)
        logits = under(reader.model, WITH_OUTPUT, item, [])[-1]
        difference = float(logits[OPTIONS[row][0]] - logits[OPTIONS[row][1]])
        assert abs(found.logit_difference[row] - difference) < 1e-5 * float(logits.abs().max())
        tokens = len(item.input_ids) + len(answer)
        assert found.edges.removed[row].tolist() == [
            live_by_hand(family, WITH_OUTPUT, item, layer, tokens) for layer in range(LAYERS)
        ]
    assert found.generated != plain_reading(family).generated
    alone = [read(reader, [item], option_ids=[OPTIONS[row]], plan=WITH_OUTPUT) for row, item in enumerate(PROMPTS)]
    assert np.array_equal(np.concatenate([one.edges.removed for one in alone]), found.edges.removed)
    for name, values in found.arrays().items():
        apart = np.concatenate([one.arrays()[name] for one in alone])
        assert np.array_equal(np.isnan(apart), np.isnan(values))
        assert gap(np.nan_to_num(apart), np.nan_to_num(values)) < TOLERANCE


def test_each_prompt_may_have_its_own_plan():
    plans = [(FROM_NEIGHBOURS, NOTHING)[row % 2] for row in range(len(PROMPTS))]
    found = read(decoder("llama"), PROMPTS, batch_tokens=80, plan=plans)
    for index, plan in enumerate((FROM_NEIGHBOURS, NOTHING)):
        single = read(decoder("llama"), PROMPTS, plan=plan)
        assert gap(found.residual["decision"][index::2], single.residual["decision"][index::2]) < TOLERANCE
        assert gap(found.residual["decision"][1 - index :: 2], single.residual["decision"][1 - index :: 2]) > 1e-2
        assert np.array_equal(found.edges.removed[index::2], single.edges.removed[index::2])
    assert found.edges.counts()["fewest_removed_edges"] == 0
    assert found.counts()["plans"] == sorted([FROM_NEIGHBOURS.digest, NOTHING.digest])


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "plan", "sentence"),
    [
        (
            "llama",
            Plan((Block.of("instruction", "sample"),)),
            "prompt 0: the plan removes nothing: no position of instr",
        ),
        ("llama", Plan((Block.of("sample", "sample[99:0]"),)), "prompt 0: the plan removes nothing"),
        ("llama", Plan((Block.of("sample", "subject"),)), "prompt 0: no token group subject, only instruction, sample"),
        ("llama", Plan((Block.of("sample", "instruction", (1, 3)),)), r"layers 1\.\.3, but the model's are 0\.\.2"),
        ("llama", Plan((), (3, None)), r"layers 3\.\.None, but the model's are 0\.\.2"),
        # trap 6: causality allows these edges, the windows do not
        ("mistral", CONDITIONS["block_instruction_to_output"], r"prompt \d: .*decision \+ output .*attention windows"),
        ("gemma3_text", Plan((Block.of("decision", "instruction", (0, 0)),)), r"prompt \d: .*attention windows"),
    ],
)
def test_a_plan_that_can_remove_nothing_is_refused(family: str, plan: Plan, sentence: str):
    with pytest.raises(InputError, match=sentence):
        read(decoder(family), PROMPTS, plan=plan)
    assert decoder(family).model.config._attn_implementation == kernel(family) and attention.in_force() is None


def test_a_plan_is_void_for_one_row_only():
    """Twin: the other rows pass alone; and a layer with full attention is enough."""
    item = Prompt(PROMPTS[0].input_ids, groups(LENGTHS[0], (2, 4), (4, 9)))
    near = Plan((Block.of("sample", "instruction"),))
    far = Prompt(PROMPTS[0].input_ids, groups(LENGTHS[0], (2, 4), (15, 18)))
    read(decoder("mistral"), [item], plan=near)
    with pytest.raises(InputError, match="prompt 1: the plan removes nothing"):
        read(decoder("mistral"), [item, far], plan=near)
    read(decoder("gemma3_text"), [item, far], plan=near)


def test_a_row_that_ends_at_once_is_no_reason_to_refuse():
    """A plan on generated positions only: a row without any has no edge to lose."""
    from test_engine import stopping

    plan = Plan((Block.of("output", "decision"),))
    reader = decoder("llama", stopping("llama"))
    found = read(reader, [*PROMPTS, *engine_prompts()], option_ids=[OPTIONS[0]] * 16, plan=plan)
    assert (found.positions == 0).any() and (found.positions > 0).any()
    assert np.array_equal(found.edges.removed.sum(1) > 0, found.positions > 0)


def engine_prompts() -> list[Prompt]:
    from test_engine import PROMPTS as others

    return list(others)


def test_plans_and_prompts_must_be_as_many():
    with pytest.raises(InputError, match="found 1 plans for 8 prompts"):
        read(decoder("llama"), PROMPTS, plan=[NOTHING])
