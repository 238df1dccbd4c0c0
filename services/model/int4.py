"""Symmetric INT4 in groups of 32 input columns, as compressed-tensors packs it.

A weight w[o, k] is stored as q in -8..7 with w = q * scale[o, k // 32]. The nibble is q + 8; eight consecutive
columns share one int32, column 8 w + j in bits 4 j .. 4 j + 3 of word w.
"""

import torch
from torch import Tensor

from services.checkpoint.architecture import GROUP_SIZE

PER_WORD = 8  # nibbles in an int32


def pack_int4(values: Tensor) -> Tensor:
    """Pack values [N, K] int8 in -8..7 to [N, K / 8] i32."""
    words = (values.to(torch.int64) + 8).reshape(*values.shape[:-1], values.shape[-1] // PER_WORD, PER_WORD)
    shifts = torch.arange(0, 4 * PER_WORD, 4)
    # The sum fills 32 bits, which the cast preserves, so word 0xFFFFFFFF becomes -1.
    return (words << shifts).sum(-1).to(torch.int32)


def unpack_int4(packed: Tensor) -> Tensor:
    """Unpack [N, K / 8] i32 to [N, K] int8 in -8..7."""
    shifts = torch.arange(0, 4 * PER_WORD, 4, dtype=torch.int32)
    nibbles = (packed.unsqueeze(-1) >> shifts) & 0xF
    return (nibbles - 8).to(torch.int8).flatten(-2)


def dequantize(packed: Tensor, scale: Tensor) -> Tensor:
    """Return q * scale [N, K] bf16, rounded once from fp32; packed [N, K / 8] i32, scale [N, K / 32] bf16."""
    grouped = unpack_int4(packed).to(torch.float32).reshape(*scale.shape, GROUP_SIZE)
    return (grouped * scale.to(torch.float32).unsqueeze(-1)).to(torch.bfloat16).flatten(-2)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix to INT4: scale = max |w| / 7 per group, at least 1e-5, so that q lies in -7..7.

    weight   [N, K] float, K a multiple of 32
    returns  packed [N, K / 8] i32, scale [N, K / 32] bf16
    """
    grouped = weight.to(torch.float32).reshape(*weight.shape[:-1], weight.shape[-1] // GROUP_SIZE, GROUP_SIZE)
    scale = (grouped.abs().amax(-1) / 7).clamp(min=1e-5).to(torch.bfloat16)
    values = (grouped / scale.to(torch.float32).unsqueeze(-1)).round().clamp(-8, 7)
    return pack_int4(values.to(torch.int8).flatten(-2)), scale
