"""The fields of config.json with a single implemented value, which is also their default."""

from typing import Annotated, Final, Literal

from pydantic import AliasChoices, Field

from services.checkpoint.json_fields import MustBeFalse, MustBeTrue, Section

GROUP_SIZE: Final = 32  # INT4 weights that share one scale


class FileKind(Section):
    """The kind of file: the released wrapper around a language model, or a language model alone."""

    model_type: Literal["kimi_k25", "kimi_k2", "deepseek_v3"]
    tie_word_embeddings: MustBeFalse


class TextArchitecture(Section):
    """The language model: DeepSeek-V3's attention and experts, without multi-token prediction."""

    model_type: Literal["kimi_k2", "deepseek_v3"]
    dtype: Annotated[Literal["bfloat16"], Field(validation_alias=AliasChoices("dtype", "torch_dtype"))]
    hidden_act: Literal["silu"] = "silu"
    scoring_func: Literal["sigmoid"] = "sigmoid"
    topk_method: Literal["noaux_tc"] = "noaux_tc"
    attention_bias: MustBeFalse = False
    moe_layer_freq: Literal[1] = 1
    num_nextn_predict_layers: Annotated[
        Literal[0], Field(validation_alias=AliasChoices("num_nextn_predict_layers", "num_mtp_layers"))
    ] = 0
    rope_interleave: MustBeTrue = True
    tie_word_embeddings: MustBeFalse = False


class _Weights(Section):
    num_bits: Literal[4]
    type: Literal["int"] = "int"
    symmetric: MustBeTrue = True
    strategy: Literal["group"]
    group_size: Literal[32]
    actorder: None = None


class _Group(Section):
    weights: _Weights
    input_activations: None = None


class _Groups(Section):
    group_0: _Group


class Quantization(Section):
    """INT4 experts packed by compressed-tensors."""

    quant_method: Literal["compressed-tensors"]
    format: Literal["pack-quantized"]
    config_groups: _Groups
    kv_cache_scheme: None = None


class VisionArchitecture(Section):
    """MoonViT and its projector."""

    pos_emb_type: Literal["divided_fixed"] = "divided_fixed"
    merge_type: Literal["sd2_tpool"] = "sd2_tpool"
    video_attn_type: Literal["spatial_temporal"] = "spatial_temporal"
    mm_projector_type: Literal["patchmerger"] = "patchmerger"
    projector_hidden_act: Literal["gelu"] = "gelu"
