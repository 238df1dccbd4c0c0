"""Name, shape and dtype of every tensor of the released format, for loaders and writers of checkpoints."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from services.checkpoint.architecture import GROUP_SIZE
from services.checkpoint.config import TextConfig, VisionConfig

TEXT = "language_model.model"
EMBEDDING = f"{TEXT}.embed_tokens.weight"
FINAL_NORM = f"{TEXT}.norm.weight"
HEAD = "language_model.lm_head.weight"
PROJECTIONS = ("gate", "up", "down")


@dataclass(frozen=True)
class TensorSpec:
    """The required form of a checkpoint's tensor. Linear weights are [out, in]."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16


def edge_specs(text: TextConfig) -> dict[str, TensorSpec]:
    """Return embedding, final norm and head, by field of EdgeWeights."""
    table = (text.vocab_size, text.hidden_size)
    return {
        "embedding": TensorSpec(EMBEDDING, table),
        "final_norm": TensorSpec(FINAL_NORM, (text.hidden_size,)),
        "head": TensorSpec(HEAD, table),
    }


def attention_specs(text: TextConfig, layer: int) -> dict[str, TensorSpec]:
    """Return one layer's attention and the two norms of its block, by field of AttentionWeights."""
    prefix = f"{TEXT}.layers.{layer}"
    heads, hidden = text.num_attention_heads, text.hidden_size
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "input_norm": ("input_layernorm", (hidden,)),
        "q_a": ("self_attn.q_a_proj", (text.q_lora_rank, hidden)),
        "q_a_norm": ("self_attn.q_a_layernorm", (text.q_lora_rank,)),
        "q_b": ("self_attn.q_b_proj", (heads * text.qk_head_dim, text.q_lora_rank)),
        "kv_a": ("self_attn.kv_a_proj_with_mqa", (text.latent_dim, hidden)),
        "kv_a_norm": ("self_attn.kv_a_layernorm", (text.kv_lora_rank,)),
        "kv_b": ("self_attn.kv_b_proj", (heads * (text.qk_nope_head_dim + text.v_head_dim), text.kv_lora_rank)),
        "o": ("self_attn.o_proj", (hidden, heads * text.v_head_dim)),
        "post_norm": ("post_attention_layernorm", (hidden,)),
    }
    return {field: TensorSpec(f"{prefix}.{name}.weight", shape) for field, (name, shape) in shapes.items()}


def dense_mlp_specs(text: TextConfig, layer: int) -> dict[str, TensorSpec]:
    """Return the MLP of a layer without experts, by field of MlpWeights."""
    return _mlp_specs(f"{TEXT}.layers.{layer}.mlp", text.hidden_size, text.intermediate_size)


def shared_expert_specs(text: TextConfig, layer: int) -> dict[str, TensorSpec]:
    """Return the shared expert, by field of MlpWeights. Several shared experts are stored as one wide MLP."""
    width = text.moe_intermediate_size * text.n_shared_experts
    return _mlp_specs(f"{TEXT}.layers.{layer}.mlp.shared_experts", text.hidden_size, width)


def router_specs(text: TextConfig, layer: int) -> dict[str, TensorSpec]:
    """Return the router, by field of RouterWeights; the bias is the only F32 tensor."""
    prefix, experts = f"{TEXT}.layers.{layer}.mlp.gate", text.n_routed_experts
    return {
        "gate": TensorSpec(f"{prefix}.weight", (experts, text.hidden_size)),
        "bias": TensorSpec(f"{prefix}.e_score_correction_bias", (experts,), torch.float32),
    }


def expert_specs(text: TextConfig, layer: int, expert: int) -> dict[str, TensorSpec]:
    """Return one routed expert in INT4, by field of ExpertTensors, in the order of `kernels.pack_experts`."""
    specs = {}
    for projection, (rows, columns) in expert_shapes(text).items():
        prefix = expert_projection(layer, expert, projection)
        packed, scales = (rows, columns // 8), (rows, columns // GROUP_SIZE)
        specs[f"{projection}_packed"] = TensorSpec(f"{prefix}.weight_packed", packed, torch.int32)
        specs[f"{projection}_scale"] = TensorSpec(f"{prefix}.weight_scale", scales)
    return specs


def expert_shapes(text: TextConfig) -> dict[str, tuple[int, int]]:
    """Return [out, in] of a routed expert's three projections before packing."""
    hidden, width = text.hidden_size, text.moe_intermediate_size
    return {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}


def expert_projection(layer: int, expert: int, projection: str) -> str:
    """Return the name of a routed expert's projection, without the ending `.weight...`."""
    return f"{TEXT}.layers.{layer}.mlp.experts.{expert}.{projection}_proj"


def text_specs(text: TextConfig) -> Iterator[TensorSpec]:
    """Return every tensor needed to serve the language model."""
    yield from edge_specs(text).values()
    for layer in range(text.num_hidden_layers):
        yield from layer_specs(text, layer)


def layer_specs(text: TextConfig, layer: int) -> Iterator[TensorSpec]:
    """Return every tensor of one layer, except the redundant `weight_shape` of experts."""
    yield from attention_specs(text, layer).values()
    if not text.is_moe(layer):
        yield from dense_mlp_specs(text, layer).values()
        return
    yield from router_specs(text, layer).values()
    yield from shared_expert_specs(text, layer).values()
    for expert in range(text.n_routed_experts):
        yield from expert_specs(text, layer, expert).values()


def vision_specs(vision: VisionConfig) -> Iterator[TensorSpec]:
    """Return every tensor of the vision tower and the projector; all are BF16, although no ignore list says so."""
    width, inner = vision.hidden_size, vision.intermediate_size
    merged = width * vision.merge_kernel_size[0] * vision.merge_kernel_size[1]
    patch = vision.patch_size
    yield from _affine("vision_tower.patch_embed.proj", (width, 3, patch, patch))
    grid = (vision.pos_emb_height, vision.pos_emb_width, width)
    yield TensorSpec("vision_tower.patch_embed.pos_emb.weight", grid)
    for block in range(vision.num_hidden_layers):
        prefix = f"vision_tower.encoder.blocks.{block}"
        yield from _affine(f"{prefix}.norm0", (width,))
        yield from _affine(f"{prefix}.wqkv", (3 * width, width))
        yield from _affine(f"{prefix}.wo", (width, width))
        yield from _affine(f"{prefix}.norm1", (width,))
        yield from _affine(f"{prefix}.mlp.fc0", (inner, width))
        yield from _affine(f"{prefix}.mlp.fc1", (width, inner))
    yield from _affine("vision_tower.encoder.final_layernorm", (width,))
    yield from _affine("mm_projector.pre_norm", (width,))
    yield from _affine("mm_projector.proj.0", (merged, merged))
    yield from _affine("mm_projector.proj.2", (vision.text_hidden_size, merged))


def _affine(prefix: str, shape: tuple[int, ...]) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}.weight", shape)
    yield TensorSpec(f"{prefix}.bias", shape[:1])


def _mlp_specs(prefix: str, hidden: int, width: int) -> dict[str, TensorSpec]:
    return {
        "gate": TensorSpec(f"{prefix}.gate_proj.weight", (width, hidden)),
        "up": TensorSpec(f"{prefix}.up_proj.weight", (width, hidden)),
        "down": TensorSpec(f"{prefix}.down_proj.weight", (hidden, width)),
    }
