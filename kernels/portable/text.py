"""The CPU without native kernels: PyTorch's fast paths where they exist, else the reference.

bfloat16 uses oneDNN (`F.linear`) and aten's INT4 product; float32 widens a part of the weight at a time.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels.expanded import ExpandedContext
from kernels.grid import on_grid
from kernels.interface import ExpertTensors, ExpertWeights, LinearWeight
from kernels.portable import attention
from kernels.reference.text import (
    GROUP,
    OPERATIONS,
    PlainLinear,
    add_rms_norm,
    dequantize,
    head_linear,
    mla_decode,
    norm_rope_store,
    pack_heads,
    pack_linear,
    rms_norm,
    rope,
    route,
    silu_mul,
    write_latent,
)

__all__ = [
    "add_rms_norm",
    "describe",
    "expert_mlp",
    "head_linear",
    "linear",
    "mla_decode",
    "mla_prefill",
    "norm_rope_store",
    "pack_experts",
    "pack_heads",
    "pack_linear",
    "rms_norm",
    "rope",
    "route",
    "silu_mul",
    "write_latent",
]

WIDENED_ROWS = 4096  # rows of a weight that are float32 at a time


@dataclass(frozen=True)
class Int4Matrix:
    """One INT4 matrix in aten's layout, and as in the checkpoint: memory-mapped, it costs nothing until read."""

    packed: Tensor
    scale_and_zero: Tensor  # [in / 32, out, 2] bf16: scale and zero point, 0 because aten subtracts the 8 itself
    checkpoint: tuple[tuple[Tensor, Tensor], ...]  # words and scales of parts of the rows, in order

    def __call__(self, x: Tensor) -> Tensor:
        """x W^T, in bfloat16 by aten, in float32 by widening."""
        if x.dtype == torch.bfloat16:
            out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, GROUP, self.scale_and_zero)
            return out.float()
        return torch.cat([x @ dequantize(*part).T for part in self.checkpoint], dim=-1)


@dataclass(frozen=True)
class Int4Experts(ExpertWeights):
    experts: tuple[tuple[Int4Matrix, Int4Matrix], ...]


def linear(x: Tensor, weight: LinearWeight, out_dtype: torch.dtype | None = None) -> Tensor:
    assert isinstance(weight, PlainLinear)
    out_dtype = out_dtype or x.dtype
    if x.dtype == out_dtype == torch.bfloat16:
        return functional.linear(x, weight.weight)
    out = torch.empty(x.shape[0], weight.shape[0], dtype=out_dtype)
    for row in range(0, weight.shape[0], WIDENED_ROWS):
        rows = slice(row, row + WIDENED_ROWS)
        out[:, rows] = functional.linear(x.float(), weight.weight[rows].float())
    return out


def _pack_matrix(*parts: tuple[Tensor, Tensor]) -> Int4Matrix:
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    nibbles = torch.cat([((words[..., None] >> shifts) & 15).flatten(-2) for words, _ in parts])
    scale = torch.cat([scale for _, scale in parts]).T
    scale_and_zero = torch.stack((scale, torch.zeros_like(scale)), dim=-1).contiguous()
    return Int4Matrix(torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1), scale_and_zero, parts)


def pack_experts(experts: Iterable[ExpertTensors | tuple[Tensor, ...]]) -> ExpertWeights:
    kept = []
    hidden = width = nbytes = 0
    for tensors in experts:
        e = ExpertTensors(*tensors)
        hidden, width = e.down_packed.shape[0], e.gate_packed.shape[0]
        gate_up = _pack_matrix((e.gate_packed, e.gate_scale), (e.up_packed, e.up_scale))
        kept.append((gate_up, _pack_matrix((e.down_packed, e.down_scale))))
        nbytes += sum(tensor.nbytes for tensor in e)
    return Int4Experts(len(kept), hidden, width, nbytes, tuple(kept))


def expert_mlp(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    experts: ExpertWeights,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    assert isinstance(experts, Int4Experts)
    total = torch.zeros(x.shape, dtype=torch.float64)
    for index in sorted(set(topk_ids.flatten().tolist())):
        if index < 0:
            continue
        gate_up, down = experts.experts[index]
        tokens, slots = (topk_ids == index).nonzero(as_tuple=True)
        inner = silu_mul(gate_up(x[tokens])).to(x.dtype)
        total.index_add_(0, tokens, on_grid(down(inner), topk_weights[tokens, slots, None], x.dtype))
    return total.to(out_dtype)


def mla_prefill(
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
    return attention.mla_prefill(
        q_nope, q_rope, cache, block_table, context_len, kv_b, v_dim, softmax_scale, expanded, linear=linear
    )


def describe() -> dict[str, str]:
    fast = dict.fromkeys(("linear", "expert_mlp", "mla_prefill"), "portable (PyTorch)")
    return dict.fromkeys(OPERATIONS, "reference (plain PyTorch)") | fast
