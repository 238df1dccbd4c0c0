"""Absorbed attention over the paged latent KV: one launch computes splits of every row's context, one combines them.

How a context is split depends on its own length and, at the sizes of K2.6 on Hopper, on the class of the number of
rows, so a row's result is the same to the bit in every batch of its class.
"""

from typing import Final, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import attention_decode_hopper as hopper
from kernels.gpu.device import cdiv, power_of_2
from kernels.gpu.latent_fp8 import load_widened
from kernels.reference.latent_fp8 import GROUP, is_fp8, parts, token_bytes

LOG2_E = 1.4426950408889634


class DecodeTiles(NamedTuple):
    """Working sizes of one shape class. All except `tile_h` determine the order of sums, so a result's last bits."""

    tile_h: int  # heads per program
    tile_t: int  # tokens at a time
    num_warps: int
    num_stages: int
    split_tiles: int = 16  # 1024 tokens at 64 a tile: the partial sums cost a fifth of the latents' bytes
    max_splits: int = 64  # two rows fill 132 multiprocessors
    combine_splits: int = 8  # splits that a program of the combination adds at a time
    combine_parts: int = 1  # programs of the combination that share the columns of a head


def decode_tiles(heads: int, latent: int, dtype: torch.dtype) -> DecodeTiles:
    """One program takes all heads of a model if registers and shared memory suffice, so that latents are read once."""
    if dtype == torch.float32:  # for parity with the CPU, not for speed
        return DecodeTiles(16, 16, 4, 1, split_tiles=64) if latent > 128 else DecodeTiles(32, 64, 4, 1)
    tile_h = min(64, power_of_2(heads, 16))
    return DecodeTiles(tile_h, 64, 8 if tile_h == 64 else 4, 2)


# Largest number of rows -> tiles, measured on an H200. Few rows need many splits to fill the GPU; with many rows, fewer
# splits save work in the combination.
HOPPER_TILES: Final = {
    2: DecodeTiles(64, 64, 8, 2, split_tiles=1, max_splits=128, combine_splits=16, combine_parts=4),
    16: DecodeTiles(64, 64, 8, 2, split_tiles=4, max_splits=32),
    64: DecodeTiles(64, 64, 8, 2, split_tiles=16, max_splits=16),
    1 << 31: DecodeTiles(64, 64, 8, 2, split_tiles=64, max_splits=64),
}


def hopper_tiles(rows: int) -> DecodeTiles:
    """Return the tiles for a batch at the sizes of K2.6."""
    return next(tiles for most, tiles in HOPPER_TILES.items() if rows <= most)


