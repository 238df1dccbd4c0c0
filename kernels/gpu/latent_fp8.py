"""The way of latents to FP8 and back inside a kernel, in integer arithmetic: `kernels/latent_fp8.py` to the bit.

Conversions are not used: Triton's interpreter rounds ties its own way, and a GPU's are slower than shifting.
"""

import triton
import triton.language as tl

from kernels import latent_fp8

TO_NEXT = tl.constexpr(latent_fp8.TO_NEXT)
LOWEST = tl.constexpr(latent_fp8.LOWEST)
LARGEST = tl.constexpr(latent_fp8.LARGEST)
TWO_TO_120 = tl.constexpr(2.0**120)


@triton.jit
def quantize(values, GROUP: tl.constexpr):
    """e4m3 codes u8 of float32 values [ROWS, TILE], and their scales f32 [ROWS, TILE / GROUP]."""
    grouped = tl.reshape(values, (values.shape[0], values.shape[1] // GROUP, GROUP))
    bits = grouped.to(tl.int32, bitcast=True)
    peak = tl.max(bits & 0x7FFFFFFF, axis=2)
    exponent = tl.maximum(((peak + TO_NEXT) >> 23) - 8, LOWEST)
    scale = tl.where(peak > LARGEST, float("nan"), (exponent << 23).to(tl.float32, bitcast=True))
    small = tl.abs(grouped) * ((254 - exponent) << 23).to(tl.float32, bitcast=True)[:, :, None]
    word = small.to(tl.int32, bitcast=True)
    normal = ((word + 0x7FFFF + ((word >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 codes count multiples of 2^-9, to which adding 2^14 rounds.
    denormal = (small + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    codes = tl.where(small < 0.015625, denormal, normal) | ((bits >> 24) & 0x80)
    return tl.reshape(codes, (values.shape[0], values.shape[1])).to(tl.uint8), scale


@triton.jit
def widen(codes, scale, GROUP: tl.constexpr):
    """The numbers [TILE_T, TILE_L] in bfloat16, which holds them exactly; codes likewise, scale [TILE_T, groups] f32."""
    words = codes.to(tl.int16)
    # A code's exponent and digits, shifted to where bfloat16 has them, are its number times 2^-120.
    numbers = (((words & 0x80) << 8) | ((words & 0x7F) << 4)).to(tl.bfloat16, bitcast=True)
    grouped = tl.reshape(numbers, (codes.shape[0], codes.shape[1] // GROUP, GROUP))
    factor = (scale * TWO_TO_120).to(tl.bfloat16)
    return tl.reshape(grouped * factor[:, :, None], (codes.shape[0], codes.shape[1]))
