"""MLA with 64 heads, latents 512 + 64, heads 128 + 64; the vision tower's heads of 72."""

import torch

from kernels.gpu import attention_decode, attention_prefill, vision_attention
from tests.kernels.sm90.variant import Variant

DECODE = {
    **dict.fromkeys(("q_latent", "q_rope", "cache"), "*bf16"),
    **dict.fromkeys(("block_tables", "context_lens"), "*i32"),
    **{"partial": "*fp32", "log_sums": "*fp32", "scale": "fp32"},
    **dict.fromkeys(("heads", "num_splits", "q_latent_row", "q_latent_head", "q_rope_row", "q_rope_head"), "i32"),
    **dict.fromkeys(("cache_block", "table_row"), "i32"),
}
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


def decode(heads, wgmma):
    tiles = attention_decode.decode_tiles(heads, 512, torch.bfloat16)
    constants = {
        **{"LATENT": 512, "ROPE": 64, "BLOCK_TOKENS": 64, "TILE_H": tiles.tile_h, "TILE_T": tiles.tile_t},
        **{"TILE_L": 512, "TILE_R": 64, "SPLIT_TILES": tiles.split_tiles, "MAX_SPLITS": tiles.max_splits},
    }
    return Variant(
        f"mla-decode-{heads}-heads",
        attention_decode.mla_decode_split_kernel,
        DECODE,
        constants,
        tiles.num_warps,
        tiles.num_stages,
        wgmma,
        odd=("num_splits",),
    )


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
    Variant(
        "mla-decode-combine",
        attention_decode.mla_decode_combine_kernel,
        COMBINE,
        {"LATENT": 512, "TILE_H": 8, "TILE_T": 64, "TILE_L": 512, "SPLIT_TILES": 16, "MAX_SPLITS": 64},
        num_warps=4,
        odd=("num_splits",),
    ),
    prefill("whole", is_first=True, is_last=True),
    prefill("piece", is_first=False, is_last=False),
    Variant(
        "vision-attention",
        vision_attention.vit_attention_kernel,
        VISION,
        {"WIDTH": 72, "FIRST": 64, "SECOND": 16, "TILE_Q": 128, "TILE_K": 64},
        num_warps=8,
        num_stages=2,
        wgmma=13,
    ),
]
