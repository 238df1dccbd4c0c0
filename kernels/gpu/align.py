"""Sorts assignments by expert into token tiles, and sums what comes back: permutation without moving a token.

An assignment is one (token, expert) pair; its slot is token * top_k + k. The products gather tokens through the slots
and write each result to its own slot; `combine` reads them back in the order of k. Nothing here depends on timing:
slots stand in ascending order within an expert, and the sum of a token has one order.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.device import RowTiles, cdiv, device_class, power_of_2

SMALLEST = tl.constexpr(16)  # tokens of the smallest tile; with 8, Triton takes no wgmma
ALIGN_TILE = 1024  # assignments read at a time
TILE_ROOM = 64  # token tiles of an expert written at a time


class TokenTiles(NamedTuple):
    """Which assignments the token tiles of one size hold. Room for the worst case; only `num_tiles` are written."""

    tokens: int  # of a tile
    slots: Tensor  # [max_tiles * tokens] i32; the number of assignments where a tile has room left
    experts: Tensor  # [max_tiles] i32
    num_tiles: Tensor  # [1] i32

    @property
    def max_tiles(self) -> int:
        return self.experts.shape[0]


def combine_tiles(width: int, device: str) -> RowTiles:
    """A thousand columns of one token a program."""
    return RowTiles(64 if device == "interpreter" else 1, min(power_of_2(width, 16), 1024), 4)


@triton.jit(do_not_specialize=["num_slots", "slots_stride", "tiles_stride"])
def align_kernel(
    topk_ids, slots, tile_experts, num_tiles, num_slots, num_experts, slots_stride, tiles_stride,
    NUM_SIZES: tl.constexpr, EXPERTS_TILE: tl.constexpr, TILE: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """One program an expert: counts all assignments to know its place, then lists its own.

    Tiles have SMALLEST tokens, twice as many, ...; an expert takes the first of NUM_SIZES that holds all it has, or
    several of the last. Tiles of size i are listed from i times the stride on.
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
    TOP_K: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """out[token] = sum over k of weight * parts[token * TOP_K + k], without the assignments of other shards."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (token < num_tokens)[:, None] & (column < width)[None, :]
    total = tl.zeros((ROWS, TILE), tl.float32)
    for k in range(TOP_K):
        slot = token * TOP_K + k
        expert = tl.load(topk_ids + slot, mask=token < num_tokens, other=-1)
        is_local = (expert >= 0) & (expert < num_experts)
        mask = inside & is_local[:, None]
        part = tl.load(parts + slot[:, None] * width + column[None, :], mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(topk_weights + slot, mask=is_local, other=0.0)
        total += tl.where(mask, part * weight[:, None], 0.0)
    tl.store(out + token[:, None] * width + column[None, :], total, mask=inside)


def align_tokens(topk_ids: Tensor, num_experts: int, num_sizes: int) -> list[TokenTiles]:
    """Token tiles with one expert each: of 16 tokens, of 32, ..., so many sizes. Every expert is in one of them.

    topk_ids  [tokens, top_k] i32, contiguous; -1 is dropped
    """
    num_slots, device = topk_ids.numel(), topk_ids.device
    sizes = [SMALLEST.value << size for size in range(num_sizes)]
    # One tile an expert that has more than half of it, at most; of the largest, any number.
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


def combine(parts: Tensor, topk_ids: Tensor, topk_weights: Tensor, num_experts: int) -> Tensor:
    """The weighted sum of each token's assignments, [tokens, width] f32.

    parts  [tokens * top_k, width]; rows of assignments that were dropped are not read
    """
    tokens, top_k = topk_ids.shape
    width = parts.shape[1]
    out = torch.empty(tokens, width, dtype=torch.float32, device=parts.device)
    tiles = combine_tiles(width, device_class(parts))
    combine_kernel[(cdiv(tokens, tiles.rows), cdiv(width, tiles.columns))](
        parts, topk_ids, topk_weights, out, tokens, width, num_experts,
        TOP_K=top_k, ROWS=tiles.rows, TILE=tiles.columns, num_warps=tiles.num_warps,
    )  # fmt: skip
    return out
