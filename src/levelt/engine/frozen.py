"""A decoder with its non-linearities frozen at one prompt: what is left is linear in the embeddings.

Frozen are the attention weights, the scale of every norm, and the factor of every MLP unit: act(gate) where the MLP
is gated, act(u) / u (the secant, not the derivative) where it is not. At the prompt itself nothing is approximated:
the frozen network's last residual is the model's. Biases stay, as constants that no token sent.

Arithmetic is float32. Attention weights are needed, so the model must run with eager attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from levelt.files import InputError
from levelt.models import hooks
from levelt.models.linear import FrozenNorm, head_matrices
from levelt.models.loading import Decoder


@dataclass(frozen=True)
class Wiring:
    """Where a decoder layer reads the residual stream: dotted paths from the layer, beside those of `Anatomy`.

    attention_norm, mlp_norm: the norm in front of the block, None where the block reads the residual itself.
    value: the module that makes the values, among other things if it is fused: values of all heads behind queries and
        keys ("last"), or query, key and value head by head ("by_head").
    up, gate, down: of the MLP; gate None: not gated. fused: gate and up in one module, gate first.
    activation: the MLP's non-linearity.
    parallel: name of the config entry (or True) that says that MLP and attention read the same residual.
    """

    attention_norm: str | None = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    value: str = "self_attn.v_proj"
    values: Literal["alone", "last", "by_head"] = "alone"
    up: str = "mlp.up_proj"
    gate: str | None = "mlp.gate_proj"
    down: str = "mlp.down_proj"
    fused: bool = False
    activation: str = "mlp.act_fn"
    parallel: str | bool = False


_LLAMA = Wiring()
_OLMO = replace(_LLAMA, attention_norm=None, mlp_norm=None)
_GEMMA = replace(_LLAMA, mlp_norm="pre_feedforward_layernorm")

WIRINGS: Mapping[str, Wiring] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "olmo2": _OLMO,
    "olmo3": _OLMO,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": replace(
        _LLAMA,
        value="self_attn.qkv_proj",
        values="last",
        up="mlp.gate_up_proj",
        gate="mlp.gate_up_proj",
        fused=True,
        activation="mlp.activation_fn",
    ),
    "gpt2": Wiring(
        "ln_1", "ln_2", "attn.c_attn", "last", up="mlp.c_fc", gate=None, down="mlp.c_proj", activation="mlp.act"
    ),
    "gpt_neox": Wiring(
        value="attention.query_key_value",
        values="by_head",
        up="mlp.dense_h_to_4h",
        gate=None,
        down="mlp.dense_4h_to_h",
        activation="mlp.act",
        parallel="use_parallel_residual",
    ),
    "cohere": replace(_LLAMA, mlp_norm="input_layernorm", parallel=True),
}
"""Wiring by `model_type`. Every frozen prompt is checked against the model's own logits, so a wrong row is refused."""


@dataclass(frozen=True)
class Affine:
    """y = x @ matrix + bias. matrix: [inputs, outputs]; bias: [outputs]."""

    matrix: Float[Tensor, "inputs outputs"]
    bias: Float[Tensor, " outputs"]

    @classmethod
    def of(cls, module: nn.Module) -> Affine:
        """The weights of a linear module."""
        weight = cast(Tensor, module.weight).detach().float()
        matrix = weight if isinstance(module, Conv1D) else weight.T
        bias = module.bias
        zero = torch.zeros(matrix.shape[1], device=matrix.device)
        return cls(matrix, bias.detach().float() if isinstance(bias, Tensor) else zero)

    def outputs(self, chosen: Any) -> Affine:
        """Some of its outputs."""
        return Affine(self.matrix[:, chosen], self.bias[chosen])


@dataclass(frozen=True)
class LayerWeights:
    """One layer's linear pieces. value: to [key-value heads x width]; out: [heads, width, d]; out_bias: [d]."""

    attention_norm: FrozenNorm | None
    value: Affine
    out: Float[Tensor, "heads width d"]
    out_bias: Float[Tensor, " d"]
    behind_attention: FrozenNorm | None
    mlp_norm: FrozenNorm | None
    up: Affine
    gate: Affine | None
    down: Affine
    behind_mlp: FrozenNorm | None
    activation: nn.Module


