"""What an attention process keeps in memory: its weights, and as many blocks of latent KV as fit beside them."""

from typing import Final

import torch

from services.attention.layout import KvLayout
from services.attention.settings import AttentionSettings
from services.checkpoint.config import TextConfig
from services.checkpoint.kv_room import fitting_blocks
from services.model.memory import check_room, device_room, edge_bytes, expert_bytes, layer_bytes
from services.runtime.liveness import LIVENESS

# Of what the weights leave. The rest is for activations, copies on their way to the store, and the checkpoint's pages.
KV_SHARE: Final = 1 / 2
# Pods of one replica have equal limits but not equally much in use; further shards take a little more than the engine.
FURTHER_SHARD_SHARE: Final = KV_SHARE * 1.1


def plan_blocks(settings: AttentionSettings, config: TextConfig, layout: KvLayout, device: torch.device) -> int:
    """Return the number of blocks: the one of the settings, or what fits.

    CheckpointError with both figures where weights and blocks do not fit. All shards of a replica need the same blocks,
    so what fits is what fits into the shard with the largest weights.
    """
    all_needs = [_weight_bytes(settings, config, shard, layout) for shard in range(settings.num_shards)]
    num_blocks = settings.num_blocks
    if num_blocks is None:
        weights = max(sum(needs.values()) for needs in all_needs)
        share = KV_SHARE if settings.shard == 0 else FURTHER_SHARD_SHARE
        num_layers = max(len(layout.layers_of(shard)) for shard in range(settings.num_shards))
        num_blocks = fitting_blocks(
            int(share * max(0, device_room(device).num_bytes - weights)),
            layout.block_bytes(num_layers),
            config.max_position_embeddings,
            settings.block_tokens,
        )
    needs = all_needs[settings.shard] | {
        "latent KV": num_blocks * layout.block_bytes(len(layout.layers_of(settings.shard)))
    }
    check_room(f"attention shard {settings.shard} of {settings.num_shards}", needs, device)
    LIVENESS.expect(sum(all_needs[settings.shard].values()))
    return num_blocks


def _weight_bytes(settings: AttentionSettings, config: TextConfig, shard: int, layout: KvLayout) -> dict[str, int]:
    """Of one shard of this replica, by what they are for."""
    needs = {"layers": layer_bytes(config, layout.layers_of(shard))}
    if shard == 0:
        needs["embedding and head"] = edge_bytes(config)
    if not settings.expert_addresses:
        needs["experts"] = expert_bytes(config, config.n_routed_experts)
    return needs
