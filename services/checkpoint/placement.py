"""The placement of experts and layers on shards, as pure functions, so that both ends of a wire agree."""

import itertools


def expert_placement(num_experts: int, num_shards: int) -> list[list[int]]:
    """Return the expert ids of each expert shard, ascending; the same in every MoE layer.

    The ranges are contiguous, and their sizes differ by at most one. Raises ValueError if a shard would be empty.
    """
    return [list(ids) for ids in _even_ranges(num_experts, num_shards, "experts")]


def layer_ranges(num_layers: int, num_shards: int) -> list[range]:
    """Return the layers of each attention shard, in the same way."""
    return _even_ranges(num_layers, num_shards, "layers")


def _even_ranges(count: int, num_shards: int, what: str) -> list[range]:
    if not 1 <= num_shards <= count:
        raise ValueError(f"{count} {what} cannot be split into {num_shards} shards")
    bounds = [(shard * count + num_shards - 1) // num_shards for shard in range(num_shards + 1)]
    return [range(first, last) for first, last in itertools.pairwise(bounds)]
