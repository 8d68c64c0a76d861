"""One hidden layer that all offers of a user share, with its gradient.

    out_k = V·tanh(c + W·x_k) + b

c comes from the user's context, x_k are the features of offer k. There are K·H hidden values to each row, a
hundred times what any other layer of the policy has, so that training waits for memory if they are worked
through operation by operation. Here a block of rows goes through all operations while it is in the cache.
"""

from __future__ import annotations

from typing import Any

import torch

BLOCK_VALUES = 2**17
"""Hidden values of a block of rows: half a megabyte, which fits a core's own cache beside their gradients."""


def offer_head(
    context: torch.Tensor,
    features: torch.Tensor,
    inner: torch.Tensor,
    outer: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """Return V·tanh(c + W·x) + b for each row and offer, [n, K, out].

    Where no gradient is asked for it is written in plain operations, which an exporter can trace.

    Args:
        context: [n, H] c.
        features: [n, K, F] x; gets no gradient.
        inner: [H, F] W.
        outer: [out, H] V.
        bias: [out] b.
    """
    if torch.is_grad_enabled() and inner.requires_grad:
        out: torch.Tensor = _OfferHead.apply(context, features, inner, outer, bias)
        return out
    hidden = torch.tanh(context[:, None, :] + features @ inner.T)
    return hidden @ outer.T + bias


class _OfferHead(torch.autograd.Function):
    """The same, a block of rows at a time."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        context: torch.Tensor,
        features: torch.Tensor,
        inner: torch.Tensor,
        outer: torch.Tensor,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        n, k, _ = features.shape
        hidden = features.new_empty((n, k, inner.shape[0]))
        out = features.new_empty((n, k, outer.shape[0]))
        for rows in _blocks(n, k * inner.shape[0], features.device):
            part = hidden[rows]
            torch.mm(features[rows].flatten(0, 1), inner.T, out=part.view(-1, inner.shape[0]))
            part.add_(context[rows, None, :]).tanh_()
            torch.addmm(bias, part.flatten(0, 1), outer.T, out=out[rows].view(-1, outer.shape[0]))
        ctx.save_for_backward(features, inner, outer, hidden)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        features, inner, outer, hidden = ctx.saved_tensors
        n, k, width = hidden.shape
        grad = grad.contiguous()
        to_context = grad.new_empty((n, width))
        to_inner, to_outer = torch.zeros_like(inner), torch.zeros_like(outer)
        for rows in _blocks(n, k * width, grad.device):
            part, flat = hidden[rows].flatten(0, 1), grad[rows].flatten(0, 1)
            to_outer.addmm_(flat.T, part)
            inward = torch.ops.aten.tanh_backward(flat @ outer, part)
            to_inner.addmm_(inward.T, features[rows].flatten(0, 1))
            torch.sum(inward.view(-1, k, width), dim=1, out=to_context[rows])
        return to_context, None, to_inner, to_outer, grad.sum(dim=(0, 1))


def _blocks(n: int, values: int, device: torch.device) -> list[slice]:
    """Slices of n rows of so many hidden values each; a GPU takes all at once."""
    size = max(1, BLOCK_VALUES // values if device.type == "cpu" else n)
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
