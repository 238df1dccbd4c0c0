"""Which implementation serves which device: decided once, when this module is loaded."""

from typing import Final

import torch

from kernels import reference
from kernels.interface import Kernels


def implementations() -> dict[str, Kernels]:
    """Every implementation that can run on this machine, slowest first; tests compare each with `reference`."""
    return {"reference": reference}


CPU: Final[Kernels] = list(implementations().values())[-1]


def kernels_for(device: torch.device) -> Kernels:
    """The implementation for tensors on `device`."""
    if device.type == "cpu":
        return CPU
    raise NotImplementedError(f"no kernels for tensors on {device}")
