"""How near is near enough, and inputs that several kernel tests share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Relative to the norm of the expected result, for each rounding to the dtype of the run on the way.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None, roundings: int = 1) -> None:
    """Same shape and dtype, no stray NaN, small error over the whole and no element far off."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if expected.numel() == 0:
        return
    limit = TOLERANCE[dtype or expected.dtype] * roundings
    error = (actual.double() - expected.double()).abs()
    size = expected.double().norm()
    assert error.norm() <= limit * size + 1e-12, f"relative error {error.norm() / size:.2e}"
    assert error.max() <= 10 * limit * (expected.double().abs().max() + 1e-6)


def int4(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A random checkpoint matrix, all sixteen nibbles, scales of about 0.01."""
    words = torch.randint(-(2**31), 2**31, (rows, columns // 8)).int()
    return words, (torch.rand(rows, columns // 32) * 0.01 + 0.005).bfloat16()


def expert(hidden: int, width: int) -> tuple[Tensor, ...]:
    """One random expert in the format of the checkpoint."""
    return (*int4(width, hidden), *int4(width, hidden), *int4(hidden, width))


def paged_cache(blocks: int, block_tokens: int, width: int, dtype: torch.dtype, layer: int = 1) -> Tensor:
    """A view of one of three layers, all NaN."""
    return torch.full((blocks, 3, block_tokens, width), float("nan"), dtype=dtype)[:, layer]


def few(kernels: Any, values: Sequence[int], *, interpreted: Sequence[int]) -> Sequence[int]:
    """The sizes to test: fewer in Triton's interpreter, where an operation on a tile takes a tenth of a millisecond."""
    return interpreted if type(kernels).__module__.startswith("kernels.gpu") else values
