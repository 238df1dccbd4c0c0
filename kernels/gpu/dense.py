"""Products with bf16 weights: cuBLAS through PyTorch, which sums in float32.

cuBLAS chooses its algorithm by shape, so a row's last bit may depend on the number of rows in the call. Partial sums
are not rounded to bf16: that option of PyTorch is switched off.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.interface import HeadWeight, LinearWeight
from kernels.reference.text import PlainHeads, PlainLinear

torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


class Dense:
    """`linear` and `head_linear` with unpacked weights."""

    def pack_linear(self, weight: Tensor) -> LinearWeight:
        return PlainLinear((weight.shape[0], weight.shape[1]), weight.nbytes, weight.contiguous())

    def pack_heads(self, weight: Tensor) -> HeadWeight:
        return PlainHeads((weight.shape[0], weight.shape[1], weight.shape[2]), weight.nbytes, weight.contiguous())

    def linear(self, x: Tensor, weight: LinearWeight, out_dtype: torch.dtype | None = None) -> Tensor:
        assert isinstance(weight, PlainLinear)
        out_dtype = out_dtype or x.dtype
        if x.dtype == torch.float32:
            return functional.linear(x, weight.weight.float()).to(out_dtype)
        if out_dtype == x.dtype:
            return functional.linear(x, weight.weight)
        return widening_product(x, weight.weight, out_dtype)

    def head_linear(self, x: Tensor, weight: HeadWeight) -> Tensor:
        assert isinstance(weight, PlainHeads)
        product = torch.bmm(x.transpose(0, 1), weight.weight.to(x.dtype).transpose(1, 2))  # [heads, tokens, out]
        return product.transpose(0, 1)


def widening_product(x: Tensor, weight: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Product of bf16 matrices with a float32 result that was never rounded to bf16."""
    if x.is_cuda:
        return torch.mm(x, weight.T, out_dtype=out_dtype)
    return functional.linear(x.float(), weight.float()).to(out_dtype)
