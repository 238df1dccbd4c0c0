"""The memory that the parts of a model need, compared with what is left before loading begins."""

import math
from collections.abc import Iterable, Mapping

import torch

from services.checkpoint.config import TextConfig, VisionConfig
from services.checkpoint.memory import Room, find_room, gib
from services.model import tensor_names
from services.model.tensor_names import TensorSpec
from services.runtime.errors import CheckpointError


def check_room(holder: str, needs: Mapping[str, int], device: torch.device) -> None:
    """CheckpointError with both figures unless `holder` has room for its needs, in bytes by what they are for."""
    need = sum(needs.values())
    room = device_room(device)
    if need > room.num_bytes:
        parts = ", ".join(f"{what} {gib(size)}" for what, size in needs.items())
        raise CheckpointError(f"{holder} needs {gib(need)} of memory ({parts}), but {room.limit}")


def device_room(device: torch.device) -> Room:
    """The memory that a process can still take where it computes: of the GPU, or of machine and control groups."""
    if device.type != "cuda":
        return find_room()
    left, total = torch.cuda.mem_get_info(device)
    return Room(left, f"the GPU has {gib(left)} of its {gib(total)} left")


def expert_bytes(text: TextConfig, num_experts: int) -> int:
    """Of `num_experts` routed experts in every layer that has them; packing changes their order only."""
    specs = tensor_names.expert_specs(text, text.first_k_dense_replace, 0).values()
    return len(text.moe_layers) * num_experts * _num_bytes(specs)


def layer_bytes(text: TextConfig, layers: range) -> int:
    """Of layers without their routed experts, as they are packed."""
    total = 0
    for layer in layers:
        attention = tensor_names.attention_specs(text, layer)
        # Latents are expanded in prefill and absorbed in decode: two forms of one weight.
        total += _num_bytes(attention.values()) + _num_bytes([attention["kv_b"]])
        if text.is_moe(layer):
            router = tensor_names.router_specs(text, layer)
            # The gate is kept in fp32.
            total += _num_bytes(tensor_names.shared_expert_specs(text, layer).values())
            total += 2 * _num_bytes([router["gate"]]) + _num_bytes([router["bias"]])
        else:
            total += _num_bytes(tensor_names.dense_mlp_specs(text, layer).values())
    return total


def edge_bytes(text: TextConfig) -> int:
    """Of embedding, final norm and head."""
    return _num_bytes(tensor_names.edge_specs(text).values())


def vision_bytes(vision: VisionConfig, dtype: torch.dtype) -> int:
    """Of tower and projector, computed with in `dtype`."""
    return sum(math.prod(spec.shape) for spec in tensor_names.vision_specs(vision)) * dtype.itemsize


def _num_bytes(specs: Iterable[TensorSpec]) -> int:
    return sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs)
