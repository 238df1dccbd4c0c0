"""The weights of one attention shard, packed for the kernels: its layers, and on shard 0 the two ends of the model."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from kernels import HeadWeight, LinearWeight, pack_heads, pack_linear
from services.checkpoint.config import TextConfig
from services.model import text_weights
from services.model.checkpoint import Checkpoint
from services.model.device import CPU
from services.model.rope import yarn_inv_freq
from services.model.text_weights import AttentionWeights, MlpWeights, RouterWeights

Weights = TypeVar("Weights", AttentionWeights, MlpWeights, RouterWeights)


@dataclass(frozen=True, eq=False)
class PackedAttention:
    """Multi-head latent attention (MLA) of one layer; linears [out, in], per-head ones [heads, out, in].

    `kv_b` expands latents to keys and values (prefill); `key_absorbed` and `value_up` are its two halves for the
    absorbed form (decode), which instead brings the query to the latent and the result back.
    """

    qkv_a: LinearWeight  # [q_lora + kv_lora + rope, hidden]: both down-projections read the same input
    q_a_norm: Tensor  # [q_lora] bf16
    q_b: LinearWeight  # [heads * (nope + rope), q_lora]
    kv_a_norm: Tensor  # [kv_lora] bf16
    kv_b: LinearWeight  # [heads * (nope + v), kv_lora]
    key_absorbed: HeadWeight  # [heads, kv_lora, nope], W_UK transposed
    value_up: HeadWeight  # [heads, v, kv_lora], W_UV
    o: LinearWeight  # [hidden, heads * v]
    inv_freq: Tensor  # [rope / 2] f32, as softmax_scale the same in every layer
    softmax_scale: float


@dataclass(frozen=True, eq=False)
class PackedMlp:
    """SwiGLU of a dense layer or of the shared expert."""

    gate_up: LinearWeight  # [2 * width, hidden]: gate rows, then up rows
    down: LinearWeight  # [hidden, width]


@dataclass(frozen=True, eq=False)
class Router:
    """Chooses routed experts; fp32, because bf16 would choose others."""

    gate: Tensor  # [experts, hidden] f32; bf16 on a GPU
    bias: Tensor  # [experts] f32


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """One layer, without its routed experts. `mlp` is the dense MLP, or the shared expert where there is a router."""

    index: int  # in the model
    input_norm: Tensor  # [hidden] bf16
    attention: PackedAttention
    post_norm: Tensor  # [hidden] bf16
    mlp: PackedMlp
    router: Router | None


@dataclass(frozen=True, eq=False)
class EndWeights:
    """Embedding, final norm and head. Only shard 0 has them."""

    embedding: Tensor  # [vocab_size, hidden] bf16
    final_norm: Tensor  # [hidden] bf16
    head: LinearWeight  # [vocab_size, hidden]


def load_layers(checkpoint: Checkpoint, layers: range, device: torch.device = CPU) -> list[LayerWeights]:
    """Read and pack layers one by one, so that little more than the packed weights is in memory at any time."""
    return [_load_layer(checkpoint, checkpoint.config.text, layer, device) for layer in layers]


def load_ends(checkpoint: Checkpoint, device: torch.device = CPU) -> EndWeights:
    """Read the weights around the layers. The embedding is copied, so that no token waits for a page of the file."""
    edges = text_weights.edge_weights(checkpoint)
    embedding, final_norm = edges.embedding.to(device, copy=True), edges.final_norm.to(device, copy=True)
    return EndWeights(embedding, final_norm, pack_linear(edges.head.to(device)))


def _load_layer(checkpoint: Checkpoint, config: TextConfig, layer: int, device: torch.device) -> LayerWeights:
    plain = _on(device, text_weights.attention_weights(checkpoint, layer))
    by_head = plain.kv_b.view(config.num_attention_heads, config.qk_nope_head_dim + config.v_head_dim, -1)
    key_up, value_up = by_head.split_with_sizes([config.qk_nope_head_dim, config.v_head_dim], dim=1)
    attention = PackedAttention(
        qkv_a=pack_linear(torch.cat([plain.q_a, plain.kv_a])),
        q_a_norm=plain.q_a_norm.clone(),
        q_b=pack_linear(plain.q_b),
        kv_a_norm=plain.kv_a_norm.clone(),
        kv_b=pack_linear(plain.kv_b),
        key_absorbed=pack_heads(key_up.transpose(1, 2).contiguous()),
        value_up=pack_heads(value_up.contiguous()),
        o=pack_linear(plain.o),
        inv_freq=yarn_inv_freq(config).to(device),
        softmax_scale=config.softmax_scale,
    )
    if config.is_moe(layer):
        mlp = _pack_mlp(_on(device, text_weights.shared_expert_weights(checkpoint, layer)))
        router = _to_float(_on(device, text_weights.router_weights(checkpoint, layer)))
    else:
        mlp, router = _pack_mlp(_on(device, text_weights.dense_mlp_weights(checkpoint, layer))), None
    return LayerWeights(layer, plain.input_norm.clone(), attention, plain.post_norm.clone(), mlp, router)


def _pack_mlp(plain: MlpWeights) -> PackedMlp:
    return PackedMlp(pack_linear(torch.cat([plain.gate, plain.up])), pack_linear(plain.down))


def _to_float(plain: RouterWeights) -> Router:
    # A GPU multiplies the gate as it is, summing in float32, which is exact as well; on the CPU it is widened once.
    return Router(plain.gate if plain.gate.is_cuda else plain.gate.float(), plain.bias.clone())


def _on(device: torch.device, plain: Weights) -> Weights:
    """Move the tensors of a checkpoint's dataclass. On the CPU they stay views of the file."""
    return replace(plain, **{field.name: getattr(plain, field.name).to(device) for field in fields(plain)})
