"""Sizes of random checkpoints, and their config.json in the form of the released one."""

from dataclasses import dataclass
from typing import Any, Final

from services.checkpoint.architecture import GROUP_SIZE
from services.checkpoint.config import TextConfig, VisionConfig
from services.checkpoint.rope_fields import YarnConfig

SPECIAL_SLOTS = 256  # ids after the ordinary tokens, named or reserved


@dataclass(frozen=True)
class RandomDims:
    """Sizes of a checkpoint. With `vision` None, config.json and the weights have no vision tower."""

    text: TextConfig
    vision: VisionConfig | None = None


# K2.6's own values where a random checkpoint need not be smaller.
_TEXT: Final[dict[str, Any]] = {
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.827,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
}
_VISION: Final[dict[str, Any]] = {
    "patch_size": 14,
    "pos_emb_time": 4,
    "merge_kernel_size": (2, 2),
    "projector_ln_eps": 1e-5,
}


def text_sizes(**sizes: Any) -> TextConfig:
    """Return a text model with these sizes and K2.6's other values, unless given."""
    return TextConfig(**{**_TEXT, **sizes})


def vision_sizes(**sizes: Any) -> VisionConfig:
    """Return a vision tower with these sizes and K2.6's other values, unless given."""
    return VisionConfig(**{**_VISION, **sizes})


def preset(name: str) -> RandomDims:
    """Return the sizes of a preset: "tiny" for tests and demos, "bench-1b" for comparing engines; else KeyError."""
    return {"tiny": tiny_dims, "bench-1b": bench_1b_dims}[name]()


def tiny_dims() -> RandomDims:
    """Return about a million parameters with every part of the real model; prompts over 128 tokens exercise YaRN."""
    text = text_sizes(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        q_lora_rank=48,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        intermediate_size=192,
        moe_intermediate_size=64,
        n_routed_experts=16,
        num_experts_per_tok=4,
        vocab_size=576,
        max_position_embeddings=4096,
        rope_scaling=YarnConfig(32.0, 32.0, 1.0, 1.0, 1.0, original_max_position_embeddings=128),
    )
    vision = vision_sizes(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        pos_emb_height=8,
        pos_emb_width=8,
        text_hidden_size=text.hidden_size,
    )
    return RandomDims(text, vision)


def bench_1b_dims() -> RandomDims:
    """Return 1.28 billion parameters, 0.27 active, with the latent and head sizes of K2.6; no vision."""
    text = text_sizes(
        hidden_size=1024,
        num_hidden_layers=12,
        num_attention_heads=16,
        q_lora_rank=384,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        intermediate_size=2816,
        moe_intermediate_size=512,
        n_routed_experts=64,
        num_experts_per_tok=8,
        vocab_size=32000,
        max_position_embeddings=262144,
        rope_scaling=YarnConfig(64.0, 32.0, 1.0, 1.0, 1.0, original_max_position_embeddings=4096),
    )
    return RandomDims(text)


def config_json(dims: RandomDims, token_ids: dict[str, int]) -> dict[str, Any]:
    """Return config.json in the release's form for these sizes, without `auto_map`, since there is no remote code.

    token_ids  bos_token_id, eos_token_id, pad_token_id and media_placeholder_token_id
    """
    config = {
        "architectures": ["KimiK25ForConditionalGeneration"],
        "model_type": "kimi_k25",
        "dtype": "bfloat16",
        "ignore_index": -100,
        "tie_word_embeddings": False,
        "use_unified_vision_chunk": True,
        "video_placeholder": "<|kimi_k25_video_placeholder|>",
        "text_config": _text_config(dims.text, token_ids),
        **token_ids,
    }
    if dims.vision is not None:
        config["vision_config"] = _vision_config(dims.vision)
    return config


def _text_config(text: TextConfig, token_ids: dict[str, int]) -> dict[str, Any]:
    sizes = {name: value for name, value in vars(text).items() if name != "rope_scaling"}
    yarn = None if text.rope_scaling is None else {"type": "yarn", **vars(text.rope_scaling)}
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "kimi_k2",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "moe_layer_freq": 1,
        "num_key_value_heads": text.num_attention_heads,
        "num_nextn_predict_layers": 0,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_method": "noaux_tc",
        "use_cache": True,
        "rope_scaling": yarn,
        "quantization_config": _quantization_config(),
        **{name: token_ids[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        **sizes,
    }


def _quantization_config() -> dict[str, Any]:
    weights: dict[str, Any] = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": GROUP_SIZE,
        "num_bits": 4,
        "observer": "minmax",
        "observer_kwargs": {},
        "strategy": "group",
        "symmetric": True,
        "type": "int",
    }
    group = {"input_activations": None, "output_activations": None, "targets": ["Linear"], "weights": weights}
    return {
        "config_groups": {"group_0": group},
        "format": "pack-quantized",
        "ignore": [
            "lm_head",
            "re:.*self_attn.*",
            "re:.*shared_experts.*",
            r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
        ],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def _vision_config(vision: VisionConfig) -> dict[str, Any]:
    # Other engines read the plain names, so both spellings are written.
    plain = {name: value for name, value in vars(vision).items() if name != "merge_kernel_size"}
    return {
        **plain,
        "vt_hidden_size": vision.hidden_size,
        "vt_num_hidden_layers": vision.num_hidden_layers,
        "vt_num_attention_heads": vision.num_attention_heads,
        "vt_intermediate_size": vision.intermediate_size,
        "init_pos_emb_height": vision.pos_emb_height,
        "init_pos_emb_width": vision.pos_emb_width,
        "init_pos_emb_time": vision.pos_emb_time,
        "merge_kernel_size": list(vision.merge_kernel_size),
        "merge_type": "sd2_tpool",
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "patchmerger",
        "pos_emb_type": "divided_fixed",
        "projector_hidden_act": "gelu",
        "video_attn_type": "spatial_temporal",
    }
