"""Components add up to the model's own logits, in every family; the logit lens is the model's readout.

Tolerance: 1e-5 of the largest logit, float32 (measured: below 1e-6); the twins are off by more than 1e-2.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from levelt.engine.capture import Captured, Read, capture
from levelt.engine.lens import ComponentLogits, component_lens, decode_captured, logit_lens
from levelt.files import InputError
from levelt.models.linear import FrozenNorm, head_matrices
from levelt.models.selfcheck import readout
from models_local import FAMILIES, VOCABULARY
from test_capture import LAYERS, PROMPTS, TOKENS, WIDTH, decoder, gap

TOLERANCE = 1e-5
EVERY = list(range(VOCABULARY))
SITES = ("residual", "attention", "mlp", "head")


@cache
def captured(family: str) -> Captured:
    reads = [Read(site, "decision") for site in SITES] + [Read(site, "sample", each=True) for site in SITES]
    return capture(decoder(family), PROMPTS, reads, batch_tokens=100)


@cache
def model_logits(family: str) -> np.ndarray:
    """[n, vocabulary] of the last position, one unpadded prompt at a time, from the model itself."""
    with torch.inference_mode():
        ids = [torch.tensor([list(item.input_ids)]) for item in PROMPTS]
        return torch.cat([decoder(family).model(row, use_cache=False).logits[:, -1] for row in ids]).numpy()


def without_cap(family: str, logits: np.ndarray) -> np.ndarray:
    cap = decoder(family).parts.softcap
    return logits if cap is None else cap * np.arctanh(logits.astype(np.float64) / cap)


@pytest.mark.parametrize("family", FAMILIES)
def test_components_add_up_to_the_models_logits(family: str):
    parts, found = decoder(family).parts, captured(family)
    decoded = decode_captured(parts, found, "decision", EVERY)
    assert gap(decoded.logits, model_logits(family)) < TOLERANCE
    assert gap(decoded.total(), decoded.linear) < TOLERANCE
    # arctanh magnifies the rounding of capped logits near the cap, so compare on the capped side
    cap = parts.softcap
    total = decoded.total() if cap is None else cap * np.tanh(decoded.total() / cap)
    assert gap(total, model_logits(family)) < TOLERANCE
    assert set(decoded.components) == {"embedding", "mlp", "head", "attention_bias"}
    assert decoded.components["head"].shape == (len(PROMPTS), LAYERS, 4, VOCABULARY)
    # heads and the projection's bias are what attention is
    whole = {
        "embedding": found["decision.residual"][:, 0],
        "attention": found["decision.attention"],
        "mlp": found["decision.mlp"],
    }
    attention = component_lens(parts, found["decision.residual"][:, -1], whole, EVERY).components["attention"]
    heads = decoded.components["head"].sum(2) + decoded.components["attention_bias"]
    assert gap(heads, attention) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_each_left_out_component_would_be_missed(family: str):
    """Twin: any one component less."""
    decoded = decode_captured(decoder(family).parts, captured(family), "decision", EVERY)
    for name, values in decoded.components.items():
        pieces = [values] if values.ndim == 2 else [values[:, layer] for layer in range(LAYERS)]
        for piece in pieces:
            lost = piece if piece.ndim == 2 else piece[:, 0]
            if name == "attention_bias" and np.abs(lost).max() < 1e-3:
                continue  # most families have no such bias
            assert gap(decoded.total() - lost, decoded.linear) > 1e-2, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_final_norm_must_be_frozen(family: str):
    """Twin: each component through the norm by itself, with its own scale."""
    parts, found = decoder(family).parts, captured(family)
    decoded = decode_captured(parts, found, "decision", EVERY)
    vectors = [found["decision.residual"][:, :1], found["decision.attention"], found["decision.mlp"]]
    unfrozen = sum(logit_lens(replace(parts, softcap=None), part, EVERY).sum(1) for part in vectors)
    assert gap(unfrozen, decoded.linear) > 1e-1


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "cohere"])
def test_layer_norm_takes_the_mean_away_and_adds_its_bias(family: str):
    """Twins: the mean left in; the bias left out (Cohere's norm has none)."""
    parts, found = decoder(family).parts, captured(family)
    decoded = decode_captured(parts, found, "decision", EVERY)
    biased = getattr(parts.final_norm, "bias", None) is not None
    assert (gap(decoded.total() - decoded.constant, decoded.linear) > 1e-2) == biased
    wrong = decode_captured(replace(parts, norm="rms"), found, "decision", EVERY)
    assert gap(wrong.logits, model_logits(family)) > 1e-2


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_gemmas_norm_weight_has_a_one_added(family: str):
    wrong = decode_captured(replace(decoder(family).parts, norm="rms"), captured(family), "decision", EVERY)
    assert gap(wrong.logits, model_logits(family)) > 1e-2


def test_cap_and_scale_count():
    parts, found = decoder("gemma2").parts, captured("gemma2")
    decoded = decode_captured(parts, found, "decision", EVERY)
    assert gap(decoded.linear, without_cap("gemma2", model_logits("gemma2"))) < 1e-3
    assert gap(decoded.linear, model_logits("gemma2")) > 1e-2  # twin: no cap
    assert decoder("cohere").parts.logit_scale == 0.5
    unscaled = replace(decoder("cohere").parts, logit_scale=1.0)
    wrong = decode_captured(unscaled, captured("cohere"), "decision", EVERY)
    assert gap(wrong.logits, model_logits("cohere")) > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_single_positions_with_their_own_tokens(family: str):
    """At every sample token, two tokens per row: the same numbers as the whole vocabulary's, picked."""
    parts, found = decoder(family).parts, captured(family)
    offsets = found.offsets["sample"]
    ids = np.repeat(np.array(TOKENS)[:, :2], np.diff(offsets), axis=0)
    decoded = decode_captured(parts, found, "sample", ids)
    everything = decode_captured(parts, found, "sample", EVERY)
    assert gap(decoded.linear, np.take_along_axis(everything.linear, ids, 1)) < TOLERANCE
    assert gap(decoded.total(), decoded.linear) < TOLERANCE
    mlp = np.take_along_axis(everything.components["mlp"], ids[:, None], 2)
    assert gap(decoded.components["mlp"], mlp) < TOLERANCE
    row = 2
    with torch.inference_mode():
        logits = decoder(family).model(torch.tensor([list(PROMPTS[row].input_ids)]), use_cache=False).logits[0]
    span = PROMPTS[row].groups["sample"]
    inside = slice(offsets[row], offsets[row + 1])
    assert gap(decoded.logits[inside], logits[span.start : span.stop, TOKENS[row][:2]]) < TOLERANCE
    assert gap(decoded.logits[inside], logits[span.start + 1 : span.stop + 1, TOKENS[row][:2]]) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_logit_lens(family: str):
    parts, found = decoder(family).parts, captured(family)
    residual = found["decision.residual"]
    lens = logit_lens(parts, residual, EVERY)
    assert lens.shape == (len(PROMPTS), LAYERS + 1, VOCABULARY)
    assert gap(lens[:, -1], model_logits(family)) < TOLERANCE
    with torch.inference_mode():
        assert gap(lens, readout(parts, torch.from_numpy(residual))) < TOLERANCE
    some = logit_lens(parts, residual, [ids[:2] for ids in TOKENS])
    assert gap(some, np.take_along_axis(lens, np.array(TOKENS)[:, None, :2], 2)) < TOLERANCE
    # twin: the norm twice, as decoding hidden_states[-1] would do (trap 7)
    with torch.inference_mode():
        twice = logit_lens(parts, parts.final_norm(torch.from_numpy(residual[:, -1])), EVERY)
    assert gap(twice, model_logits(family)) > 1e-2


def test_biases_of_an_output_matrix_belong_to_the_constant():
    parts, found = decoder("llama").parts, captured("llama")
    head = nn.Linear(WIDTH, VOCABULARY)
    with torch.no_grad():
        head.weight.copy_(parts.head.weight)
        head.bias.copy_(torch.arange(VOCABULARY) / 10)
    biased = decode_captured(replace(parts, head=head), found, "decision", EVERY)
    assert gap(biased.constant, np.tile(np.arange(VOCABULARY) / 10, (len(PROMPTS), 1))) < TOLERANCE
    assert gap(biased.logits, model_logits("llama") + np.arange(VOCABULARY) / 10) < TOLERANCE
    assert gap(logit_lens(replace(parts, head=head), found["decision.residual"], EVERY)[:, -1], biased.logits) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_norm_is_the_norm_and_linear(family: str):
    parts = decoder(family).parts
    norm = FrozenNorm.of(parts.final_norm, parts.norm)
    hidden = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)) * 3 + 1
    scale = norm.scale(hidden)
    with torch.inference_mode():
        assert gap(norm.linear(hidden) * scale + norm.bias, parts.final_norm(hidden)) < 1e-6
    first, second = hidden * 0.3, hidden.flip(0)
    assert gap(norm.linear(first + second), norm.linear(first) + norm.linear(second)) < 1e-6
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
    assert gap(hidden @ norm.transposed(direction), norm.linear(hidden) @ direction) < TOLERANCE


