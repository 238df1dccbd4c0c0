"""Attention of the vision tower: every row attends to all rows of its own item; items may differ in length."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.device import power_of_2

LOG2_E = 1.4426950408889634
TILE_Q, TILE_K = 64, 64
NUM_WARPS, NUM_STAGES = 4, 3


@triton.jit
def _rows(place, column, inside, WIDTH: tl.constexpr, MASKED: tl.constexpr, ALL_COLUMNS: tl.constexpr):
    """Load columns of rows, zeros past the width and, where MASKED, in rows that are not inside."""
    if MASKED:
        return tl.load(place + column[None, :], mask=inside & (column < WIDTH)[None, :], other=0.0)
    if ALL_COLUMNS:
        return tl.load(place + column[None, :])
    return tl.load(place + column[None, :], mask=(column < WIDTH)[None, :], other=0.0)


@triton.jit
def _attend(q_a, q_b, k, v, key_start, end, k_row, v_row, head, scale, peak, total, mean_a, mean_b,
            WIDTH: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, TILE_K: tl.constexpr,
            MASKED: tl.constexpr):  # fmt: skip
    """Update the running softmax by one tile of keys; MASKED: the item may end inside the tile."""
    ALL_COLUMNS: tl.constexpr = FIRST <= WIDTH
    key = key_start + tl.arange(0, TILE_K)
    inside = (key < end)[:, None]
    a = tl.arange(0, FIRST)
    b = FIRST + tl.arange(0, SECOND)
    place = k + key[:, None] * k_row + head * WIDTH
    keys = _rows(place, a, inside, WIDTH, MASKED, ALL_COLUMNS)
    scores = tl.dot(q_a, tl.trans(keys), input_precision="ieee")
    keys = _rows(place, b, inside, WIDTH, MASKED, False)
    scores = tl.dot(q_b, tl.trans(keys), scores, input_precision="ieee")
    if MASKED:
        scores = tl.where((key < end)[None, :], scores, -float("inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
    p = tl.exp2(scores * scale - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(p, 1)
    place = v + key[:, None] * v_row + head * WIDTH
    values = _rows(place, a, inside, WIDTH, MASKED, ALL_COLUMNS)
    p = p.to(values.dtype)
    mean_a = tl.dot(p, values, mean_a * shrink[:, None], input_precision="ieee")
    values = _rows(place, b, inside, WIDTH, MASKED, False)
    mean_b = tl.dot(p, values, mean_b * shrink[:, None], input_precision="ieee")
    return new_peak, total, mean_a, mean_b


@triton.jit
def vit_attention_kernel(
    q, k, v, out, tiles, scale, heads, q_row, k_row, v_row, WIDTH: tl.constexpr,
    FIRST: tl.constexpr, SECOND: tl.constexpr, TILE_Q: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """TILE_Q rows of one head; grid (tiles, heads).

    tiles  [tiles, 3] i32: first row of the tile, first and last + 1 row of its item

    A head takes FIRST + SECOND columns, two powers of two, which waste less than one (72 needs 64 + 16, not 128).
    """
    entry = tiles + tl.program_id(0) * 3
    start = tl.load(entry).to(tl.int64)
    begin = tl.load(entry + 1).to(tl.int64)
    end = tl.load(entry + 2).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    row = start + tl.arange(0, TILE_Q)
    alive = (row < end)[:, None]
    a = tl.arange(0, FIRST)
    b = FIRST + tl.arange(0, SECOND)
    place = q + row[:, None] * q_row + head * WIDTH
    q_a = _rows(place, a, alive, WIDTH, True, False)
    q_b = _rows(place, b, alive, WIDTH, True, False)
    peak = tl.full([TILE_Q], -float("inf"), tl.float32)
    total = tl.zeros([TILE_Q], tl.float32)
    mean_a = tl.zeros([TILE_Q, FIRST], tl.float32)
    mean_b = tl.zeros([TILE_Q, SECOND], tl.float32)
    whole = begin + (end - begin) // TILE_K * TILE_K
    for key_start in range(begin, whole, TILE_K):
        peak, total, mean_a, mean_b = _attend(
            q_a, q_b, k, v, key_start, end, k_row, v_row, head, scale, peak, total, mean_a, mean_b,
            WIDTH, FIRST, SECOND, TILE_K, MASKED=False,
        )  # fmt: skip
    if whole < end:
        peak, total, mean_a, mean_b = _attend(
            q_a, q_b, k, v, whole, end, k_row, v_row, head, scale, peak, total, mean_a, mean_b,
            WIDTH, FIRST, SECOND, TILE_K, MASKED=True,
        )  # fmt: skip
    place = out + (row * heads + head)[:, None] * WIDTH
    tl.store(place + a[None, :], mean_a / total[:, None], mask=alive & (a < WIDTH)[None, :])
    tl.store(place + b[None, :], mean_b / total[:, None], mask=alive & (b < WIDTH)[None, :])


def vit_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """As `kernels.vit_attention`."""
    rows, heads, width = q.shape
    assert sum(lengths) == rows
    # The compiler must know that a head's columns are contiguous to load 16 bytes at a time.
    assert all(x.stride()[1:] == (width, 1) for x in (q, k, v))
    out = torch.empty(rows, heads, width, dtype=q.dtype, device=q.device)
    if rows == 0:
        return out
    tiles = tiles_on(q.device, tuple(lengths))
    first, second = column_parts(width)
    vit_attention_kernel[(len(tiles), heads)](
        q, k, v, out, tiles, width**-0.5 * LOG2_E, heads, q.stride(0), k.stride(0), v.stride(0),
        WIDTH=width, FIRST=first, SECOND=second, TILE_Q=TILE_Q, TILE_K=TILE_K,
        num_warps=NUM_WARPS, num_stages=NUM_STAGES,
    )  # fmt: skip
    return out


@lru_cache(maxsize=8)
def tiles_on(device: torch.device, lengths: tuple[int, ...]) -> Tensor:
    """Return `tile_list` on the device, cached because all layers of the tower need the same."""
    return tile_list(lengths).to(device)


def tile_list(lengths: Sequence[int]) -> Tensor:
    """Return (first row of the tile, first row of the item, end of the item) of every tile, [tiles, 3] i32."""
    tiles = []
    begin = 0
    for length in lengths:
        tiles += [(start, begin, begin + length) for start in range(begin, begin + length, TILE_Q)]
        begin += length
    return torch.tensor(tiles, dtype=torch.int32).reshape(-1, 3)


def column_parts(width: int) -> tuple[int, int]:
    """Return two powers of two, each at least 16 for tensor cores, with `width` columns or more in sum."""
    first = power_of_2(width // 2 + 1, 16)
    return first, power_of_2(width - first, 16)
