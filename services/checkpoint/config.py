"""What a checkpoint's config.json says, checked: the released `kimi_k25` wrapper and nothing else.

Everything that the code relies on is validated here, once, so that later code needs no doubt.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.checkpoint.config_fields import Fields
from services.runtime.errors import CheckpointError

CONFIG_FILE = "config.json"
GROUP_SIZE = 32  # INT4 weights that share one scale


@dataclass(frozen=True)
class YarnConfig:
    """The `rope_scaling` object: YaRN stretches `original_max_position_embeddings` by `factor`."""

    factor: float
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float
    original_max_position_embeddings: int

    @property
    def softmax_factor(self) -> float:
        """m of the YaRN paper: attention logits are multiplied by its square, at every length."""
        if self.factor <= 1 or self.mscale_all_dim == 0:
            return 1.0
        return 0.1 * self.mscale_all_dim * math.log(self.factor) + 1.0


@dataclass(frozen=True)
class TextConfig:
    """The language model's sizes, under the names of config.json's `text_config`."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    intermediate_size: int
    first_k_dense_replace: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    routed_scaling_factor: float
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    rms_norm_eps: float
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: YarnConfig | None

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key: the part without and the part with positions."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Numbers of latent KV per token and layer: the latent and the one rope key of all heads."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """What attention scores are multiplied by: qk_head_dim^-0.5 * m^2."""
        factor = 1.0 if self.rope_scaling is None else self.rope_scaling.softmax_factor
        return float(self.qk_head_dim**-0.5) * factor * factor

    @property
    def moe_layers(self) -> range:
        """The layers that have routed experts."""
        return range(self.first_k_dense_replace, self.num_hidden_layers)

    def is_moe(self, layer: int) -> bool:
        """Whether the layer has routed experts; the first `first_k_dense_replace` layers have one dense MLP."""
        return layer in self.moe_layers


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower (MoonViT) and projector; the file's `vt_` and `init_` prefixes are dropped."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    patch_size: int
    pos_emb_height: int
    pos_emb_width: int
    pos_emb_time: int
    merge_kernel_size: tuple[int, int]
    projector_ln_eps: float
    text_hidden_size: int


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint: both models and the token ids that config.json fixes.

    `revision` is derived from the content of config.json: 16 hexadecimal digits of its SHA-256 in canonical form.
    """

    text: TextConfig
    vision: VisionConfig | None
    revision: str
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    media_placeholder_token_id: int


def load_config(path: Path) -> ModelConfig:
    """Reads config.json of a checkpoint folder (or the file itself).

    Raises CheckpointError, a sentence with file, field, expected and found, for anything not served.
    """
    file = path / CONFIG_FILE if path.is_dir() else path
    values = read_json_object(file)
    wrapper = Fields(values, file=str(file))
    wrapper.exactly("model_type", "kimi_k25")
    wrapper.exactly("tie_word_embeddings", False)
    text = wrapper.section("text_config")
    sizes = _text_config(text)
    vision = _vision_config(wrapper.section("vision_config"), sizes) if wrapper.has("vision_config") else None
    ids = {
        name: wrapper.integer(name, least=0, most=sizes.vocab_size - 1)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "media_placeholder_token_id")
    }
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    return ModelConfig(sizes, vision, revision=hashlib.sha256(canonical).hexdigest()[:16], **ids)


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of the checkpoint, or CheckpointError."""
    try:
        values = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file}: expected a readable file, found: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: expected JSON, found: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: expected a JSON object, found {type(values).__name__}")
    return values


def _text_config(text: Fields) -> TextConfig:
    _check_architecture(text)
    _check_quantization(text.section("quantization_config"))
    layers = text.integer("num_hidden_layers")
    experts = text.integer("n_routed_experts")
    groups = text.integer("n_group")
    text.exactly("num_key_value_heads", text.integer("num_attention_heads"))
    config = TextConfig(
        hidden_size=text.integer("hidden_size"),
        num_hidden_layers=layers,
        num_attention_heads=text.integer("num_attention_heads"),
        q_lora_rank=text.integer("q_lora_rank"),
        kv_lora_rank=text.integer("kv_lora_rank"),
        qk_nope_head_dim=text.integer("qk_nope_head_dim"),
        qk_rope_head_dim=text.integer("qk_rope_head_dim"),
        v_head_dim=text.integer("v_head_dim"),
        intermediate_size=text.integer("intermediate_size"),
        first_k_dense_replace=text.integer("first_k_dense_replace", least=0, most=layers),
        moe_intermediate_size=text.integer("moe_intermediate_size"),
        n_routed_experts=experts,
        num_experts_per_tok=text.integer("num_experts_per_tok", most=experts),
        n_shared_experts=text.integer("n_shared_experts"),
        routed_scaling_factor=text.number("routed_scaling_factor", above=0),
        n_group=groups,
        topk_group=text.integer("topk_group", most=groups),
        norm_topk_prob=text.boolean("norm_topk_prob"),
        rms_norm_eps=text.number("rms_norm_eps", above=0),
        vocab_size=text.integer("vocab_size"),
        max_position_embeddings=text.integer("max_position_embeddings"),
        rope_theta=text.number("rope_theta", above=1),
        rope_scaling=_yarn_config(text.section("rope_scaling")) if text.has("rope_scaling") else None,
    )
    _check_divisible(text, config)
    return config


