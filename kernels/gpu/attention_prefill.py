"""Causal attention of a prompt chunk: keys and values are expanded from the latents, piece by piece of the context.

The softmax's running state passes from piece to piece unrounded and tiles are counted from the start of the context, so
attention itself does not depend on how a prompt is cut into chunks.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.device import cdiv, power_of_2
from kernels.interface import LinearWeight
from kernels.reference.latent_fp8 import is_fp8, widened

LOG2_E = 1.4426950408889634
PIECE_TOKENS = 16_384  # context expanded at a time: 512 MiB of keys and values with 64 heads


class PrefillTiles(NamedTuple):
    """Working sizes of one shape class."""

    tile_q: int
    tile_k: int
    num_warps: int
    num_stages: int


def prefill_tiles(nope: int, dtype: torch.dtype) -> PrefillTiles:
    """128 queries share each key tile."""
    if dtype == torch.float32:  # for parity with the CPU, not for speed
        return PrefillTiles(64, 64, 8, 1)
    return PrefillTiles(128, 128, 8, 2) if nope > 64 else PrefillTiles(64, 64, 4, 3)


@triton.jit
def mla_prefill_kernel(
    q_nope, q_rope, projected, rope_keys, out, state_mean, state_peak, state_total, scale, tokens, heads, first_query,
    first_key, num_keys, q_nope_row, q_nope_head, q_rope_row, q_rope_head, rope_key_row,
    NOPE: tl.constexpr, ROPE: tl.constexpr, VALUE: tl.constexpr, TILE_Q: tl.constexpr, TILE_K: tl.constexpr,
    TILE_N: tl.constexpr, TILE_R: tl.constexpr, TILE_V: tl.constexpr, IS_FIRST: tl.constexpr, IS_LAST: tl.constexpr,
):  # fmt: skip
    """TILE_Q queries of one head against one piece of the context; grid (query tiles, heads).

    first_query, first_key  positions of the chunk's first query and of the piece's first key
    """
    # The tiles with most work start first, so that none of them is still running alone at the end.
    start = (tl.num_programs(0) - 1 - tl.program_id(0)) * TILE_Q
    head = tl.program_id(1).to(tl.int64)
    query = start + tl.arange(0, TILE_Q)
    row = query.to(tl.int64)
    n = tl.arange(0, TILE_N)
    r = tl.arange(0, TILE_R)
    v = tl.arange(0, TILE_V)
    alive = (query < tokens)[:, None]
    q_n = tl.load(
        q_nope + row[:, None] * q_nope_row + head * q_nope_head + n[None, :],
        mask=alive & (n < NOPE)[None, :],
        other=0.0,
    )
    q_r = tl.load(
        q_rope + row[:, None] * q_rope_row + head * q_rope_head + r[None, :],
        mask=alive & (r < ROPE)[None, :],
        other=0.0,
    )
    state = row * heads + head
    if IS_FIRST:
        peak = tl.full([TILE_Q], -float("inf"), tl.float32)
        total = tl.zeros([TILE_Q], tl.float32)
        mean = tl.zeros([TILE_Q, TILE_V], tl.float32)
    else:
        peak = tl.load(state_peak + state, mask=query < tokens, other=0.0)
        total = tl.load(state_total + state, mask=query < tokens, other=1.0)
        mean = tl.load(state_mean + state[:, None] * VALUE + v[None, :], mask=alive & (v < VALUE)[None, :], other=0.0)
    # Positions are relative to the piece; a query sees the keys up to its own position.
    own = first_query - first_key + query
    visible = tl.minimum(first_query - first_key + tl.minimum(start + TILE_Q, tokens), num_keys)
    full = tl.maximum(tl.minimum(first_query - first_key + start + 1, num_keys), 0) // TILE_K * TILE_K
    for begin in range(0, full, TILE_K):
        peak, total, mean = _attend(
            q_n, q_r, projected, rope_keys, peak, total, mean, scale, heads, head, begin, own, visible, rope_key_row,
            NOPE, ROPE, VALUE, TILE_K, TILE_N, TILE_R, TILE_V, False,
        )  # fmt: skip
    for begin in range(full, visible, TILE_K):
        peak, total, mean = _attend(
            q_n, q_r, projected, rope_keys, peak, total, mean, scale, heads, head, begin, own, visible, rope_key_row,
            NOPE, ROPE, VALUE, TILE_K, TILE_N, TILE_R, TILE_V, True,
        )  # fmt: skip
    inside = alive & (v < VALUE)[None, :]
    if IS_LAST:
        tl.store(out + state[:, None] * VALUE + v[None, :], mean / total[:, None], mask=inside)
    else:
        tl.store(state_mean + state[:, None] * VALUE + v[None, :], mean, mask=inside)
        tl.store(state_peak + state, peak, mask=query < tokens)
        tl.store(state_total + state, total, mask=query < tokens)


@triton.jit
def _attend(
    q_n, q_r, projected, rope_keys, peak, total, mean, scale, heads, head, begin, own, visible, rope_key_row,
    NOPE: tl.constexpr, ROPE: tl.constexpr, VALUE: tl.constexpr, TILE_K: tl.constexpr, TILE_N: tl.constexpr,
    TILE_R: tl.constexpr, TILE_V: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys. Only MASKED tiles may have keys after a query's own position."""
    key = begin + tl.arange(0, TILE_K)
    n = tl.arange(0, TILE_N)
    r = tl.arange(0, TILE_R)
    v = tl.arange(0, TILE_V)
    inside = (key < visible)[:, None] if MASKED else tl.full([TILE_K, 1], 1, tl.int1)
    place = projected + (key.to(tl.int64) * heads + head)[:, None] * (NOPE + VALUE)
    k_n = tl.load(place + n[None, :], mask=inside & (n < NOPE)[None, :], other=0.0)
    k_r = tl.load(
        rope_keys + key.to(tl.int64)[:, None] * rope_key_row + r[None, :],
        mask=inside & (r < ROPE)[None, :],
        other=0.0,
    )
    values = tl.load(place + NOPE + v[None, :], mask=inside & (v < VALUE)[None, :], other=0.0)
    scores = tl.dot(q_n, tl.trans(k_n), input_precision="ieee")
    scores = tl.dot(q_r, tl.trans(k_r), scores, input_precision="ieee") * scale
    if MASKED:
        scores = tl.where(key[None, :] <= own[:, None], scores, -float("inf"))
    # The first rows of a query tile may see none of these keys; their peak then stays unchanged.
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    safe = tl.where(new_peak == -float("inf"), 0.0, new_peak)
    p = tl.exp2(scores - safe[:, None])
    shrink = tl.exp2(peak - safe)
    total = total * shrink + tl.sum(p, 1)
    mean = tl.dot(p.to(values.dtype), values, mean * shrink[:, None], input_precision="ieee")
    return new_peak, total, mean


