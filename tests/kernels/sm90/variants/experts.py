"""Experts of K2.6 at every entry of the tile table: w13 is 4096 x 7168, w2 7168 x 2048."""

import torch

from kernels.gpu import align, experts, int4
from kernels.grid import rounder
from tests.kernels.sm90.variant import Variant

PRODUCT = {
    **{"words": "*i32", "scales": "*i32", "slots": "*i32", "tile_experts": "*i32", "num_tiles": "*i32"},
    **dict.fromkeys(("num_slots", "num_rows", "num_columns", "slots_per_row"), "i32"),
}
SERIAL = ("C7515",)  # Triton 3.7 waits after each wgmma with A in registers; harmless where memory is the bound


def product(tokens, tiles, dtype, swiglu, wgmma, warnings=()):
    # An H200 at the rate of its memory has 4.4 instructions for each weight that a thread unpacks;
    # with 64 tokens and more the unpacking is shared and 6 do.
    weights = 128 * tiles.columns // (32 * tiles.num_warps)
    most = {"bf16": 4.4 if tokens <= 32 else 6, "fp32": 30}[dtype]
    constants = {
        **{"TOKENS": tokens, "TILE_N": 128, "TILE_K": tiles.columns, "SWIGLU": swiglu},
        **{"PACKED_K": min(64, tiles.columns), "ASM": dtype == "bf16"},
    }
    types = PRODUCT | {"x": f"*{dtype}", "out": f"*{dtype}"}
    return Variant(
        f"grouped_product-{'w13' if swiglu else 'w2'}-{dtype}-{tokens}-tokens",
        int4.grouped_product_kernel,
        types,
        constants,
        tiles.num_warps,
        tiles.num_stages,
        wgmma,
        warnings,
        max_loop=int(weights * most),
        odd=("num_slots", "slots_per_row"),
    )


def combine(width, out="fp32"):
    tiles = align.combine_tiles(width, "sm_90")
    types = {
        **{"parts": "*bf16", "topk_ids": "*i32", "topk_weights": "*fp32", "out": f"*{out}"},
        **{"num_tokens": "i32", "width": "i32", "num_experts": "i32"},
    }
    constants = {"TOP_K": 8, "ROWS": tiles.rows, "TILE": tiles.columns, "ROUNDER": rounder(torch.bfloat16)}
    name = f"combine-{width}-{out}"
    return Variant(name, align.combine_kernel, types, constants, tiles.num_warps, odd=("num_tokens",))


def align_tokens(num_sizes):
    types = {
        **{"topk_ids": "*i32", "slots": "*i32", "tile_experts": "*i32", "num_tiles": "*i32"},
        **dict.fromkeys(("num_slots", "num_experts", "slots_stride", "tiles_stride"), "i32"),
    }
    constants = {"NUM_SIZES": num_sizes, "EXPERTS_TILE": 512, "TILE": align.ALIGN_TILE, "ROOM": align.TILE_ROOM}
    odd = ("num_slots", "slots_stride", "tiles_stride")
    return Variant(f"align-{num_sizes}-sizes", align.align_kernel, types, constants, 4, odd=odd)


VARIANTS = [
    *(
        product(tokens, tiles, "bf16", swiglu, 4 if tiles.num_warps == 8 else 16, SERIAL)
        for (tokens, _), tiles in experts.TILES.items()
        for swiglu in (True, False)
    ),
    product(16, experts.FLOAT32_TILES, "fp32", True, 0),
    combine(7168),
    combine(7168, "fp64"),
    align_tokens(1),
    align_tokens(4),
]
