"""Nano's sizes: every part of the real model, with a small width and few layers."""

from services.checkpoint.rope_fields import YarnConfig
from services.local.random_checkpoint.dims import SPECIAL_SLOTS, RandomDims, text_sizes, vision_sizes

ORDINARY_TOKENS = 1024  # rows of embedding and head: ordinary tokens and special slots

# Limits in the checkpoint's preprocessor_config.json, in patches: a picture of 112 x 112 pixels takes 16 tokens.
IMAGE_PATCHES = 64
FRAME_PATCHES = 16


def nano_dims(ordinary_tokens: int = ORDINARY_TOKENS) -> RandomDims:
    """Return the sizes for a vocabulary of `ordinary_tokens` and the special slots."""
    text = text_sizes(
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        q_lora_rank=128,
        kv_lora_rank=128,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=48,
        intermediate_size=512,
        moe_intermediate_size=128,
        n_routed_experts=16,
        num_experts_per_tok=2,
        routed_scaling_factor=1.5,
        vocab_size=ordinary_tokens + SPECIAL_SLOTS,
        max_position_embeddings=4096,
        # Conversations are short, so all pairs of rope dimensions should distinguish distances of 1 to 1000 tokens.
        rope_theta=1000.0,
        rope_scaling=YarnConfig(4.0, 32.0, 1.0, 1.0, 1.0, original_max_position_embeddings=1024),
    )
    vision = vision_sizes(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        pos_emb_height=8,
        pos_emb_width=8,
        text_hidden_size=text.hidden_size,
    )
    return RandomDims(text, vision)
