"""Ordinary Hugging Face decoders of a given small shape, with seeded weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from levelt.config import Shape
from levelt.organisms.tokenizer import MAX_LENGTH

_CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
}
_OUTPUT_NORMS = {"olmo2": ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")}
"""Norms of what a sublayer adds to the residual stream (llama's norm of this name stands before a sublayer)."""
_OUTPUT_GAIN = 0.25
"""Their initial weight. With one, each sublayer would add a vector a dozen times as long as a word's embedding, and
hardly anything of the word would be left; here the parts are of the sizes they have in a llama of the same shape."""


def build(shape: Shape, vocabulary: int, pad: int, end: int, seed: int) -> PreTrainedModel:
    """A model of this shape in float32 with tied embeddings.

    Matrices are normal with ``shape.initializer_range``, biases zero, norms one (those behind a sublayer less), all
    drawn from one generator in the order of ``named_parameters``: transformers' own initialisation uses the global one.
    """
    config_class, model_class = _CLASSES[shape.architecture]
    config = config_class(
        vocab_size=vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=shape.initializer_range,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        pad_token_id=pad,
        eos_token_id=end,
        bos_token_id=None,
        use_cache=True,
    )
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = model_class(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                scale = _OUTPUT_GAIN if name.endswith(_OUTPUT_NORMS.get(shape.architecture, ())) else 1.0
                parameter.fill_(0.0 if name.endswith("bias") else scale)
            else:
                parameter.normal_(0.0, shape.initializer_range, generator=generator)
    return model
