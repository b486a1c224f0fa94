"""Tiny random Hugging Face decoders of every supported family, built from configs: no network, no download.

Weights are drawn large enough that attention is far from uniform and every contribution far from zero, so
that a wrong position, a missing mask or a second norm changes the numbers well beyond the tolerances of the
tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 97
END = 2
"""The end-of-sequence id of every model here."""

_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": END,
    "attention_dropout": 0.0,
}
_WINDOWED = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "phi3": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "olmo2": {},
    "olmo3": _WINDOWED,
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": False, **_WINDOWED},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, **_WINDOWED},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 128},
    "gpt_neox": {"rotary_pct": 0.5, "use_parallel_residual": True, "hidden_dropout": 0.0},
    "cohere": {"tie_word_embeddings": False, "logit_scale": 0.5},
}
"""What differs from the shared config, by model type. Windows are shorter than the prompts of the tests; with tied
embeddings a random Gemma-2 or Cohere only repeats its input."""

EAGER_ONLY = {"gemma2"}
"""Families whose attention soft-capping has no sdpa kernel."""


def kernel(family: str) -> str:
    """The attention kernel tests use for a family: sdpa where it exists."""
    return "eager" if family in EAGER_ONLY else "sdpa"


def tiny(
    family: str, seed: int = 0, scale: float = 0.35, attention: str | None = None, **changes: Any
) -> PreTrainedModel:
    """A random decoder of 3 layers and width 32, float32, evaluation mode.

    Args:
        family: a model type of FAMILIES.
        seed: of the weights; the global generator is left as it was.
        scale: standard deviation of the weight matrices; norm weights are drawn around one, biases around
            zero.
        attention: the kernel; default `kernel(family)`.
        changes: config entries to change.
    """
    shared = {} if family == "gpt2" else _SHARED
    common = {name: _SHARED[name] for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
    config = AutoConfig.for_model(family, **(common | shared | FAMILIES[family] | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention or kernel(family))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape) * (scale if parameter.dim() > 1 else 0.2)
                norm = parameter.dim() == 1 and name.endswith("weight") and "gemma" not in family
                parameter.copy_(noise + 1.0 if norm else noise)
    return model.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for these models: three special tokens, "yes", "no", and single characters."""
    words = ["<pad>", "<s>", "</s>", "yes", "no", "Yes", "No"]
    words += [chr(code) for code in range(32, 126) if len(words) < VOCABULARY][: VOCABULARY - len(words)]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("Yes|No|yes|no|."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def save(model: PreTrainedModel, folder: Path, end: int | list[int] = END) -> Path:
    """Write a model with its tokenizer and generation config as an ordinary Hugging Face folder."""
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def ragged(counts: list[int], seed: int = 0) -> list[list[int]]:
    """Random prompts of the given lengths, without special tokens."""
    drawn = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (count,), generator=drawn).tolist() for count in counts]
