"""The vision tower's operations: PyTorch on any device, but for attention on a GPU."""

from collections.abc import Sequence

from torch import Tensor

from kernels.reference import vision as vision_reference


def vit_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention of every row to all rows of its own item: softmax(q k^T / sqrt(width)) v, softmax in float32.

    q, k, v  [rows, heads, width], each head's columns side by side; items follow one another
    lengths  rows of each item
    returns  [rows, heads, width]
    """
    if q.is_cpu:
        return vision_reference.vit_attention(q, k, v, lengths)
    # Loaded only where there is a GPU: Triton is no small thing.
    from kernels.gpu import vision_attention  # noqa: PLC0415

    return vision_attention.vit_attention(q, k, v, lengths)
