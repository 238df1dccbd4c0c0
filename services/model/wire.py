"""Tensors on the wire: `moonshard.v1.Tensor` and back. The hot wire to the experts has its own frames."""

import math

import torch

from protos import tensor_pb2
from services.runtime.errors import WireError


def tensor_to_proto(tensor: torch.Tensor) -> tensor_pb2.Tensor:
    """A dense message of the tensor, row-major, little endian. WireError for a dtype that the wire does not carry."""
    dtype = {
        torch.float32: tensor_pb2.F32,
        torch.bfloat16: tensor_pb2.BF16,
        torch.int32: tensor_pb2.I32,
        torch.int64: tensor_pb2.I64,
    }.get(tensor.dtype)
    if dtype is None:
        raise WireError(f"dtype {tensor.dtype} does not travel: F32, BF16, I32 and I64 do")
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    return tensor_pb2.Tensor(dtype=dtype, shape=tensor.shape, data=flat.view(torch.uint8).numpy().tobytes())


def tensor_from_proto(proto: tensor_pb2.Tensor) -> torch.Tensor:
    """The tensor of a message, in memory of its own. WireError when dtype, shape and data do not agree."""
    dtype = {
        tensor_pb2.F32: torch.float32,
        tensor_pb2.BF16: torch.bfloat16,
        tensor_pb2.I32: torch.int32,
        tensor_pb2.I64: torch.int64,
    }.get(proto.dtype)
    if dtype is None:
        raise WireError(f"tensor dtype {proto.dtype} is unknown")
    shape = tuple(proto.shape)
    data = bytearray(proto.data)  # a copy: torch must not hold memory that Python counts as immutable
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise WireError(f"a {dtype} tensor of shape {list(shape)} needs {expected} bytes, the message has {len(data)}")
    if not data:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
