"""MLA over the paged latent KV through a compiled library."""

import ctypes

import torch
from torch import Tensor

from kernels.native.library import Library
from kernels.native.tensors import is_bf16, packed_as, with_rows


class Attention:
    """Absorbed attention of the decode step."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def mla_decode(
        self,
        q_latent: Tensor,
        q_rope: Tensor,
        cache: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        softmax_scale: float,
    ) -> Tensor:
        assert q_latent.dtype == q_rope.dtype == cache.dtype and cache.stride(2) == 1
        q_latent, q_rope = with_rows(q_latent), with_rows(q_rope)
        tables, lens = packed_as(block_tables, torch.int32), packed_as(context_lens, torch.int32)
        rows, heads, latent = q_latent.shape
        out = torch.empty(rows, heads, latent, dtype=q_latent.dtype)
        strides = (*q_latent.stride()[:2], *q_rope.stride()[:2], *cache.stride()[:2], tables.stride(0))
        self._library.mla_decode(
            q_latent.data_ptr(),
            q_rope.data_ptr(),
            cache.data_ptr(),
            is_bf16(cache),
            tables.data_ptr(),
            lens.data_ptr(),
            out.data_ptr(),
            rows,
            heads,
            latent,
            q_rope.shape[2],
            cache.shape[1],
            (ctypes.c_int64 * 7)(*strides),
            softmax_scale,
            torch.get_num_threads(),
        )
        return out
