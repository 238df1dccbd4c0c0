"""The bytes of media features in the store: only numbers, row by row."""

import torch
from torch import Tensor

_DTYPES = {2: torch.bfloat16, 4: torch.float32}


def features_to_bytes(features: Tensor) -> memoryview:
    """Return [tokens, hidden] float32 or bfloat16 as raw little-endian bytes, without a copy."""
    return features.contiguous().view(torch.uint8).numpy().data.cast("B")


def features_from_bytes(data: bytearray, num_tokens: int, width: int) -> Tensor | None:
    """Return [num_tokens, width] in the memory of `data`; None if the bytes have another size."""
    dtype = _DTYPES.get(len(data) // max(1, num_tokens * width))
    if dtype is None or len(data) != num_tokens * width * dtype.itemsize:
        return None
    return torch.frombuffer(data, dtype=dtype).view(num_tokens, width)
