"""Several operations in one native call, because Python between them takes a tenth of a small model's step."""

import ctypes

import torch
from torch import Tensor

from kernels.interface import LinearWeight, MlaWeights
from kernels.native.dense import PackedHeads, PackedLinear
from kernels.native.library import Library
from kernels.native.tensors import is_bf16, packed_as, with_rows


class Fused:
    """Each call runs the functions of the single operations on the same numbers, so bits are the same."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def mlp(self, x: Tensor, gate_up: LinearWeight, down: LinearWeight) -> Tensor:
        assert isinstance(gate_up, PackedLinear) and isinstance(down, PackedLinear)
        x = with_rows(x)
        (tokens, hidden), (num_out, width) = x.shape, down.shape
        assert gate_up.shape == (2 * width, hidden)
        out = torch.empty(tokens, num_out, dtype=x.dtype)
        self._library.swiglu_mlp(
            x.data_ptr(),
            is_bf16(x),
            x.stride(0),
            gate_up.words.data_ptr(),
            down.words.data_ptr(),
            out.data_ptr(),
            tokens,
            hidden,
            width,
            num_out,
            torch.get_num_threads(),
        )
        return out

    def absorbed_attention(
        self,
        x: Tensor,
        weights: MlaWeights,
        cache: Tensor,
        slots: Tensor,
        positions: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        eps: float,
    ) -> Tensor:
        x = with_rows(x)
        tokens, hidden = x.shape
        heads, latent, nope = weights.key_absorbed.shape
        q_lora, v_dim = weights.q_b.shape[1], weights.value_up.shape[1]
        rope = weights.qkv_a.shape[0] - q_lora - latent
        tables, lens = packed_as(block_tables, torch.int32), packed_as(context_lens, torch.int32)
        slots, positions = packed_as(slots, torch.int64), packed_as(positions, torch.int64)
        norms = packed_as(weights.q_a_norm, torch.bfloat16), packed_as(weights.kv_a_norm, torch.bfloat16)
        inv_freq = packed_as(weights.inv_freq, torch.float32)
        assert x.dtype == cache.dtype and cache.stride(2) == 1 and len(lens) == tokens
        out = torch.empty(tokens, weights.o.shape[0], dtype=x.dtype)
        words = _words(weights.qkv_a), norms[0], _words(weights.q_b), norms[1], _words(weights.key_absorbed)
        tensors = (*words, _words(weights.value_up), _words(weights.o), inv_freq)
        self._library.absorbed_attention(
            x.data_ptr(),
            is_bf16(x),
            x.stride(0),
            tokens,
            (ctypes.c_void_p * 8)(*[tensor.data_ptr() for tensor in tensors]),
            (ctypes.c_int64 * 7)(hidden, q_lora, latent, rope, heads, nope, v_dim),
            eps,
            weights.softmax_scale,
            cache.data_ptr(),
            (ctypes.c_int64 * 2)(*cache.stride()[:2]),
            cache.shape[1],
            slots.data_ptr(),
            positions.data_ptr(),
            tables.data_ptr(),
            tables.stride(0),
            lens.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out


def _words(weight: object) -> Tensor:
    assert isinstance(weight, PackedLinear | PackedHeads)
    return weight.words
