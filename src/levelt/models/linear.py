"""The linear pieces of a decoder, as plain tensors: norms with a frozen scale, heads' shares of the output projection.

A norm divides by a number that depends on its whole input. Once that number is fixed (frozen at the value it took in
the run) the norm is linear, so the norm of a sum is the sum of the norms: this is what makes components add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from levelt.files import InputError

NormKind = Literal["rms", "rms+1", "layer"]
"""rms: x / rms(x) * w. rms+1: the same with 1 + w (Gemma). layer: (x - mean(x)) / std(x) * w + b."""


@dataclass(frozen=True)
class FrozenNorm:
    """A norm as ``linear(x) * scale + bias``; everything float32.

    weight: [d] effective weight, Gemma's one included. bias: [d], zero where there is none.
    centred: whether the mean over d is taken away first (LayerNorm).
    """

    weight: Float[Tensor, " d"]
    bias: Float[Tensor, " d"]
    epsilon: float
    centred: bool

    @classmethod
    def of(cls, module: nn.Module, kind: NormKind) -> FrozenNorm:
        """Read a norm module of a Hugging Face decoder.

        Raises:
            InputError: the module has no weight or no epsilon, so it is not a norm of this kind.
        """
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        stored = getattr(module, "weight", None)
        if not isinstance(epsilon, float) or not isinstance(stored, Tensor):
            raise InputError(f"{type(module).__name__} is not a norm with a weight and an epsilon")
        weight = stored.detach().float() + (1.0 if kind == "rms+1" else 0.0)
        bias = getattr(module, "bias", None)
        bias = bias.detach().float() if isinstance(bias, Tensor) else torch.zeros_like(weight)
        return cls(weight, bias, epsilon, kind == "layer")

    def scale(self, hidden: Float[Tensor, "*any d"]) -> Float[Tensor, "*any 1"]:
        """One over the root mean square (or standard deviation) of each vector: the number to freeze."""
        hidden = hidden.float()
        if self.centred:
            hidden = hidden - hidden.mean(-1, keepdim=True)
        return torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.epsilon)

    def linear(self, hidden: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        """The norm without scale and bias: linear in its argument."""
        hidden = hidden.float()
        if self.centred:
            hidden = hidden - hidden.mean(-1, keepdim=True)
        return hidden * self.weight

    def transposed(self, direction: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        """The direction v with x @ v = linear(x) @ direction, so that a readout needs one product per vector."""
        weighed = direction.float() * self.weight
        return weighed - weighed.mean(-1, keepdim=True) if self.centred else weighed


def head_matrices(projection: nn.Module, heads: int) -> Float[Tensor, "heads width d"]:
    """The output projection cut into heads: a head's output times its matrix is what it adds (bias apart).

    Query heads, also where several share one key-value head: the projection sees every query head's own output.

    Raises:
        InputError: not a projection, or its inputs cannot be divided among the heads.
    """
    if isinstance(projection, Conv1D):  # GPT-2 stores [inputs, outputs]
        matrix = projection.weight
    elif isinstance(projection, nn.Linear):
        matrix = projection.weight.T
    else:
        raise InputError(f"the attention output projection is a {type(projection).__name__}, not a linear layer")
    inputs, width = matrix.shape
    if inputs % heads:
        raise InputError(f"the attention output projection has {inputs} inputs, which {heads} heads cannot share")
    cut: Tensor = matrix.detach().float().reshape(heads, inputs // heads, width)
    return cut
