"""The device of computation, and copies to and from it through pinned memory."""

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
    """Return the device of a setting; of several GPUs the first visible one."""
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", torch.cuda.current_device())
    return CPU


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on this device, without a copy if it is there. The host does not wait for a copy to a GPU."""
    if tensor.device == device:
        return tensor
    # PyTorch keeps pinned memory until the copy from it has ended.
    staged = tensor.pin_memory() if device.type == "cuda" and tensor.is_cpu else tensor
    return staged.to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors on the host. Waits once for all of them if any is on a GPU."""
    away = [tensor for tensor in tensors if not tensor.is_cpu]
    if not away:
        return tensors
    copies = tuple(landing(tensor).copy_(tensor, non_blocking=True) for tensor in tensors)
    torch.cuda.current_stream(away[0].device).synchronize()
    return copies


def landing(tensor: Tensor) -> Tensor:
    """Return uninitialised host memory with the form of a tensor, pinned if the tensor is on a GPU."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
