"""Fetches what a generation needs before it runs: latent KV of the store and other replicas, features of media."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from services.attention.engine.generation import Generation
from services.attention.engine.media import MediaSource, marks_to_compute
from services.attention.layers.blocks import NamedBlock, Offer, OfferedBlock
from services.attention.layers.shard import LayerShard, all_of


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
    """Reads into the blocks of fetching generations. Used on the engine's loop.

    release  lets the replica at an address free the blocks of an offer
    """

    def __init__(
        self,
        shards: Sequence[LayerShard],
        block_tokens: int,
        media: MediaSource | None,
        release: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._shards = shards
        self._block_tokens = block_tokens
        self._media = media
        self._release = release
        self._releasing: set[asyncio.Task[None]] = set()

    async def fetch(self, generation: Generation) -> Fetched:
        """Fill the generation's blocks as far as possible. MediaMissing if it lacks features."""
        bt = self._block_tokens
        offer, generation.offer = generation.offer, None  # its blocks are of use once
        try:
            num_blocks, tail = await self._fetch_blocks(generation, offer)
        finally:
            if offer is not None:
                self._let_go(offer)
        num_computed = generation.tail_tokens if tail else generation.num_computed + num_blocks * bt
        marks = marks_to_compute(generation.names.media, num_computed)
        assert self._media is not None or not marks, "media were admitted without a store"
        return Fetched(num_blocks, tail, await self._media.fetch(marks) if self._media is not None else {})

    async def _fetch_blocks(self, generation: Generation, offer: Offer | None) -> tuple[int, bool]:
        """Return the number of blocks and whether the tail is there, from the store or from the replica that offers."""
        bt = self._block_tokens
        first, last = generation.num_computed // bt, (len(generation.token_ids) - 1) // bt
        names = generation.names.between(first, last, generation.token_ids)
        wanted = [
            NamedBlock(block_id, name) for block_id, name in zip(generation.block_ids[first:last], names, strict=True)
        ]
        has_tail = bool(generation.tail_name) and generation.tail_tokens // bt == last
        tail_id, tail_tokens = generation.block_ids[last], generation.tail_tokens % bt
        num_blocks = min(await all_of(shard.fetch(wanted) for shard in self._shards)) if wanted else 0
        if has_tail and num_blocks == len(wanted):
            tail_name = generation.tail_name
            if all(await all_of(shard.fetch_tail(tail_name, tail_id, tail_tokens) for shard in self._shards)):
                return num_blocks, True
        if offer is None:
            return num_blocks, False
        offered = [OfferedBlock(block.block_id, block.name, bt) for block in wanted[num_blocks:]]
        if has_tail:
            offered.append(OfferedBlock(tail_id, generation.tail_name.encode(), tail_tokens))
        count = await self._fetch_offered(offer, offered) if offered else 0
        return min(num_blocks + count, len(wanted)), has_tail and count == len(offered)

    async def _fetch_offered(self, offer: Offer, blocks: Sequence[OfferedBlock]) -> int:
        return min(
            await all_of(
                shard.fetch_offered(source, offer.id, blocks)
                for shard, source in zip(self._shards, offer.sources, strict=True)
            )
        )

    def _let_go(self, offer: Offer) -> None:
        async def release() -> None:
            await self._release(offer.sources[0], offer.id)

        task = asyncio.ensure_future(release())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
