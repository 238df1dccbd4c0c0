"""The usual INT4 grouped product in Triton, written from its description, to compare ours with.

Two weights a byte along the columns, as checkpoints have them; every weight is shifted, widened and scaled by itself.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.align import TokenTiles, align_tokens, combine
from kernels.gpu.experts import num_sizes
from kernels.interface import ExpertTensors, Kernels
from kernels.reference.text import GROUP


class PublicTiles(NamedTuple):
    """What its users tune."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


TILES = (
    PublicTiles(64, 128, 4, 3),
    PublicTiles(128, 64, 4, 4),
    PublicTiles(128, 128, 8, 3),
    PublicTiles(32, 128, 4, 4),
)


@triton.jit(do_not_specialize=["num_slots"])
def public_product_kernel(
    x, words, scales, out, slots, tile_experts, num_tiles, num_slots, num_rows, num_columns, slots_per_row,
    TOKENS: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out[slot] = W[expert of the tile] x[slot // slots_per_row]; grid (num_rows / TILE_N, token tiles)."""
    tile = tl.program_id(1)
    if tile >= tl.load(num_tiles):
        return
    expert = tl.load(tile_experts + tile).to(tl.int64)
    slot = tl.load(slots + tile * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    is_token = (slot < num_slots)[:, None]
    row = expert * num_rows + tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    column = tl.arange(0, TILE_K)
    x_at = x + (slot // slots_per_row)[:, None] * num_columns + column[None, :]
    word_at = words + row[None, :] * (num_columns // 2) + (column // 2)[:, None]
    scale_at = scales + row[None, :] * (num_columns // GROUP)
    shift = (column % 2 * 4)[:, None]
    total = tl.zeros((TOKENS, TILE_N), tl.float32)
    for begin in range(0, num_columns, TILE_K):
        tokens = tl.load(x_at + begin, mask=is_token, other=0.0)
        word = tl.load(word_at + begin // 2).to(tl.int32)
        scale = tl.load(scale_at + ((begin + column) // GROUP)[:, None]).to(tl.float32)
        weights = (((word >> shift) & 15).to(tl.float32) - 8.0) * scale
        total = tl.dot(tokens, weights.to(tokens.dtype), total)
    out_at = out + slot[:, None] * num_rows + (row - expert * num_rows)[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=is_token)


class PublicExperts:
    """Experts in the order of the checkpoint, gate before up, and their MLP in that form."""

    def __init__(self, experts: list[tuple[Tensor, ...]], kernels: Kernels) -> None:
        named = [ExpertTensors(*expert) for expert in experts]
        self._kernels, self._num_experts = kernels, len(named)
        self._gate_up = torch.stack([torch.cat([e.gate_packed, e.up_packed]) for e in named]).view(torch.uint8)
        self._gate_up_scale = torch.stack([torch.cat([e.gate_scale, e.up_scale]) for e in named])
        self._down = torch.stack([e.down_packed for e in named]).view(torch.uint8)
        self._down_scale = torch.stack([e.down_scale for e in named])

    def mlp(self, x: Tensor, ids: Tensor, weights: Tensor, tiles: PublicTiles) -> Tensor:
        """As `kernels.expert_mlp`; sorting, SwiGLU and the weighted sum are ours."""
        slots, top_k = ids.numel(), ids.shape[1]
        gate_up = x.new_empty(slots, self._gate_up.shape[1])
        plans = align_tokens(ids, self._num_experts, num_sizes(len(ids), x.dtype))
        for plan in plans:
            _product(x, self._gate_up, self._gate_up_scale, gate_up, plan, top_k, tiles)
        inner = self._kernels.silu_mul(gate_up)
        parts = x.new_empty(slots, x.shape[1])
        for plan in plans:
            _product(inner, self._down, self._down_scale, parts, plan, 1, tiles)
        return combine(parts, ids, weights, self._num_experts, torch.float32)


def _product(
    x: Tensor, words: Tensor, scales: Tensor, out: Tensor, plan: TokenTiles, slots_per_row: int, tiles: PublicTiles
) -> None:
    num_rows, num_columns = out.shape[1], x.shape[1]
    public_product_kernel[(num_rows // tiles.rows, plan.max_tiles)](
        x, words, scales, out, plan.slots, plan.experts, plan.num_tiles, out.shape[0], num_rows, num_columns,
        slots_per_row, TOKENS=plan.tokens, TILE_N=tiles.rows, TILE_K=tiles.columns, GROUP=GROUP,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
