"""Tolerances and inputs that several kernel tests share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Allowed error relative to the norm of the expected result, for each rounding to the dtype of the run.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3}


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None, roundings: int = 1) -> None:
    """Check shape, dtype, places of NaN, the norm of the error, and that no element is far off."""
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
    """Return a random checkpoint matrix with all sixteen nibbles and scales of about 0.01."""
    words = torch.randint(-(2**31), 2**31, (rows, columns // 8)).int()
    return words, (torch.rand(rows, columns // 32) * 0.01 + 0.005).bfloat16()


def expert(hidden: int, width: int) -> tuple[Tensor, ...]:
    return (*int4(width, hidden), *int4(width, hidden), *int4(hidden, width))


def paged_cache(blocks: int, block_tokens: int, width: int, dtype: torch.dtype, layer: int = 1) -> Tensor:
    """Return a view of one of three layers, filled with NaN."""
    return torch.full((blocks, 3, block_tokens, width), float("nan"), dtype=dtype)[:, layer]


def few(kernels: Any, values: Sequence[int], *, interpreted: Sequence[int]) -> Sequence[int]:
    """Return the sizes to test: fewer in Triton's interpreter, where an operation on a tile takes 0.1 ms."""
    return interpreted if type(kernels).__module__.startswith("kernels.gpu") else values
