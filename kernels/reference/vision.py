"""The operations of the vision tower in plain PyTorch: their definition and, on any device, their implementation.

Activations and weights are float32 or bfloat16, the dtype of the run; a float32 run has widened its bfloat16 weights
once, which is exact. Sums are taken in float32.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as nnf


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b.

    x        [rows, in]
    weight   [out, in]; bias [out]
    returns  [rows, out]
    """
    return nnf.linear(x, weight, bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, statistics in float32.

    x             [..., width]
    weight, bias  [width]
    returns       like x
    """
    return nnf.layer_norm(x, weight.shape, weight, bias, eps)


def gelu_tanh(x: Tensor) -> Tensor:
    """x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
    return nnf.gelu(x, approximate="tanh")


def gelu(x: Tensor) -> Tensor:
    """x / 2 * (1 + erf(x / sqrt(2)))."""
    return nnf.gelu(x)


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate each pair (2 j, 2 j + 1) of every head by an angle: (a cos - b sin, a sin + b cos), in float32.

    x        [rows, heads, width]
    angles   [rows, width / 2] f32
    returns  like x
    """
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    a, b = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


def vit_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention of every row to all rows of its own item: softmax(q k^T / sqrt(width)) v, softmax in float32.

    q, k, v  [rows, heads, width]; the rows of an item are consecutive
    lengths  rows of each item
    returns  [rows, heads, width]
    """
    parts = [
        # Computes no matrix of all scores, which would take 20 GB for the largest item.
        nnf.scaled_dot_product_attention(*(x.transpose(0, 1).unsqueeze(0) for x in item))[0].transpose(0, 1)
        for item in zip(*(x.split_with_sizes(list(lengths)) for x in (q, k, v)), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def interpolate_grid(grid: Tensor, rows: int, columns: int) -> Tensor:
    """Resample the position grid in float32: bicubic with a = -0.75, pixel centres, clamped border, no antialiasing.

    grid     [grid rows, grid columns, width]
    returns  [rows * columns, width] f32, row by row
    """
    if grid.shape[:2] == (rows, columns):
        return grid.float().flatten(0, 1)
    image = grid.float().permute(2, 0, 1).unsqueeze(0)
    return nnf.interpolate(image, size=(rows, columns), mode="bicubic")[0].permute(1, 2, 0).flatten(0, 1)


def time_table(num_frames: int, width: int) -> Tensor:
    """Return the embedding added to the patches of each frame: sines, then cosines, of frame * 10000^(-2 i / width).

    returns  [frames, width] f32
    """
    omega = torch.exp(torch.arange(width // 2, dtype=torch.float64) * (-2 * math.log(10000) / width))
    angles = torch.arange(num_frames, dtype=torch.float64).unsqueeze(1) * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def grid_angles(rows: int, columns: int, head_dim: int) -> Tensor:
    """Return the angles of 2-D rotation: column * theta_i for pair 2 i, row * theta_i for pair 2 i + 1.

    theta_i = 10000^(-4 i / head_dim)
    returns  [rows * columns, head_dim / 2] f32, row by row
    """
    theta = torch.exp(torch.arange(head_dim // 4, dtype=torch.float64) * (-4 * math.log(10000) / head_dim))
    by_column = torch.arange(columns, dtype=torch.float64).unsqueeze(1) * theta
    by_row = torch.arange(rows, dtype=torch.float64).unsqueeze(1) * theta
    shape = (rows, columns, head_dim // 4)
    pairs = torch.stack([by_column.unsqueeze(0).expand(shape), by_row.unsqueeze(1).expand(shape)], dim=-1)
    return pairs.flatten(2).flatten(0, 1).float()
