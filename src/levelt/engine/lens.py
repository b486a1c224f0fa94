"""Decoding what was read into logits of a few tokens, so that the components add up to the model's own logits.

logit lens: a residual vector of any layer through the final norm and the output matrix, as if the model ended there.

component lens: what each part of the *final* residual (embedding, attention and MLP blocks, heads) puts into a
logit. The final norm is frozen at the scale it had in the run, so that it is linear and

    sum of components + constant = linear logit;   cap(linear logit) = the model's logit,

where the constant holds the biases of the final norm and of the output matrix, and cap is the soft-capping of models
that have one (Gemma-2). A capped logit is no sum, so components are given before the cap. In models with a norm
behind each block (OLMo-2, Gemma) the component is what comes out of that norm, as everywhere in levelt.

Only the rows of the output matrix that belong to the tokens asked for are touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from levelt.engine.capture import Captured, token_logits
from levelt.files import InputError
from levelt.models.anatomy import Parts
from levelt.models.linear import FrozenNorm

Vectors = Float[np.ndarray, "n ... d"] | Float[Tensor, "n ... d"]
TokenIds = Int[np.ndarray, "*tokens"] | list[int] | list[list[int]]
"""[tokens], the same for every row, or [n, tokens]."""


@dataclass(frozen=True)
class ComponentLogits:
    """Logits of n positions, taken apart.

    components: per component [n, ..., tokens]; the middle axes (layers, heads) are those of the vectors given.
    constant: [n, tokens] biases of the final norm and the output matrix.
    linear: [n, tokens] logits before soft-capping, from the final residual as a whole.
    logits: [n, tokens] the model's logits.
    """

    components: Mapping[str, Float[np.ndarray, "n ... tokens"]]
    constant: Float[np.ndarray, "n tokens"]
    linear: Float[np.ndarray, "n tokens"]
    logits: Float[np.ndarray, "n tokens"]

    def total(self) -> Float[np.ndarray, "n tokens"]:
        """The sum of all components and the constant; equals ``linear`` where nothing was left out."""
        total = self.constant.copy()
        for values in self.components.values():
            total += values.sum(axis=tuple(range(1, values.ndim - 1)))
        return total


@torch.inference_mode()
def logit_lens(parts: Parts, residual: Vectors, token_ids: TokenIds) -> Float[np.ndarray, "n ... tokens"]:
    """Logits of tokens as if the model ended at this residual: final norm, output matrix, scale and soft-capping.

    Each vector is normed by itself; a mean over positions is decoded as the vector it is.

    Args:
        parts: of the model the residual was read from.
        residual: [n, ..., d], from before the final norm, as `capture` gives it.
        token_ids: [tokens], or [n, tokens] where each row has its own.

    Raises:
        InputError: widths or numbers of rows do not fit.
    """
    vectors = _vectors(parts, residual, "residual")
    ids = _ids(parts, token_ids, len(vectors))
    count, middle = len(vectors), vectors.shape[1:-1]
    inner = int(np.prod(middle, dtype=np.int64))
    dtype = cast(Tensor, parts.head.weight).dtype
    normed = parts.final_norm(vectors.reshape(count * inner, -1).to(dtype))
    logits = token_logits(parts, normed, ids.repeat_interleave(inner, 0))
    return logits.view(count, *middle, -1).cpu().numpy()


@torch.inference_mode()
def component_lens(
    parts: Parts, final: Vectors, components: Mapping[str, Vectors], token_ids: TokenIds
) -> ComponentLogits:
    """What each component puts into the logits of tokens, with the final norm frozen at the final residual.

    Rows are single positions. (A mean over positions has no scale of its own: read each position, decode, average.)

    Args:
        parts: of the model the vectors were read from.
        final: [n, d] residual after the last layer.
        components: per name [n, ..., d] contributions to that residual, the embedding among them.
        token_ids: [tokens], or [n, tokens] where each row has its own.

    Raises:
        InputError: widths or numbers of rows do not fit.
    """
    last = _vectors(parts, final, "final")
    if last.dim() != 2:
        raise InputError(f"final has shape {tuple(last.shape)}, expected one residual vector per row: [n, d]")
    ids = _ids(parts, token_ids, len(last))
    norm = FrozenNorm.of(parts.final_norm, parts.norm)
    rows = cast(Tensor, parts.head.weight)[ids].float()  # [n, tokens, d]
    directions = norm.transposed(rows) * (norm.scale(last) * parts.logit_scale)[:, None]
    constant = (rows @ norm.bias) * parts.logit_scale
    bias = getattr(parts.head, "bias", None)
    if isinstance(bias, Tensor):
        constant = constant + bias.float()[ids] * parts.logit_scale
    linear = _along(last, directions) + constant
    decoded: dict[str, np.ndarray] = {}
    for name, given in components.items():
        vectors = _vectors(parts, given, name)
        if len(vectors) != len(last):
            raise InputError(f"{name} has {len(vectors)} rows, the final residual {len(last)}")
        decoded[name] = _along(vectors, directions).cpu().numpy()
    logits = linear if parts.softcap is None else parts.softcap * torch.tanh(linear / parts.softcap)
    return ComponentLogits(decoded, constant.cpu().numpy(), linear.cpu().numpy(), logits.cpu().numpy())


def decode_captured(parts: Parts, captured: Captured, group: str, token_ids: TokenIds) -> ComponentLogits:
    """The component lens on what `capture` read at every position of a group, or at a group of one position.

    Needs the residual, attention and mlp of the group, all layers; heads, if read too, take attention's place, and
    what they leave of it is the output projection's bias ("attention_bias").

    Raises:
        InputError: a site was not read.
    """

    def read(site: str) -> np.ndarray:
        for name in (f"{group}.{site}.each", f"{group}.{site}"):
            if name in captured.values:
                return captured[name]
        raise InputError(f"the component lens needs {group}.{site}, which was not read")

    residual, attention = read("residual"), read("attention")
    depth = len(parts.layers)
    components = {"embedding": residual[:, 0], "attention": attention, "mlp": read("mlp")}
    if residual.shape[1] != depth + 1 or any(components[name].shape[1] != depth for name in ("attention", "mlp")):
        raise InputError(f"the component lens needs all {depth} layers of {group}")
    if f"{group}.head.each" in captured.values or f"{group}.head" in captured.values:
        heads = read("head")
        del components["attention"]
        components |= {"head": heads, "attention_bias": attention - heads.sum(2)}
    return component_lens(parts, residual[:, -1], components, token_ids)


def _along(vectors: Float[Tensor, "n *middle d"], directions: Float[Tensor, "n tokens d"]) -> Tensor:
    """[n, ..., tokens]: each row's vectors along its directions."""
    flat = vectors.reshape(len(vectors), -1, vectors.shape[-1])
    return torch.bmm(flat, directions.mT).view(*vectors.shape[:-1], -1)


def _vectors(parts: Parts, given: Vectors, name: str) -> Float[Tensor, "n *middle d"]:
    weight = cast(Tensor, parts.head.weight)
    vectors = torch.as_tensor(given, device=weight.device).float()
    if vectors.dim() < 2 or vectors.shape[-1] != parts.hidden_size:
        raise InputError(f"{name} has shape {tuple(vectors.shape)}, expected [n, ..., {parts.hidden_size}]")
    return vectors


def _ids(parts: Parts, given: TokenIds, count: int) -> Int[Tensor, "n tokens"]:
    weight = cast(Tensor, parts.head.weight)
    ids = torch.as_tensor(np.asarray(given, dtype=np.int64), device=weight.device)
    if ids.dim() == 1:
        ids = ids.expand(count, -1)
    if ids.dim() != 2 or len(ids) != count:
        raise InputError(f"token_ids has shape {tuple(ids.shape)}, expected [tokens] or [{count}, tokens]")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= len(weight)):
        raise InputError(f"token_ids holds ids outside the vocabulary of {len(weight)}")
    return ids