def test_vectors_and_tokens_that_do_not_fit_are_refused():
    parts, found = decoder("llama").parts, captured("llama")
    final = found["decision.residual"][:, -1]
    for arguments, sentence in [
        ((final[:, :5], {}, [3]), r"final has shape \(8, 5\), expected \[n, ..., 32\]"),
        ((found["decision.residual"], {}, [3]), "expected one residual vector per row"),
        ((final, {"mlp": final[:3]}, [3]), "mlp has 3 rows, the final residual 8"),
        ((final, {}, [[3], [4]]), r"token_ids has shape \(2, 1\), expected \[tokens\] or \[8, tokens\]"),
        ((final, {}, [97]), "outside the vocabulary of 97"),
    ]:
        with pytest.raises(InputError, match=sentence):
            component_lens(parts, *arguments)
    some = capture(decoder("llama"), PROMPTS, [Read("residual", "decision"), Read("mlp", "decision", layers=(0,))])
    with pytest.raises(InputError, match=r"needs decision\.attention, which was not read"):
        decode_captured(parts, some, "decision", [3])
    with pytest.raises(InputError, match="is a LlamaMLP, not a linear layer"):
        head_matrices(parts.mlp[0], 4)
    with pytest.raises(InputError, match="which 3 heads cannot share"):
        head_matrices(parts.projection[0], 3)
    with pytest.raises(InputError, match="Identity is not a norm"):
        FrozenNorm.of(nn.Identity(), "rms")


def test_an_empty_decomposition_is_its_constant():
    empty = ComponentLogits({}, np.ones((2, 3)), np.ones((2, 3)), np.ones((2, 3)))
    assert (empty.total() == 1).all()
