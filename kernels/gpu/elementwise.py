"""Norm, SwiGLU, rotary embedding and cache writes, each in one pass over memory.

A program of a norm takes whole rows, so each sum stays in one program and a row's result does not depend on other rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.device import RowTiles, cdiv, device_class, power_of_2
from kernels.gpu.latent_fp8 import quantize
from kernels.reference.latent_fp8 import GROUP, is_fp8, parts, quantized


def norm_tiles(width: int, device: str) -> RowTiles:
    """One whole row a program: 7168 columns are seven 16-byte accesses per thread with eight warps."""
    columns = power_of_2(width, 16)
    if device == "interpreter":
        return RowTiles(32, columns, 1)
    return RowTiles(max(1, 1024 // columns), columns, 8 if columns >= 4096 else 4)


def flat_tiles(width: int, device: str) -> RowTiles:
    """For operations without sums over columns: about 2048 elements a program."""
    columns = min(power_of_2(width, 16), 1024)
    return RowTiles(32 if device == "interpreter" else max(1, 2048 // columns), columns, 4)


def rope_tiles(heads: int, device: str) -> tuple[int, int]:
    """Tokens and heads of one program of one warp."""
    return 32 if device == "interpreter" else 1, min(power_of_2(heads), 8)


@triton.jit
def _normalised(values, scale, width, eps, DTYPE: tl.constexpr):
    """values / rms, rounded, times the scale, rounded; values are float32 [ROWS, TILE] with zeros past the width."""
    inverse = tl.rsqrt(tl.sum(values * values, axis=1) / width + eps)
    return ((values * inverse[:, None]).to(DTYPE).to(tl.float32) * scale[None, :]).to(DTYPE)


@triton.jit
def _turn(position, frequency):
    """Cosine and sine of position * frequency, [ROWS, TILE]."""
    angle = position.to(tl.float32)[:, None] * frequency[None, :]
    return tl.cos(angle), tl.sin(angle)


@triton.jit
def _rotated(pairs, cos, sin, DTYPE: tl.constexpr):
    """Rotate pairs [..., TILE, 2]."""
    even, odd = tl.split(pairs.to(tl.float32))
    return tl.join(even * cos - odd * sin, even * sin + odd * cos).to(DTYPE)


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(x, weight, out, num_rows, width, x_stride, eps, ROWS: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, TILE)
    inside = (row < num_rows)[:, None] & (column < width)[None, :]
    values = tl.load(x + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    result = _normalised(values, scale, width, eps, out.dtype.element_ty)
    tl.store(out + row[:, None] * width + column[None, :], result, mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def add_rms_norm_kernel(
    x, residual, weight, total, out, num_rows, width, eps, ROWS: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, TILE)
    inside = (row < num_rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    rounded = values.to(total.dtype.element_ty)
    tl.store(total + place, rounded, mask=inside)
    scale = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    result = _normalised(rounded.to(tl.float32), scale, width, eps, out.dtype.element_ty)
    tl.store(out + place, result, mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def silu_mul_kernel(gate_up, out, num_rows, width, in_stride, ROWS: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (row < num_rows)[:, None] & (column < width)[None, :]
    place = gate_up + row[:, None] * in_stride + column[None, :]
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
    result = (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty)
    tl.store(out + row[:, None] * width + column[None, :], result, mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def rope_kernel(
    x, positions, inv_freq, out, num_rows, heads, half, token_stride, head_stride,
    ROWS: tl.constexpr, HEADS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A row is a token. Its sines and cosines cost more than all else, so they are computed once for HEADS heads."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, TILE)
    position = tl.load(positions + row, mask=row < num_rows, other=0)
    frequency = tl.load(inv_freq + pair, mask=pair < half, other=0.0)
    cos, sin = _turn(position, frequency)
    inside = (row < num_rows)[:, None, None] & (head < heads)[None, :, None] & (pair < half)[None, None, :]
    within = 2 * pair[None, None, :, None] + tl.arange(0, 2)[None, None, None, :]
    start = row[:, None] * token_stride + head[None, :] * head_stride
    pairs = tl.load(x + start[:, :, None, None] + within, mask=inside[:, :, :, None], other=0.0)
    turned = _rotated(pairs, cos[:, None, :], sin[:, None, :], out.dtype.element_ty)
    start = (row[:, None] * heads + head[None, :]) * (2 * half)
    tl.store(out + start[:, :, None, None] + within, turned, mask=inside[:, :, :, None])


@triton.jit(do_not_specialize=["num_rows"])
def write_latent_kernel(
    cache, slots, latent, rope_key, num_rows, block_tokens, kv_lora, rope,
    block_stride, token_stride, latent_stride, rope_stride, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, TILE)
    slot = tl.load(slots + row, mask=row < num_rows, other=0)
    start = slot // block_tokens * block_stride + slot % block_tokens * token_stride
    target = cache + start[:, None] + column[None, :]
    is_latent = (row < num_rows)[:, None] & (column < kv_lora)[None, :]
    values = tl.load(latent + row[:, None] * latent_stride + column[None, :], mask=is_latent)
    tl.store(target, values, mask=is_latent)
    is_rope = (row < num_rows)[:, None] & (column < rope)[None, :]
    values = tl.load(rope_key + row[:, None] * rope_stride + column[None, :], mask=is_rope)
    tl.store(target + kv_lora, values, mask=is_rope)


@triton.jit(do_not_specialize=["num_rows"])
def norm_rope_store_kernel(
    cache, kv_scales, rope_keys, slots, latent, rope_key, weight, positions, inv_freq,
    num_rows, block_tokens, kv_lora, half, block_stride, token_stride, latent_stride, rope_stride, eps,
    FP8_GROUP: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, HALF_TILE: tl.constexpr,
):  # fmt: skip
    """`write_latent` of the normalised latent and the rotated key, which stay in registers until then.

    kv_scales, rope_keys  of the first token of the cache
    FP8_GROUP             numbers that share a scale; 0: the cache is not FP8
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slot = tl.load(slots + row, mask=row < num_rows, other=0)
    start = slot // block_tokens * block_stride + slot % block_tokens * token_stride
    column = tl.arange(0, TILE)
    inside = (row < num_rows)[:, None] & (column < kv_lora)[None, :]
    values = tl.load(latent + row[:, None] * latent_stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + column, mask=column < kv_lora, other=0.0).to(tl.float32)
    normalised = _normalised(values, scale, kv_lora, eps, latent.dtype.element_ty)
    key_start = start
    if FP8_GROUP:
        normalised, kv_scale = quantize(normalised.to(tl.float32), FP8_GROUP)
        group = tl.arange(0, TILE // FP8_GROUP)
        group_inside = (row < num_rows)[:, None] & (group * FP8_GROUP < kv_lora)[None, :]
        tl.store(kv_scales + (start // 4)[:, None] + group[None, :], kv_scale, mask=group_inside)
        key_start = start // 2
    tl.store(cache + start[:, None] + column[None, :], normalised, mask=inside)
    pair = tl.arange(0, HALF_TILE)
    inside = ((row < num_rows)[:, None] & (pair < half)[None, :])[:, :, None]
    within = (2 * pair[None, :, None] + tl.arange(0, 2)[None, None, :]).to(tl.int64)
    position = tl.load(positions + row, mask=row < num_rows, other=0)
    frequency = tl.load(inv_freq + pair, mask=pair < half, other=0.0)
    pairs = tl.load(rope_key + row[:, None, None] * rope_stride + within, mask=inside, other=0.0)
    cos, sin = _turn(position, frequency)
    turned = _rotated(pairs, cos, sin, rope_key.dtype.element_ty).to(rope_keys.dtype.element_ty)
    tl.store(rope_keys + key_start[:, None, None] + within, turned, mask=inside)


class Elementwise:
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(-1, x.shape[-1]).contiguous()
        num_rows, width = rows.shape
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if out.numel() == 0:
            return out
        tiles = norm_tiles(width, device_class(x))
        rms_norm_kernel[(cdiv(num_rows, tiles.rows),)](
            rows, weight.contiguous(), out, num_rows, width, rows.stride(0), eps,
            ROWS=tiles.rows, TILE=tiles.columns, num_warps=tiles.num_warps,
        )  # fmt: skip
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x, residual = x.contiguous(), residual.contiguous()
        num_rows, width = x.shape
        total, out = torch.empty_like(x), torch.empty_like(x)
        if out.numel() == 0:
            return total, out
        tiles = norm_tiles(width, device_class(x))
        add_rms_norm_kernel[(cdiv(num_rows, tiles.rows),)](
            x, residual, weight.contiguous(), total, out, num_rows, width, eps,
            ROWS=tiles.rows, TILE=tiles.columns, num_warps=tiles.num_warps,
        )  # fmt: skip
        return total, out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate_up = gate_up if gate_up.stride(1) == 1 else gate_up.contiguous()
        num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = torch.empty(num_rows, width, dtype=gate_up.dtype, device=gate_up.device)
        if out.numel() == 0:
            return out
        tiles = flat_tiles(width, device_class(gate_up))
        silu_mul_kernel[(cdiv(num_rows, tiles.rows), cdiv(width, tiles.columns))](
            gate_up, out, num_rows, width, gate_up.stride(0),
            ROWS=tiles.rows, TILE=tiles.columns, num_warps=tiles.num_warps,
        )  # fmt: skip
        return out

    def rope(self, x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
        assert x.stride(2) == 1
        tokens, heads, width = x.shape
        out = torch.empty(tokens, heads, width, dtype=x.dtype, device=x.device)
        if out.numel() == 0:
            return out
        rows, tile_heads = rope_tiles(heads, device_class(x))
        rope_kernel[(cdiv(tokens, rows), cdiv(heads, tile_heads))](
            x, positions.contiguous(), inv_freq.contiguous(), out, tokens, heads, width // 2,
            x.stride(0), x.stride(1), ROWS=rows, HEADS=tile_heads, TILE=power_of_2(width // 2), num_warps=1,
        )  # fmt: skip
        return out

    def write_latent(self, cache: Tensor, slots: Tensor, latent: Tensor, rope_key: Tensor) -> None:
        if is_fp8(cache):
            latent, rope_key = quantized(latent, rope_key)
        assert latent.dtype == rope_key.dtype == cache.dtype
        assert cache.stride(2) == latent.stride(1) == rope_key.stride(1) == 1
        num_rows, kv_lora, rope = slots.shape[0], latent.shape[1], rope_key.shape[1]
        if num_rows == 0:
            return
        tiles = norm_tiles(kv_lora, device_class(cache))
        write_latent_kernel[(cdiv(num_rows, tiles.rows),)](
            cache, slots.contiguous(), latent, rope_key, num_rows, cache.shape[1], kv_lora, rope,
            cache.stride(0), cache.stride(1), latent.stride(0), rope_key.stride(0),
            ROWS=tiles.rows, TILE=power_of_2(max(kv_lora, rope)), num_warps=tiles.num_warps,
        )  # fmt: skip

    def norm_rope_store(
        self,
        cache: Tensor,
        slots: Tensor,
        latent: Tensor,
        rope_key: Tensor,
        weight: Tensor,
        eps: float,
        positions: Tensor,
        inv_freq: Tensor,
    ) -> None:
        assert cache.stride(2) == latent.stride(1) == rope_key.stride(1) == 1
        num_rows, kv_lora, half = slots.shape[0], latent.shape[1], rope_key.shape[1] // 2
        if num_rows == 0:
            return
        tiles = norm_tiles(kv_lora, device_class(cache))
        fp8_group = min(GROUP, tiles.columns) if is_fp8(cache) else 0
        _, kv_scales, rope_keys = parts(cache, kv_lora) if fp8_group else (cache, cache, cache[..., kv_lora:])
        norm_rope_store_kernel[(cdiv(num_rows, tiles.rows),)](
            cache, kv_scales, rope_keys, slots.contiguous(), latent, rope_key, weight.contiguous(),
            positions.contiguous(), inv_freq.contiguous(), num_rows, cache.shape[1], kv_lora, half,
            cache.stride(0), cache.stride(1), latent.stride(0), rope_key.stride(0), eps,
            FP8_GROUP=fp8_group, ROWS=tiles.rows, TILE=tiles.columns, HALF_TILE=power_of_2(half),
            num_warps=tiles.num_warps,
        )  # fmt: skip
