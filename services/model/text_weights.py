"""Loads exactly the tensors of one part of the language model, checked against the configuration.

All tensors are views of the mapped checkpoint: read them once, pack or copy them, and drop them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from services.model import tensor_names
from services.model.checkpoint import Checkpoint
from services.model.tensor_names import TensorSpec
from services.runtime.errors import CheckpointError


@dataclass(frozen=True)
class EdgeWeights:
    """The weights before the first and after the last layer; bf16.

    embedding   [vocab_size, hidden]
    final_norm  [hidden]
    head        [vocab_size, hidden]
    """

    embedding: Tensor
    final_norm: Tensor
    head: Tensor


@dataclass(frozen=True)
class AttentionWeights:
    """One layer's attention (MLA) and its two block norms; bf16, linear weights [out, in].

    input_norm, post_norm  [hidden]
    q_a   [q_lora, hidden]                     q_a_norm   [q_lora]
    q_b   [heads * (nope + rope), q_lora]
    kv_a  [kv_lora + rope, hidden]             kv_a_norm  [kv_lora]
    kv_b  [heads * (nope + v), kv_lora], each head's nope rows (W_UK) before its v rows (W_UV)
    o     [hidden, heads * v]
    """

    input_norm: Tensor
    q_a: Tensor
    q_a_norm: Tensor
    q_b: Tensor
    kv_a: Tensor
    kv_a_norm: Tensor
    kv_b: Tensor
    o: Tensor
    post_norm: Tensor


@dataclass(frozen=True)
class MlpWeights:
    """A dense MLP or shared expert; bf16: gate, up [width, hidden], down [hidden, width]."""

    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class RouterWeights:
    """gate [experts, hidden] bf16 (computed with in fp32); bias [experts] f32, used for the choice only."""

    gate: Tensor
    bias: Tensor


class ExpertTensors(NamedTuple):
    """One routed expert: packed [out, in / 8] i32 and scale [out, in / 32] bf16 of each projection."""

    gate_packed: Tensor
    gate_scale: Tensor
    up_packed: Tensor
    up_scale: Tensor
    down_packed: Tensor
    down_scale: Tensor


def edge_weights(checkpoint: Checkpoint) -> EdgeWeights:
    """Return embedding, final norm and head, which only attention shard 0 needs."""
    return EdgeWeights(**_load(checkpoint, tensor_names.edge_specs(checkpoint.config.text)))


def attention_weights(checkpoint: Checkpoint, layer: int) -> AttentionWeights:
    return AttentionWeights(**_load(checkpoint, tensor_names.attention_specs(checkpoint.config.text, layer)))


def dense_mlp_weights(checkpoint: Checkpoint, layer: int) -> MlpWeights:
    assert not checkpoint.config.text.is_moe(layer)
    return MlpWeights(**_load(checkpoint, tensor_names.dense_mlp_specs(checkpoint.config.text, layer)))


def shared_expert_weights(checkpoint: Checkpoint, layer: int) -> MlpWeights:
    return MlpWeights(**_load(checkpoint, tensor_names.shared_expert_specs(checkpoint.config.text, layer)))


def router_weights(checkpoint: Checkpoint, layer: int) -> RouterWeights:
    return RouterWeights(**_load(checkpoint, tensor_names.router_specs(checkpoint.config.text, layer)))


def expert_tensors(checkpoint: Checkpoint, layer: int, expert: int) -> ExpertTensors:
    """Return one routed expert, packed. Raises CheckpointError with the reason if it is not stored as INT4."""
    for projection in tensor_names.PROJECTIONS:
        name = tensor_names.expert_projection(layer, expert, projection)
        if not checkpoint.has(f"{name}.weight_packed") and checkpoint.has(f"{name}.weight"):
            raise CheckpointError(
                f"tensor {name}.weight_packed: expected INT4 experts, found {name}.weight, not quantised, "
                f"in {checkpoint.file_of(name + '.weight')}"
            )
    return ExpertTensors(**_load(checkpoint, tensor_names.expert_specs(checkpoint.config.text, layer, expert)))


def check_complete(checkpoint: Checkpoint) -> None:
    """Check that the index names every tensor of the language model.

    Raises CheckpointError with the first missing tensor and the number of missing ones.
    """
    missing = [spec.name for spec in tensor_names.text_specs(checkpoint.config.text) if not checkpoint.has(spec.name)]
    if missing:
        raise CheckpointError(
            f"tensor {missing[0]}: expected in the index of {checkpoint.path}, found nothing of that name; "
            f"{len(missing)} tensors are missing"
        )


def _load(checkpoint: Checkpoint, specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    return {field: checkpoint.tensor(s.name, shape=s.shape, dtype=s.dtype) for field, s in specs.items()}