@dataclass(frozen=True)
class FrozenLayer:
    """One layer, frozen at a prompt of T tokens; scales are [T, 1], ones where there is no norm.

    weights: attention, [heads, query, key]. factor: of the MLP's units, [T, units].
    """

    of: LayerWeights
    weights: Float[Tensor, "heads query key"]
    attention_scale: Float[Tensor, "token one"]
    behind_attention_scale: Float[Tensor, "token one"]
    mlp_scale: Float[Tensor, "token one"]
    factor: Float[Tensor, "token units"]
    behind_mlp_scale: Float[Tensor, "token one"]
    parallel: bool

    def values(self, x: Float[Tensor, "*any d"], at: Int[Tensor, "*any"]) -> Float[Tensor, "*any heads width"]:
        """What every query head would be handed if it attended to a vector at a position; without biases."""
        heads, width, _ = self.of.out.shape
        normed = _normed(self.of.attention_norm, x, self.attention_scale, at)
        made = normed @ self.of.value.matrix
        shared = made.view(*made.shape[:-1], -1, width)
        return shared.repeat_interleave(heads // shared.shape[-2], dim=-2)

    def projected(self, z: Float[Tensor, "*any heads width"], at: Int[Tensor, "*any"]) -> Float[Tensor, "*any d"]:
        """What heads' outputs add to the residual at a position; without biases."""
        return _normed(
            self.of.behind_attention, z.flatten(-2) @ self.of.out.flatten(0, 1), self.behind_attention_scale, at
        )

    def mlp(self, x: Float[Tensor, "*any d"], at: Int[Tensor, "*any"]) -> Float[Tensor, "*any d"]:
        """What the MLP adds for a vector at a position; without biases."""
        units = (_normed(self.of.mlp_norm, x, self.mlp_scale, at) @ self.of.up.matrix) * self.factor[at]
        return _normed(self.of.behind_mlp, units @ self.of.down.matrix, self.behind_mlp_scale, at)

    def constants(self) -> tuple[Float[Tensor, "token d"], Float[Tensor, "token d"]]:
        """What attention and MLP add at each position whatever the residual is: their biases."""
        of = self.of
        heads, width, _ = of.out.shape
        every = torch.arange(len(self.factor), device=self.factor.device)
        bias = of.value.bias + (of.attention_norm.bias @ of.value.matrix if of.attention_norm else 0)
        shared = bias.view(-1, width)
        handed = shared.repeat_interleave(heads // len(shared), dim=0)
        z = self.weights.sum(-1).T[..., None] * handed  # [query, heads, width]
        total = z.flatten(-2) @ of.out.flatten(0, 1) + of.out_bias
        attention = _normed(of.behind_attention, total, self.behind_attention_scale, every)
        inner = of.up.bias + (of.mlp_norm.bias @ of.up.matrix if of.mlp_norm else 0)
        units = (inner * self.factor) @ of.down.matrix + of.down.bias
        mlp = _normed(of.behind_mlp, units, self.behind_mlp_scale, every)
        return (
            attention + (of.behind_attention.bias if of.behind_attention else 0),
            mlp + (of.behind_mlp.bias if of.behind_mlp else 0),
        )


@dataclass(frozen=True)
class Frozen:
    """A decoder frozen at one prompt.

    embedding: [T, d] what enters the first layer. final: [d] the last token's last residual. logits: [vocabulary] the
    model's, before any soft-capping, which is no sum.
    """

    layers: tuple[FrozenLayer, ...]
    embedding: Float[Tensor, "token d"]
    final: Float[Tensor, " d"]
    logits: Float[Tensor, " vocabulary"]
    norm: FrozenNorm
    head: Affine
    logit_scale: float

    def readout(self, x: Float[Tensor, "*any d"]) -> Float[Tensor, "*any vocabulary"]:
        """What a part of the last token's last residual puts into the logits; without biases."""
        return (self.norm.linear(x) * (self.norm.scale(self.final) * self.logit_scale)) @ self.head.matrix

    def constant_logits(self) -> Float[Tensor, " vocabulary"]:
        """The biases of final norm and output matrix in the logits."""
        return (self.norm.bias @ self.head.matrix + self.head.bias) * self.logit_scale


def _normed(
    norm: FrozenNorm | None, x: Float[Tensor, "*any d"], scale: Float[Tensor, "token one"], at: Int[Tensor, "*any"]
) -> Float[Tensor, "*any d"]:
    return x if norm is None else norm.linear(x) * scale[at]


class Freezer:
    """Freezes a decoder at prompts; its weights are taken apart once."""

    def __init__(self, decoder: Decoder) -> None:
        """Take the weights apart.

        Raises:
            InputError: no wiring for this architecture, or its attention gives no weights.
        """
        config = decoder.model.config
        if config.model_type not in WIRINGS:
            raise InputError(f"paths cannot be traced in {config.model_type} models; {', '.join(WIRINGS)} can be")
        if config._attn_implementation != "eager":
            raise InputError(
                f"tracing paths needs the attention weights, which the {config._attn_implementation} kernel does not "
                f"give; load the model with eager attention"
            )
        self.decoder = decoder
        self.wiring = WIRINGS[config.model_type]
        parallel = self.wiring.parallel
        self.parallel = bool(getattr(config, parallel)) if isinstance(parallel, str) else parallel
        parts = decoder.parts
        self.layers = tuple(self._weights(layer) for layer in range(len(parts.layers)))
        self.norm = FrozenNorm.of(parts.final_norm, parts.norm)
        self.head = Affine.of(parts.head)

    def _weights(self, index: int) -> LayerWeights:
        parts, wiring = self.decoder.parts, self.wiring
        layer = parts.layers[index]

        def norm(path: str | None) -> FrozenNorm | None:
            return None if path is None else FrozenNorm.of(layer.get_submodule(path), parts.norm)

        def behind(contribution: nn.Module, block: nn.Module) -> FrozenNorm | None:
            return None if contribution is block else FrozenNorm.of(contribution, parts.norm)

        out = head_matrices(parts.projection[index], parts.heads)
        value = Affine.of(layer.get_submodule(wiring.value))
        made, queries = value.matrix.shape[1], out.shape[0] * out.shape[1]
        if wiring.values == "last":  # as many keys as values, behind the queries
            value = value.outputs(slice((made + queries) // 2, None))
        elif wiring.values == "by_head":
            value = value.outputs(torch.arange(made).view(parts.heads, 3, -1)[:, 2].flatten())
        up = Affine.of(layer.get_submodule(wiring.up))
        gate = None if wiring.gate is None else Affine.of(layer.get_submodule(wiring.gate))
        if wiring.fused:
            half = up.matrix.shape[1] // 2
            up, gate = up.outputs(slice(half, None)), up.outputs(slice(half))
        return LayerWeights(
            attention_norm=norm(wiring.attention_norm),
            value=value,
            out=out,
            out_bias=Affine.of(parts.projection[index]).bias,
            behind_attention=behind(parts.attention_contribution[index], parts.attention[index]),
            mlp_norm=norm(wiring.mlp_norm),
            up=up,
            gate=gate,
            down=Affine.of(layer.get_submodule(wiring.down)),
            behind_mlp=behind(parts.mlp_contribution[index], parts.mlp[index]),
            activation=layer.get_submodule(wiring.activation),
        )

    @torch.inference_mode()
    def __call__(self, input_ids: Sequence[int]) -> Frozen:
        """Run one prompt and freeze the model there.

        Raises:
            InputError: the frozen network does not give the model's last residual (more than 1e-3 apart, relative to
                the largest residual on the way), so that nothing traced through it could be trusted.
        """
        decoder, parts = self.decoder, self.decoder.parts
        seen: dict[str, list[Tensor]] = {name: [] for name in ("residual", "weights", "attention", "added", "mlp")}

        def keep(name: str, _index: int, hidden: Tensor) -> None:
            seen[name].append(hidden[0].float())

        with ExitStack() as stack:
            stack.enter_context(hooks.inputs(parts.layers[0], partial(keep, "residual", 0)))
            stack.enter_context(hooks.outputs(parts.layers, partial(keep, "residual")))
            stack.enter_context(hooks.outputs(parts.attention_contribution, partial(keep, "added")))
            stack.enter_context(hooks.outputs(parts.projection, partial(keep, "attention")))
            ends = [layer.get_submodule(self.wiring.down) for layer in parts.layers]
            stack.enter_context(hooks.outputs(ends, partial(keep, "mlp")))
            for module in parts.attention:
                stack.callback(module.register_forward_hook(_weights_into(seen["weights"])).remove)
            ids = torch.tensor([list(input_ids)], device=decoder.model.device)
            decoder.model.base_model(input_ids=ids, use_cache=False)
        layers = tuple(
            self._frozen(index, *(seen[name][index] for name in ("residual", "weights", "attention", "added", "mlp")))
            for index in range(len(parts.layers))
        )
        final = seen["residual"][-1][-1]
        logits = parts.head(parts.final_norm(final.to(decoder.model.dtype))).float() * parts.logit_scale
        frozen = Frozen(layers, seen["residual"][0], final, logits, self.norm, self.head, parts.logit_scale)
        self._check(frozen, seen["residual"])
        return frozen

    def _frozen(
        self,
        index: int,
        before: Float[Tensor, "token d"],
        weights: Float[Tensor, "heads query key"],
        attention: Float[Tensor, "token d"],
        added: Float[Tensor, "token d"],
        mlp: Float[Tensor, "token d"],
    ) -> FrozenLayer:
        of = self.layers[index]
        read = before if self.parallel else before + added

        def scale(norm: FrozenNorm | None, hidden: Tensor) -> Tensor:
            return hidden.new_ones(len(hidden), 1) if norm is None else norm.scale(hidden)

        mlp_scale = scale(of.mlp_norm, read)
        normed = read if of.mlp_norm is None else of.mlp_norm.linear(read) * mlp_scale + of.mlp_norm.bias
        if of.gate is not None:
            factor = of.activation(normed @ of.gate.matrix + of.gate.bias)
        else:
            inner = normed @ of.up.matrix + of.up.bias
            factor = torch.where(inner == 0, 0.0, of.activation(inner) / inner)
        return FrozenLayer(
            of,
            weights,
            scale(of.attention_norm, before),
            scale(of.behind_attention, attention),
            mlp_scale,
            factor,
            scale(of.behind_mlp, mlp),
            self.parallel,
        )

    def _check(self, frozen: Frozen, residuals: Sequence[Float[Tensor, "token d"]]) -> None:
        """Each frozen layer takes the model's residual before it to the one after it."""
        every = torch.arange(len(frozen.embedding), device=frozen.embedding.device)
        for index, layer in enumerate(frozen.layers):
            x = residuals[index]
            from_attention, from_mlp = layer.constants()
            z = torch.einsum("hqk,khw->qhw", layer.weights, layer.values(x, every))
            middle = x + layer.projected(z, every) + from_attention
            found = middle + layer.mlp(x if layer.parallel else middle, every) + from_mlp
            expected = residuals[index + 1]
            size = torch.stack([part.norm(dim=-1) for part in (x, middle, expected)]).amax(0).clamp_min(1e-30)
            error = float(((found - expected).norm(dim=-1) / size).max())
            allowed = 1e-3 if self.decoder.model.dtype == torch.float32 else 5e-2
            if not error <= allowed:
                raise InputError(
                    f"paths: layer {index} of this {self.decoder.model.config.model_type} model, frozen, differs from "
                    f"the layer by {error:.1e} (allowed {allowed:.0e})"
                )


def _weights_into(seen: list[Tensor]) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(output[1][0].float())

    return hook
