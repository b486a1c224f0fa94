"""Cross-entropy of a tied output head, a block of positions at a time."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_BLOCK = 256
"""Positions per block: 256 x 1,000 logits (1 MB) stay in a core's cache, where the whole batch's would not."""


class _HeadLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, while a block's logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "n d"],
        head: Float[Tensor, "v d"],
        targets: Int64[Tensor, " n"],
        weights: Float[Tensor, " n"],
    ) -> Float[Tensor, ""]:
        total = hidden.new_zeros(())
        hidden_gradient, head_gradient = torch.empty_like(hidden), torch.zeros_like(head)
        for begin in range(0, len(hidden), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            logits = hidden[block] @ head.T
            rows = targets[block, None]
            logits -= logits.amax(1, keepdim=True)
            chosen = logits.gather(1, rows)
            sums = logits.exp_().sum(1, keepdim=True)
            scale = weights[block, None]
            total += ((sums.log() - chosen) * scale).sum()
            logits *= scale / sums
            logits.scatter_add_(1, rows, -scale)
            torch.mm(logits, head, out=hidden_gradient[block])
            head_gradient.addmm_(logits.T, hidden[block])
        ctx.save_for_backward(hidden_gradient, head_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, head_gradient = ctx.saved_tensors
        return hidden_gradient * gradients[0], head_gradient * gradients[0], None, None


def head_loss(
    hidden: Float[Tensor, "n d"],
    head: Float[Tensor, "v d"],
    targets: Int64[Tensor, " n"],
    weights: Float[Tensor, " n"],
) -> Float[Tensor, ""]:
    """sum_i weights_i * -log softmax(hidden_i head^T)[targets_i], in nats."""
    loss: Tensor = _HeadLoss.apply(hidden, head, targets, weights)  # type: ignore[no-untyped-call]
    return loss
