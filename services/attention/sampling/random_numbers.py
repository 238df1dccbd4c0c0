"""Random numbers by counter: the same (seed, position) is the same number in every batch, replica and version.

Philox-4x64-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The seed is
the key, the position the counter; nothing is kept between calls. Python's integers are exact at any size and cost a
few microseconds per number, which is nothing beside a row of logits.
"""

from collections.abc import Sequence

ROUNDS = 10
MASK = 2**64 - 1
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def philox(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Return four random 64-bit words for a counter of four words and a key of two."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * x0, MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = (p1 >> 64) ^ x1 ^ k0, p1 & MASK, (p0 >> 64) ^ x3 ^ k1, p0 & MASK
        k0, k1 = k0 + KEY_STEPS[0] & MASK, k1 + KEY_STEPS[1] & MASK
    return x0, x1, x2, x3


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) with 53 random bits for an unsigned 64-bit seed and position."""
    word, *_ = philox((position & MASK, 0, 0, 0), (seed & MASK, 0))
    return (word >> 11) * 2.0**-53
