"""Which implementation serves which device: decided once, when this module is loaded."""

from functools import cache
from typing import Final

import torch
from torch import Tensor

from kernels.interface import Kernels
from kernels.native.kernels import NativeKernels
from kernels.native.library import usable_libraries
from kernels.portable import text as portable
from kernels.reference import text as reference


def implementations() -> dict[str, Kernels]:
    """Every implementation that can run on this machine, slowest first; tests compare each with `reference`."""
    native = {name: NativeKernels(name, path) for name, path in usable_libraries().items()}
    return {"reference": reference, "portable": portable, **native}


CPU: Final[Kernels] = list(implementations().values())[-1]


def kernels_for(tensor: Tensor) -> Kernels:
    """The implementation for the device that holds this tensor."""
    return CPU if tensor.is_cpu else kernels_on(tensor.device)


def kernels_on(device: torch.device) -> Kernels:
    """The implementation for a device."""
    if device.type == "cpu":
        return CPU
    if device.type == "cuda":
        return gpu_kernels()
    raise NotImplementedError(f"no kernels for tensors on {device}")


@cache
def gpu_kernels() -> Kernels:
    """The kernels for CUDA tensors. Triton, which takes a second to load, is imported by the first of them only."""
    from kernels.gpu.kernels import TritonKernels  # noqa: PLC0415

    return TritonKernels()
