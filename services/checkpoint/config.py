"""The config.json of a checkpoint, checked once, so that later code needs no doubt.

Served are the released `kimi_k25` wrapper and a language model alone (`kimi_k2`, as K2-Thinking has it), each in the
released spelling or in that of transformers 5.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AliasChoices, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from services.checkpoint.architecture import (
    GROUP_SIZE,
    FileKind,
    Quantization,
    TextArchitecture,
    VisionArchitecture,
)
from services.checkpoint.json_fields import (
    STRICT,
    Count,
    Flag,
    NumberAboveOne,
    PositiveNumber,
    Size,
    Values,
    check,
    read_json_object,
    refusal,
    section,
)
from services.checkpoint.rope_fields import YarnConfig, read_rope

CONFIG_FILE: Final = "config.json"
GENERATION_FILE: Final = "generation_config.json"


@checked_dataclass(frozen=True, config=STRICT)
class TextConfig:
    """The language model's sizes, under the names of config.json's `text_config`."""

    hidden_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    q_lora_rank: Size
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size
    intermediate_size: Size
    first_k_dense_replace: Count
    moe_intermediate_size: Size
    n_routed_experts: Size
    num_experts_per_tok: Size
    n_shared_experts: Size
    routed_scaling_factor: PositiveNumber
    n_group: Size
    topk_group: Size
    norm_topk_prob: Flag
    rms_norm_eps: PositiveNumber
    vocab_size: Size
    max_position_embeddings: Size
    rope_theta: NumberAboveOne
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
    def expanded_dim(self) -> int:
        """Numbers of a token's keys and values in one layer, rope key aside, when the latent is expanded."""
        return self.num_attention_heads * (self.qk_nope_head_dim + self.v_head_dim)

    @property
    def softmax_scale(self) -> float:
        """Factor of the attention scores: qk_head_dim^-0.5 * m^2, with m of the YaRN paper at every length."""
        yarn, factor = self.rope_scaling, 1.0
        if yarn is not None and yarn.factor > 1:
            factor = 0.1 * yarn.mscale_all_dim * math.log(yarn.factor) + 1.0
        return float(self.qk_head_dim**-0.5) * factor * factor

    @property
    def moe_layers(self) -> range:
        """The layers that have routed experts."""
        return range(self.first_k_dense_replace, self.num_hidden_layers)

    def is_moe(self, layer: int) -> bool:
        """Whether the layer has routed experts; the first `first_k_dense_replace` layers have one dense MLP."""
        return layer in self.moe_layers


def _prefixed(*names: str) -> Any:
    """A field that transformers 5 writes without its prefix."""
    return Field(validation_alias=AliasChoices(*names))


