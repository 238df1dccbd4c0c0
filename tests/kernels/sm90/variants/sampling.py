"""Sampling over the 163,840 tokens of K2.6."""

from kernels.gpu import log_totals, sampling
from tests.kernels.sm90.variant import Variant

TYPES = {
    **{"logits": "*fp32", "allowed": "*i1", "top_ks": "*i32", "token_ids": "*i64", "largest": "*fp32", "vocab": "i32"},
    **dict.fromkeys(("temperatures", "top_ps", "min_ps", "tops", "totals"), "*fp64"),
    **dict.fromkeys(("state", "next_state", "sums", "next_sums"), "*fp64"),
    **dict.fromkeys(("seeds", "positions"), "*i64"),
}
CONSTANTS = {"MASKED": True, "WAYS": sampling.WAYS, "PART": sampling.PART, "PARTS": 128, "TILE_V": log_totals.TILE_V}


def variant(name, kernel, num_warps):
    types, constants = ({key: all_[key] for key in all_ if key in kernel.arg_names} for all_ in (TYPES, CONSTANTS))
    return Variant(name, kernel, types, constants, num_warps)


VARIANTS = [
    variant("draw-largest", sampling.largest_kernel, sampling.PART_WARPS),
    variant("draw-begin", sampling.begin_kernel, sampling.PART_WARPS),
    variant("draw-advance", sampling.advance_kernel, sampling.PART_WARPS),
    variant("log-total", log_totals.log_total_kernel, log_totals.NUM_WARPS),
]
