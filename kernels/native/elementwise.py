"""Norms, SwiGLU, rotary embedding, cache writes and the router in native code."""

import torch
from torch import Tensor

from kernels.native.library import Library
from kernels.native.tensors import is_bf16, packed_as, with_rows
from kernels.reference.latent_fp8 import is_fp8, quantized


class Elementwise:
    """Operations that are brief in a decode step: one native call each, no temporaries."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = with_rows(x) if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        num_rows, width = rows.shape
        weight = packed_as(weight, torch.bfloat16)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._library.rms_norm(
            rows.data_ptr(),
            is_bf16(x),
            rows.stride(0),
            weight.data_ptr(),
            out.data_ptr(),
            num_rows,
            width,
            eps,
            torch.get_num_threads(),
        )
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x, residual, weight = with_rows(x), with_rows(residual), packed_as(weight, torch.bfloat16)
        assert x.dtype == residual.dtype and x.shape == residual.shape
        num_rows, width = x.shape
        total, out = torch.empty(num_rows, width, dtype=x.dtype), torch.empty(num_rows, width, dtype=x.dtype)
        self._library.add_rms_norm(
            x.data_ptr(),
            is_bf16(x),
            x.stride(0),
            residual.data_ptr(),
            residual.stride(0),
            weight.data_ptr(),
            total.data_ptr(),
            out.data_ptr(),
            num_rows,
            width,
            eps,
            torch.get_num_threads(),
        )
        return total, out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate_up = with_rows(gate_up)
        tokens, both = gate_up.shape
        out = torch.empty(tokens, both // 2, dtype=gate_up.dtype)
        self._library.silu_mul(
            gate_up.data_ptr(),
            is_bf16(gate_up),
            gate_up.stride(0),
            out.data_ptr(),
            tokens,
            both // 2,
            torch.get_num_threads(),
        )
        return out

    def rope(self, x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
        x, positions, inv_freq = with_rows(x), packed_as(positions, torch.int64), packed_as(inv_freq, torch.float32)
        tokens, heads, width = x.shape
        out = torch.empty(tokens, heads, width, dtype=x.dtype)
        self._library.rope(
            x.data_ptr(),
            is_bf16(x),
            positions.data_ptr(),
            inv_freq.data_ptr(),
            out.data_ptr(),
            tokens,
            heads,
            width,
            x.stride(0),
            x.stride(1),
            torch.get_num_threads(),
        )
        return out

    def write_latent(self, cache: Tensor, slots: Tensor, latent: Tensor, rope_key: Tensor) -> None:
        if is_fp8(cache):
            latent, rope_key = quantized(latent, rope_key)
        latent, rope_key, slots = with_rows(latent), with_rows(rope_key), packed_as(slots, torch.int64)
        assert latent.dtype == rope_key.dtype == cache.dtype and cache.stride(2) == 1
        item = cache.element_size()
        self._library.write_latent(
            cache.data_ptr(),
            cache.stride(0) * item,
            cache.stride(1) * item,
            cache.shape[1],
            slots.data_ptr(),
            latent.data_ptr(),
            latent.stride(0) * item,
            latent.shape[1] * item,
            rope_key.data_ptr(),
            rope_key.stride(0) * item,
            rope_key.shape[1] * item,
            slots.shape[0],
        )

    def norm_rope_store(
        self,
        cache: Tensor,
        slots: Tensor,
        latent: Tensor,
        rope_key: Tensor,
        weight: Tensor,
        eps: float,
        positions: Tensor,
        inv_freq: Tensor,
    ) -> None:
        if is_fp8(cache):
            key = self.rope(rope_key.unsqueeze(1), positions, inv_freq).squeeze(1)
            self.write_latent(cache, slots, self.rms_norm(latent, weight, eps), key)
            return
        latent, rope_key, slots = with_rows(latent), with_rows(rope_key), packed_as(slots, torch.int64)
        weight, positions = packed_as(weight, torch.bfloat16), packed_as(positions, torch.int64)
        inv_freq = packed_as(inv_freq, torch.float32)
        assert latent.dtype == rope_key.dtype == cache.dtype and cache.stride(2) == 1
        self._library.norm_rope_store(
            cache.data_ptr(),
            is_bf16(cache),
            cache.stride(0),
            cache.stride(1),
            cache.shape[1],
            slots.data_ptr(),
            latent.data_ptr(),
            latent.stride(0),
            latent.shape[1],
            rope_key.data_ptr(),
            rope_key.stride(0),
            rope_key.shape[1],
            weight.data_ptr(),
            eps,
            positions.data_ptr(),
            inv_freq.data_ptr(),
            slots.shape[0],
            torch.get_num_threads(),
        )

    def route(
        self,
        hidden: Tensor,
        gate: Tensor,
        bias: Tensor,
        *,
        top_k: int,
        num_groups: int,
        topk_groups: int,
        normalize: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        hidden, gate, bias = with_rows(hidden), packed_as(gate, torch.float32), packed_as(bias, torch.float32)
        tokens, width = hidden.shape
        ids = torch.empty(tokens, top_k, dtype=torch.int32)
        weights = torch.empty(tokens, top_k, dtype=torch.float32)
        self._library.route(
            hidden.data_ptr(),
            is_bf16(hidden),
            hidden.stride(0),
            gate.data_ptr(),
            bias.data_ptr(),
            tokens,
            gate.shape[0],
            width,
            top_k,
            num_groups,
            topk_groups,
            normalize,
            scale,
            ids.data_ptr(),
            weights.data_ptr(),
            torch.get_num_threads(),
        )
        return ids, weights
