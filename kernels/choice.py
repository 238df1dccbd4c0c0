"""Which implementation serves which device: decided once, when this module is loaded."""

import os
from functools import cache
from typing import Final

import torch
from torch import Tensor

from kernels.interface import Kernels, SamplingKernels, VisionKernels
from kernels.native.kernels import NativeKernels
from kernels.native.library import usable_libraries
from kernels.portable import text as portable
from kernels.reference import sampling as reference_sampling
from kernels.reference import text as reference
from kernels.reference import vision as reference_vision

SETTING = "MOONSHARD_KERNELS"
AUTO = "auto"


def implementations() -> dict[str, Kernels]:
    """Return every implementation that can run on this machine, the best last; tests compare each with `reference`."""
    native = {name: NativeKernels(name, path) for name, path in usable_libraries().items()}
    return {"reference": reference, "portable": portable, **native}


def chosen(setting: str) -> Kernels:
    """Return the implementation for CPU tensors: the best one, or the one that MOONSHARD_KERNELS names.

    Raises ValueError, which names the usable ones, for any other.
    """
    usable = implementations()
    if setting == AUTO:
        return list(usable.values())[-1]
    if setting not in usable:
        raise ValueError(f"{SETTING}={setting} cannot be used here, only {', '.join([AUTO, *usable])}")
    return usable[setting]


# Packed weights belong to one implementation, so the choice is made once, before the first weight is packed.
CPU: Final[Kernels] = chosen(os.environ.get(SETTING, AUTO))


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


# Triton takes a second to load, so the modules below are imported when the first CUDA tensor comes.


def sampling_for(logits: Tensor) -> SamplingKernels:
    """Return what draws tokens on the device that holds the logits."""
    if logits.is_cpu:
        return reference_sampling
    from kernels.gpu import sampling  # noqa: PLC0415

    return sampling


def vision_for(tensor: Tensor) -> VisionKernels:
    """Return the vision tower's attention for the device that holds this tensor."""
    if tensor.is_cpu:
        return reference_vision
    from kernels.gpu import vision_attention  # noqa: PLC0415

    return vision_attention


@cache
def gpu_kernels() -> Kernels:
    """Return the kernels for CUDA tensors."""
    from kernels.gpu.kernels import TritonKernels  # noqa: PLC0415

    return TritonKernels()
