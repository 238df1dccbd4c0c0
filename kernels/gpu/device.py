"""The class of a device, by which tile tables are indexed, and small arithmetic for launches."""

from functools import cache
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

DeviceClass = Literal["interpreter", "sm_90", "other"]

MAX_SHARED_BYTES: Final = 232_448  # of one program on Hopper


class RowTiles(NamedTuple):
    rows: int  # of one program
    columns: int
    num_warps: int


def device_class(tensor: Tensor) -> DeviceClass:
    """Return `interpreter` for a CPU tensor (Triton's interpreter, in tests), `sm_90` for Hopper, else `other`."""
    return "interpreter" if tensor.is_cpu else _class_of(tensor.device)


@cache
def _class_of(device: torch.device) -> DeviceClass:
    return "sm_90" if torch.cuda.get_device_capability(device)[0] == 9 else "other"


def cdiv(value: int, divisor: int) -> int:
    """value / divisor, rounded up."""
    return -(-value // divisor)


def power_of_2(value: int, at_least: int = 1) -> int:
    """Return the smallest power of two that is at least `value` and `at_least`."""
    return max(at_least, 1 << (value - 1).bit_length() if value > 1 else 1)
