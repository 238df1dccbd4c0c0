"""What a generation takes from the store before it runs: latent KV that is there, and features that it still needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from services.attention.engine.generation import Generation
from services.attention.engine.media import MediaSource, marks_to_compute
from services.attention.layers.blocks import NamedBlock
from services.attention.layers.local import LayerShard, all_of


@dataclass(frozen=True)
class Fetched:
    """num_blocks  complete blocks beyond those that the generation has, on every shard
    tail           whether the last, partly filled block is there too
    features       of the media whose tokens are still to be computed, by the place of their first token
    """

    num_blocks: int
    tail: bool
    features: Mapping[int, Tensor]


class Fetcher:
    """Reads from the store into the blocks of fetching generations. Used on the engine's loop."""

    def __init__(self, shards: Sequence[LayerShard], block_tokens: int, media: MediaSource | None) -> None:
        self._shards = shards
        self._block_tokens = block_tokens
        self._media = media

    async def fetch(self, generation: Generation) -> Fetched:
        """Fills the generation's blocks as far as the store can. MediaMissing if it lacks features."""
        bt = self._block_tokens
        first, last = generation.num_computed // bt, (len(generation.token_ids) - 1) // bt
        names = generation.names.upto(last, generation.token_ids)
        wanted = [NamedBlock(generation.block_ids[i], names[i]) for i in range(first, last)]
        num_blocks, tail = 0, False
        if wanted:
            num_blocks = min(await all_of(shard.fetch(wanted) for shard in self._shards))
        if generation.tail_name and num_blocks == len(wanted) and generation.tail_tokens // bt == last:
            block_id, num_tokens = generation.block_ids[last], generation.tail_tokens % bt
            tail = all(
                await all_of(shard.fetch_tail(generation.tail_name, block_id, num_tokens) for shard in self._shards)
            )
        num_computed = generation.tail_tokens if tail else generation.num_computed + num_blocks * bt
        marks = marks_to_compute(generation.names.media, num_computed)
        assert self._media is not None or not marks, "media were admitted without a store"
        return Fetched(num_blocks, tail, await self._media.fetch(marks) if self._media is not None else {})
