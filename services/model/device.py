"""The device that computes, and copies to it and back through pinned memory."""

from typing import Annotated, Final, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor

CPU: Final = torch.device("cpu")


def _usable(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"PyTorch {torch.__version__} finds no CUDA device here; auto or cpu runs without one")
    return name


Device = Annotated[Literal["auto", "cpu", "cuda"], AfterValidator(_usable)]
"""The device that computes: a GPU if there is one (auto), or exactly this one."""


def torch_device(name: Device) -> torch.device:
    """The device of a setting; of several GPUs the first that this process sees."""
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", torch.cuda.current_device())
    return CPU


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on this device, itself if it is there. The host does not wait for a copy to a GPU."""
    if tensor.device == device:
        return tensor
    # Pinned memory is kept by PyTorch until the copy from it is over.
    staged = tensor.pin_memory() if device.type == "cuda" and tensor.is_cpu else tensor
    return staged.to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors on the host. Waits once for all of them, if any is on a GPU."""
    away = [tensor for tensor in tensors if not tensor.is_cpu]
    if not away:
        return tensors
    copies = tuple(landing(tensor).copy_(tensor, non_blocking=True) for tensor in tensors)
    torch.cuda.current_stream(away[0].device).synchronize()
    return copies


def landing(tensor: Tensor) -> Tensor:
    """Uninitialised host memory in the form of a tensor, pinned if the tensor is on a GPU."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
