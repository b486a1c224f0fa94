"""Where the parts of a decoder are: one declarative row per architecture, and the modules it names.

The table says which submodule's *output is what is added to the residual stream*. In pre-norm models (Llama,
GPT-2) that is the attention or MLP module itself; in post-norm and sandwich-norm models (OLMo-2, Gemma) it is the
norm behind it. `levelt.models.selfcheck` proves the row numerically on every loaded model. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from levelt.files import InputError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Anatomy:
    """Dotted paths of a decoder's parts: from the model, or (marked *) from one of its decoder layers."""

    layers: str = "model.layers"
    final_norm: str = "model.norm"
    attention: str = "self_attn"  # *
    mlp: str = "mlp"  # *
    attention_contribution: str = "self_attn"  # *
    mlp_contribution: str = "mlp"  # *
    projection: str = "self_attn.o_proj"  # *
    """The linear layer behind the heads: its input is every head's output, side by side."""
    norm: Literal["rms", "rms+1", "layer"] = "rms"
    """Kind of the final norm (and of the norm behind the attention block, if any); see `levelt.models.linear`."""
    logit_scale: str | None = None
    """Name of the config entry that multiplies the logits, if there is one."""
    tied: bool = False
    """Whether the output matrix is the embedding matrix, where config.json does not say."""


_LLAMA = Anatomy()
_OLMO = Anatomy(attention_contribution="post_attention_layernorm", mlp_contribution="post_feedforward_layernorm")
_GEMMA = replace(_OLMO, norm="rms+1", tied=True)

ARCHITECTURES: Mapping[str, Anatomy] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": Anatomy(
        layers="transformer.h",
        final_norm="transformer.ln_f",
        attention="attn",
        attention_contribution="attn",
        projection="attn.c_proj",
        norm="layer",
        tied=True,
    ),
    "gpt_neox": Anatomy(
        layers="gpt_neox.layers",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        attention_contribution="attention",
        projection="attention.dense",
        norm="layer",
    ),
    "cohere": replace(_LLAMA, norm="layer", logit_scale="logit_scale", tied=True),
}
"""Anatomy by `model_type` of the Hugging Face config."""


def anatomy_of(config: Mapping[str, Any], where: str) -> Anatomy:
    """The anatomy of the architecture that a config (as read from config.json) names.

    Raises:
        InputError: no model type, an encoder-decoder, or a type that is not in the table.
    """
    kind = config.get("model_type")
    if not kind:
        raise InputError(f"{where}: no `model_type`, so the architecture is unknown")
    if config.get("is_encoder_decoder"):
        raise InputError(f"{where}: {kind} is an encoder-decoder; levelt studies decoder-only models")
    if kind not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise InputError(f"{where}: architecture {kind!r} is not supported; supported are {known}")
    return ARCHITECTURES[kind]


@dataclass(frozen=True)
class Parts:
    """The modules of one loaded decoder, by the names of `Anatomy`; tuples have one entry per layer."""

    layers: tuple[nn.Module, ...]
    embedding: nn.Embedding
    final_norm: nn.Module
    head: nn.Module
    attention: tuple[nn.Module, ...]
    mlp: tuple[nn.Module, ...]
    attention_contribution: tuple[nn.Module, ...]
    """In a post-norm or sandwich-norm model the norm behind the block; otherwise the block itself."""
    mlp_contribution: tuple[nn.Module, ...]
    hidden_size: int
    softcap: float | None
    """Final logit soft-capping: logits = softcap * tanh(head(...) / softcap), or None."""
    projection: tuple[nn.Module, ...]
    heads: int
    """Query heads of a layer."""
    norm: Literal["rms", "rms+1", "layer"]
    logit_scale: float
    """What the output matrix's product is multiplied with, before any soft-capping."""


def locate(model: PreTrainedModel) -> Parts:
    """Find the parts of a loaded Hugging Face decoder.

    Raises:
        InputError: the architecture is not in the table, or a module is not where the table says.
    """
    config = model.config
    anatomy = anatomy_of({"model_type": config.model_type, "is_encoder_decoder": config.is_encoder_decoder}, "model")
    try:
        layers = tuple(model.get_submodule(anatomy.layers).children())

        def inside(path: str) -> tuple[nn.Module, ...]:
            return tuple(layer.get_submodule(path) for layer in layers)

        return Parts(
            layers=layers,
            embedding=model.get_input_embeddings(),
            final_norm=model.get_submodule(anatomy.final_norm),
            head=model.get_output_embeddings(),
            attention=inside(anatomy.attention),
            mlp=inside(anatomy.mlp),
            attention_contribution=inside(anatomy.attention_contribution),
            mlp_contribution=inside(anatomy.mlp_contribution),
            hidden_size=int(config.hidden_size),
            softcap=getattr(config, "final_logit_softcapping", None),
            projection=inside(anatomy.projection),
            heads=int(config.num_attention_heads),
            norm=anatomy.norm,
            logit_scale=float(getattr(config, anatomy.logit_scale)) if anatomy.logit_scale else 1.0,
        )
    except AttributeError as error:
        raise InputError(f"model: the anatomy table does not fit this {config.model_type} model ({error})") from None