def mla_prefill(
    q_nope: Tensor,
    q_rope: Tensor,
    cache: Tensor,
    block_table: Tensor,
    context_len: int,
    kv_b: LinearWeight,
    v_dim: int,
    softmax_scale: float,
    *,
    linear: Callable[[Tensor, LinearWeight], Tensor],
    piece_tokens: int = PIECE_TOKENS,
) -> Tensor:
    """As `kernels.mla_prefill`, with the `linear` of the device."""
    tokens, heads, nope = q_nope.shape
    rope, block_tokens = q_rope.shape[2], cache.shape[1]
    assert q_nope.stride(2) == q_rope.stride(2) == 1
    tiles = prefill_tiles(nope, q_nope.dtype)
    out = torch.empty(tokens, heads, v_dim, dtype=q_nope.dtype, device=cache.device)
    # A piece has whole blocks and whole tiles, because keys past its end are not masked.
    unit = math.lcm(block_tokens, tiles.tile_k)
    piece = max(1, piece_tokens // unit) * unit
    pieces = range(0, context_len, piece)
    state_shape = (tokens, heads) if len(pieces) > 1 else (1, 1)
    state_mean = torch.empty(*state_shape, v_dim, dtype=torch.float32, device=cache.device)
    state_peak, state_total = (torch.empty(state_shape, dtype=torch.float32, device=cache.device) for _ in range(2))
    for first_key in pieces:
        num_keys = min(context_len - first_key, piece)
        first_block = first_key // block_tokens
        blocks = block_table[first_block : first_block + cdiv(num_keys, block_tokens)]
        context = cache[blocks.long()].flatten(0, 1)[:num_keys]
        if is_fp8(cache):
            context = widened(context, kv_b.shape[1], q_nope.dtype)
        rope_keys = context[:, kv_b.shape[1] :]
        projected = linear(context[:, : kv_b.shape[1]], kv_b)
        mla_prefill_kernel[(cdiv(tokens, tiles.tile_q), heads)](
            q_nope, q_rope, projected, rope_keys, out, state_mean, state_peak, state_total, softmax_scale * LOG2_E,
            tokens, heads, context_len - tokens, first_key, num_keys, q_nope.stride(0), q_nope.stride(1),
            q_rope.stride(0), q_rope.stride(1), rope_keys.stride(0),
            NOPE=nope, ROPE=rope, VALUE=v_dim, TILE_Q=tiles.tile_q, TILE_K=tiles.tile_k, TILE_N=power_of_2(nope, 16),
            TILE_R=power_of_2(rope, 16), TILE_V=power_of_2(v_dim, 16), IS_FIRST=first_key == 0,
            IS_LAST=first_key == pieces[-1], num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return out
