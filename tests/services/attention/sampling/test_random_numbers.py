"""The generator against published vectors, numpy's Philox, and the statistics of its uniforms."""

import numpy as np
import pytest

from services.attention.sampling.random_numbers import philox, uniform

ONES = 2**64 - 1


@pytest.mark.parametrize(
    "counter, key, words",
    [
        pytest.param(
            [0, 0, 0, 0],
            [0, 0],
            [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B],
            id="zeros",
        ),
        pytest.param(
            [ONES] * 4,
            [ONES] * 2,
            [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0],
            id="ones",
        ),
        pytest.param(
            [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
            [0x452821E638D01377, 0xBE5466CF34E90C6C],
            [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
            id="pi",
        ),
    ],
)
def test_published_vectors(counter, key, words):
    """The known answers that the paper's authors ship with their library (Random123)."""
    assert list(philox(counter, key)) == words


def test_numpys_philox_is_the_same():
    rng = np.random.default_rng(0)
    for words in rng.integers(0, 2**64, size=(200, 6), dtype=np.uint64).tolist():
        counter, key = words[:4], words[4:]
        before = [(counter[0] - 1) & ONES, *counter[1:]]  # numpy steps its counter before the first block
        theirs = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=np.array(before, dtype=np.uint64))
        assert list(philox(counter, key)) == theirs.random_raw(4).tolist()


@pytest.mark.parametrize(
    "seed, position, number",
    [
        pytest.param(0, 0, 0.08723912359911234, id="zeros"),
        pytest.param(0, 1, 0.011546754286331562, id="next-position"),
        pytest.param(1, 0, 0.794901327418393, id="next-seed"),
        pytest.param(ONES, ONES, 0.5824531976809784, id="largest"),
    ],
)
def test_pinned_values(seed, position, number):
    assert uniform(seed, position) == number


@pytest.mark.parametrize("vary", ["seed", "position"])
def test_uniforms_are_uniform(vary):
    count = 20000
    numbers = np.array([uniform(i, 3) if vary == "seed" else uniform(3, i) for i in range(count)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    cells = np.bincount((numbers * 100).astype(int), minlength=100)
    # 99 degrees of freedom: 160 is exceeded once in ten thousand.
    assert ((cells - count / 100) ** 2 / (count / 100)).sum() < 160
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / count**0.5
