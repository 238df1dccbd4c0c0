"""The routed experts: packing once at load, and the whole MLP of a call in four launches.

align -> grouped product with gate and up, SwiGLU -> grouped product with down -> weighted sum
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from kernels.gpu.align import TokenTiles, align_tokens, combine
from kernels.gpu.device import DeviceClass, device_class
from kernels.gpu.int4 import grouped_product_kernel, interleave, pack, packed_tile
from kernels.interface import ExpertTensors, ExpertWeights


class ProductTiles(NamedTuple):
    """Working sizes of the grouped product: columns of a step, warps of a program, steps loaded ahead."""

    columns: int
    num_warps: int
    num_stages: int


# Index: tokens of a tile, device. Few tokens are bound by memory: small programs, four per SM. Many tokens are bound by
# the tensor cores: 128 tokens share the unpacking, and two programs per SM hide each other's waits.
TILES: Final[dict[tuple[int, DeviceClass], ProductTiles]] = {
    (16, "sm_90"): ProductTiles(columns=128, num_warps=4, num_stages=4),
    (32, "sm_90"): ProductTiles(columns=128, num_warps=4, num_stages=4),
    (64, "sm_90"): ProductTiles(columns=64, num_warps=8, num_stages=4),
    (128, "sm_90"): ProductTiles(columns=64, num_warps=8, num_stages=3),
}
# Float32 runs serve comparison, not speed: no tensor cores, 16 tokens a tile.
FLOAT32_TILES: Final = ProductTiles(columns=64, num_warps=8, num_stages=2)
# The interpreter's time depends on the number of operations, not of elements.
INTERPRETER_TILES: Final = ProductTiles(columns=128, num_warps=4, num_stages=1)


def product_tiles(tokens: int, dtype: torch.dtype, device: DeviceClass) -> ProductTiles:
    """Return the working sizes for tiles with this many tokens."""
    if device == "interpreter":
        return INTERPRETER_TILES
    return FLOAT32_TILES if dtype == torch.float32 else TILES.get((tokens, device), TILES[tokens, "sm_90"])


def num_sizes(tokens: int, dtype: torch.dtype) -> int:
    """Return the number of tile sizes that a call may need: an expert gets at most all its tokens."""
    return 1 if dtype == torch.float32 else sum(tokens > size // 2 for size in (32, 64, 128)) + 1


@dataclass(frozen=True)
class FragmentExperts(ExpertWeights):
    """All experts in the layout of int4.py, each contiguous; gate and up rows interleaved."""

    gate_up_words: Tensor
    gate_up_scales: Tensor
    down_words: Tensor
    down_scales: Tensor


class Experts:
    def pack_experts(self, experts: Iterable[ExpertTensors | tuple[Tensor, ...]]) -> ExpertWeights:
        packed: list[tuple[Tensor, ...]] = []
        hidden = width = 0
        for tensors in experts:
            e = ExpertTensors(*tensors)
            shape = (e.down_packed.shape[0], e.gate_packed.shape[0])
            if packed and shape != (hidden, width):
                raise ValueError(f"expert {len(packed)} is {shape}, the ones before it are {(hidden, width)}")
            hidden, width = shape
            gate_up = pack(interleave(e.gate_packed, e.up_packed), interleave(e.gate_scale, e.up_scale))
            packed.append((*gate_up, *pack(e.down_packed, e.down_scale)))
        if not packed:
            nothing = torch.empty(0, dtype=torch.int32)
            return FragmentExperts(0, 0, 0, 0, nothing, nothing, nothing, nothing)
        runs = [torch.stack(parts) for parts in zip(*packed, strict=True)]
        return FragmentExperts(len(packed), hidden, width, sum(run.nbytes for run in runs), *runs)

    def expert_mlp(
        self,
        x: Tensor,
        topk_ids: Tensor,
        topk_weights: Tensor,
        experts: ExpertWeights,
        out_dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        assert isinstance(experts, FragmentExperts)
        tokens, top_k = topk_ids.shape
        if experts.num_experts == 0 or tokens == 0:
            return torch.zeros(x.shape, dtype=out_dtype, device=x.device)
        assert x.shape == (tokens, experts.hidden) and topk_weights.shape == topk_ids.shape
        x, ids, num_slots = x.contiguous(), topk_ids.int().contiguous(), tokens * top_k
        inner = torch.empty(num_slots, experts.width, dtype=x.dtype, device=x.device)
        parts = torch.empty(num_slots, experts.hidden, dtype=x.dtype, device=x.device)
        for plan in align_tokens(ids, experts.num_experts, num_sizes(tokens, x.dtype)):
            _product(x, experts.gate_up_words, experts.gate_up_scales, inner, plan, top_k, swiglu=True)
            _product(inner, experts.down_words, experts.down_scales, parts, plan, 1, swiglu=False)
        return combine(parts, ids, topk_weights.float().contiguous(), experts.num_experts, out_dtype)


def _product(
    x: Tensor, words: Tensor, scales: Tensor, out: Tensor, plan: TokenTiles, slots_per_row: int, *, swiglu: bool
) -> None:
    """out[slot] = act(W x[slot // slots_per_row]) for every slot of the plan."""
    device = device_class(x)
    tiles = product_tiles(plan.tokens, x.dtype, device)
    num_columns, num_rows = x.shape[1], out.shape[1] * (2 if swiglu else 1)
    rows, packed_columns = packed_tile(num_rows, num_columns)
    columns = tiles.columns if num_columns % tiles.columns == 0 else packed_columns
    grouped_product_kernel[(num_rows // rows, plan.max_tiles)](
        x, words, scales, out, plan.slots, plan.experts, plan.num_tiles,
        out.shape[0], num_rows, num_columns, slots_per_row,
        TOKENS=plan.tokens, TILE_N=rows, TILE_K=columns, PACKED_K=packed_columns, SWIGLU=swiglu,
        ASM=x.dtype == torch.bfloat16 and device == "sm_90",
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
