"""Every site at every token group against hooks, attention and projections written here, one unpadded prompt at a time.

Tolerance: 1e-5 of the largest expected value, float32 (measured: below 5e-7); the twins differ by more than 1e-2.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch

from levelt.config import Engine
from levelt.engine.capture import Captured, Read, capture, sweep
from levelt.engine.plans import Block, Plan, condition, covers
from levelt.engine.run import read_prompts
from levelt.engine.sharing import PlacedPlans
from levelt.files import InputError
from levelt.models.anatomy import locate
from levelt.models.loading import Decoder
from levelt.prompts.spans import Span, TokenGroups
from models_local import END, FAMILIES, ragged, tiny, tokenizer

TOLERANCE = 1e-5
LENGTHS = [23, 9, 17, 9, 12, 31, 14, 8]
LAYERS, WIDTH, HEADS = 3, 32, 4
TOKENS = [[10 + row, 20 + row, 30] for row in range(len(LENGTHS))]
SITES = ("embedding", "residual", "attention", "mlp", "head", "logits")


@dataclass(frozen=True)
class Prompt:
    input_ids: Sequence[int]
    groups: TokenGroups


def prompt(ids: list[int], start: int, stop: int) -> Prompt:
    spans = (Span("instruction", 0, start), Span("sample", start, stop), Span("decision", len(ids) - 1, len(ids)))
    return Prompt(ids, TokenGroups(spans))


PROMPTS = [prompt(ids, 1 + row % 4, len(ids) - 2) for row, ids in enumerate(ragged(LENGTHS))]


@cache
def decoder(family: str, attention: str | None = None, dtype: torch.dtype = torch.float32) -> Decoder:
    model = tiny(family, attention=attention).to(dtype)
    return Decoder(model, locate(model), tokenizer(), (END,))


@cache
def captured(family: str, batch_tokens: int = 100) -> Captured:
    """Everything, at two groups, as means and single positions, in several ragged batches."""
    reads = [Read(site, group, each) for site in SITES for group in ("sample", "decision") for each in (False, True)]
    found = capture(decoder(family), PROMPTS, reads, token_ids=TOKENS, batch_tokens=batch_tokens)
    assert found.batches > 1 and found.padded > found.tokens == sum(LENGTHS)
    return found


def gap(found, expected) -> float:
    """Largest difference, relative to the largest expected value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@torch.inference_mode()
