"""Random numbers by counter: Philox-4x64-10 (Salmon, Moraes, Dror and Shaw, SC 2011), the first of its four words."""

import triton
import triton.language as tl


@triton.jit
def uniform(seed, position):
    """Return a number in [0, 1) with 53 random bits from Philox-4x64-10 with this key and counter."""
    x0 = position.to(tl.uint64, bitcast=True)
    k0 = seed.to(tl.uint64, bitcast=True)
    x1 = x0 * 0
    x2 = x0 * 0
    x3 = x0 * 0
    k1 = x0 * 0
    for _ in tl.static_range(10):
        p0_high = tl.umulhi(x0, 0xD2E7470EE14C6C93 + x0 * 0)
        p0_low = x0 * 0xD2E7470EE14C6C93
        p1_high = tl.umulhi(x2, 0xCA5A826395121157 + x2 * 0)
        p1_low = x2 * 0xCA5A826395121157
        x0 = p1_high ^ x1 ^ k0
        x1 = p1_low
        x2 = p0_high ^ x3 ^ k1
        x3 = p0_low
        k0 = k0 + 0x9E3779B97F4A7C15
        k1 = k1 + 0xBB67AE8584CAA73B
    return (x0 >> 11).to(tl.float64) * 1.1102230246251565e-16
