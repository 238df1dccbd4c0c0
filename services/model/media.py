"""Features of media in the store: their names and their bytes, as the vision service writes and engines read them."""

import torch
from torch import Tensor

DIGEST_BYTES = 32
# By width of one number in bytes: a blob is nothing but its numbers, row by row.
DTYPES = {2: torch.bfloat16, 4: torch.float32}


def media_key(model: str, digest: bytes) -> str:
    """Name of the features of one image or video chunk; `model` names the weights, as `model_name` does."""
    return f"media/{model}/{digest.hex()}"


def model_name(checkpoint_digest: bytes) -> str:
    """What separates the features of one checkpoint from those of others in the same store."""
    return checkpoint_digest[:16].hex()


def features_to_bytes(features: Tensor) -> memoryview:
    """[tokens, hidden] float32 or bfloat16 as raw little-endian bytes, without a copy."""
    return features.contiguous().view(torch.uint8).numpy().data.cast("B")


def features_from_bytes(data: bytearray, num_tokens: int, width: int) -> Tensor | None:
    """[num_tokens, width] in memory of `data`; None if the bytes are not features of this size."""
    dtype = DTYPES.get(len(data) // max(1, num_tokens * width))
    if dtype is None or len(data) != num_tokens * width * dtype.itemsize:
        return None
    return torch.frombuffer(data, dtype=dtype).view(num_tokens, width)
