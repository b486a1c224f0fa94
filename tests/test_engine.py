"""The engine against independent oracles: Hugging Face's own states and generation, hand-written loops, single rows.

Tolerance: 1e-5 of the largest expected value, float32. Batching, padding and caching change the order of additions
(about 3e-7 here); every wrong position, norm or mask that the twins below try changes the numbers by more than 1e-2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from levelt.cli import main
from levelt.config import Engine
from levelt.engine.answers import Behaviour, judge, normalised
from levelt.engine.cache import empty_cache
from levelt.engine.generate import Batch, generate, plan_batches, prefill
from levelt.engine.plans import CONDITIONS
from levelt.engine.run import Readings, read_prompts
from levelt.engine.sites import Selection, adding_attention, reading_residuals
from levelt.files import InputError, read_arrays, sha256
from levelt.models.anatomy import locate
from levelt.models.loading import Decoder
from levelt.models.manifest import folder_manifest
from levelt.prompts.spans import Span, TokenGroups
from models_local import END, FAMILIES, kernel, ragged, save, tiny, tokenizer

TOLERANCE = 1e-5
LENGTHS = [23, 9, 17, 9, 12, 31, 14, 8]
ROLES = ("sample", "output", "decision")
NEW = 5


@dataclass(frozen=True)
class Prompt:
    input_ids: Sequence[int]
    groups: TokenGroups


def prompt(ids: list[int], start: int, stop: int) -> Prompt:
    return Prompt(ids, TokenGroups((Span("sample", start, stop), Span("decision", len(ids) - 1, len(ids)))))


PROMPTS = [prompt(ids, 1 + row % 4, len(ids) - 2) for row, ids in enumerate(ragged(LENGTHS))]
OPTIONS = [[10 + row, 20 + row] for row in range(len(LENGTHS))]


@cache
def decoder(family: str, stop_ids: tuple[int, ...] = (END,)) -> Decoder:
    model = tiny(family)
    return Decoder(model, locate(model), tokenizer(), stop_ids)


def read(reader: Decoder, prompts: Sequence[Prompt] = PROMPTS, batch_tokens: int = 4096, **options) -> Readings:
    engine = Engine(batch_tokens=batch_tokens, max_new_tokens=options.pop("new", NEW), device="cpu")
    chosen = options.pop("option_ids", OPTIONS[: len(prompts)])
    return read_prompts(reader, prompts, options.pop("roles", ROLES), chosen, engine, **options)


@cache
def reading(family: str, stop_ids: tuple[int, ...] = (END,)) -> Readings:
    return read(decoder(family, stop_ids))


def gap(found, expected) -> float:
    """Largest difference, relative to the largest expected value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    largest = np.abs(expected).max()
    return float(np.abs(found - expected).max() / (largest if largest > 0 else 1.0))


@torch.inference_mode()
def hf_states(reader: Decoder, ids: Sequence[int]) -> torch.Tensor:
    """Hugging Face's hidden states of one unpadded prompt, [layers + 1, seq, d]; the last is after the final norm."""
    output = reader.model(torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False)
    return torch.stack(output.hidden_states)[:, 0]


def hooks_left(reader: Decoder) -> int:
    """Hooks on any module, without the ones that Hugging Face installs itself for output_hidden_states."""
    found = [hook for module in reader.model.modules() for hook in module._forward_hooks.values()]
    found += [hook for module in reader.model.modules() for hook in module._forward_pre_hooks.values()]
    return sum("levelt" in hook.__module__ for hook in found)


# --- residuals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_residuals_equal_hugging_face_hidden_states(family: str):
    """A ragged, left-padded batch against single unpadded prompts; the last layer before the final norm (trap 7)."""
    reader, found = decoder(family), reading(family)
    for row, item in enumerate(PROMPTS):
        states = hf_states(reader, item.input_ids)
        span = item.groups["sample"]
        assert gap(found.residual["sample"][row, :-1], states[:-1, span.start : span.stop].mean(1)) < TOLERANCE
        assert gap(found.residual["decision"][row, :-1], states[:-1, -1]) < TOLERANCE
        last = torch.from_numpy(found.residual["decision"][row, -1])
        with torch.inference_mode():
            assert gap(reader.parts.final_norm(last), states[-1, -1]) < TOLERANCE
        # twins: the post-norm state, a mean over shifted positions, one position too many
        assert gap(last, states[-1, -1]) > 1e-2
        for start, stop in [(span.start + 1, span.stop + 1), (span.start, span.stop + 1)]:
            assert gap(found.residual["sample"][row, :-1], states[:-1, start:stop].mean(1)) > 1e-2


