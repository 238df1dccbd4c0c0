"""Several operations in one native call, because Python between them takes a tenth of a small model's step."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.interface import LinearWeight, MlaWeights, Routing, StepExperts, StepLayer
from kernels.native.dense import PackedHeads, PackedLinear
from kernels.native.experts import PackedExperts
from kernels.native.library import Library
from kernels.native.tensors import is_bf16, packed_as, with_rows

_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _P) for name in ("input_norm", "post_norm")),
        ("attention", _P * 8),
        *((name, _P) for name in ("gate_up", "down", "gate", "bias", "experts", "token_counts", "cache")),
        ("mlp_width", _I),
    ]


class _Sizes(ctypes.Structure):
    _fields_ = [
        ("mla", _I * 7),
        *((name, _I) for name in ("is_bf16", "layers", "experts", "expert_width")),
        *((name, _I) for name in ("top_k", "groups", "topk_groups", "normalize", "block_tokens")),
        ("cache_strides", _I * 2),
        ("local_index", _P),
        *((name, _F) for name in ("eps", "latent_eps", "softmax_scale", "route_scale")),
    ]


class _Rows(ctypes.Structure):
    _fields_ = [
        *((name, _I) for name in ("tokens", "table_stride")),
        *((name, _P) for name in ("slots", "positions", "block_tables", "context_lens")),
    ]


class DecodeStep:
    """Holds the addresses of everything that a step reads and writes, and keeps it alive."""

    def __init__(
        self,
        library: Library,
        layers: Sequence[StepLayer],
        experts: StepExperts,
        cache: Tensor,
        routing: Routing,
        *,
        eps: float,
        latent_eps: float,
    ) -> None:
        self._library = library
        self._cache = cache
        self._kept: list[object] = [layers, experts]
        self._layers = (_Layer * len(layers))(
            *(self._describe(layer, experts, cache[:, place]) for place, layer in enumerate(layers))
        )
        packed = next((e for e in experts.layers.values() if isinstance(e, PackedExperts)), None)
        local_index = self._keep(torch.from_numpy(experts.local_index), torch.int32)
        self._sizes = _Sizes(
            _mla_sizes(layers[0].attention),
            *(cache.dtype is torch.bfloat16, len(layers)),
            *((packed.num_experts, packed.width) if packed else (0, 0)),
            *(routing.top_k, routing.num_groups, routing.topk_groups, routing.normalize, cache.shape[2]),
            (_I * 2)(cache.stride(0), cache.stride(2)),
            local_index,
            *(eps, latent_eps, layers[0].attention.softmax_scale, routing.scale),
        )

    def __call__(
        self, hidden: Tensor, slots: Tensor, positions: Tensor, block_tables: Tensor, context_lens: Tensor
    ) -> Tensor:
        """Return the hidden states [rows, hidden] after all layers; writes the rows' latent KV first.

        The other arguments are those of `absorbed_attention`.
        """
        assert hidden.dtype == self._cache.dtype and hidden.shape[1] == self._sizes.mla[0]
        out = hidden.contiguous().clone()
        slots, positions = packed_as(slots, torch.int64), packed_as(positions, torch.int64)
        tables, lens = packed_as(block_tables, torch.int32), packed_as(context_lens, torch.int32)
        assert len(slots) == len(positions) == len(tables) == len(lens) == len(out)
        rows = _Rows(len(out), tables.stride(0), *(t.data_ptr() for t in (slots, positions, tables, lens)))
        self._library.decode_step(
            self._layers, ctypes.byref(self._sizes), ctypes.byref(rows), out.data_ptr(), torch.get_num_threads()
        )
        return out

    def _describe(self, layer: StepLayer, experts: StepExperts, cache: Tensor) -> _Layer:
        a, mlp, router = layer.attention, layer.mlp, layer.router
        norms = self._keep(a.q_a_norm, torch.bfloat16), self._keep(a.kv_a_norm, torch.bfloat16)
        words = (
            _address(a.qkv_a),
            norms[0],
            _address(a.q_b),
            norms[1],
            _address(a.key_absorbed),
        )
        attention = (_P * 8)(*words, _address(a.value_up), _address(a.o), self._keep(a.inv_freq, torch.float32))
        routed: tuple[object, ...] = (None,) * 4
        if router is not None:
            packed = experts.layers[layer.index]
            assert isinstance(packed, PackedExperts)
            gate = self._keep(router.gate, torch.float32), self._keep(router.bias, torch.float32)
            counts = experts.counts_of(layer.index)
            self._kept.append(counts)
            routed = *gate, ctypes.addressof(packed.addresses), counts.ctypes.data
        return _Layer(
            *(self._keep(norm, torch.bfloat16) for norm in (layer.input_norm, layer.post_norm)),
            attention,
            *(
                _address(mlp.gate_up),
                _address(mlp.down),
                *routed,
                cache.data_ptr(),
                mlp.down.shape[1],
            ),
        )

    def _keep(self, tensor: Tensor, dtype: torch.dtype) -> int:
        packed = packed_as(tensor, dtype)
        self._kept.append(packed)
        return packed.data_ptr()


def _mla_sizes(weights: MlaWeights) -> "ctypes.Array[ctypes.c_int64]":
    heads, latent, nope = weights.key_absorbed.shape
    q_lora, v_dim, hidden = weights.q_b.shape[1], weights.value_up.shape[1], weights.qkv_a.shape[1]
    rope = weights.qkv_a.shape[0] - q_lora - latent
    return (_I * 7)(hidden, q_lora, latent, rope, heads, nope, v_dim)


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

    def decode_step(
        self,
        layers: Sequence[StepLayer],
        experts: StepExperts,
        cache: Tensor,
        routing: Routing,
        *,
        eps: float,
        latent_eps: float,
    ) -> DecodeStep:
        return DecodeStep(self._library, layers, experts, cache, routing, eps=eps, latent_eps=latent_eps)


def _words(weight: object) -> Tensor:
    assert isinstance(weight, PackedLinear | PackedHeads)
    return weight.words


def _address(weight: object) -> int:
    return _words(weight).data_ptr()
