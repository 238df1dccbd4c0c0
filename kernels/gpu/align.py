"""Sorts assignments by expert into token tiles, and sums the experts' results; tokens themselves are not moved.

An assignment is one (token, expert) pair; its slot is token * top_k + k. The products gather tokens through the slots
and write each result to its own slot; `combine` reads them back. No result depends on timing: slots are in ascending
order within an expert, and the sum of a token is exact.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.device import RowTiles, cdiv, device_class, power_of_2
from kernels.grid import rounder

SMALLEST = tl.constexpr(16)  # tokens of the smallest tile; with 8, Triton takes no wgmma
ALIGN_TILE = 1024  # assignments read at a time
TILE_ROOM = 64  # token tiles of an expert written at a time


class TokenTiles(NamedTuple):
    """The assignments in token tiles of one size. There is room for the worst case; `num_tiles` tiles are used."""

    tokens: int  # of a tile
    slots: Tensor  # [max_tiles * tokens] i32; the number of assignments where a tile has room left
    experts: Tensor  # [max_tiles] i32
    num_tiles: Tensor  # [1] i32

    @property
    def max_tiles(self) -> int:
        return self.experts.shape[0]


def combine_tiles(width: int, device: str) -> RowTiles:
    """A program takes a thousand columns of one token."""
    return RowTiles(64 if device == "interpreter" else 1, min(power_of_2(width, 16), 1024), 4)


@triton.jit(do_not_specialize=["num_slots", "slots_stride", "tiles_stride"])
def align_kernel(
    topk_ids, slots, tile_experts, num_tiles, num_slots, num_experts, slots_stride, tiles_stride,
    NUM_SIZES: tl.constexpr, EXPERTS_TILE: tl.constexpr, TILE: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """One program per expert: it counts all assignments to find the expert's place, then lists the expert's own.

    The NUM_SIZES sizes of tiles are SMALLEST tokens, twice as many, and so on. An expert gets one tile of the first
    size that holds all its tokens, or several of the largest. The list of size i begins at i times the stride.
    """
    expert = tl.program_id(0)
    offset = tl.arange(0, TILE)
    bins = tl.arange(0, EXPERTS_TILE)
    counts = tl.zeros((EXPERTS_TILE,), tl.int32)
    for start in range(0, num_slots, TILE):
        ids = tl.load(topk_ids + start + offset, mask=start + offset < num_slots, other=-1)
        counts += tl.histogram(ids, EXPERTS_TILE, mask=(ids >= 0) & (ids < num_experts))
    sizes = tl.zeros((EXPERTS_TILE,), tl.int32)  # an index: 0 for SMALLEST tokens
    for size in tl.static_range(NUM_SIZES - 1):
        sizes += (counts > (SMALLEST << size)).to(tl.int32)
    tokens = SMALLEST << sizes
    tiles = (counts + tokens - 1) // tokens
    if expert == 0:
        for size in tl.static_range(NUM_SIZES):
            tl.store(num_tiles + size, tl.sum(tl.where(sizes == size, tiles, 0)))
    own_size = tl.sum(tl.where(bins == expert, sizes, 0))
    own_tokens = SMALLEST << own_size
    own_tiles = tl.sum(tl.where(bins == expert, tiles, 0))
    count = tl.sum(tl.where(bins == expert, counts, 0))
    first_tile = tl.sum(tl.where((bins < expert) & (sizes == own_size), tiles, 0))
    own_slots = slots + own_size * slots_stride + first_tile * own_tokens
    for start in range(0, own_tiles, ROOM):
        tile = start + tl.arange(0, ROOM)
        target = tile_experts + own_size * tiles_stride + first_tile + tile
        tl.store(target, tl.full((ROOM,), expert, tl.int32), mask=tile < own_tiles)
    rest = count + tl.arange(0, SMALLEST << (NUM_SIZES - 1))
    sentinel = tl.full((SMALLEST << (NUM_SIZES - 1),), num_slots, tl.int32)
    tl.store(own_slots + rest, sentinel, mask=rest < own_tiles * own_tokens)
    written = 0
    for start in range(0, num_slots, TILE):
        ids = tl.load(topk_ids + start + offset, mask=start + offset < num_slots, other=-1)
        is_own = (ids == expert).to(tl.int32)
        tl.store(own_slots + written + tl.cumsum(is_own, axis=0) - 1, start + offset, mask=is_own > 0)
        written += tl.sum(is_own)


@triton.jit(do_not_specialize=["num_tokens"])
def combine_kernel(
    parts, topk_ids, topk_weights, out, num_tokens, width, num_experts,
    TOP_K: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, ROUNDER: tl.constexpr,
):  # fmt: skip
    """out[token] = sum over k of weight * parts[token * TOP_K + k] on the grid, without other shards' assignments."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (token < num_tokens)[:, None] & (column < width)[None, :]
    total = tl.zeros((ROWS, TILE), tl.float64)
    for k in range(TOP_K):
        slot = token * TOP_K + k
        expert = tl.load(topk_ids + slot, mask=token < num_tokens, other=-1)
        is_local = (expert >= 0) & (expert < num_experts)
        mask = inside & is_local[:, None]
        part = tl.load(parts + slot[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float64)
        weight = tl.load(topk_weights + slot, mask=is_local, other=0.0).to(tl.float64)
        term = part * weight[:, None] + ROUNDER - ROUNDER
        total += tl.where(mask, term, 0.0)
    tl.store(out + token[:, None] * width + column[None, :], total.to(out.dtype.element_ty), mask=inside)


def align_tokens(topk_ids: Tensor, num_experts: int, num_sizes: int) -> list[TokenTiles]:
    """Sort assignments into token tiles of `num_sizes` sizes (16 tokens, 32, ...); a tile has tokens of one expert.

    topk_ids  [tokens, top_k] i32, contiguous; -1 is dropped
    """
    num_slots, device = topk_ids.numel(), topk_ids.device
    sizes = [SMALLEST.value << size for size in range(num_sizes)]
    # An expert takes one tile of a size only if it fills more than half of it; of the largest size it may take several.
    most = [min(num_experts, num_slots // (size // 2 + 1) if size > SMALLEST.value else num_slots) for size in sizes]
    most[-1] = min(num_slots, num_experts + num_slots // sizes[-1])
    tiles_stride = cdiv(max(most), 4) * 4  # each list begins on 16 bytes
    slots_stride = max(count * size for count, size in zip(most, sizes, strict=True))
    slots = torch.empty(num_sizes, slots_stride, dtype=torch.int32, device=device)
    experts = torch.empty(num_sizes, tiles_stride, dtype=torch.int32, device=device)
    num_tiles = torch.empty(num_sizes, 1, dtype=torch.int32, device=device)
    align_kernel[(num_experts,)](
        topk_ids, slots, experts, num_tiles, num_slots, num_experts, slots_stride, tiles_stride,
        NUM_SIZES=num_sizes, EXPERTS_TILE=power_of_2(num_experts, 16),
        TILE=ALIGN_TILE, ROOM=TILE_ROOM, num_warps=4,
    )  # fmt: skip
    return [
        TokenTiles(size, slots[i, : count * size], experts[i, :count], num_tiles[i])
        for i, (size, count) in enumerate(zip(sizes, most, strict=True))
    ]


def combine(parts: Tensor, topk_ids: Tensor, topk_weights: Tensor, num_experts: int, out_dtype: torch.dtype) -> Tensor:
    """Return the weighted sum of each token's assignments, exact on the grid, [tokens, width] in `out_dtype`.

    parts  [tokens * top_k, width]; rows of dropped assignments are not read
    """
    tokens, top_k = topk_ids.shape
    width = parts.shape[1]
    out = torch.empty(tokens, width, dtype=out_dtype, device=parts.device)
    tiles = combine_tiles(width, device_class(parts))
    combine_kernel[(cdiv(tokens, tiles.rows), cdiv(width, tiles.columns))](
        parts, topk_ids, topk_weights, out, tokens, width, num_experts,
        TOP_K=top_k, ROWS=tiles.rows, TILE=tiles.columns, ROUNDER=rounder(parts.dtype), num_warps=tiles.num_warps,
    )  # fmt: skip
    return out
