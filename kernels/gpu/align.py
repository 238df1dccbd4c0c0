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

ALIGN_TILE = 1024  # assignments read at a time
TILE_ROOM = 64  # token tiles of an expert written at a time


class TokenTiles(NamedTuple):
    """Which assignments each token tile holds. Room for the worst case; only `num_tiles` of them are written."""

    slots: Tensor  # [max_tiles * tokens] i32; the number of assignments where a tile has room left
    experts: Tensor  # [max_tiles] i32
    num_tiles: Tensor  # [1] i32
    max_tiles: int


def combine_tiles(width: int, device: str) -> RowTiles:
    """A thousand columns of one token a program."""
    return RowTiles(64 if device == "interpreter" else 1, min(power_of_2(width, 16), 1024), 4)


@triton.jit
def align_kernel(
    topk_ids, slots, tile_experts, num_tiles, num_slots, num_experts,
    TOKENS: tl.constexpr, EXPERTS_TILE: tl.constexpr, TILE: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    """One program an expert: counts all assignments to know its place, then lists its own."""
    expert = tl.program_id(0)
    offset = tl.arange(0, TILE)
    bins = tl.arange(0, EXPERTS_TILE)
    counts = tl.zeros((EXPERTS_TILE,), tl.int32)
    for start in range(0, num_slots, TILE):
        ids = tl.load(topk_ids + start + offset, mask=start + offset < num_slots, other=-1)
        counts += tl.histogram(ids, EXPERTS_TILE, mask=(ids >= 0) & (ids < num_experts))
    tiles = (counts + TOKENS - 1) // TOKENS
    first_tile = tl.sum(tl.where(bins < expert, tiles, 0))
    own_tiles = tl.sum(tl.where(bins == expert, tiles, 0))
    count = tl.sum(tl.where(bins == expert, counts, 0))
    if expert == 0:
        tl.store(num_tiles, tl.sum(tiles))
    for start in range(0, own_tiles, ROOM):
        tile = start + tl.arange(0, ROOM)
        tl.store(tile_experts + first_tile + tile, tl.full((ROOM,), expert, tl.int32), mask=tile < own_tiles)
    rest = count + tl.arange(0, TOKENS)
    sentinel = tl.full((TOKENS,), num_slots, tl.int32)
    tl.store(slots + first_tile * TOKENS + rest, sentinel, mask=rest < own_tiles * TOKENS)
    written = first_tile * TOKENS
    for start in range(0, num_slots, TILE):
        ids = tl.load(topk_ids + start + offset, mask=start + offset < num_slots, other=-1)
        is_own = (ids == expert).to(tl.int32)
        tl.store(slots + written + tl.cumsum(is_own, axis=0) - 1, start + offset, mask=is_own > 0)
        written += tl.sum(is_own)


@triton.jit
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


def align_tokens(topk_ids: Tensor, num_experts: int, tokens: int) -> TokenTiles:
    """Token tiles of at most `tokens` assignments with one expert each.

    topk_ids  [tokens, top_k] i32, contiguous; -1 is dropped
    """
    num_slots = topk_ids.numel()
    max_tiles = min(num_slots, num_experts + num_slots // tokens)
    slots = torch.empty(max_tiles * tokens, dtype=torch.int32, device=topk_ids.device)
    experts = torch.empty(max_tiles, dtype=torch.int32, device=topk_ids.device)
    num_tiles = torch.empty(1, dtype=torch.int32, device=topk_ids.device)
    align_kernel[(num_experts,)](
        topk_ids, slots, experts, num_tiles, num_slots, num_experts,
        TOKENS=tokens, EXPERTS_TILE=power_of_2(num_experts, 16),
        TILE=min(ALIGN_TILE, power_of_2(num_slots, 16)), ROOM=TILE_ROOM, num_warps=4,
    )  # fmt: skip
    return TokenTiles(slots, experts, num_tiles, max_tiles)


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
