"""Weights rounded to their stored precision, so that the model is trained with the rounding.

The straight-through estimator (arXiv 1308.3432): forward computes with the rounded weight, backward passes the gradient
to the unrounded one. INT4 is rounded as in `services.model.int4`, so that packing changes no weight.
"""

from typing import Any

import torch
from torch import Tensor

from services.checkpoint.architecture import GROUP_SIZE


def as_int4(weight: Tensor) -> Tensor:
    """Round weight [..., out, in] f32, `in` a multiple of 32, to q * scale in f32, the numbers that kernels use."""
    return _Through.apply(weight, int4_values(weight.detach()))  # type: ignore[no-any-return, no-untyped-call]


def as_bf16(weight: Tensor) -> Tensor:
    """Round f32 to bf16; return it in f32."""
    rounded = weight.detach().to(torch.bfloat16).to(torch.float32)
    return _Through.apply(weight, rounded)  # type: ignore[no-any-return, no-untyped-call]


def int4_values(weight: Tensor) -> Tensor:
    """Return q * scale as `int4.quantize` computes it before packing."""
    grouped = weight.reshape(*weight.shape[:-1], weight.shape[-1] // GROUP_SIZE, GROUP_SIZE)
    scale = (grouped.abs().amax(-1, keepdim=True) / 7).clamp(min=1e-5).to(torch.bfloat16).to(torch.float32)
    return ((grouped / scale).round().clamp(-8, 7) * scale).flatten(-2)


class _Through(torch.autograd.Function):
    """Return the second argument; pass the gradient to the first."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
