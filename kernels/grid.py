"""Sums of experts' outputs that no order and no grouping changes: exact in float64, over numbers on a fixed grid.

A term is a routing weight times an expert's output. The product is exact in float64 (24 + 24 bits) and is rounded once,
to a whole number of steps. Sums of whole steps below 2^53 are exact, so experts may be added in any order, in one
process or over any number of shards. The complete sum is rounded to float32, where it is used. The size of a step
depends on the dtype of the run alone.
"""

from typing import Final

import torch
from torch import Tensor

STEPS: Final = {torch.bfloat16: 2.0**-22, torch.float32: 2.0**-34}
# A token's sum is exact where the magnitudes of its terms add up to at most so many steps.
MAX_STEPS: Final = 2.0**51


def rounder(dtype: torch.dtype) -> float:
    """Return the number that rounds a term when it is added and taken away again: its last bit is one step."""
    return 1.5 * 2.0**52 * STEPS[dtype]


def on_grid(rows: Tensor, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return weights * rows in whole steps, f64.

    rows, weights  of shapes that fit each other, any dtypes
    dtype          of the run
    """
    magic = rounder(dtype)
    return rows.double() * weights.double() + magic - magic
