"""Several conditions in one pass: what is shared changes nothing; roles beside the published ones; appended answers.

Tolerance: 1e-5 of the largest expected value, float32 (sums in another order); the twins differ by more than 1e-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

from levelt.config import Engine
from levelt.engine.plans import CONDITIONS, Block, Plan
from levelt.engine.roles import ROLE_SITES
from levelt.engine.run import Appended, Condition, Readings, read_conditions, read_prompts
from levelt.files import InputError
from levelt.models.anatomy import locate
from levelt.models.loading import Decoder
from levelt.probes.solver import fit
from levelt.prompts.spans import Span, TokenGroups
from models_local import END, FAMILIES, ragged, tiny, tokenizer

TOLERANCE = 1e-5
PREFIX = 9
SAMPLES = [7, 3, 12, 3, 9, 5]
NEW = 3
ROLES = tuple(ROLE_SITES)
WINDOWED = ("mistral", "gemma2", "gemma3_text", "olmo3")


@dataclass(frozen=True)
class Prompt:
    input_ids: Sequence[int]
    groups: TokenGroups


def prompt(sample: list[int], prefix: list[int], end: list[int]) -> Prompt:
    """Instruction [2, 7) in a prefix of 9 tokens, the sample, two more tokens."""
    ids = [*prefix, *sample, *end]
    start, stop = len(prefix), len(prefix) + len(sample)
    last = Span("decision", len(ids) - 1, len(ids))
    spans = (
        Span("instruction", 2, 7),
        Span("sample", start, stop),
        last,
        Span("sample_as_released", start + 1, stop + 1),
    )
    return Prompt(ids, TokenGroups(spans))


HEAD, TAIL = ragged([PREFIX, 2], seed=5)
PROMPTS = [prompt(sample, HEAD, TAIL) for sample in ragged(SAMPLES, seed=6)]
OPTIONS = [[10 + row, 20 + row] for row in range(len(PROMPTS))]
ANSWERS = tuple(options[row % 2] for row, options in enumerate(OPTIONS))


def names(family: str) -> list[str]:
    """Interventions to read. Mistral has windows in every layer, and no decision here sees an instruction."""
    near = ["block_nothing", "block_instruction_to_all", "block_sample_to_output", "isolate_sample"]
    return near if family == "mistral" else list(CONDITIONS)


@cache
def decoder(family: str) -> Decoder:
    model = tiny(family)
    return Decoder(model, locate(model), tokenizer(), (END,))


def read(family: str, rows: Sequence[int], condition: Condition, roles: Sequence[str] = ROLES) -> Readings:
    """Prompts in one condition alone; a single prompt has no prefix to share."""
    engine = Engine(max_new_tokens=NEW, device="cpu")
    options = [OPTIONS[row] for row in rows]
    return read_prompts(decoder(family), [PROMPTS[row] for row in rows], roles, options, engine, condition)


@cache
def together(family: str) -> dict[str, Readings]:
    """All conditions in one pass over ragged batches."""
    conditions: dict[str, Condition] = {"plain": None, **{name: CONDITIONS[name] for name in names(family)}}
    conditions["appended"] = Appended(ANSWERS)
    engine = Engine(max_new_tokens=NEW, device="cpu", batch_tokens=80)
    return read_conditions(decoder(family), PROMPTS, conditions, ROLES, OPTIONS, engine, "tiny")


def gap(found, expected) -> float:
    """Largest difference, relative to the largest expected value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert (np.isnan(found) == np.isnan(expected)).all()
    largest = np.nan_to_num(np.abs(expected)).max()  # 0: all of it is missing, in both
    return float(np.nan_to_num(np.abs(found - expected)).max() / (largest or 1.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_conditions_together_are_those_of_single_prompts(family: str):
    """Prefix and plain run are shared (not in models with windows); each prompt alone and in full says the same."""
    found = together(family)
    tokens = sum(len(item.input_ids) for item in PROMPTS)
    assert (found["plain"].padded < tokens) is (family not in WINDOWED)
    assert (found["block_sample_to_output"].padded == len(PROMPTS)) is (family not in WINDOWED)
    for name in ("plain", *names(family)):
        plan = CONDITIONS.get(name)
        for row in range(len(PROMPTS)):
            alone = read(family, [row], plan)
            for key, values in alone.arrays().items():
                assert gap(found[name].arrays()[key][row], values[0]) < TOLERANCE, (name, row, key)
            assert found[name].generated[row] == alone.generated[0]
            assert gap(found[name].logit_difference[row], alone.logit_difference[0]) < 1e-3  # a difference of two
            if plan is not None:
                assert found[name].edges.removed[row].tolist() == alone.edges.removed[0].tolist()
                assert found[name].edges.plans[row] == plan.digest
    # the twin: plans differ from the plain run, and from themselves with one layer left open
    blocked = found["block_instruction_to_all"]
    assert gap(blocked.residual["sample"][:, 2:], found["plain"].residual["sample"][:, 2:]) > 1e-2
    opened = read(family, range(len(PROMPTS)), Plan((Block.of("after:instruction", "instruction", (1, None)),)))
    assert gap(opened.residual["sample"], blocked.residual["sample"]) > 1e-2


def test_what_a_condition_gives_does_not_depend_on_the_others():
    """Bit for bit: a study that adds a condition keeps the files of the others."""
    engine = Engine(max_new_tokens=NEW, device="cpu", batch_tokens=80)
    chosen: dict[str, Condition] = {"plain": None, "isolate_sample": CONDITIONS["isolate_sample"]}
    few = read_conditions(decoder("llama"), PROMPTS, chosen, ROLES, OPTIONS, engine)
    chosen["block_instruction_to_all"] = CONDITIONS["block_instruction_to_all"]
    more = read_conditions(decoder("llama"), PROMPTS, chosen, ROLES, OPTIONS, engine)
    for name, readings in few.items():
        for key, values in readings.arrays().items():
            assert np.array_equal(values, more[name].arrays()[key], equal_nan=True), (name, key)


@torch.inference_mode()
def states(family: str, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Residuals [layers, seq, d] in front of each layer, and what attention adds [layers, seq, d]: one full forward."""
    reader, seen, added = decoder(family), [], []

    def before(_module, positional, named):
        seen.append(positional[0] if positional else named["hidden_states"])

    def after(_module, _inputs, output):
        added.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in reader.parts.layers]
    handles += [module.register_forward_hook(after) for module in reader.parts.attention_contribution]
    try:
        reader.model(torch.tensor([list(ids)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(seen), torch.cat(added)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_roles_are_the_positions_they_name(family: str):
    found = together(family)["plain"]
    for row, item in enumerate(PROMPTS):
        length, (start, stop) = len(item.input_ids), (PREFIX, PREFIX + SAMPLES[row])
        residual, added = states(family, [*item.input_ids, *found.generated[row]])
        expected = {
            "before": residual[:, start - 1],
            "sample": residual[:, start:stop].mean(1),
            "sample_as_released": residual[:, start + 1 : stop + 1].mean(1),
            "decision": residual[:, length - 1],
        }
        for role, values in expected.items():
            assert gap(found.residual[role][row, :-1], values) < TOLERANCE, role
        assert gap(found.residual["before"][row, :-1], residual[:, start]) > 1e-2
        assert gap(found.residual["sample_as_released"][row, :-1], expected["sample"]) > 1e-2
        assert gap(found.attention["output_with_decision"][row], added[:, length - 1 :].mean(1)) < TOLERANCE
        if found.positions[row]:
            assert gap(found.attention["output"][row], added[:, length:].mean(1)) < TOLERANCE
            assert gap(found.attention["output_with_decision"][row], added[:, length:].mean(1)) > 1e-2


def test_before_the_sample_nothing_depends_on_it():
    """One prefix, other samples: the role is the same vector in every row; the sample's is not."""
    found = together("llama")["plain"]
    assert gap(found.residual["before"], np.broadcast_to(found.residual["before"][:1], (6, 4, 32))) < TOLERANCE
    assert gap(found.residual["sample"], np.broadcast_to(found.residual["sample"][:1], (6, 4, 32))) > 1e-1


def test_an_answer_that_ends_at_once_still_has_its_decision():
    reader = decoder("llama")
    ends = {answer for readings in [read("llama", range(6), None)] for ids in readings.generated for answer in ids[:1]}
    stopping = Decoder(reader.model, reader.parts, reader.tokenizer, tuple(sorted(ends)))
    engine = Engine(max_new_tokens=NEW, device="cpu")
    found = read_prompts(stopping, PROMPTS, ["output", "output_with_decision"], OPTIONS, engine)
    assert not found.positions.any() and np.isnan(found.attention["output"]).all()
    _, added = states("llama", PROMPTS[2].input_ids)
    assert gap(found.attention["output_with_decision"][2], added[:, -1]) < TOLERANCE


# --- appended answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_an_appended_answer_is_fed_instead_of_the_models_own(family: str):
    found, plain = together(family)["appended"], together(family)["plain"]
    assert found.generated == tuple((token,) for token in ANSWERS) != plain.generated
    assert found.positions.tolist() == [1] * len(PROMPTS)
    for role in plain.residual:
        assert np.array_equal(found.residual[role], plain.residual[role]), "the prompt is the same"
    for row, item in enumerate(PROMPTS):
        _, added = states(family, [*item.input_ids, ANSWERS[row]])
        assert gap(found.attention["output"][row], added[:, -1]) < TOLERANCE
        _, other = states(family, [*item.input_ids, OPTIONS[row][(row + 1) % 2]])
        assert gap(found.attention["output"][row], other[:, -1]) > 1e-2


def test_a_random_answer_leaks_into_the_output_role_and_not_into_the_decision():
    """Methods/1, defect A5: random weights, nothing was chosen, and probes read the answer off the input."""
    rows = 240
    prompts = [prompt(sample, HEAD, TAIL) for sample in ragged([5] * rows, seed=8)]
    drawn = np.random.default_rng(0).integers(0, 2, rows)
    engine, options = Engine(max_new_tokens=NEW, device="cpu"), [[10, 20]] * rows
    condition = Appended(tuple(int(10 + 10 * index) for index in drawn))
    found = read_prompts(decoder("llama"), prompts, ["output", "decision"], options, engine, condition)

    def accuracy(values: np.ndarray) -> np.ndarray:
        """Of probes fitted on two thirds of the rows, on the others, by layer."""
        train, test = np.arange(rows) < 160, np.arange(rows) >= 160
        fitted = (fit(values[train, layer], drawn[train], 0.01) for layer in range(values.shape[1]))
        said = [probe.logits(values[test, layer]) > 0 for layer, probe in enumerate(fitted)]
        return (np.array(said) == drawn[test]).mean(1)

    assert (accuracy(found.attention["output"]) > 0.8).all()  # 1.0 in the first layer
    assert (accuracy(found.residual["decision"]) < 0.67).all()  # chance, and three standard errors of 80 rows


# --- refusals --------------------------------------------------------------------------------------------------------


def test_conditions_are_checked_before_any_work():
    engine = Engine(max_new_tokens=NEW, device="cpu")

    def refused(condition: Condition, roles: Sequence[str] = ("sample",), prompts: Sequence[Prompt] = PROMPTS) -> str:
        with pytest.raises(InputError) as caught:
            options = OPTIONS[: len(prompts)]
            read_conditions(decoder("llama"), prompts, {"plain": None, "x": condition}, roles, options, engine, "m t")
        return str(caught.value)

    assert refused([Plan()]) == "m t x: found 1 plans for 6 prompts"
    assert refused(Appended((1, 2))) == "m t x: expected a token of the vocabulary to append to each of 6 prompts"
    assert "to append" in refused(Appended((97,) * 6))
    assert "m t x: prompt 0: no token group demonstration_0" in refused(
        Plan((Block.of("decision", "demonstration_0"),))
    )
    bare = Prompt([5, 6, 7], TokenGroups((Span("sample", 0, 2), Span("decision", 2, 3))))
    assert "m t plain: prompt 0: the sample begins at token 0" in refused(None, ["before"], [bare])
    assert "prompt 0 has no token group sample_as_released" in refused(None, ["sample_as_released"], [bare])
