"""The routed experts in native code: they are packed one by one, and one call computes the whole MLP of a message."""

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from kernels.interface import ExpertTensors, ExpertWeights
from kernels.native.library import Library
from kernels.native.tensors import is_bf16, packed_as, with_rows

_DTYPES = (torch.int32, torch.bfloat16) * 3  # words and scales of gate, up and down


@dataclass(frozen=True)
class PackedExperts(ExpertWeights):
    """The packed bytes of each expert (experts.cpp), their addresses, and the address of the native `expert_mlp`."""

    experts: tuple[Tensor, ...]
    addresses: ctypes.Array[ctypes.c_void_p]
    mlp_address: int


class Experts:
    def __init__(self, library: Library) -> None:
        self._library = library

    def pack_experts(self, experts: Iterable[ExpertTensors | tuple[Tensor, ...]]) -> ExpertWeights:
        packed: list[Tensor] = []
        hidden = width = 0
        for tensors in experts:
            expert = ExpertTensors(*tensors)
            shape = (expert.down_packed.shape[0], expert.gate_packed.shape[0])
            if packed and shape != (hidden, width):
                raise ValueError(f"expert {len(packed)} is {shape}, the ones before it are {(hidden, width)}")
            hidden, width = shape
            packed.append(self._pack_one(expert, hidden, width))
        addresses = (ctypes.c_void_p * len(packed))(*[run.data_ptr() for run in packed])
        nbytes = sum(run.nbytes for run in packed)
        mlp_address = ctypes.cast(cast(Any, self._library.expert_mlp), ctypes.c_void_p).value or 0
        return PackedExperts(len(packed), hidden, width, nbytes, tuple(packed), addresses, mlp_address)

    def _pack_one(self, expert: ExpertTensors, hidden: int, width: int) -> Tensor:
        assert hidden % 32 == 0 and width % 32 == 0, f"INT4 groups do not divide {hidden} x {width}"
        parts = [packed_as(tensor, dtype) for tensor, dtype in zip(expert, _DTYPES, strict=True)]
        run = torch.empty(self._library.expert_bytes(hidden, width), dtype=torch.uint8)
        pointers = [part.data_ptr() for part in parts]
        self._library.pack_expert(*pointers, hidden, width, run.data_ptr(), torch.get_num_threads())
        return run

    def expert_mlp(
        self,
        x: Tensor,
        topk_ids: Tensor,
        topk_weights: Tensor,
        experts: ExpertWeights,
        out_dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        assert isinstance(experts, PackedExperts)
        if experts.num_experts == 0:
            return torch.zeros(x.shape, dtype=out_dtype)
        out = torch.empty(x.shape, dtype=torch.float64)
        x, ids, weights = with_rows(x), packed_as(topk_ids, torch.int32), packed_as(topk_weights, torch.float32)
        assert x.shape[1] == experts.hidden and ids.shape == weights.shape
        self._library.expert_mlp(
            experts.addresses,
            experts.num_experts,
            experts.hidden,
            experts.width,
            x.data_ptr(),
            is_bf16(x),
            x.stride(0),
            ids.data_ptr(),
            weights.data_ptr(),
            *ids.shape,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out.to(out_dtype)
