"""What the tile tables are looked up by, and small arithmetic that wrappers share."""

from functools import cache
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

DeviceClass = Literal["interpreter", "sm_90", "other"]

MAX_SHARED_BYTES: Final = 232_448  # of one program on Hopper


class RowTiles(NamedTuple):
    """Rows and columns of one program, and its warps."""

    rows: int
    columns: int
    num_warps: int


def device_class(tensor: Tensor) -> DeviceClass:
    """`interpreter` for a CPU tensor, which only Triton's interpreter takes (tests); `sm_90` for Hopper; or `other`."""
    return "interpreter" if tensor.is_cpu else _class_of(tensor.device)


@cache
def _class_of(device: torch.device) -> DeviceClass:
    return "sm_90" if torch.cuda.get_device_capability(device)[0] == 9 else "other"


def cdiv(value: int, divisor: int) -> int:
    """value / divisor, rounded up."""
    return -(-value // divisor)


def power_of_2(value: int, at_least: int = 1) -> int:
    """The smallest power of two that is no smaller than both."""
    return max(at_least, 1 << (value - 1).bit_length() if value > 1 else 1)
