"""MLA with 64 heads, latents 512 + 64, heads 128 + 64; the vision tower's heads of 72."""

import torch

from kernels.gpu import attention_decode, attention_decode_hopper, attention_prefill, vision_attention
from tests.kernels.sm90.variant import Variant

DECODE = {
    **dict.fromkeys(("q_latent", "q_rope", "cache"), "*bf16"),
    **dict.fromkeys(("kv_scales", "rope_keys"), "*bf16"),
    **dict.fromkeys(("block_tables", "context_lens"), "*i32"),
    **{"partial": "*fp32", "log_sums": "*fp32", "scale": "fp32"},
    **dict.fromkeys(("heads", "num_splits", "q_latent_row", "q_latent_head", "q_rope_row", "q_rope_head"), "i32"),
    **dict.fromkeys(("cache_block", "table_row"), "i32"),
}
NOT_HOPPER = ("heads", "cache_block", "kv_scales", "rope_keys")
COMBINE = {
    **{"partial": "*fp32", "log_sums": "*fp32", "context_lens": "*i32", "out": "*bf16"},
    **{"heads": "i32", "num_splits": "i32"},
}
PREFILL = {
    **dict.fromkeys(("q_nope", "q_rope", "projected", "rope_keys", "out"), "*bf16"),
    **dict.fromkeys(("state_mean", "state_peak", "state_total"), "*fp32"),
    **{"scale": "fp32"},
    **dict.fromkeys(("tokens", "heads", "first_query", "first_key", "num_keys"), "i32"),
    **dict.fromkeys(("q_nope_row", "q_nope_head", "q_rope_row", "q_rope_head", "rope_key_row"), "i32"),
}
VISION = {
    **dict.fromkeys(("q", "k", "v", "out"), "*bf16"),
    **{"tiles": "*i32", "scale": "fp32"},
    **dict.fromkeys(("heads", "q_row", "k_row", "v_row"), "i32"),
}


def decode(heads, wgmma, fp8=False):
    tiles = attention_decode.decode_tiles(heads, 512, torch.bfloat16)
    constants = {
        **{"LATENT": 512, "ROPE": 64, "TOKEN": 656 if fp8 else 576, "FP8_GROUP": 128 if fp8 else 0},
        **{
            "BLOCK_TOKENS": 64,
            "TILE_H": tiles.tile_h,
            "TILE_T": tiles.tile_t,
            "TILE_L": 512,
            "TILE_R": 64,
            "SPLIT_TILES": tiles.split_tiles,
            "MAX_SPLITS": tiles.max_splits,
        },
    }
    return Variant(
        f"mla-decode-{heads}-heads{'-fp8' if fp8 else ''}",
        attention_decode.mla_decode_split_kernel,
        DECODE | ({"cache": "*u8", "kv_scales": "*fp32"} if fp8 else {}),
        constants,
        tiles.num_warps,
        tiles.num_stages,
        wgmma,
        odd=("num_splits",),
    )


def hopper_decode(tiles):
    h = attention_decode_hopper
    strides = ("cache_rows", "block_rows")
    constants = {
        **{"HEADS": h.HEADS, "LATENT": h.LATENT, "ROPE": h.ROPE, "BLOCK_TOKENS": 64, "TILE_T": h.TILE_T},
        **{"STAGES": h.STAGES, "SPLIT_TILES": tiles.split_tiles, "MAX_SPLITS": tiles.max_splits},
    }
    types = {name: kind for name, kind in DECODE.items() if name not in NOT_HOPPER}
    return Variant(
        f"mla-decode-hopper-{tiles.split_tiles}",
        h.mla_decode_hopper_kernel,
        types | dict.fromkeys(strides, "i32"),
        constants,
        h.NUM_WARPS,
        wgmma=40,
        odd=("num_splits", *strides),
    )


def combine(name, tiles):
    constants = {
        **{"LATENT": 512, "TILE_T": 64, "TILE_S": tiles.combine_splits, "TILE_L": 512 // tiles.combine_parts},
        **{"SPLIT_TILES": tiles.split_tiles, "MAX_SPLITS": tiles.max_splits},
    }
    kernel = attention_decode.mla_decode_combine_kernel
    return Variant(f"mla-decode-combine-{name}", kernel, COMBINE, constants, num_warps=4, odd=("num_splits",))


def prefill(name, is_first, is_last):
    tiles = attention_prefill.prefill_tiles(128, torch.bfloat16)
    constants = {
        **{"NOPE": 128, "ROPE": 64, "VALUE": 128, "TILE_Q": tiles.tile_q, "TILE_K": tiles.tile_k},
        **{"TILE_N": 128, "TILE_R": 64, "TILE_V": 128, "IS_FIRST": is_first, "IS_LAST": is_last},
    }
    return Variant(
        f"mla-prefill-{name}",
        attention_prefill.mla_prefill_kernel,
        PREFILL,
        constants,
        tiles.num_warps,
        tiles.num_stages,
        wgmma=40,
        odd=("tokens", "first_query", "num_keys"),
    )


VARIANTS = [
    decode(64, wgmma=76),
    decode(64, wgmma=76, fp8=True),
    *map(hopper_decode, attention_decode.HOPPER_TILES.values()),
    combine("triton", attention_decode.decode_tiles(64, 512, torch.bfloat16)),
    *(combine(f"hopper-{tiles.split_tiles}", tiles) for tiles in attention_decode.HOPPER_TILES.values()),
    prefill("whole", is_first=True, is_last=True),
    prefill("piece", is_first=False, is_last=False),
    Variant(
        "vision-attention",
        vision_attention.vit_attention_kernel,
        VISION,
        {"WIDTH": 72, "FIRST": 64, "SECOND": 16, "TILE_Q": vision_attention.TILE_Q, "TILE_K": vision_attention.TILE_K},
        vision_attention.NUM_WARPS,
        vision_attention.NUM_STAGES,
        wgmma=26,
    ),
]
