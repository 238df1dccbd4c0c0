"""Gives blocks to the store and to other replicas."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from services.attention.engine.generation import FirstToken, Generation
from services.attention.engine.store_room import StoreRoom
from services.attention.layers.blocks import NamedBlock, OfferedBlock
from services.attention.layers.shard import LayerShard, all_of
from services.attention.metrics import PUBLISHED_BLOCKS

# Copies of blocks that wait for the store. Beyond it blocks are not published, so a slow store costs reuse, not memory.
MAX_BACKLOG_BLOCKS = 128


@dataclass(frozen=True)
class Published:
    """What another replica needs to go on with a generation.

    offer  set where not all of it is in the store: this replica holds its blocks under this name
    """

    first: FirstToken
    block_names: Sequence[bytes]
    tail_name: str
    offer: str


class Publisher:
    """Publishes complete blocks as they come. Owned by the engine and used on its loop."""

    def __init__(self, shards: Sequence[LayerShard], room: StoreRoom, block_tokens: int) -> None:
        self._shards = shards
        self._room = room
        self._block_tokens = block_tokens
        self._backlog = 0
        self._pending: dict[Generation, list[Awaitable[object]]] = {}

    def begin(self, generation: Generation) -> None:
        """Decide, before it is computed, how much of a generation the store is to hold."""
        generation.num_publishable = self._room.num_blocks

    def publish(self, generation: Generation, completed: Sequence[NamedBlock]) -> None:
        """Start to publish blocks that were just completed; their bytes are copied now."""
        most = generation.num_publishable
        blocks = [block for block in completed if most is None or block.index < most]
        if len(blocks) < len(completed):
            PUBLISHED_BLOCKS.labels("no_room").inc(len(completed) - len(blocks))
        if not blocks:
            return
        if self._backlog + len(blocks) > MAX_BACKLOG_BLOCKS:
            PUBLISHED_BLOCKS.labels("backlog_full").inc(len(blocks))
            return
        self._backlog += len(blocks)
        # A lost shard fails the generation elsewhere; here its blocks are merely not published.
        done = asyncio.gather(*(shard.publish(blocks) for shard in self._shards), return_exceptions=True)
        done.add_done_callback(lambda _: self._landed(len(blocks)))
        if generation.hand_over:
            self._pending.setdefault(generation, []).append(done)

    async def publish_rest(self, generation: Generation, first: FirstToken) -> Published:
        """Wait until the store holds what it has room for, and offer all of it if that is not everything.

        Blocks that this replica's memory had already may have left the store since, so all of them are looked up.
        """
        num_blocks, num_filled = divmod(generation.num_computed, self._block_tokens)
        names = generation.names.upto(num_blocks, generation.token_ids)
        tail_name = uuid4().hex if num_filled else ""
        most = generation.num_publishable
        num_stored = num_blocks if most is None else min(most, num_blocks)
        await all_of(self._pending.pop(generation, []))
        stored = [num_stored == num_blocks]
        if num_filled and num_stored == num_blocks:
            tail_id = generation.block_ids[num_blocks]
            stored += await all_of(shard.publish_tail(tail_name, tail_id, num_filled) for shard in self._shards)
        if num_stored:
            blocks = [NamedBlock(*pair) for pair in zip(generation.block_ids[:num_stored], names, strict=False)]
            stored += await all_of(shard.publish_missing(blocks) for shard in self._shards)
        needed = first.finish_reason is None and not all(stored)
        offer = await self._offer(generation, names, tail_name, num_filled) if needed else ""
        return Published(first, names, tail_name, offer)

    def withdraw(self, offer: str) -> None:
        """End an offer; the blocks may change afterwards."""
        for shard in self._shards:
            shard.withdraw(offer)

    def forget(self, generation: Generation) -> None:
        """Drop what is known of a generation that has ended."""
        self._pending.pop(generation, None)

    async def _offer(self, generation: Generation, names: Sequence[bytes], tail_name: str, num_filled: int) -> str:
        offer = uuid4().hex
        bt = self._block_tokens
        blocks = [OfferedBlock(*pair, bt) for pair in zip(generation.block_ids, names, strict=False)]
        if num_filled:
            blocks.append(OfferedBlock(generation.block_ids[len(names)], tail_name.encode(), num_filled))
        try:
            await all_of(shard.offer(offer, blocks) for shard in self._shards)
        except BaseException:
            # The generation fails, and what some shards offer already would never end.
            self.withdraw(offer)
            raise
        return offer

    def _landed(self, num_blocks: int) -> None:
        self._backlog -= num_blocks
