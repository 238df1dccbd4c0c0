"""What the native kernels need to know of a tensor before they take its address. In the path of every operation."""

from torch import Tensor, bfloat16, dtype, float32


def is_bf16(tensor: Tensor) -> bool:
    """Which of the two activation dtypes it has."""
    kind = tensor.dtype
    assert kind is bfloat16 or kind is float32, f"no kernels for {kind}"
    return kind is bfloat16


def with_rows(tensor: Tensor) -> Tensor:
    """The tensor itself if its last dimension is contiguous, else a copy that is."""
    return tensor if tensor.is_contiguous() or tensor.stride(-1) == 1 else tensor.contiguous()


def packed_as(tensor: Tensor, kind: dtype) -> Tensor:
    """The tensor, contiguous and of this dtype; itself if it is so already."""
    return tensor if tensor.dtype is kind and tensor.is_contiguous() else tensor.to(kind).contiguous()
