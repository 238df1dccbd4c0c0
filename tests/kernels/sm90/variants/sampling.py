"""Sampling over the 163,840 tokens of K2.6."""

from kernels.gpu import sampling
from tests.kernels.sm90.variant import Variant

ROW = {
    **{"logits": "*fp32", "allowed": "*i1", "top_ks": "*i32", "token_ids": "*i64", "largest": "*fp32", "vocab": "i32"},
    **dict.fromkeys(("temperatures", "top_ps", "min_ps"), "*fp64"),
    **dict.fromkeys(("seeds", "positions"), "*i64"),
}

VARIANTS = [
    Variant(
        "draw",
        sampling.draw_kernel,
        ROW,
        {"MASKED": True, "WAYS": sampling.WAYS, "TILE_V": sampling.TILE_V},
        sampling.NUM_WARPS,
    ),
    Variant(
        "log-total",
        sampling.log_total_kernel,
        {"logits": "*fp32", "totals": "*fp64", "vocab": "i32"},
        {"TILE_V": sampling.TILE_V},
        sampling.NUM_WARPS,
    ),
]
