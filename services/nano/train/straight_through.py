"""Weights as they will be stored, with the gradient of the weights as they are: the model learns to live with rounding.

The straight-through estimator (arXiv 1308.3432): forward computes with the rounded weight, backward as if it had not
been rounded. The INT4 rounding is that of `services.model.int4`, so that packing the weights changes nothing.
"""

from typing import Any

import torch
from torch import Tensor

from services.checkpoint.architecture import GROUP_SIZE


def as_int4(weight: Tensor) -> Tensor:
    """weight [..., out, in] f32, `in` a multiple of 32; returns q * scale in f32, as kernels read what is packed."""
    return _Through.apply(weight, int4_values(weight.detach()))  # type: ignore[no-any-return, no-untyped-call]


def as_bf16(weight: Tensor) -> Tensor:
    """weight f32 of any shape; returns it rounded to bf16, in f32."""
    rounded = weight.detach().to(torch.bfloat16).to(torch.float32)
    return _Through.apply(weight, rounded)  # type: ignore[no-any-return, no-untyped-call]


def int4_values(weight: Tensor) -> Tensor:
    """What `int4.quantize` makes of the weight, before packing: q * scale."""
    grouped = weight.reshape(*weight.shape[:-1], weight.shape[-1] // GROUP_SIZE, GROUP_SIZE)
    scale = (grouped.abs().amax(-1, keepdim=True) / 7).clamp(min=1e-5).to(torch.bfloat16).to(torch.float32)
    return ((grouped / scale).round().clamp(-8, 7) * scale).flatten(-2)


class _Through(torch.autograd.Function):
    """The second argument, as if it were the first."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
