"""MLA over the paged latent KV in native code."""

import ctypes

import torch
from torch import Tensor

from kernels.expanded import ExpandedContext
from kernels.interface import LinearWeight
from kernels.native.dense import Dense
from kernels.native.tensors import is_bf16, packed_as, with_rows
from kernels.reference.latent_fp8 import is_fp8, widened_blocks
from kernels.reference.text import gather_context, project_context


class Attention(Dense):
    def mla_decode(
        self,
        q_latent: Tensor,
        q_rope: Tensor,
        cache: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        softmax_scale: float,
    ) -> Tensor:
        if is_fp8(cache):
            width, dtype = q_latent.shape[2], q_latent.dtype
            cache, block_tables = widened_blocks(cache, block_tables, context_lens, width, dtype)
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

    def mla_prefill(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        cache: Tensor,
        block_table: Tensor,
        context_len: int,
        kv_b: LinearWeight,
        v_dim: int,
        softmax_scale: float,
        expanded: ExpandedContext | None = None,
    ) -> Tensor:
        assert q_nope.dtype == q_rope.dtype and (is_fp8(cache) or q_nope.dtype == cache.dtype)
        q_nope, q_rope = with_rows(q_nope), with_rows(q_rope)
        tokens, heads, nope = q_nope.shape
        latents, rope_keys = gather_context(cache, block_table, context_len, kv_b.shape[1], q_nope.dtype)
        projected = project_context(latents, kv_b, self.linear, expanded)
        out = torch.empty(tokens, heads, v_dim, dtype=q_nope.dtype)
        strides = (*q_nope.stride()[:2], *q_rope.stride()[:2], rope_keys.stride(0))
        self._library.mla_prefill(
            q_nope.data_ptr(),
            q_rope.data_ptr(),
            projected.data_ptr(),
            rope_keys.data_ptr(),
            is_bf16(q_nope),
            out.data_ptr(),
            tokens,
            heads,
            nope,
            q_rope.shape[2],
            v_dim,
            context_len,
            (ctypes.c_int64 * 5)(*strides),
            softmax_scale,
            torch.get_num_threads(),
        )
        return out
