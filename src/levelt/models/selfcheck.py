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
from levelt.models.linear import FrozenNorm, head_matrices

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest relative error of a checked identity. A half-precision residual is rounded at both additions of a layer
(bfloat16 keeps 8 bits: 4e-3 each time at worst), the sum of contributions in float32 is not; a wrong row of the table
is off by a factor in the early layers, where contributions are as large as the residual."""


def readout(parts: Parts, residual: Float[Tensor, "*positions d"]) -> Float[Tensor, "*positions vocabulary"]:
    """The logits of a residual vector taken after the last layer: final norm, output matrix, scale, soft-capping."""
    logits: Tensor = parts.head(parts.final_norm(residual)) * parts.logit_scale
    return logits if parts.softcap is None else parts.softcap * torch.tanh(logits / parts.softcap)


@torch.inference_mode()
def self_check(model: PreTrainedModel, parts: Parts, tokens: int = 6) -> None:
    """Check that the parts mean what levelt takes them for, on a few random tokens.

    Layers and shapes are as the config says; residual before a layer + its attention contribution + its MLP
    contribution = residual after it, so that embedding + all contributions = the last residual; the last
    residual through final norm and output matrix = the model's logits, also with the norm written as a linear
    map with a frozen scale; heads' contributions + bias = the attention contribution.

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
    heads: list[Tensor] = []
    projected: list[Tensor] = []
    with ExitStack() as stack:
        for projection in parts.projection:
            stack.enter_context(hooks.inputs(projection, heads.append))
        stack.enter_context(hooks.outputs(parts.projection, partial(_keep, projected)))
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
    frozen = FrozenNorm.of(parts.final_norm, parts.norm)
    last = residuals[-1]
    error = _relative(frozen.linear(last) * frozen.scale(last) + frozen.bias, parts.final_norm(last))
    if not error <= tolerance:
        raise InputError(
            f"{name}: the final norm is not the {parts.norm} norm of the table (error {error:.1e}, "
            f"allowed {tolerance:.0e})"
        )
    for layer, projection in enumerate(parts.projection):
        bias = getattr(projection, "bias", None)
        total = sum_of_heads(parts, layer, heads[layer], projected[layer])
        if bias is not None:
            total = total + through_post_norm(parts, layer, bias.float(), projected[layer])
        error = _relative(total, added["attention"][layer])
        if not error <= tolerance:
            raise InputError(
                f"{name}: the heads of layer {layer + 1} add up to something else than its attention contribution "
                f"(error {error:.1e}, allowed {tolerance:.0e})"
            )


def through_post_norm(
    parts: Parts, layer: int, part: Float[Tensor, "*any d"], projected: Float[Tensor, "*any d"]
) -> Float[Tensor, "*any d"]:
    """What a part of the attention block's output adds to the residual, behind the block's own norm if it has one.

    The norm's scale is frozen at the block's whole output, ``projected``.
    """
    norm = parts.attention_contribution[layer]
    if norm is parts.attention[layer]:
        return part
    frozen = FrozenNorm.of(norm, parts.norm)
    return frozen.linear(part) * frozen.scale(projected)


def sum_of_heads(
    parts: Parts, layer: int, heads: Float[Tensor, "*any inputs"], projected: Float[Tensor, "*any d"]
) -> Float[Tensor, "*any d"]:
    """The heads' contributions, each through its own matrix, added up; without the projection's bias."""
    matrices = head_matrices(parts.projection[layer], parts.heads)
    outputs = heads.float().reshape(*heads.shape[:-1], *matrices.shape[:2])
    total = torch.einsum("...hw,hwd->...hd", outputs, matrices).sum(-2)
    return through_post_norm(parts, layer, total, projected)


def _keep(seen: list[Tensor], _layer: int, hidden: Tensor) -> None:
    seen.append(hidden)


def _relative(
    found: Float[Tensor, "1 seq d"], expected: Float[Tensor, "1 seq d"], *others: Float[Tensor, "1 seq d"]
) -> float:
    """Largest error of a position relative to the norms there: one huge position cannot hide the others."""
    scale = torch.stack([tensor.float().norm(dim=-1) for tensor in (expected, *others)]).amax(0)
    return float(((found.float() - expected.float()).norm(dim=-1) / scale.clamp_min(1e-30)).max())
