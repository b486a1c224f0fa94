"""What levelt assumes of a decoder, checked on the loaded model itself with one short forward pass."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from levelt.files import InputError
from levelt.models import hooks
from levelt.models.anatomy import Parts

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest relative error of a checked identity. A half-precision residual is rounded at both additions of a layer
(bfloat16 keeps 8 bits: 4e-3 each time at worst), the sum of contributions in float32 is not; a wrong row of the table
is off by a factor in the early layers, where contributions are as large as the residual."""


def readout(parts: Parts, residual: Float[Tensor, "*positions d"]) -> Float[Tensor, "*positions vocabulary"]:
    """The logits of a residual vector taken after the last layer: final norm, output matrix, soft-capping."""
    logits: Tensor = parts.head(parts.final_norm(residual))
    return logits if parts.softcap is None else parts.softcap * torch.tanh(logits / parts.softcap)


@torch.inference_mode()
def self_check(model: PreTrainedModel, parts: Parts, tokens: int = 6) -> None:
    """Check that the parts mean what levelt takes them for, on a few random tokens.

    Layers and shapes are as the config says; residual before a layer + its attention contribution + its MLP
    contribution = residual after it, so that embedding + all contributions = the last residual; the last
    residual through final norm and output matrix = the model's logits.

    Raises:
        InputError: an identity does not hold, so nothing read from this model could be trusted.
    """
    config = model.config
    name = f"{config.model_type} model: self-check failed"
    if len(parts.layers) != config.num_hidden_layers:
        raise InputError(f"{name}: found {len(parts.layers)} layers, the config says {config.num_hidden_layers}")
    vocabulary, width = parts.embedding.weight.shape
    if (vocabulary, width) != (config.vocab_size, config.hidden_size):
        raise InputError(
            f"{name}: the embedding matrix is {(vocabulary, width)}, "
            f"the config says ({config.vocab_size}, {config.hidden_size})"
        )
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (1, tokens), generator=drawn).to(model.device)
    residuals: list[Tensor] = []
    added: dict[str, list[Tensor]] = {"attention": [], "mlp": []}
    with ExitStack() as stack:
        stack.enter_context(hooks.inputs(parts.layers[0], residuals.append))
        stack.enter_context(hooks.outputs(parts.layers, partial(_keep, residuals)))
        for site, modules in (("attention", parts.attention_contribution), ("mlp", parts.mlp_contribution)):
            stack.enter_context(hooks.outputs(modules, partial(_keep, added[site])))
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    expected = (1, tokens, config.hidden_size)
    counts = {"residual": len(residuals) - 1, "attention": len(added["attention"]), "mlp": len(added["mlp"])}
    for site, count in counts.items():
        if count != len(parts.layers):
            raise InputError(f"{name}: {site} was seen {count} times in a model of {len(parts.layers)} layers")
    for site, seen in {"residual": residuals, **added}.items():
        if any(tensor.shape != expected for tensor in seen):
            raise InputError(f"{name}: {site} has shape {tuple(seen[0].shape)}, expected {expected}")
    tolerance = TOLERANCES[residuals[0].dtype]
    for layer, (before, after) in enumerate(pairwise(residuals)):
        # layer by layer, not summed up: where half precision cancels a huge activation (as many models do in
        # their last layer), the rounding of the earlier additions would drown what is left
        total = before.float() + added["attention"][layer].float() + added["mlp"][layer].float()
        error = _relative(total, after, before)
        if not error <= tolerance:
            raise InputError(
                f"{name}: residual plus contributions differ from the residual after layer {layer + 1} "
                f"by {error:.1e} (allowed {tolerance:.0e})"
            )
    error = _relative(readout(parts, residuals[-1]), logits)
    if not error <= tolerance:
        raise InputError(
            f"{name}: the last residual through final norm and output matrix differs from the logits "
            f"by {error:.1e} (allowed {tolerance:.0e})"
        )


def _keep(seen: list[Tensor], _layer: int, hidden: Tensor) -> None:
    seen.append(hidden)


def _relative(
    found: Float[Tensor, "1 seq d"], expected: Float[Tensor, "1 seq d"], *others: Float[Tensor, "1 seq d"]
) -> float:
    """Largest error of a position relative to the norms there: one huge position cannot hide the others."""
    scale = torch.stack([tensor.float().norm(dim=-1) for tensor in (expected, *others)]).amax(0)
    return float(((found.float() - expected.float()).norm(dim=-1) / scale.clamp_min(1e-30)).max())