def run_batch(reader: Decoder, batch: Batch) -> torch.Tensor:
    selection = Selection.of({"decision": [(batch.ids.shape[1] - 1, batch.ids.shape[1])] * len(batch.ids)}, "cpu")
    cache = empty_cache(reader.model)
    return prefill(reader.model, reader.parts, batch, selection, False, cache).residuals[:, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_must_be_masked(family: str):
    """Twin: the same batch with pads visible is wrong, so the mask does something in every family (trap 1)."""
    reader = decoder(family)
    batch = Batch.of([item.input_ids for item in PROMPTS], torch.device("cpu"))
    assert gap(run_batch(reader, batch), reading(family).residual["decision"]) < TOLERANCE
    visible = replace(batch, mask=torch.ones_like(batch.mask))
    assert gap(run_batch(reader, visible)[1], reading(family).residual["decision"][1]) > 1e-2


def test_learned_positions_must_come_from_the_mask():
    """Twin for trap 9: GPT-2 with positions counted over pads."""
    reader = decoder("gpt2")

    class Shifted(Batch):
        def positions(self) -> torch.Tensor:
            return torch.arange(self.ids.shape[1]).expand_as(self.ids)

    batch = Batch.of([item.input_ids for item in PROMPTS], torch.device("cpu"))
    wrong = run_batch(reader, Shifted(batch.ids, batch.mask, batch.offsets))
    right = reading("gpt2").residual["decision"]
    longest = LENGTHS.index(max(LENGTHS))
    assert gap(wrong[longest], right[longest]) < TOLERANCE  # it has no pads
    assert all(gap(wrong[row], right[row]) > 1e-2 for row in range(len(LENGTHS)) if row != longest)


def test_pads_never_enter_a_mean_even_when_they_are_nan():
    """Some kernels give NaN at pads that see nothing (trap 12)."""
    selection = Selection.of({"a": [(3, 6), (1, 2)], "b": [(5, 6), (2, 4)]}, torch.device("cpu"))
    hidden = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    hidden[0, :3] = torch.nan
    hidden[1, 0] = hidden[1, 4:] = torch.nan
    mean = selection.mean(hidden)
    assert torch.allclose(mean[0, 0], hidden[0, 3:6].mean(0))
    assert torch.equal(mean[0, 1], hidden[0, 5])
    assert torch.equal(mean[1, 0], hidden[1, 1])
    assert torch.allclose(mean[1, 1], hidden[1, 2:4].mean(0))


def test_eager_equals_sdpa():
    model = tiny("llama", attention="eager")
    found = read(Decoder(model, locate(model), tokenizer(), (END,)))
    for name, values in reading("llama").arrays().items():
        assert gap(found.arrays()[name], values) < TOLERANCE


# --- decoding ------------------------------------------------------------------------------------------------------


def uncached(reader: Decoder, ids: Sequence[int], steps: int) -> list[int]:
    tokens = list(ids)
    with torch.inference_mode():
        for _ in range(steps):
            tokens.append(int(reader.model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(ids) :]


@cache
def free_answers(family: str) -> tuple[tuple[int, ...], ...]:
    """What each row generates when nothing stops it, decoded without a cache."""
    return tuple(tuple(uncached(decoder(family), item.input_ids, NEW)) for item in PROMPTS)


@cache
def stopping(family: str) -> tuple[int, ...]:
    """Two end tokens with which one row ends at once, one after a single answer token, and one never."""
    answers = free_answers(family)
    for stops in combinations(sorted({token for answer in answers for token in answer}), 2):
        if {0, 1, NEW} <= {len(until(answer, stops)) for answer in answers}:
            return stops
    raise AssertionError(f"no such end tokens for {family}: {answers}")


def until(answer: Sequence[int], stops: Sequence[int]) -> tuple[int, ...]:
    ends = [step for step, token in enumerate(answer) if token in stops]
    return tuple(answer[: ends[0]] if ends else answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_equals_an_uncached_loop_and_generate(family: str):
    reader = decoder(family)
    assert reading(family, ()).generated == free_answers(family)
    assert set(reading(family, ()).stopped) == {"length"}
    for item, expected in zip(PROMPTS, free_answers(family), strict=True):
        ids = torch.tensor([list(item.input_ids)])
        made = reader.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, eos_token_id=None
        )
        assert tuple(made[0, ids.shape[1] :].tolist()) == expected
    stops = stopping(family)
    found = reading(family, stops)
    assert found.generated == tuple(until(answer, stops) for answer in free_answers(family))
    lengths = [len(answer) for answer in found.generated]
    assert found.stopped == tuple("length" if length == NEW else "end" for length in lengths)
    assert found.positions.tolist() == lengths


def test_an_answer_that_ends_just_at_the_limit():
    answers = free_answers("llama")
    row = next(row for row, answer in enumerate(answers) if answer[2] not in answer[:2])
    found = read(decoder("llama", (answers[row][2],)), [PROMPTS[row]], new=3)
    assert (found.generated[0], found.stopped[0]) == (answers[row][:2], "end")


@pytest.mark.parametrize("family", FAMILIES)
def test_logit_difference_is_that_of_the_last_prompt_position(family: str):
    reader = decoder(family)
    for row, item in enumerate(PROMPTS):
        with torch.inference_mode():
            logits = reader.model(torch.tensor([list(item.input_ids)]), use_cache=False).logits[0]
        first, second = OPTIONS[row]
        scale = float(logits.abs().max())
        assert abs(reading(family).logit_difference[row] - float(logits[-1, first] - logits[-1, second])) < 1e-5 * scale
        assert abs(reading(family).logit_difference[row] - float(logits[-2, first] - logits[-2, second])) > 1e-2


# --- the output role -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def contributions(reader: Decoder, ids: Sequence[int]) -> torch.Tensor:
    """What each attention block adds, [layers, seq, d], from one full forward with hooks written here."""
    seen: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for module in reader.parts.attention_contribution
    ]
    try:
        reader.model(torch.tensor([list(ids)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_output_role_equals_a_full_forward_over_prompt_and_answer(family: str):
    """Cached decode steps in a ragged batch of long, short and empty answers against one unpadded forward per row."""
    reader, stops = decoder(family), stopping(family)
    found = reading(family, stops)
    assert {0, 1, NEW} <= set(found.positions.tolist())
    for row, item in enumerate(PROMPTS):
        answer = found.generated[row]
        if not answer:
            assert np.isnan(found.attention["output"][row]).all()
            continue
        full = contributions(reader, [*item.input_ids, *answer])
        begin = len(item.input_ids)
        assert gap(found.attention["output"][row], full[:, begin:].mean(1)) < TOLERANCE
        # twins: positions shifted to the decision, and the answer without its last token
        assert gap(found.attention["output"][row], full[:, begin - 1 : -1].mean(1)) > 1e-2
        if len(answer) > 1:
            assert gap(found.attention["output"][row], full[:, begin:-1].mean(1)) > 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_a_row_does_not_depend_on_its_batch_mates(family: str):
    """A one-token answer beside long ones, alone, and in batches of two; in whatever order."""
    stops = stopping(family)
    reader, together = decoder(family, stops), reading(family, stops)
    brief, longest = together.positions.tolist().index(1), together.positions.tolist().index(NEW)
    for rows in ([brief], [longest], [brief, longest], [longest, brief, 0], list(range(len(PROMPTS)))[::-1]):
        prompts, options = [PROMPTS[row] for row in rows], [OPTIONS[row] for row in rows]
        for batch_tokens in (64, 4096):
            apart = read(reader, prompts, batch_tokens, option_ids=options)
            assert apart.generated == tuple(together.generated[row] for row in rows)
            for name, values in apart.arrays().items():
                expected = together.arrays()[name][rows]
                present = ~np.isnan(expected)
                assert (np.isnan(values) == ~present).all()
                if present.any():
                    assert gap(values[present], expected[present]) < TOLERANCE


def test_averaging_over_finished_steps_would_depend_on_the_batch():
    """Twin: the published mean over all decode steps, padding of finished rows included (defect A5)."""
    stops = stopping("llama")
    reader = decoder("llama", stops)
    batch = Batch.of([item.input_ids for item in PROMPTS], torch.device("cpu"))
    everyone = torch.ones(len(PROMPTS), dtype=torch.bool)
    total = torch.zeros(len(PROMPTS), 3, 32)
    with adding_attention(reader.parts, everyone, total):
        run = prefill(reader.model, reader.parts, batch, None, False, empty_cache(reader.model))
        steps = generate(reader.model, reader.parts, batch, run, stops, NEW, False).tokens.shape[1] - 1
    # the hook also saw the prefill's last position; take it away again
    for row, item in enumerate(PROMPTS):
        total[row] -= contributions(reader, item.input_ids)[:, -1]
    brief = reading("llama", stops).positions.tolist().index(1)
    assert steps > 1
    assert gap(total[brief] / steps, reading("llama", stops).attention["output"][brief]) > 0.1


def test_an_answer_that_ends_at_once_is_nan_with_no_positions():
    answers = free_answers("llama")
    found = read(decoder("llama", tuple(sorted({answer[0] for answer in answers}))))
    assert found.generated == ((),) * len(PROMPTS)
    assert found.positions.tolist() == [0] * len(PROMPTS)
    assert np.isnan(found.attention["output"]).all()
    assert np.isfinite(found.residual["sample"]).all() and np.isfinite(found.logit_difference).all()


# --- the run -------------------------------------------------------------------------------------------------------


def test_nothing_is_left_behind():
    reader = decoder("qwen2")
    read(reader)
    assert hooks_left(reader) == 0
    with pytest.raises(ZeroDivisionError), reading_residuals(reader.parts, Selection.of({"a": [(0, 1)]}, "cpu")):
        assert hooks_left(reader) == 4
        raise ZeroDivisionError
    assert hooks_left(reader) == 0


def test_logits_that_are_not_finite_stop_the_run():
    model = tiny("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    reader = Decoder(model, locate(model), tokenizer(), (END,))
    with pytest.raises(FloatingPointError, match="not finite"):
        read(reader)
    assert hooks_left(reader) == 0


def test_only_the_roles_asked_for_are_read():
    found = read(decoder("llama"), roles=["decision"])
    assert list(found.arrays()) == ["decision.residual"]
    assert gap(found.residual["decision"], reading("llama").residual["decision"]) == 0
    found = read(decoder("llama"), roles=["output"])
    assert list(found.arrays()) == ["output.attention", "output.positions"]
    assert gap(found.attention["output"], reading("llama").attention["output"]) == 0


def test_a_plan_is_in_force_for_each_batch_only():
    """The place for interventions: here, one that removes the first MLP's contribution."""
    reader = decoder("llama")
    seen: list[list[int]] = []

    class Ablation:
        @contextmanager
        def applied(self, decoder: Decoder, batch: Batch, rows: Sequence[int]):
            seen.append(list(rows))
            handle = decoder.parts.mlp_contribution[0].register_forward_hook(lambda _m, _i, out: out * 0)
            try:
                yield
            finally:
                handle.remove()

    changed = read(reader, batch_tokens=64, plan=Ablation())
    assert sorted(chain(*seen)) == list(range(len(PROMPTS))) and len(seen) > 1
    assert gap(changed.residual["decision"][:, 0], reading("llama").residual["decision"][:, 0]) == 0
    assert gap(changed.residual["decision"][:, 1], reading("llama").residual["decision"][:, 1]) > 1e-2
    assert gap(read(reader).residual["decision"], reading("llama").residual["decision"]) == 0


def test_half_precision_is_saved_as_float32():
    model = tiny("llama").to(torch.bfloat16)
    found = read(Decoder(model, locate(model), tokenizer(), (END,)))
    assert all(values.dtype == np.float32 for name, values in found.arrays().items() if "positions" not in name)
    assert gap(found.residual["sample"], reading("llama").residual["sample"]) < 0.05


def test_progress_is_logged(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO"):
        read(decoder("llama"), label="tiny task")
    assert f"tiny task: {len(PROMPTS)}/{len(PROMPTS)} rows" in caplog.text


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=50),
    st.integers(64, 400),
    st.integers(0, 8),
)
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int, new: int):
    batches = plan_batches(lengths, budget, new)
    assert sorted(chain(*batches)) == list(range(len(lengths)))
    assert all(
        len(batch) * (max(lengths[row] for row in batch) + new) <= budget or len(batch) == 1 for batch in batches
    )
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(flat, reverse=True)


@pytest.mark.parametrize(
    ("prompts", "options", "sentence"),
    [
        ([], [], "no prompts"),
        ([Prompt([], TokenGroups(()))], [[3, 4]], "prompt 0 has no tokens"),
        ([Prompt([5, 6], TokenGroups(()))], [[3, 4]], "prompt 0 has no token group sample"),
        ([prompt([5, 97, 6], 0, 2)], [[3, 4]], "prompt 0 has token ids outside the model's vocabulary of 97"),
        ([prompt([5, 6, 7], 0, 2)], [[3, 99]], "outside the model's vocabulary"),
        ([prompt([5] * 124, 0, 2)], [[3, 4]], "124 tokens; with 5 generated ones .* 128 positions"),
        ([prompt([5, 6, 7], 0, 2)], [[3, 3]], "two different option tokens"),
        ([prompt([5, 6, 7], 2, 2)], [[3, 4]], r"sample is \[2, 2\) of 3 tokens"),
        ([prompt([5, 6, 7], 2, 4)], [[3, 4]], r"sample is \[2, 4\) of 3 tokens"),
        (
            [Prompt([5, 6, 7], TokenGroups((Span("sample", 0, 1), Span("decision", 1, 2))))],
            [[3, 4]],
            "the decision is token 1, not the last of 3",
        ),
    ],
)
def test_bad_prompts_are_refused_before_any_work(prompts: list[Prompt], options: list[list[int]], sentence: str):
    with pytest.raises(InputError, match=sentence):
        read(decoder("llama"), prompts, option_ids=options)


# --- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", "yes"),
        (" Yes.", "yes"),
        ("“No!”\n", "no"),
        ("**NO**", "no"),
        ("`yes`", "yes"),
        ("(a)", "a"),
        ("yes, it is", "yes, it is"),
        ("don't know.", "don't know"),
        ("¿Sí?", "sí"),
        ("STRASSE", "strasse"),
        ("straße", "strasse"),
        ("...", ""),
        ("", ""),
        ("- 5 -", "5"),
    ],
)
def test_normalised(text: str, expected: str):
    assert normalised(text) == expected
    assert normalised(normalised(text)) == normalised(text)


def test_wrong_format_and_wrong_judgment_are_told_apart():
    assert judge(" Yes.", "yes", ["yes", "no"]) == Behaviour("yes", True, True)
    assert judge("No", "yes", ["yes", "no"]) == Behaviour("no", False, True)
    assert judge("yes it is", "yes", ["yes", "no"]) == Behaviour("yes it is", False, False)
    assert judge("", "yes", ["yes", "no"]) == Behaviour("", False, False)
    with pytest.raises(InputError, match="cannot be told apart"):
        judge("yes", "Yes", ["Yes", "yes."])
    with pytest.raises(InputError, match="none of the options"):
        judge("yes", "maybe", ["yes", "no"])


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    rows = []
    for condition in ("instruction_first", "sample_first"):
        for row, item in enumerate(PROMPTS):
            shift = 1 if condition == "sample_first" else 0
            ids = [(token - 3 + shift) % 94 + 3 for token in item.input_ids]
            rows.append(
                {
                    "prompt_id": f"{condition}-{row}",
                    "sample_id": str(row),
                    "pair_id": str(row // 2),
                    "condition": condition,
                    "template": "plain",
                    "polarity": "positive",
                    "text": "",
                    "input_ids": np.array(ids, np.int32),
                    "groups": [vars(span) for span in item.groups],
                    "label": "yes",
                    "answer": "no" if row % 2 else "yes",
                    "unasked": None,
                    "options": ["yes", "no"],
                    "option_ids": [3, 4],
                    "straddling": 0,
                }
            )
    path = tmp_path / "prompts.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.fixture
def arguments(tmp_path: Path, prompts_file: Path) -> dict[str, str]:
    folder = save(tiny("llama"), tmp_path / "model")
    manifest = folder_manifest("llama-xs-sft", folder, "llama", "xs", "sft")
    (tmp_path / "model/manifest.json").write_text(json.dumps(manifest))
    engine = {"batch_tokens": 64, "max_new_tokens": 3, "device": "cpu"}
    return {
        "--settings": json.dumps({"engine": engine, "probes.roles": list(ROLES)}),
        "--model-manifest": str(tmp_path / "model/manifest.json"),
        "--prompts": str(prompts_file),
        "--tasks": "plausibility",
        "--activations": str(tmp_path / "activations"),
        "--behaviour": str(tmp_path / "behaviour"),
    }


def command(arguments: dict[str, str]) -> int:
    return main(["read", *(part for pair in arguments.items() for part in pair)])


def test_read_command(arguments: dict[str, str], tmp_path: Path):
    assert command(arguments) == 0
    manifest = json.loads((tmp_path / "activations/plausibility/manifest.json").read_text())
    behaviour = pd.read_parquet(tmp_path / "behaviour/plausibility.parquet")
    prompts = pd.read_parquet(arguments["--prompts"])
    assert list(manifest["conditions"]) == ["instruction_first", "sample_first"]
    assert (manifest["attention"], manifest["dtype"], manifest["threads"]) == ("sdpa", "float32", 1)
    for condition, entry in manifest["conditions"].items():
        path = tmp_path / f"activations/plausibility/{condition}.safetensors"
        assert (entry["sha256"], entry["rows"]) == (sha256(path), len(PROMPTS))
        arrays, metadata = read_arrays(path)
        assert {name: values.shape for name, values in arrays.items()} == {
            "sample.residual": (len(PROMPTS), 4, 32),
            "decision.residual": (len(PROMPTS), 4, 32),
            "output.attention": (len(PROMPTS), 3, 32),
            "output.positions": (len(PROMPTS),),
        }
        assert arrays["output.positions"].dtype == np.int32
        assert metadata["condition"] == condition and metadata["roles"] == list(ROLES)
        rows = behaviour[behaviour["condition"] == condition]
        assert rows["output_positions"].tolist() == arrays["output.positions"].tolist()
        model = decoder("llama")
        for row, ids in enumerate(prompts[prompts["condition"] == condition]["input_ids"]):
            expected = uncached(model, ids.tolist(), 3)
            assert rows["generated"].iloc[row] == tokenizer().decode(until(expected, [END]), skip_special_tokens=True)
            assert gap(arrays["decision.residual"][row, 1], hf_states(model, ids.tolist())[1, -1]) < TOLERANCE
    kept = ["prompt_id", "sample_id", "pair_id", "condition", "template", "polarity", "label", "answer", "unasked"]
    added = ["generated", "given", "exact_match", "answered", "preferred", "logit_difference", "output_positions"]
    assert list(behaviour.columns) == kept + added
    assert behaviour["prompt_id"].tolist() == prompts["prompt_id"].tolist()
    assert behaviour["logit_difference"].dtype == np.float32
    assert behaviour["exact_match"].dtype == bool and behaviour["answered"].dtype == bool


def test_read_command_twice_gives_the_same_bytes(arguments: dict[str, str], tmp_path: Path):
    assert command(arguments) == 0
    again = arguments | {
        "--activations": str(tmp_path / "again"),
        "--behaviour": str(tmp_path / "again"),
    }
    assert command(again) == 0
    first, second = (tmp_path / folder / "plausibility.parquet" for folder in ("behaviour", "again"))
    assert first.read_bytes() == second.read_bytes()
    for path in sorted((tmp_path / "activations/plausibility").iterdir()):
        assert path.read_bytes() == (tmp_path / "again/plausibility" / path.name).read_bytes(), path.name


def intervened(arguments: dict[str, str], names: Sequence[str]) -> dict[str, str]:
    settings = json.loads(arguments["--settings"])
    settings["engine"]["interventions"] = list(names)
    return arguments | {"--settings": json.dumps(settings)}


def test_read_command_intervenes_on_the_other_instruction(arguments: dict[str, str], tmp_path: Path):
    """The same blocks as on the instruction_first prompts, where the prompts are the same; and not without prompts."""
    table = pd.read_parquet(arguments["--prompts"])
    first = table[table["condition"] == "instruction_first"]
    other = first.assign(condition="other_instruction", prompt_id="other:" + first["sample_id"])
    pd.concat([first, other]).to_parquet(tmp_path / "both.parquet")
    names = ["isolate_sample", "other_isolate_sample"]
    assert command(intervened(arguments, names) | {"--prompts": str(tmp_path / "both.parquet")}) == 0
    found = {path.stem: read_arrays(path)[0] for path in (tmp_path / "activations/plausibility").glob("*.safetensors")}
    assert list(json.loads((tmp_path / "activations/plausibility/manifest.json").read_text())["conditions"]) == [
        "instruction_first", "other_instruction", *names
    ]  # fmt: skip
    blocked, plain = (found[name]["decision.residual"] for name in ("other_isolate_sample", "other_instruction"))
    np.testing.assert_array_equal(blocked, found["isolate_sample"]["decision.residual"])
    assert np.abs(blocked - plain).max() > 1e-3
    assert command(intervened(arguments, names)) == 2


def test_read_command_writes_interventions_beside_the_variations(arguments: dict[str, str], tmp_path: Path):
    """A file and behaviour rows for each; what was there without interventions stays the same, byte for byte."""
    names = ["block_nothing", "isolate_sample", "block_sample_to_output", "block_sample_to_output_as_released"]
    assert command(arguments) == 0
    variations = ["instruction_first", "sample_first"]
    before = {name: (tmp_path / f"activations/plausibility/{name}.safetensors").read_bytes() for name in variations}
    behaviour = pd.read_parquet(tmp_path / "behaviour/plausibility.parquet")
    manifest = json.loads((tmp_path / "activations/plausibility/manifest.json").read_text())
    assert command(intervened(arguments, names)) == 0
    for name in variations:
        assert (tmp_path / f"activations/plausibility/{name}.safetensors").read_bytes() == before[name]
    after = json.loads((tmp_path / "activations/plausibility/manifest.json").read_text())
    conditions = after.pop("conditions")
    assert list(conditions) == variations + names
    assert {name: conditions[name] for name in variations} == manifest.pop("conditions") and after == manifest
    table = pd.read_parquet(tmp_path / "behaviour/plausibility.parquet")
    assert list(dict.fromkeys(table["condition"])) == variations + names
    pd.testing.assert_frame_equal(table[table["condition"].isin(variations)], behaviour)
    first, metadata = read_arrays(tmp_path / "activations/plausibility/instruction_first.safetensors")
    assert "plan" not in metadata and "interventions" not in metadata["settings"]
    for name in names:
        rows = table[table["condition"] == name]
        assert rows["prompt_id"].tolist() == behaviour["prompt_id"][: len(PROMPTS)].tolist()
        arrays, metadata = read_arrays(tmp_path / f"activations/plausibility/{name}.safetensors")
        assert metadata["plan"] == CONDITIONS[name].to_json() == conditions[name]["plan"]
        assert conditions[name]["plans"] == [CONDITIONS[name].digest]
        assert (
            metadata["condition"] == name and rows["output_positions"].tolist() == arrays["output.positions"].tolist()
        )
        difference = gap(arrays["decision.residual"][:, 2:], first["decision.residual"][:, 2:])
        assert difference < TOLERANCE if name == "block_nothing" else difference > 1e-2
        removed = conditions[name]["removed_edges"]
        assert (removed[1] > 0, conditions[name]["fewest_removed_edges"] > 0) == (name != "block_nothing",) * 2
        assert (removed[0] > 0) == (name in names[1:3])


def test_read_command_appends_random_answers(arguments: dict[str, str], tmp_path: Path):
    """A condition with activations and the appended options, by a hash of the prompt; it is nobody's behaviour."""
    settings = json.loads(arguments["--settings"])
    settings["engine"]["random_answer"] = True
    assert command(arguments | {"--settings": json.dumps(settings)}) == 0
    folder = tmp_path / "activations/plausibility"
    arrays, _ = read_arrays(folder / "random_answer.safetensors")
    plain, _ = read_arrays(folder / "instruction_first.safetensors")
    behaviour = pd.read_parquet(tmp_path / "behaviour/plausibility.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest["conditions"]) == ["instruction_first", "sample_first", "random_answer"]
    assert "random_answer" not in set(behaviour["condition"])
    drawn = arrays["appended"].tolist()
    rows = behaviour[behaviour["condition"] == "instruction_first"].assign(drawn=drawn)
    balance = rows.groupby(["label", "answer"])["drawn"]
    assert (balance.sum() == balance.count() // 2).all() and balance.ngroups == 2, "says nothing about the answer"
    assert drawn != [0, 1] * 4 and drawn != rows["drawn"].sort_values().tolist(), "drawn, not counted off"
    assert arrays["appended"].dtype == np.int8 and "appended" not in plain
    assert arrays["output.positions"].tolist() == [1] * len(PROMPTS)
    assert np.array_equal(arrays["decision.residual"], plain["decision.residual"])
    model = decoder("llama")
    for row, item in enumerate(pd.read_parquet(arguments["--prompts"])["input_ids"][: len(PROMPTS)]):
        option = [3, 4][drawn[row]]
        assert gap(arrays["output.attention"][row], contributions(model, [*item, option])[:, -1]) < TOLERANCE


def test_read_command_reads_several_tasks_with_one_model(
    arguments: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The bytes of each task are those of its own job; every task is checked before any is read."""
    assert command(arguments) == 0
    table = pd.read_parquet(arguments["--prompts"])
    other = tmp_path / "other.parquet"
    table[::-1].to_parquet(other)
    again = arguments | {"--activations": str(tmp_path / "a"), "--behaviour": str(tmp_path / "b")}
    both = [part for pair in again.items() for part in pair]
    both.insert(both.index("plausibility"), "belief")
    both.insert(both.index(arguments["--prompts"]), str(other))
    assert main(["read", *both]) == 0
    assert sorted(path.stem for path in (tmp_path / "b").iterdir()) == ["belief", "plausibility"]
    for path in (tmp_path / "activations/plausibility").iterdir():
        assert path.read_bytes() == (tmp_path / "a/plausibility" / path.name).read_bytes()
        assert path.read_bytes() != (tmp_path / "a/belief" / path.name).read_bytes()
    assert main(["read", *both, "--tasks", "one"]) == 2
    assert "found 1 tasks and 2 prompts files" in capsys.readouterr().err
    table.drop(columns="options").to_parquet(arguments["--prompts"])
    assert main(["read", *both, "--activations", str(tmp_path / "none")]) == 2
    assert "column options is missing" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_read_command_refuses_interventions_it_cannot_make(
    arguments: dict[str, str], capsys: pytest.CaptureFixture[str]
):
    def refused(*names: str) -> str:
        assert command(intervened(arguments, names)) == 2
        assert not Path(arguments["--activations"]).exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "block_instruction_to_all: prompt 0: no token group instruction, only sample, decision" in refused(
        "isolate_sample", "block_instruction_to_all"
    )
    table = pd.read_parquet(arguments["--prompts"])
    table[table["condition"] == "sample_first"].to_parquet(arguments["--prompts"])
    assert "no prompts of the condition instruction_first, which the interventions (isolate_sample) change" in refused(
        "isolate_sample"
    )


def test_read_command_refuses_bad_input(arguments: dict[str, str], capsys: pytest.CaptureFixture[str]):
    table = pd.read_parquet(arguments["--prompts"])

    def refused() -> str:
        assert command(arguments) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    def shorter(row: int, sample: np.ndarray) -> np.ndarray:
        return sample[:3] if row == len(PROMPTS) + 1 else sample

    ids = [shorter(row, sample) for row, sample in enumerate(table["input_ids"])]
    table.assign(input_ids=ids).to_parquet(arguments["--prompts"])
    assert "llama-xs-sft plausibility sample_first: prompt 1: sample is [2, 7) of 3 tokens" in refused()
    assert not Path(arguments["--activations"]).exists(), "the first condition was read before the second was checked"
    table.drop(columns="option_ids").to_parquet(arguments["--prompts"])
    assert "column option_ids is missing" in refused()
    table.iloc[:0].to_parquet(arguments["--prompts"])
    assert "there are no prompts in it" in refused()
    table.assign(answer="maybe").to_parquet(arguments["--prompts"])
    assert "the answer 'maybe' is none of the options" in refused()
    Path(arguments["--prompts"]).unlink()
    assert "no such prompts file" in refused()


def test_kernels_are_the_ones_the_tests_mean():
    assert {family: decoder(family).model.config._attn_implementation for family in FAMILIES} == {
        family: kernel(family) for family in FAMILIES
    }
    assert math.isclose(gap([1.0, 2.0], [1.0, 2.5]), 0.2)