@checked_dataclass(frozen=True, config=STRICT)
class VisionConfig:
    """The vision tower (MoonViT) and projector; the file's `vt_` and `init_` prefixes are dropped."""

    hidden_size: Annotated[Size, _prefixed("vt_hidden_size", "hidden_size")]
    num_hidden_layers: Annotated[Size, _prefixed("vt_num_hidden_layers", "num_hidden_layers")]
    num_attention_heads: Annotated[Size, _prefixed("vt_num_attention_heads", "num_attention_heads")]
    intermediate_size: Annotated[Size, _prefixed("vt_intermediate_size", "intermediate_size")]
    patch_size: Size
    pos_emb_height: Annotated[Size, _prefixed("init_pos_emb_height", "pos_emb_height")]
    pos_emb_width: Annotated[Size, _prefixed("init_pos_emb_width", "pos_emb_width")]
    pos_emb_time: Annotated[Size, _prefixed("init_pos_emb_time", "pos_emb_time")]
    merge_kernel_size: Annotated[tuple[Size, Size], Field(strict=False, description="2 positive whole numbers")]
    projector_ln_eps: PositiveNumber
    text_hidden_size: Size


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint: both models and the token ids that its configuration fixes.

    stop_ids                    every `eos_token_id` of config.json and generation_config.json
    media_placeholder_token_id  stands in a prompt where features go; None in a language model alone
    """

    text: TextConfig
    vision: VisionConfig | None
    stop_ids: frozenset[int]
    media_placeholder_token_id: int | None


def load_config(path: Path) -> ModelConfig:
    """Read config.json of a checkpoint folder (or the file itself).

    Raises CheckpointError, a sentence with file, field, expected and found, for anything not served.
    """
    folder, file = (path, path / CONFIG_FILE) if path.is_dir() else (path.parent, path)
    values = read_json_object(file)
    wrapped = check(FileKind, values, file).model_type == "kimi_k25"
    place = "text_config." if wrapped else ""
    text_values = section(values, "text_config", file) if wrapped else values
    text = _text_config(values, text_values, file, place)
    has_vision = wrapped and values.get("vision_config") is not None
    vision = _vision_config(values, text, file) if has_vision else None
    stop_ids = _token_ids(values, "eos_token_id", text, file) | _token_ids(
        text_values, "eos_token_id", text, file, place
    )
    generation = folder / GENERATION_FILE
    if generation.exists():
        stop_ids |= _token_ids(read_json_object(generation), "eos_token_id", text, generation)
    return ModelConfig(text, vision, stop_ids, _media_id(values, text, file) if wrapped else None)


def _text_config(values: Values, text_values: Values, file: Path, place: str) -> TextConfig:
    """The language model; what its section leaves to the wrapper (dtype, quantization) is taken from there."""
    inherited = {name: values[name] for name in ("dtype", "torch_dtype") if name in values}
    check(TextArchitecture, inherited | dict(text_values), file, place)
    quantized_at = place if "quantization_config" in text_values or "quantization_config" not in values else ""
    quantization = section(text_values if quantized_at == place else values, "quantization_config", file, quantized_at)
    check(Quantization, quantization, file, f"{quantized_at}quantization_config.")
    defaults = {"norm_topk_prob": True}
    config = check(TextConfig, defaults | dict(text_values) | read_rope(text_values, file, place), file, place)
    if text_values.get("num_key_value_heads") not in (None, config.num_attention_heads):
        expected = f"{config.num_attention_heads}"
        raise refusal(file, f"{place}num_key_value_heads", expected, text_values["num_key_value_heads"])
    for name, (expected, kept) in _rules(config).items():
        if not kept:
            raise refusal(file, place + name, expected, text_values[name])
    return config


def _rules(config: TextConfig) -> dict[str, tuple[str, bool]]:
    """Rules between fields: by field the expected value, in words, and whether the rule is kept."""
    experts, groups, chosen = config.n_routed_experts, config.n_group, config.num_experts_per_tok
    # A group's score is the sum of its two best experts, and enough experts must stay after the group limit.
    per_group = experts // groups
    divided = experts % groups == 0 and (groups == 1 or per_group >= 2)
    left = per_group * config.topk_group
    enough = f"a whole number 1..{experts}" if chosen > experts else f"at most {left}, what topk_group leaves"
    return {
        "first_k_dense_replace": (
            f"a whole number 0..{config.num_hidden_layers}",
            config.first_k_dense_replace <= config.num_hidden_layers,
        ),
        "topk_group": (f"a whole number 1..{groups}", config.topk_group <= groups),
        "qk_rope_head_dim": ("an even number (RoPE turns pairs)", config.qk_rope_head_dim % 2 == 0),
        "hidden_size": (f"a multiple of {GROUP_SIZE} (the INT4 group)", config.hidden_size % GROUP_SIZE == 0),
        "moe_intermediate_size": (
            f"a multiple of {GROUP_SIZE} (the INT4 group)",
            config.moe_intermediate_size % GROUP_SIZE == 0,
        ),
        "n_group": (f"a divisor of {experts} experts with two or more in a group", divided),
        "num_experts_per_tok": (enough, chosen <= left),
    }


def _vision_config(values: Values, text: TextConfig, file: Path) -> VisionConfig:
    vision, place = section(values, "vision_config", file), "vision_config."
    check(VisionArchitecture, vision, file, place)
    # Transformers 5 writes what concerns the projector beside the section.
    outside = {
        "projector_ln_eps": values.get("projection_layer_norm_eps"),
        "text_hidden_size": text.hidden_size,
    }
    defaults = {name: value for name, value in outside.items() if value is not None}
    config = check(VisionConfig, defaults | dict(vision), file, place)
    if vision.get("mm_hidden_size", config.hidden_size) != config.hidden_size:
        raise refusal(file, f"{place}mm_hidden_size", f"{config.hidden_size}", vision["mm_hidden_size"])
    if config.text_hidden_size != text.hidden_size:
        raise refusal(file, f"{place}text_hidden_size", f"{text.hidden_size}", config.text_hidden_size)
    if config.hidden_size % (4 * config.num_attention_heads):
        expected = f"a multiple of 4 * {config.num_attention_heads} heads (2-D RoPE)"
        raise refusal(file, f"{place}vt_hidden_size", expected, config.hidden_size)
    return config


def _media_id(values: Values, text: TextConfig, file: Path) -> int | None:
    """The placeholder of media; transformers 5 calls it `image_token_id`."""
    name = "media_placeholder_token_id"
    if name not in values and "image_token_id" in values:
        name = "image_token_id"
    ids = _token_ids(values, name, text, file)
    if len(ids) > 1:
        raise refusal(file, name, "one token id", values[name])
    return min(ids, default=None)


def _token_ids(values: Values, name: str, text: TextConfig, file: Path, place: str = "") -> frozenset[int]:
    """One id, a list of ids, or none."""
    value = values.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int and 0 <= token_id < text.vocab_size for token_id in ids):
        raise refusal(file, place + name, f"a whole number 0..{text.vocab_size - 1} or a list of them", value)
    return frozenset(ids)
