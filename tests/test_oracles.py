"""The engine against other people's tools, on the same weights: TransformerLens 4.3 and nnsight 0.8.

Both are optional: a test is skipped, with the reason, where its tool is not installed. One job of the continuous
integration installs them. Tolerance: 1e-5 of the largest value, float32.
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from levelt.engine.capture import Captured, Read, capture
from levelt.models.anatomy import anatomy_of, locate
from levelt.models.loading import Decoder
from models_local import END, FAMILIES, save, tiny, tokenizer
from test_capture import LAYERS, PROMPTS, gap

TOLERANCE = 1e-5
ROWS = (0, 3, 5)
"""Prompts compared one by one; the engine runs all of them in ragged, padded batches."""

needs_transformer_lens = pytest.mark.skipif(
    importlib.util.find_spec("transformer_lens") is None, reason="the oracle transformer_lens is not installed"
)
needs_nnsight = pytest.mark.skipif(
    importlib.util.find_spec("nnsight") is None, reason="the oracle nnsight is not installed"
)


def changes(family: str) -> dict[str, Any]:
    # GPT-NeoX has no grouped queries, but TransformerLens believes any num_key_value_heads it finds in a config
    return {"num_key_value_heads": 4} if family == "gpt_neox" else {}


@cache
def captured(family: str, attention: str = "eager") -> Captured:
    model = tiny(family, attention=attention, **changes(family))
    reads = [Read(site, "sample", each=True) for site in ("residual", "attention", "mlp", "head")]
    reads += [Read("weights", "sample", each=True)] if attention == "eager" else []
    return capture(Decoder(model, locate(model), tokenizer(), (END,)), PROMPTS, reads, batch_tokens=100)


@needs_transformer_lens
@pytest.mark.parametrize("family", FAMILIES)
def test_transformer_lens(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Residual, attention, MLP, heads' outputs and attention weights of every layer, at every sample token."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    model = tiny(family, attention="eager", **changes(family))
    parts = locate(model)
    save(model, tmp_path)
    model.config.architectures = [type(model).__name__]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = TransformerBridge.boot_transformers(
            str(tmp_path), hf_model=model, tokenizer=AutoTokenizer.from_pretrained(tmp_path), device="cpu"
        )
    matrices = [module.weight.detach().clone() for module in parts.projection]
    found = captured(family)
    for row in ROWS:
        ids, span = PROMPTS[row].input_ids, PROMPTS[row].groups["sample"]
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(torch.tensor([list(ids)]))

        def theirs(name: str, layer: int, cache=cache) -> torch.Tensor:
            return cache[f"blocks.{layer}.{name}"][0]

        inside = slice(span.start, span.stop)
        residual, attention, mlp, head, weights = (
            found.row(f"sample.{site}.each", row) for site in ("residual", "attention", "mlp", "head", "weights")
        )
        assert gap(residual[:, 0], theirs("hook_resid_pre", 0)[inside]) < TOLERANCE
        for layer in range(LAYERS):
            assert gap(residual[:, layer + 1], theirs("hook_resid_post", layer)[inside]) < TOLERANCE
            assert gap(attention[:, layer], theirs("hook_attn_out", layer)[inside]) < TOLERANCE
            assert gap(mlp[:, layer], theirs("hook_mlp_out", layer)[inside]) < TOLERANCE
            pattern = theirs("attn.hook_pattern", layer)[:, inside].transpose(0, 1)
            assert gap(weights[:, layer, :, : len(ids)], pattern) < TOLERANCE
            if parts.attention_contribution[layer] is parts.attention[layer]:
                matrix = matrices[layer] if family == "gpt2" else matrices[layer].T
                z = theirs("attn.hook_z", layer)[inside].reshape(len(residual), 4, -1)
                expected = torch.einsum("phw,hwd->phd", z, matrix.reshape(4, -1, matrix.shape[-1]))
                assert gap(head[:, layer], expected) < TOLERANCE
            # twins: the next position, and the layer's other block
            shifted = slice(span.start + 1, span.stop + 1)
            assert gap(residual[:, layer + 1], theirs("hook_resid_post", layer)[shifted]) > 1e-2
            assert gap(attention[:, layer], theirs("hook_mlp_out", layer)[inside]) > 1e-2


@needs_nnsight
@pytest.mark.parametrize("family", FAMILIES)
def test_nnsight(family: str):
    """Residual, attention and MLP of every layer: values of the modules the anatomy table names, saved by nnsight."""
    from nnsight import NNsight

    attention_kernel = tiny(family).config._attn_implementation
    model = tiny(family, **changes(family))
    anatomy = anatomy_of({"model_type": model.config.model_type}, "model")
    found = captured(family, attention_kernel)
    traced = NNsight(model)

    def envoy(path: str) -> Any:
        part = traced
        for name in path.split("."):
            part = part[int(name)] if name.isdigit() else getattr(part, name)
        return part

    def tensor(value: Any) -> torch.Tensor:
        return (value[0] if isinstance(value, tuple) else value)[0]

    # within a layer, in the order in which the modules run
    paths = [f"{anatomy.layers}.{layer}" for layer in range(LAYERS)]
    for row in ROWS:
        ids = torch.tensor([list(PROMPTS[row].input_ids)])
        with torch.inference_mode(), traced.trace(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False):
            states = [
                [
                    envoy(f"{path}.{anatomy.attention_contribution}").output.save(),
                    envoy(f"{path}.{anatomy.mlp_contribution}").output.save(),
                    envoy(path).output.save(),
                ]
                for path in paths
            ].save()
        span = PROMPTS[row].groups["sample"]
        for layer, (attention, mlp, residual) in enumerate(states):
            for site, value, index in (
                ("attention", attention, layer),
                ("mlp", mlp, layer),
                ("residual", residual, layer + 1),
            ):
                mine = found.row(f"sample.{site}.each", row)[:, index]
                assert gap(mine, tensor(value)[span.start : span.stop]) < TOLERANCE, site
                assert gap(mine, tensor(value)[span.start + 1 : span.stop + 1]) > 1e-2, site  # twin


def test_the_oracles_see_the_engine_of_the_study():
    """Eager and sdpa give the same readings, so the eager-only oracle speaks for both."""
    for name, values in captured("llama", "sdpa").values.items():
        assert gap(values, captured("llama")[name]) < TOLERANCE
    assert np.isfinite(captured("llama")["sample.weights.each"]).all()