def _check_architecture(text: Fields) -> None:
    text.exactly("model_type", "kimi_k2")
    text.exactly("hidden_act", "silu")
    text.exactly("scoring_func", "sigmoid")
    text.exactly("topk_method", "noaux_tc")
    text.exactly("attention_bias", False)
    text.exactly("moe_layer_freq", 1)
    text.exactly("num_nextn_predict_layers", 0)
    text.exactly("tie_word_embeddings", False)
    text.exactly("dtype", "bfloat16")


def _check_quantization(quantization: Fields) -> None:
    quantization.exactly("quant_method", "compressed-tensors")
    quantization.exactly("format", "pack-quantized")
    quantization.exactly("kv_cache_scheme", None)
    group = quantization.section("config_groups").section("group_0")
    group.exactly("input_activations", None)
    weights = group.section("weights")
    for name, value in {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}.items():
        weights.exactly(name, value)
    weights.exactly("group_size", GROUP_SIZE)
    weights.exactly("actorder", None)


def _check_divisible(text: Fields, config: TextConfig) -> None:
    if config.qk_rope_head_dim % 2:
        raise text.refusal("qk_rope_head_dim", "an even number (RoPE turns pairs)")
    for name in ("hidden_size", "moe_intermediate_size"):
        if getattr(config, name) % GROUP_SIZE:
            raise text.refusal(name, f"a multiple of {GROUP_SIZE} (the INT4 group)")
    # A group's score is the sum of its two best experts, and enough experts must stay after the group limit.
    per_group = config.n_routed_experts // config.n_group
    if config.n_routed_experts % config.n_group or (config.n_group > 1 and per_group < 2):
        raise text.refusal("n_group", f"a divisor of {config.n_routed_experts} experts with two or more in a group")
    if config.num_experts_per_tok > per_group * config.topk_group:
        raise text.refusal("num_experts_per_tok", f"at most {per_group * config.topk_group}, what topk_group leaves")


def _yarn_config(scaling: Fields) -> YarnConfig:
    scaling.exactly("type", "yarn")
    # cos and sin would be multiplied by the ratio of the two; only a ratio of one is implemented.
    scaling.exactly("mscale", scaling.number("mscale_all_dim"))
    return YarnConfig(
        factor=scaling.number("factor", above=0),
        beta_fast=scaling.number("beta_fast", above=0),
        beta_slow=scaling.number("beta_slow", above=0),
        mscale=scaling.number("mscale"),
        mscale_all_dim=scaling.number("mscale_all_dim"),
        original_max_position_embeddings=scaling.integer("original_max_position_embeddings"),
    )


def _vision_config(vision: Fields, text: TextConfig) -> VisionConfig:
    vision.exactly("pos_emb_type", "divided_fixed")
    vision.exactly("merge_type", "sd2_tpool")
    vision.exactly("video_attn_type", "spatial_temporal")
    vision.exactly("mm_projector_type", "patchmerger")
    vision.exactly("projector_hidden_act", "gelu")
    vision.exactly("mm_hidden_size", vision.integer("vt_hidden_size"))
    vision.exactly("text_hidden_size", text.hidden_size)
    height, width = vision.integers("merge_kernel_size", count=2)
    config = VisionConfig(
        hidden_size=vision.integer("vt_hidden_size"),
        num_hidden_layers=vision.integer("vt_num_hidden_layers"),
        num_attention_heads=vision.integer("vt_num_attention_heads"),
        intermediate_size=vision.integer("vt_intermediate_size"),
        patch_size=vision.integer("patch_size"),
        pos_emb_height=vision.integer("init_pos_emb_height"),
        pos_emb_width=vision.integer("init_pos_emb_width"),
        pos_emb_time=vision.integer("init_pos_emb_time"),
        merge_kernel_size=(height, width),
        projector_ln_eps=vision.number("projector_ln_eps", above=0),
        text_hidden_size=vision.integer("text_hidden_size"),
    )
    if config.hidden_size % (4 * config.num_attention_heads):
        raise vision.refusal("vt_hidden_size", f"a multiple of 4 * {config.num_attention_heads} heads (2-D RoPE)")
    return config
