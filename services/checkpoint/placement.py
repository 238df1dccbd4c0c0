"""Which shard holds what: pure functions that both ends of a wire call, so that they can never disagree."""

import itertools
from collections.abc import Mapping


def expert_placement(num_experts: int, num_shards: int, overrides: Mapping[int, int] | None = None) -> list[list[int]]:
    """The expert ids of each expert shard, ascending; the same in every MoE layer.

    Contiguous ranges whose sizes differ by at most one. `overrides` moves single experts: expert id -> shard.
    Raises ValueError when a shard would be empty or an id does not exist.
    """
    ranges = _even_ranges(num_experts, num_shards, "experts")
    holder = {expert: shard for shard, ids in enumerate(ranges) for expert in ids}
    for expert, shard in (overrides or {}).items():
        if not 0 <= expert < num_experts:
            raise ValueError(f"expert {expert} is outside 0..{num_experts - 1}")
        if not 0 <= shard < num_shards:
            raise ValueError(f"shard {shard} is outside 0..{num_shards - 1}")
        holder[expert] = shard
    placed: list[list[int]] = [[] for _ in range(num_shards)]
    for expert, shard in holder.items():
        placed[shard].append(expert)
    empty = [shard for shard, ids in enumerate(placed) if not ids]
    if empty:
        raise ValueError(f"expert shard {empty[0]} of {num_shards} would hold no expert")
    return placed


def layer_ranges(num_layers: int, num_shards: int) -> list[range]:
    """The layers of each attention shard: contiguous, in order, sizes differ by at most one. ValueError as above."""
    return _even_ranges(num_layers, num_shards, "layers")


def _even_ranges(count: int, num_shards: int, what: str) -> list[range]:
    if not 1 <= num_shards <= count:
        raise ValueError(f"{count} {what} cannot be split into {num_shards} shards")
    bounds = [(shard * count + num_shards - 1) // num_shards for shard in range(num_shards + 1)]
    return [range(first, last) for first, last in itertools.pairwise(bounds)]