@triton.jit
def _split_tiles(context_len, TILE_T: tl.constexpr, SPLIT_TILES: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """Tiles of the context in one split: at least SPLIT_TILES, more if MAX_SPLITS splits do not cover the context."""
    return tl.maximum(SPLIT_TILES, tl.cdiv(tl.cdiv(context_len, TILE_T), MAX_SPLITS))


@triton.jit
def mla_decode_split_kernel(
    q_latent, q_rope, cache, kv_scales, rope_keys, block_tables, context_lens, partial, log_sums, scale, heads,
    num_splits, q_latent_row, q_latent_head, q_rope_row, q_rope_head, cache_block, table_row,
    LATENT: tl.constexpr, ROPE: tl.constexpr, TOKEN: tl.constexpr, FP8_GROUP: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, TILE_H: tl.constexpr, TILE_T: tl.constexpr, TILE_L: tl.constexpr,
    TILE_R: tl.constexpr, SPLIT_TILES: tl.constexpr, MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """One split of one row for TILE_H heads; grid (rows, splits, head tiles). Splits past the context return.

    TOKEN      numbers of a token in the cache, bytes in FP8
    FP8_GROUP  numbers that share one of `kv_scales`; 0: the cache is not FP8, and kv_scales and rope_keys are unused
    """
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    context_len = tl.load(context_lens + row)
    per_split = _split_tiles(context_len, TILE_T, SPLIT_TILES, MAX_SPLITS)
    first = split * per_split
    last = tl.minimum(first + per_split, tl.cdiv(context_len, TILE_T))
    if first >= last:
        return
    head = tl.program_id(2) * TILE_H + tl.arange(0, TILE_H)
    c = tl.arange(0, TILE_L)
    r = tl.arange(0, TILE_R)
    head_inside = (head < heads)[:, None]
    latent_inside = (c < LATENT)[None, :]
    rope_inside = (r < ROPE)[None, :]
    q_l = tl.load(
        q_latent + row * q_latent_row + head[:, None] * q_latent_head + c[None, :],
        mask=head_inside & latent_inside,
        other=0.0,
    )
    q_r = tl.load(
        q_rope + row * q_rope_row + head[:, None] * q_rope_head + r[None, :], mask=head_inside & rope_inside, other=0.0
    )
    peak = tl.full([TILE_H], -float("inf"), tl.float32)
    total = tl.zeros([TILE_H], tl.float32)
    mean = tl.zeros([TILE_H, TILE_L], tl.float32)
    table = block_tables + row * table_row
    block = tl.load(table + first * TILE_T // BLOCK_TOKENS)
    for tile in range(first, last):
        position = tile * TILE_T + tl.arange(0, TILE_T)
        inside = position < context_len
        if BLOCK_TOKENS % TILE_T == 0:  # a tile is in one block: its entry of the table is read one tile ahead
            token = block.to(tl.int64) * cache_block + (position % BLOCK_TOKENS) * TOKEN
            block = tl.load(table + tl.minimum(tile + 1, last - 1) * TILE_T // BLOCK_TOKENS)
        else:
            blocks = tl.load(table + position // BLOCK_TOKENS, mask=inside, other=0).to(tl.int64)
            token = blocks * cache_block + (position % BLOCK_TOKENS) * TOKEN
        if FP8_GROUP:
            k_l = load_widened(cache, kv_scales, token, inside, LATENT, TILE_L, FP8_GROUP).to(q_l.dtype)
            key = rope_keys + (token // 2)[:, None] + r[None, :]
            k_r = tl.load(key, mask=inside[:, None] & rope_inside, other=0.0).to(q_r.dtype)
        else:
            k_l = tl.load(cache + token[:, None] + c[None, :], mask=inside[:, None] & latent_inside, other=0.0)
            key = cache + token[:, None] + LATENT + r[None, :]
            k_r = tl.load(key, mask=inside[:, None] & rope_inside, other=0.0)
        scores = tl.dot(q_l, tl.trans(k_l), input_precision="ieee")
        scores = tl.dot(q_r, tl.trans(k_r), scores, input_precision="ieee")
        scores = tl.where(inside[None, :], scores * scale, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        p = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(p, 1)
        mean = tl.dot(p.to(k_l.dtype), k_l, mean * shrink[:, None], input_precision="ieee")
        peak = new_peak
    mean = mean / total[:, None]
    place = (row * num_splits + split) * heads + head
    tl.store(partial + place[:, None] * LATENT + c[None, :], mean, mask=head_inside & latent_inside)
    tl.store(log_sums + place, peak + tl.log2(total), mask=head < heads)


@triton.jit
def mla_decode_combine_kernel(
    partial, log_sums, context_lens, out, heads, num_splits,
    LATENT: tl.constexpr, TILE_T: tl.constexpr, TILE_S: tl.constexpr, TILE_L: tl.constexpr, SPLIT_TILES: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
):  # fmt: skip
    """Mean of a row's splits, weighted by their sums of exponentials; grid (rows, heads, columns / TILE_L)."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    c = tl.program_id(2) * TILE_L + tl.arange(0, TILE_L)
    column_inside = (c < LATENT)[None, :]
    context_len = tl.load(context_lens + row)
    count = tl.cdiv(tl.cdiv(context_len, TILE_T), _split_tiles(context_len, TILE_T, SPLIT_TILES, MAX_SPLITS))
    place = row * num_splits * heads + head
    every = tl.arange(0, MAX_SPLITS)
    log_sum = tl.load(log_sums + place + every * heads, mask=every < count, other=-float("inf"))
    peak = tl.max(log_sum, 0)
    total = tl.sum(tl.where(every < count, tl.exp2(log_sum - peak), 0.0), 0)
    mean = tl.zeros([TILE_L], tl.float32)
    for begin in range(0, count, TILE_S):
        split = begin + tl.arange(0, TILE_S)
        inside = split < count
        at = place + split * heads
        weight = tl.exp2(tl.load(log_sums + at, mask=inside, other=-float("inf")) - peak)
        part = tl.load(partial + at[:, None] * LATENT + c[None, :], mask=inside[:, None] & column_inside, other=0.0)
        mean += tl.sum(weight[:, None] * part, 0)
    # A row without context has a total of 0, and zeros as its result.
    mean = mean / tl.where(count == 0, 1.0, total)
    tl.store(out + (row * heads + head) * LATENT + c, mean, mask=c < LATENT)


def mla_decode(
    q_latent: Tensor,
    q_rope: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    softmax_scale: float,
    tiles: DecodeTiles | None = None,
) -> Tensor:
    """As `kernels.mla_decode`. The grid depends only on shapes, so that a captured launch serves any context.

    tiles  forces the Triton kernel with these tiles; without them the Gluon kernel is used where it is able to
    """
    rows, heads, latent = q_latent.shape
    rope, block_tokens = q_rope.shape[2], cache.shape[1]
    fp8_group = min(GROUP, power_of_2(latent, 16)) if is_fp8(cache) else 0
    token = token_bytes(latent, rope) if fp8_group else latent + rope
    assert q_latent.stride(2) == q_rope.stride(2) == 1 and cache.stride()[1:] == (token, 1)
    assert block_tables.stride(1) == 1 or block_tables.shape[1] <= 1
    out = torch.empty(rows, heads, latent, dtype=q_latent.dtype, device=cache.device)
    if rows == 0:
        return out
    on_hopper = tiles is None and hopper.takes(q_latent, q_rope, cache)
    tiles = tiles or (hopper_tiles(rows) if on_hopper else decode_tiles(heads, latent, q_latent.dtype))
    num_splits = count_splits(block_tables.shape[1] * block_tokens, tiles)
    partial = torch.empty(rows, num_splits, heads, latent, dtype=torch.float32, device=cache.device)
    log_sums = torch.empty(rows, num_splits, heads, dtype=torch.float32, device=cache.device)
    scale = softmax_scale * LOG2_E
    if on_hopper:
        given = (q_latent, q_rope, cache, block_tables, context_lens, partial, log_sums, scale)
        hopper.launch(*given, tiles.split_tiles, tiles.max_splits)
    else:
        _, kv_scales, rope_keys = parts(cache, latent) if fp8_group else (cache, cache, cache)
        mla_decode_split_kernel[(rows, num_splits, cdiv(heads, tiles.tile_h))](
            q_latent, q_rope, cache, kv_scales, rope_keys, block_tables, context_lens, partial, log_sums, scale,
            heads, num_splits, q_latent.stride(0), q_latent.stride(1), q_rope.stride(0), q_rope.stride(1),
            cache.stride(0), block_tables.stride(0),
            LATENT=latent, ROPE=rope, TOKEN=token, FP8_GROUP=fp8_group, BLOCK_TOKENS=block_tokens,
            TILE_H=tiles.tile_h, TILE_T=tiles.tile_t, TILE_L=power_of_2(latent, 16), TILE_R=power_of_2(rope, 16),
            SPLIT_TILES=tiles.split_tiles, MAX_SPLITS=tiles.max_splits,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    columns = cdiv(power_of_2(latent, 16), tiles.combine_parts)
    mla_decode_combine_kernel[(rows, heads, cdiv(latent, columns))](
        partial, log_sums, context_lens, out, heads, num_splits,
        LATENT=latent, TILE_T=tiles.tile_t, TILE_S=tiles.combine_splits, TILE_L=columns,
        SPLIT_TILES=tiles.split_tiles, MAX_SPLITS=tiles.max_splits, num_warps=4,
    )  # fmt: skip
    return out


def count_splits(capacity_tokens: int, tiles: DecodeTiles) -> int:
    """Return the most splits that a context of `capacity_tokens` can need."""
    return max(1, min(tiles.max_splits, cdiv(cdiv(capacity_tokens, tiles.tile_t), tiles.split_tiles)))
