"""Latent KV in FP8: the layout of a token's bytes, and both conversions in plain PyTorch, their definition.

A token has its latent as e4m3 numbers, one float32 scale for each 128 of them, then its rope key in bfloat16: 656 bytes
(512 + 16 + 128) at the sizes of K2.6. A cache in this form has dtype uint8.

A scale is the smallest power of two that brings its numbers into the range of e4m3. So dividing by it is exact, the
numbers read back are exact in bfloat16 too, and all implementations have the same bytes and numbers.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

GROUP: Final = 128  # numbers that share a scale
TO_NEXT: Final = 0x1FFFFF  # added to float32 bits, raises the exponent if the number is above 1.75 times a power of two
LOWEST: Final = 27  # biased exponent of the smallest scale, 2^-100, far above the smallest number of bfloat16
LARGEST: Final = 0x47600000  # bits of 448 * 2^7; above it the scale is NaN, since scale * 2^120 must be finite


def token_bytes(kv_lora: int, rope: int) -> int:
    """Bytes of one token in one layer."""
    if kv_lora % 4 or rope % 2:
        raise ValueError(f"latents of {kv_lora} + {rope} numbers have no FP8 form: no multiples of 4 and 2")
    return kv_lora + 4 * num_groups(kv_lora) + 2 * rope


def num_groups(kv_lora: int) -> int:
    return -(-kv_lora // GROUP)


def is_fp8(cache: Tensor) -> bool:
    return cache.dtype == torch.uint8


def parts(cache: Tensor, kv_lora: int) -> tuple[Tensor, Tensor, Tensor]:
    """View the memory as e4m3 latents [..., kv_lora], float32 scales and bfloat16 rope keys [..., rope]."""
    codes_end, scales_end = kv_lora // 4, kv_lora // 4 + num_groups(kv_lora)
    latents = cache[..., :kv_lora].view(torch.float8_e4m3fn)
    scales = cache.view(torch.float32)[..., codes_end:scales_end]
    return latents, scales, cache.view(torch.bfloat16)[..., 2 * scales_end :]


def scale_of(grouped: Tensor) -> Tensor:
    """Return the smallest power of two that brings each group [..., GROUP] to 448 or less, [...] f32; else NaN."""
    # In integers, NaN is the largest number on all devices, and no logarithm is rounded.
    peak = (grouped.float().view(torch.int32) & 0x7FFFFFFF).amax(-1)
    exponent = ((peak + TO_NEXT) >> 23) - 8  # 448 = 1.75 * 2^8
    scale = (exponent.clamp(min=LOWEST) << 23).view(torch.float32)
    return scale.masked_fill(peak > LARGEST, torch.nan)


def quantized(latent: Tensor, rope_key: Tensor) -> tuple[Tensor, Tensor]:
    """Return latents with their scales, and rope keys, as bytes; in the cache they are adjacent.

    latent    [tokens, kv_lora]
    rope_key  [tokens, rope]
    returns   [tokens, kv_lora + 4 * groups] and [tokens, 2 * rope], u8
    """
    tokens, width = latent.shape
    groups = num_groups(width)
    grouped = functional.pad(latent.float(), (0, groups * GROUP - width)).view(tokens, groups, GROUP)
    scale = scale_of(grouped)
    codes = (grouped / scale[..., None]).to(torch.float8_e4m3fn).view(torch.uint8).flatten(1)[:, :width]
    key = rope_key.bfloat16().contiguous().view(torch.uint8)
    return torch.cat((codes, scale.view(torch.uint8)), dim=-1), key


def widened(rows: Tensor, kv_lora: int, dtype: torch.dtype) -> Tensor:
    """Widen tokens [..., bytes] u8 to latents and rope keys [..., kv_lora + rope], exact in either dtype."""
    latents, scales, rope_keys = parts(rows, kv_lora)
    each = scales.repeat_interleave(GROUP, dim=-1)[..., :kv_lora]
    return torch.cat(((latents.float() * each).to(dtype), rope_keys.to(dtype)), dim=-1)


def widened_blocks(
    cache: Tensor, block_tables: Tensor, context_lens: Tensor, kv_lora: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Copy the blocks of the contexts into a cache in `dtype`; return it with block tables that index it."""
    counts = (context_lens + cache.shape[1] - 1) // cache.shape[1]
    used = torch.arange(block_tables.shape[1], device=counts.device) < counts[:, None]
    # Rows of one generation share their context, which is widened once.
    blocks, places = torch.unique(block_tables[used].long(), return_inverse=True)
    tables = torch.zeros_like(block_tables)
    tables[used] = places.to(tables.dtype)
    return widened(cache[blocks], kv_lora, dtype), tables
