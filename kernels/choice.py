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
    """Return every implementation that this machine can run, the best last; tests compare each with `reference`."""
    native = {name: NativeKernels(name, path) for name, path in usable_libraries().items()}
    return {"reference": reference, "portable": portable, **native}


def chosen(setting: str) -> Kernels:
    """Return the implementation for CPU tensors: the best one, or the one in MOONSHARD_KERNELS.

    Raises ValueError with the usable names for an unknown or unusable name.
    """
    usable = implementations()
    if setting == AUTO:
        return list(usable.values())[-1]
    if setting not in usable:
        raise ValueError(f"{SETTING}={setting} cannot be used here, only {', '.join([AUTO, *usable])}")
    return usable[setting]


# Only the implementation that packed a weight can read it, so the choice is made once, before the first packing.
CPU: Final[Kernels] = chosen(os.environ.get(SETTING, AUTO))


def kernels_for(tensor: Tensor) -> Kernels:
    """Return the implementation for the device of this tensor."""
    return CPU if tensor.is_cpu else kernels_on(tensor.device)


def kernels_on(device: torch.device) -> Kernels:
    if device.type == "cpu":
        return CPU
    if device.type == "cuda":
        return gpu_kernels()
    raise NotImplementedError(f"no kernels for tensors on {device}")


# Triton takes a second to load, so these modules are imported for the first CUDA tensor.


def sampling_for(logits: Tensor) -> SamplingKernels:
    if logits.is_cpu:
        return reference_sampling
    from kernels.gpu import sampling  # noqa: PLC0415

    return sampling


def vision_for(tensor: Tensor) -> VisionKernels:
    if tensor.is_cpu:
        return reference_vision
    from kernels.gpu import vision_attention  # noqa: PLC0415

    return vision_attention


@cache
def gpu_kernels() -> Kernels:
    from kernels.gpu.kernels import TritonKernels  # noqa: PLC0415

    return TritonKernels()
