"""Products with bf16 weights in native code: one weight, or one per head."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.interface import HeadWeight, LinearWeight
from kernels.native.library import Library
from kernels.native.tensors import is_bf16, with_rows


@dataclass(frozen=True)
class PackedLinear(LinearWeight):
    """Blocks of 16 rows, one row per lane, pairs of columns innermost (tiles.h)."""

    words: Tensor


@dataclass(frozen=True)
class PackedHeads(HeadWeight):
    """One packed weight per head, consecutive in memory."""

    words: Tensor


class Dense:
    """`linear` and `head_linear`: one C++ loop, with a batch of one or of the heads."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def _pack_all(self, weights: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
        words = torch.empty(len(weights), self._library.packed_linear_bytes(*shape), dtype=torch.uint8)
        for weight, target in zip(weights, words, strict=True):
            rows = with_rows(weight)
            assert rows.dtype == torch.bfloat16
            self._library.pack_linear(
                rows.data_ptr(), rows.stride(0), *shape, target.data_ptr(), torch.get_num_threads()
            )
        return words

    def pack_linear(self, weight: Tensor) -> LinearWeight:
        shape = (weight.shape[0], weight.shape[1])
        words = self._pack_all([weight], shape)
        return PackedLinear(shape, words.nbytes, words)

    def pack_heads(self, weight: Tensor) -> HeadWeight:
        heads, num_out, num_in = weight.shape
        words = self._pack_all(list(weight), (num_out, num_in))
        return PackedHeads((heads, num_out, num_in), words.nbytes, words)

    def linear(self, x: Tensor, weight: LinearWeight, out_dtype: torch.dtype | None = None) -> Tensor:
        assert isinstance(weight, PackedLinear)
        x = with_rows(x)
        tokens, num_in = x.shape
        num_out = weight.shape[0]
        assert num_in == weight.shape[1], f"{tuple(x.shape)} times a weight of {weight.shape}"
        out = torch.empty(tokens, num_out, dtype=out_dtype or x.dtype)
        self._product(weight.words, x, out, (1, tokens, num_in, num_out), (x.stride(0), 0, num_out, 0))
        return out

    def head_linear(self, x: Tensor, weight: HeadWeight) -> Tensor:
        assert isinstance(weight, PackedHeads)
        x = with_rows(x)
        tokens, heads, num_in = x.shape
        num_out = weight.shape[1]
        assert (heads, num_in) == (weight.shape[0], weight.shape[2]), f"{tuple(x.shape)} times {weight.shape}"
        out = torch.empty(tokens, heads, num_out, dtype=x.dtype)
        strides = (x.stride(0), x.stride(1), heads * num_out, num_out)
        self._product(weight.words, x, out, (heads, tokens, num_in, num_out), strides)
        return out

    def _product(
        self,
        words: Tensor,
        x: Tensor,
        out: Tensor,
        sizes: tuple[int, int, int, int],  # batch, tokens, in, out
        strides: tuple[int, int, int, int],  # x: token, batch; out: token, batch
    ) -> None:
        self._library.linear(
            words.data_ptr(),
            x.data_ptr(),
            is_bf16(x),
            out.data_ptr(),
            is_bf16(out),
            *sizes,
            *strides,
            torch.get_num_threads(),
        )
