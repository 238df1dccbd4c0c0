"""The routed experts of one shard, in every MoE layer.

The expert process and an attention process with experts of its own both use this.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import kernels
from kernels import ExpertWeights
from kernels.interface import RoutedTokens
from services.model.checkpoint import Checkpoint
from services.model.device import CPU, to_device
from services.model.text_weights import expert_tensors
from services.runtime.errors import CheckpointError, WireError

_NOWHERE: Final = -1  # the id is -1: another shard's business
_ELSEWHERE: Final = -2  # an expert that this shard does not hold


class ExpertShard:
    """Packed experts by layer. Immutable except for `token_counts`, which only the thread in `forward` changes.

    token_counts  [MoE layers, experts of this shard] i64, tokens applied so far that came from the host
    """

    def __init__(
        self,
        layers: Mapping[int, ExpertWeights],
        expert_ids: Sequence[int],
        num_experts: int,
        hidden_size: int,
        device: torch.device = CPU,
    ) -> None:
        assert all(weights.num_experts == len(expert_ids) for weights in layers.values())
        self.expert_ids = tuple(expert_ids)
        self.hidden_size = hidden_size
        self.device = device
        self.layers = dict(layers)
        self.layer_ids = tuple(layers)
        self.layers_text = _span(self.layer_ids)
        self.experts_text = _span(self.expert_ids)
        self.nbytes = sum(weights.nbytes for weights in layers.values())
        self.token_counts = np.zeros((len(layers), len(expert_ids)), dtype=np.int64)
        self._layers = {
            layer: (weights, counts) for (layer, weights), counts in zip(layers.items(), self.token_counts, strict=True)
        }
        # By id + 1 as an unsigned number: 0 is "another shard"; what does not exist is clipped to the last entry.
        self._local_index = np.full(num_experts + 2, _ELSEWHERE, dtype=np.int32)
        self._local_index[0] = _NOWHERE
        self._local_index[[expert + 1 for expert in expert_ids]] = np.arange(len(expert_ids))
        self._index_on_device = torch.from_numpy(self._local_index).to(device)

    @property
    def local_index(self) -> NDArray[np.int32]:
        """[experts of the model] i32: the place of each expert here, negative for the others."""
        return self._local_index[1:-1]

    def counts_of(self, layer: int) -> NDArray[np.int64]:
        """Return the tokens applied so far by each expert of a layer."""
        return self._layers[layer][1]

    def forward(self, layer: int, work: RoutedTokens, out_dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the weighted sum of each token's experts that live here, [tokens, hidden], on the shard's device.

        In float64 it is exact and can be added to other shards' sums; in float32 it is rounded.
        WireError when the layer has no experts, an expert is not here, or the hidden size is another.
        """
        if layer not in self._layers:
            raise WireError(f"layer {layer} has no routed experts, expected one of {self.layers_text}")
        if work.hidden.shape[1] != self.hidden_size:
            raise WireError(f"a token has {work.hidden.shape[1]} numbers, expected hidden size {self.hidden_size}")
        weights, counts = self._layers[layer]
        if not work.topk_ids.is_cpu:
            # Ids of the router on the same device are right by construction, and a check would make the host wait.
            local_ids = self._localised(work.topk_ids)
            return kernels.expert_mlp(work.hidden, local_ids, work.topk_weights, weights, out_dtype)
        local = self._localise(work.topk_ids.numpy())
        counts += np.bincount(local.ravel() + 1, minlength=len(counts) + 1)[1:]
        hidden, weight_of_each = to_device(work.hidden, self.device), to_device(work.topk_weights, self.device)
        local_ids = to_device(torch.from_numpy(local), self.device)
        return kernels.expert_mlp(hidden, local_ids, weight_of_each, weights, out_dtype)

    def _localised(self, ids: Tensor) -> Tensor:
        return self._index_on_device[ids.long() + 1]

    def _localise(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        local: NDArray[np.int32] = self._local_index.take(ids.view(np.uint32) + np.uint32(1), mode="clip")
        if local.min() == _ELSEWHERE:
            wrong = int(ids[local == _ELSEWHERE][0])
            num_experts = len(self._local_index) - 2
            if not 0 <= wrong < num_experts:
                raise WireError(f"expert {wrong} does not exist, expected -1 to {num_experts - 1}")
            raise WireError(f"expert {wrong} is not on this shard, which holds {self.experts_text}")
        return local


def load_expert_shard(checkpoint: Checkpoint, expert_ids: Sequence[int], device: torch.device = CPU) -> ExpertShard:
    """Read these experts of every MoE layer, repacking one expert at a time, and no other tensor.

    CheckpointError when the ids are not distinct experts of this model, or a tensor is not as it should be.
    """
    text = checkpoint.config.text
    if not expert_ids or len(set(expert_ids)) < len(expert_ids):
        raise CheckpointError(f"expected distinct experts, found {list(expert_ids)}")
    if not set(expert_ids) <= set(range(text.n_routed_experts)):
        raise CheckpointError(f"expected experts 0 to {text.n_routed_experts - 1}, found {_span(expert_ids)}")
    layers = {
        layer: kernels.pack_experts(
            tuple(tensor.to(device) for tensor in expert_tensors(checkpoint, layer, expert)) for expert in expert_ids
        )
        for layer in text.moe_layers
    }
    return ExpertShard(layers, expert_ids, text.n_routed_experts, text.hidden_size, device)


def _span(ids: Sequence[int]) -> str:
    return f"{len(ids)} of {min(ids)} to {max(ids)}" if ids else "none"