def expected(family: str, ids: Sequence[int]) -> dict[str, torch.Tensor]:
    """All sites at all positions [seq, ...] of one prompt: Hugging Face's states, and hooks and algebra from here."""
    model, parts = decoder(family).model, decoder(family).parts
    seen: dict[str, list[torch.Tensor]] = {"attention": [], "mlp": [], "last": [], "into": [], "out": []}

    def keep(name: str):
        def hook(_module, _inputs, output):
            seen[name].append((output[0] if isinstance(output, tuple) else output)[0])

        return hook

    handles = [module.register_forward_hook(keep("attention")) for module in parts.attention_contribution]
    handles += [module.register_forward_hook(keep("mlp")) for module in parts.mlp_contribution]
    handles.append(parts.layers[-1].register_forward_hook(keep("last")))
    for module in parts.projection:
        handles.append(module.register_forward_hook(lambda _m, inputs, _o: seen["into"].append(inputs[0][0])))
        handles.append(module.register_forward_hook(keep("out")))
    try:
        output = model(torch.tensor([list(ids)]), use_cache=False, output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()
    states = [state[0] for state in output.hidden_states[:-1]] + seen["last"]
    heads = []
    for layer, projection in enumerate(parts.projection):
        per_head = []
        for head in range(HEADS):
            # the projection itself, run on this head alone with the others at zero; its bias taken away
            alone = torch.zeros_like(seen["into"][layer])
            width = alone.shape[-1] // HEADS
            alone[:, head * width : (head + 1) * width] = seen["into"][layer][:, head * width : (head + 1) * width]
            added = projection(alone) - projection(torch.zeros_like(alone))
            norm = parts.attention_contribution[layer]
            if norm is not parts.attention[layer]:
                # a norm is its scale times a diagonal: divide what the block became by what went in
                added = added * (norm(seen["out"][layer]) / seen["out"][layer])
            per_head.append(added)
        heads.append(torch.stack(per_head, 1))
    return {
        "embedding": states[0],
        "residual": torch.stack(states, 1),
        "attention": torch.stack(seen["attention"], 1),
        "mlp": torch.stack(seen["mlp"], 1),
        "head": torch.stack(heads, 1),
        "logits": output.logits[0].float(),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_equals_hooks_on_single_prompts(family: str):
    found = captured(family)
    for row, item in enumerate(PROMPTS):
        reference = expected(family, item.input_ids)
        reference["logits"] = reference["logits"][:, TOKENS[row]]
        for group in ("sample", "decision"):
            span = item.groups[group]
            for site in SITES:
                positions = reference[site][span.start : span.stop]
                assert gap(found.row(f"{group}.{site}.each", row), positions) < TOLERANCE, (site, group)
                assert gap(found.row(f"{group}.{site}", row), positions.mean(0)) < TOLERANCE, (site, group)
            if group == "sample":  # twin: one position to the right
                for site in SITES:
                    shifted = reference[site][span.start + 1 : span.stop + 1]
                    assert gap(found.row(f"{group}.{site}.each", row), shifted) > 1e-2, site
                    assert gap(found.row(f"{group}.{site}", row), shifted.mean(0)) > 1e-3, site


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_add_up_to_attention(family: str):
    """With the projection's bias, which GPT-2 and GPT-NeoX have and which belongs to no head."""
    found, parts = captured(family), decoder(family).parts
    for name in ("sample.{}", "sample.{}.each"):
        total = found[name.format("head")].sum(2)
        biases = [getattr(projection, "bias", None) for projection in parts.projection]
        without = total.copy()
        if biases[0] is not None:
            total = total + np.stack([bias.detach().numpy() for bias in biases])
        attention = found[name.format("attention")]
        assert gap(total, attention) < TOLERANCE
        # twins: a head left out; the bias left out
        assert gap(total - found[name.format("head")][:, :, 0], attention) > 1e-2
        assert (gap(without, attention) > 1e-2) == (biases[0] is not None)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_transposed_projection_would_be_seen(family: str, monkeypatch: pytest.MonkeyPatch):
    """Twin: square projections, so that a transposed one has the right shape."""
    from levelt.models import linear

    def transposed(projection, heads):
        return linear.head_matrices(projection, heads).reshape(WIDTH, WIDTH).T.reshape(heads, -1, WIDTH)

    monkeypatch.setattr("levelt.engine.capture.head_matrices", transposed)
    found = capture(decoder(family), PROMPTS, [Read("head", "sample")])
    assert gap(found["sample.head"], captured(family)["sample.head"]) > 1e-2


@pytest.mark.parametrize("family", ["olmo2", "gemma2", "gemma3_text"])
def test_heads_of_models_with_a_norm_behind_attention_need_it(family: str):
    """Twin: the heads of the raw block do not add up to what enters the residual (trap 11)."""
    from dataclasses import replace

    reader = decoder(family)
    parts = replace(reader.parts, attention_contribution=reader.parts.attention)
    wrong = capture(replace(reader, parts=parts), PROMPTS, [Read("head", "sample"), Read("attention", "sample")])
    assert gap(wrong["sample.head"].sum(2), wrong["sample.attention"]) < TOLERANCE
    assert gap(wrong["sample.head"].sum(2), captured(family)["sample.attention"]) > 1e-2


def test_grouped_query_heads_are_query_heads():
    """4 query heads on 2 key-value heads: silencing a query head's output removes exactly its contribution."""
    reader = decoder("llama")
    assert reader.model.config.num_key_value_heads == 2
    before = capture(reader, PROMPTS, [Read("attention", "sample"), Read("head", "sample")])
    width = WIDTH // HEADS
    for head in range(HEADS):

        def silence(_module, inputs, head=head):
            changed = inputs[0].clone()
            changed[..., head * width : (head + 1) * width] = 0
            return (changed,)

        handle = reader.parts.projection[0].register_forward_pre_hook(silence)
        try:
            after = capture(reader, PROMPTS, [Read("attention", "sample"), Read("head", "sample")])
        finally:
            handle.remove()
        change = before["sample.attention"][:, 0] - after["sample.attention"][:, 0]
        assert gap(change, before["sample.head"][:, 0, head]) < TOLERANCE
        assert np.abs(after["sample.head"][:, 0, head]).max() == 0
        assert gap(change, before["sample.head"][:, 0, (head + 2) % HEADS]) > 1e-2


# --- attention weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_weights_equal_hugging_face_and_sum_to_one(family: str):
    """Of chosen queries only, keys counted from each prompt's first token; windows and causality are visible."""
    reader = decoder(family, "eager")
    found = capture(
        reader,
        PROMPTS,
        [Read("weights", "sample"), Read("weights", "decision", each=True), Read("weights", "sample", each=True)],
        batch_tokens=100,
    )
    assert found["sample.weights"].shape == (len(PROMPTS), LAYERS, HEADS, max(LENGTHS))
    for row, item in enumerate(PROMPTS):
        count, span = len(item.input_ids), item.groups["sample"]
        with torch.inference_mode():
            output = reader.model(torch.tensor([list(item.input_ids)]), use_cache=False, output_attentions=True)
        weights = torch.stack([layer[0] for layer in output.attentions]).permute(2, 0, 1, 3)  # query first
        mine = found.row("sample.weights.each", row)
        assert gap(mine[..., :count], weights[span.start : span.stop]) < TOLERANCE
        assert gap(found.row("sample.weights", row)[..., :count], weights[span.start : span.stop].mean(0)) < TOLERANCE
        assert gap(found.row("decision.weights.each", row)[..., :count], weights[-1:]) < TOLERANCE
        assert not mine[..., count:].any()
        assert np.allclose(mine.sum(-1), 1, atol=1e-6)
        assert not any(mine[index, ..., span.start + index + 1 :].any() for index in range(len(mine)))
        # twin: keys counted from the padded batch's first column
        if count < max(LENGTHS):
            assert gap(np.roll(mine, 1, -1)[..., :count], weights[span.start : span.stop]) > 1e-2


def test_attention_weights_need_a_kernel_that_gives_them():
    before = hooks_left(decoder("llama"))
    with pytest.raises(InputError, match="LlamaAttention gives no attention weights; load with attention: eager"):
        capture(decoder("llama"), PROMPTS, [Read("weights", "sample")])
    assert hooks_left(decoder("llama")) == before


# --- the run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_a_row_does_not_depend_on_its_batch(family: str):
    reads = [Read(site, group) for site in SITES for group in ("sample", "decision")]
    together = capture(decoder(family), PROMPTS, reads, token_ids=TOKENS, batch_tokens=4096)
    assert together.batches == 1
    for row in (0, 3):
        alone = capture(decoder(family), [PROMPTS[row]], reads, token_ids=[TOKENS[row]])
        for name, values in alone.values.items():
            assert gap(values[0], together[name][row]) < TOLERANCE
            assert gap(together[name][row], captured(family)[name][row]) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_agrees_with_read_prompts(family: str):
    engine = Engine(batch_tokens=4096, max_new_tokens=1, device="cpu")
    options = [ids[:2] for ids in TOKENS]
    read = read_prompts(decoder(family), PROMPTS, ["sample", "decision"], options, engine)
    for role in ("sample", "decision"):
        assert gap(captured(family)[f"{role}.residual"], read.residual[role]) < TOLERANCE
    logits = captured(family)["decision.logits"]
    assert gap(logits[:, 0] - logits[:, 1], read.logit_difference) < 1e-4  # a difference of near numbers
    assert gap(captured(family)["decision.residual"][:, 0], captured(family)["decision.embedding"]) == 0


def test_only_the_layers_asked_for_are_kept():
    reads = [Read("residual", "sample", layers=(0, 2)), Read("head", "sample", each=True, layers=(1,))]
    some = capture(decoder("qwen2"), PROMPTS, reads, batch_tokens=100)
    assert some["sample.residual"].shape == (len(PROMPTS), 2, WIDTH)
    assert gap(some["sample.residual"], captured("qwen2")["sample.residual"][:, [0, 2]]) < TOLERANCE
    assert gap(some["sample.head.each"], captured("qwen2")["sample.head.each"][:, [1]]) < 1e-6
    last = capture(decoder("qwen2"), PROMPTS, [Read("residual", "decision", layers=(3,))])
    assert gap(last["decision.residual"][:, 0], captured("qwen2")["decision.residual"][:, 3]) < TOLERANCE


def test_the_mean_of_capped_logits_is_not_the_logit_of_the_mean():
    """Soft-capping comes before the mean."""
    found = captured("gemma2")
    for row in range(len(PROMPTS)):
        assert gap(found.row("sample.logits", row), found.row("sample.logits.each", row).mean(0)) < TOLERANCE
    assert np.abs(found["sample.logits"]).max() <= decoder("gemma2").parts.softcap


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_kept_as_float32_and_near(family: str):
    reads = [Read(site, "sample") for site in SITES]
    half = capture(decoder(family, dtype=torch.bfloat16), PROMPTS, reads, token_ids=TOKENS)
    for name, values in half.values.items():
        assert values.dtype == np.float32
        relative = np.linalg.norm(values - captured(family)[name]) / np.linalg.norm(captured(family)[name])
        assert relative < 0.1, (name, relative)  # 8 bits through 3 layers of large random weights


def test_memory_is_positions_kept():
    """Nothing of the size of the sequence survives the hooks: only what is returned, and one batch of it."""
    import gc

    reader = decoder("llama")
    alive: list[int] = []

    def count(_module, _inputs, _output):
        gc.collect()
        tensors = [item for item in gc.get_objects() if type(item) is torch.Tensor]
        alive.append(sum(item.numel() for item in tensors))

    handle = reader.parts.final_norm.register_forward_hook(count)
    try:
        for prompts in (PROMPTS, [prompt(ids, len(ids) - 7, len(ids) - 2) for ids in ragged([31] * 8)]):
            short = [prompt(list(item.input_ids), 0, 3) for item in prompts]
            capture(reader, short, [Read("residual", "sample"), Read("mlp", "sample")])
    finally:
        handle.remove()
    # the second batch has twice the tokens; what is kept is the same: [8, 7, 32] values; beside it one layer's tensors
    assert alive[1] - alive[0] < 8 * (31 - 15) * WIDTH * 8


def test_a_plan_is_in_force_and_no_hook_is_left():
    reader = decoder("llama")

    class Ablation:
        @contextmanager
        def applied(self, decoder: Decoder, batch, rows: Sequence[int]):
            handle = decoder.parts.mlp_contribution[0].register_forward_hook(lambda _m, _i, out: out * 0)
            try:
                yield
            finally:
                handle.remove()

    reads = [Read("mlp", "decision"), Read("residual", "decision")]
    before = hooks_left(reader)
    changed = capture(reader, PROMPTS, reads, plan=Ablation(), batch_tokens=100)
    assert not changed["decision.mlp"][:, 0].any()
    assert gap(changed["decision.residual"][:, 1], captured("llama")["decision.residual"][:, 1]) > 1e-2
    again = capture(reader, PROMPTS, reads, batch_tokens=100)
    assert gap(again["decision.residual"], captured("llama")["decision.residual"]) == 0
    assert hooks_left(reader) == before


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
def test_block_plans_are_those_of_read_prompts(family: str):
    """The same plans through the same kernel; the weights of the edges taken away are zero."""
    plan = condition("block_instruction_to_sample")
    reads = [Read("residual", "sample"), Read("residual", "decision")]
    mine = capture(decoder(family), PROMPTS, reads, plan=plan, batch_tokens=100)
    engine = Engine(batch_tokens=100, max_new_tokens=1, device="cpu")
    read = read_prompts(decoder(family), PROMPTS, ["sample", "decision"], [[3, 4]] * 8, engine, plan=plan)
    for role in ("sample", "decision"):
        assert gap(mine[f"{role}.residual"], read.residual[role]) < TOLERANCE
    assert gap(mine["sample.residual"], captured(family)["sample.residual"]) > 1e-2
    mixed = [condition("block_nothing"), plan] * 4
    rows = capture(decoder(family), PROMPTS, reads, plan=mixed, batch_tokens=100)["sample.residual"]
    assert gap(rows[::2], captured(family)["sample.residual"][::2]) < TOLERANCE
    assert gap(rows[1::2], mine["sample.residual"][1::2]) < TOLERANCE
    eager = decoder(family, "eager")
    weights = capture(eager, PROMPTS, [Read("weights", "sample", each=True)], plan=plan, batch_tokens=100)
    free = capture(eager, PROMPTS, [Read("weights", "sample", each=True)], batch_tokens=100)
    for row, item in enumerate(PROMPTS):
        stop = item.groups["instruction"].stop
        assert not weights.row("sample.weights.each", row)[..., :stop].any()
        assert free.row("sample.weights.each", row)[..., :stop].any()
        assert np.allclose(weights.row("sample.weights.each", row).sum(-1), 1, atol=1e-6)


# --- what is run once -----------------------------------------------------------------------------------------------

PREFIX = 11
COMMON = [
    prompt([*ragged([PREFIX], seed=9)[0], *item.input_ids], PREFIX + 1 + row % 4, PREFIX + len(item.input_ids) - 2)
    for row, item in enumerate(PROMPTS)
]
"""The same prompts behind 11 tokens that all share: longer than the windows of the windowed families."""
PLANS = [
    "block_instruction_to_all",
    "block_instruction_to_sample",
    "block_instruction_to_output",
    "block_sample_to_output",
    "isolate_sample",
    "block_nothing",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_common_prefix_is_run_once_and_changes_nothing(family: str):
    reads = [Read(site, group, each) for site in SITES for group in ("sample", "decision") for each in (False, True)]
    together = capture(decoder(family), COMMON, reads, token_ids=TOKENS, batch_tokens=100)
    assert together.padded < together.tokens - 4 * PREFIX
    for row in (0, 3, 5):
        alone = capture(decoder(family), [COMMON[row]], reads, token_ids=[TOKENS[row]])
        assert alone.padded == len(COMMON[row].input_ids)
        for name in together.values:
            assert gap(together.row(name, row), alone.row(name, 0)) < TOLERANCE, name
        # twin: the same prompt without the prefix
        bare = capture(decoder(family), [PROMPTS[row]], reads, token_ids=[TOKENS[row]])
        first = together.row("sample.residual.each", row)[0, -1]  # near enough for every window
        assert gap(first, bare.row("sample.residual.each", 0)[0, -1]) > 1e-2


def test_groups_inside_the_prefix_are_not_lost():
    """A group that begins early ends the shared part in front of it."""
    reads = [Read("residual", "instruction"), Read("residual", "sample")]
    together = capture(decoder("llama"), COMMON, reads)
    for row in (0, 3):
        alone = capture(decoder("llama"), [COMMON[row]], reads)
        for name in together.values:
            assert gap(together[name][row], alone[name][0]) < TOLERANCE


def test_attention_weights_behind_a_prefix():
    reads = [Read("weights", "sample", each=True)]
    for family in ("llama", "mistral"):
        reader = decoder(family, "eager")
        together = capture(reader, COMMON, reads)
        # a window's cache has lost its first keys, so every prompt is run whole
        assert together.padded == len(COMMON) * (max(LENGTHS) + (PREFIX if family == "mistral" else 0))
        for row in (0, 5):
            alone = capture(reader, [COMMON[row]], reads).row("sample.weights.each", 0)
            count = alone.shape[-1]
            assert gap(together.row("sample.weights.each", row)[..., :count], alone) < TOLERANCE


@pytest.mark.parametrize("prompts", [PROMPTS, COMMON], ids=["apart", "common"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sweep_equals_separate_runs(family: str, prompts: list[Prompt]):
    """And each plan does something, so that no plain value was copied where it should not have been."""
    reads = [
        Read(site, group) for site in ("residual", "attention", "head", "logits") for group in ("sample", "decision")
    ]
    plans = {"plain": None} | {name: condition(name) for name in PLANS}
    if family == "mistral":  # every layer sees 6 positions, so these two would remove nothing of some prompt
        plans = {name: plan for name, plan in plans.items() if not name.endswith("to_output")}
    reader = decoder(family)
    found = sweep(reader, prompts, plans, reads, token_ids=TOKENS, batch_tokens=150)
    for name, plan in plans.items():
        for row in (0, 3, 5):
            alone = capture(reader, [prompts[row]], reads, token_ids=[TOKENS[row]], plan=plan)
            for key in found[name].values:
                assert gap(found[name][key][row], alone[key][0]) < TOLERANCE, (name, key)
    plain = found["plain"]
    for name in set(plans) - {"plain"}:
        sample = gap(found[name]["sample.residual"], plain["sample.residual"])
        decision = gap(found[name]["decision.residual"], plain["decision.residual"])
        touches_sample = name in ("block_instruction_to_all", "block_instruction_to_sample", "isolate_sample")
        assert sample > 1e-2 if touches_sample else sample < TOLERANCE, name
        assert decision < TOLERANCE if name == "block_nothing" else decision > 1e-3, name


def test_a_sweep_runs_only_what_a_plan_can_change():
    prompts = [prompt(ids, 9, len(ids) - 4) for ids in ragged([20, 21, 22, 21] * 2)]
    plans = {"plain": None} | {name: condition(name) for name in PLANS}
    reads = [Read("residual", "sample"), Read("residual", "decision")]
    found = sweep(decoder("llama"), prompts, plans, reads)
    ran = {name: result.padded for name, result in found.items()}
    assert ran["plain"] == ran["block_nothing"] == 8 * 22
    assert ran["block_instruction_to_all"] == 8 * (22 - 9)
    # these agree with it up to the decision, and up to the end of the sample
    assert ran["block_instruction_to_sample"] == 8 and ran["isolate_sample"] == 8 * 4
    assert ran["block_instruction_to_output"] == ran["block_sample_to_output"] == 8  # the decision of each row
    alone = sweep(decoder("llama"), prompts, {"plain": None, "isolate": condition("isolate_sample")}, reads)
    assert alone["isolate"].padded == 8 * (22 - 9)
    # exactly the plain run's values where a plan comes later
    output = found["block_instruction_to_output"]
    assert gap(output["sample.residual"], found["plain"]["sample.residual"]) == 0
    windowed = sweep(decoder("gemma3_text"), prompts, plans, reads)
    assert {result.padded for result in windowed.values()} == {8 * 22}
    mixed = [condition("block_nothing"), condition("isolate_sample")] * 4
    both = sweep(decoder("llama"), prompts, {"plain": None, "mixed": mixed}, reads)
    isolated = found["isolate_sample"]["sample.residual"]
    assert gap(both["mixed"]["sample.residual"][1::2], isolated[1::2]) < TOLERANCE
    assert gap(both["mixed"]["sample.residual"][::2], found["plain"]["sample.residual"][::2]) < TOLERANCE


def allowed(plan: Plan, item: Prompt) -> list[set[tuple[int, int]]]:
    """By query, the (layer, key) pairs that causality and a plan leave."""
    length = len(item.input_ids)
    inside = [
        [{at for a, b in side.ranges(item.groups, length) for at in range(a, min(b, length))} for side in sides]
        for sides in ((block.queries, block.keys) for block in plan.blocks)
    ]
    return [
        {
            (layer, key)
            for layer in range(LAYERS)
            for key in range(query + 1)
            if not any(
                query in queries and key in keys and covers(block.layers, layer)
                for block, (queries, keys) in zip(plan.blocks, inside, strict=True)
            )
        }
        for query in range(length)
    ]


def test_plans_agree_in_front_of_the_first_position_that_sees_something_else():
    """Against edges listed one by one; and what the earlier plan removed there counts for the later one too."""
    plans = {name: condition(name) for name in PLANS if name != "block_nothing"}
    plans["layers"] = Plan((Block.of("after:instruction", "instruction", (1, 1)),))
    plans["behind"] = Plan((Block.of("all", "sample"),))  # most of its queries stand in front of its keys
    placed = PlacedPlans(PROMPTS, plans, LAYERS, "prompt")
    for name, other in itertools.product(plans, [None, *plans]):
        for row, item in enumerate(PROMPTS):
            mine, theirs = (allowed(plans[key] if key else Plan(), item) for key in (name, other))
            apart = [at for at, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1]]
            assert placed.first(name, other)[row] == (apart[0] if apart else len(item.input_ids)), (name, other)
    # to_sample removes nothing at the decision, where its run starts: refused as void if the rest did not count
    chosen = placed.starts(["block_instruction_to_all", "block_instruction_to_sample"])
    assert [source for source, _ in chosen.values()] == [None, "block_instruction_to_all"]


@pytest.mark.parametrize("each", [False, True])
def test_a_group_that_a_plan_changes_in_part(each: bool):
    """Its mean needs its unchanged positions too: the rerun begins in front of the group."""
    plans = {"plain": None, "part": Plan((Block.of("sample[2:0]", "instruction"),))}
    reads = [Read("residual", "sample", each), Read("residual", "instruction", each), Read("mlp", "decision", each)]
    found = sweep(decoder("llama"), PROMPTS[:7], plans, reads, batch_tokens=100)
    for row in (0, 3, 5):
        alone = capture(decoder("llama"), [PROMPTS[row]], reads, plan=plans["part"])
        for name in alone.values:
            assert gap(found["part"].row(name, row), alone.row(name, 0)) < TOLERANCE
    if each:
        first = found["part"].offsets["sample"][:-1]
        for at, change in ((0, False), (1, False), (2, True)):
            values = [found[name]["sample.residual.each"][first + at] for name in plans]
            assert (gap(*values) > 1e-2) == change


def test_a_plan_that_removes_nothing_is_refused_in_a_sweep():
    void = condition("isolate_sample")
    first = [prompt(list(item.input_ids), 0, 3) for item in PROMPTS]
    with pytest.raises(InputError, match="prompt 0: the plan removes nothing"):
        sweep(decoder("llama"), first, {"plain": None, "void": void}, [Read("residual", "sample")])


def hooks_left(reader: Decoder) -> int:
    """All hooks; Hugging Face leaves some of its own after output_hidden_states (trap 8)."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in reader.model.modules())


@pytest.mark.parametrize(
    ("reads", "options", "sentence"),
    [
        ([], {}, "no reads"),
        ([Read("residual", "subject")], {}, "prompt 0 has no token group subject, only instruction, sample, decision"),
        ([Read("residue", "sample")], {}, "unknown site 'residue'; there are embedding"),
        ([Read("mlp", "sample", layers=(3,))], {}, r"sample.mlp: layers \[3\], expected some of 0 to 2"),
        ([Read("mlp", "sample", layers=())], {}, r"layers \[\]"),
        ([Read("embedding", "sample", layers=(1,))], {}, r"sample.embedding: layers \[1\]"),
        ([Read("mlp", "sample"), Read("mlp", "sample")], {}, "sample.mlp is asked for twice"),
        ([Read("logits", "sample")], {}, "token_ids is missing"),
        ([Read("logits", "sample")], {"token_ids": [3, 97]}, "outside the model's vocabulary of 97"),
        ([Read("logits", "sample")], {"token_ids": [[3], [4, 5]]}, "one per prompt"),
        ([Read("logits", "sample")], {"token_ids": [[3]]}, "or 8 lists of the same length"),
    ],
)
def test_bad_reads_are_refused_before_any_work(reads: list[Read], options: dict, sentence: str):
    with pytest.raises(InputError, match=sentence):
        capture(decoder("llama"), PROMPTS, reads, **options)


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (Prompt([], TokenGroups(())), "prompt 0 has no tokens"),
        (prompt([5, 97, 6], 1, 2), "outside the model's vocabulary"),
        (prompt([5] * 129, 1, 2), "129 tokens, more than the 128 positions"),
        (prompt([5, 6, 7], 1, 4), r"sample is \[1, 4\) of 3 tokens"),
    ],
)
def test_bad_prompts_are_refused_before_any_work(item: Prompt, sentence: str):
    with pytest.raises(InputError, match=sentence):
        capture(decoder("llama"), [item], [Read("mlp", "sample")])
    with pytest.raises(InputError, match="no prompts"):
        capture(decoder("llama"), [], [Read("mlp", "sample")])


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_run_only_where_it_is_read(family: str, attention: str | None):
    """With and without a common prefix: the values of a run whose last layer is whole, since every token is read."""
    loaded, seen = decoder(family, attention), []
    handle = loaded.parts.mlp_contribution[-1].register_forward_hook(lambda _m, _i, out: seen.append(out.shape[1]))
    reads = [Read(site, "sample", each) for site in SITES for each in (False, True)] + [Read("logits", "decision")]
    try:
        for common in (0, 8):
            made = []
            for row, ids in enumerate(ragged([23, 19, 26])):
                spans = (Span("all", common, len(ids)), Span("sample", 11 + row, 14 + 2 * row))
                groups = TokenGroups((*spans, Span("decision", len(ids) - 1, len(ids))))
                made.append(Prompt([*range(40, 40 + common), *ids[common:]], groups))
            found = capture(loaded, made, reads, token_ids=[7, 8])
            narrow = seen[-1]
            whole = capture(loaded, made, [*reads, Read("residual", "all")], token_ids=[7, 8])
            assert (narrow < seen[-1]) == (family != "gpt2")  # whose last layer must keep the shape of its input
            for name, values in found.values.items():
                assert gap(values, whole[name]) < TOLERANCE
            later = [replace(one, groups=TokenGroups((Span("sample", 15, 17), *one.groups.spans[2:]))) for one in made]
            assert gap(capture(loaded, later, reads[:3:2])["sample.residual"], whole["sample.residual"]) > 1e-2
    finally:
        handle.remove()
