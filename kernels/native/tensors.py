"""What the native kernels need to know of a tensor before they take its address."""

import torch
from torch import Tensor


def is_bf16(tensor: Tensor) -> bool:
    """Which of the two activation dtypes it has."""
    if tensor.dtype == torch.bfloat16:
        return True
    assert tensor.dtype == torch.float32, f"no kernels for {tensor.dtype}"
    return False


def with_rows(tensor: Tensor) -> Tensor:
    """The tensor itself if its last dimension is contiguous, else a copy that is."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def packed_as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor, contiguous and of this dtype; itself if it is so already."""
    return tensor if tensor.dtype == dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()
