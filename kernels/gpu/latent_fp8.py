"""Latents to FP8 and back inside a kernel, in integer arithmetic; bits equal those of `reference/latent_fp8.py`.

Triton's conversions are not used: its interpreter rounds ties differently, and on a GPU they are slower than shifts.
"""

import triton
import triton.language as tl

from kernels.reference import latent_fp8

TO_NEXT = tl.constexpr(latent_fp8.TO_NEXT)
LOWEST = tl.constexpr(latent_fp8.LOWEST)
LARGEST = tl.constexpr(latent_fp8.LARGEST)
TWO_TO_120 = tl.constexpr(2.0**120)


@triton.jit
def quantize(values, GROUP: tl.constexpr):
    """Return e4m3 codes u8 of float32 values [ROWS, TILE], and their scales f32 [ROWS, TILE / GROUP]."""
    grouped = tl.reshape(values, (values.shape[0], values.shape[1] // GROUP, GROUP))
    bits = grouped.to(tl.int32, bitcast=True)
    peak = tl.max(bits & 0x7FFFFFFF, axis=2)
    exponent = tl.maximum(((peak + TO_NEXT) >> 23) - 8, LOWEST)
    scale = tl.where(peak > LARGEST, float("nan"), (exponent << 23).to(tl.float32, bitcast=True))
    small = tl.abs(grouped) * ((254 - exponent) << 23).to(tl.float32, bitcast=True)[:, :, None]
    word = small.to(tl.int32, bitcast=True)
    normal = ((word + 0x7FFFF + ((word >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 a code is a multiple of 2^-9; adding 2^14 rounds to such multiples.
    denormal = (small + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    codes = tl.where(small < 0.015625, denormal, normal) | ((bits >> 24) & 0x80)
    return tl.reshape(codes, (values.shape[0], values.shape[1])).to(tl.uint8), scale


@triton.jit
def widen(codes, scale, GROUP: tl.constexpr):
    """Return codes u8 [TILE_T, TILE_L] times scales f32 [TILE_T, groups] in bfloat16, which is exact."""
    words = codes.to(tl.int16)
    # A code's exponent and mantissa, shifted to their places in bfloat16, are its number times 2^-120.
    numbers = (((words & 0x80) << 8) | ((words & 0x7F) << 4)).to(tl.bfloat16, bitcast=True)
    grouped = tl.reshape(numbers, (codes.shape[0], codes.shape[1] // GROUP, GROUP))
    factor = (scale * TWO_TO_120).to(tl.bfloat16)
    return tl.reshape(grouped * factor[:, :, None], (codes.shape[0], codes.shape[1]))


@triton.jit
def load_widened(
    cache, kv_scales, token, inside, LATENT: tl.constexpr, TILE_L: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """Load latents [TILE_T, TILE_L]; `token`: byte offsets of tokens in the cache; zeros where not `inside`."""
    column = tl.arange(0, TILE_L)
    group = tl.arange(0, TILE_L // GROUP)
    mask = inside[:, None] & (column < LATENT)[None, :]
    codes = tl.load(cache + token[:, None] + column[None, :], mask=mask, other=0)
    mask = inside[:, None] & (group * GROUP < LATENT)[None, :]
    scale = tl.load(kv_scales + (token // 4)[:, None] + group[None, :], mask=mask, other=0.0)
    return widen(codes, scale, GROUP)
