"""Checks and conversions before native code gets a tensor's address. Every operation runs them, so they are short."""

from torch import Tensor, bfloat16, dtype, float32


def is_bf16(tensor: Tensor) -> bool:
    """Whether a tensor is bfloat16, as opposed to float32; fail for any other dtype."""
    kind = tensor.dtype
    assert kind is bfloat16 or kind is float32, f"no kernels for {kind}"
    return kind is bfloat16


def with_rows(tensor: Tensor) -> Tensor:
    """Return the tensor if its last dimension is contiguous, else a contiguous copy."""
    return tensor if tensor.is_contiguous() or tensor.stride(-1) == 1 else tensor.contiguous()


def packed_as(tensor: Tensor, kind: dtype) -> Tensor:
    """Return the tensor, contiguous and in this dtype, without a copy if it already is."""
    return tensor if tensor.dtype is kind and tensor.is_contiguous() else tensor.to(kind).contiguous()
