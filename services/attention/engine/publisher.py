"""What the engine gives to the store, and how much of it may be on its way."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from services.attention.engine.generation import FirstToken, Generation
from services.attention.layers.blocks import NamedBlock
from services.attention.layers.local import LayerShard, all_of
from services.attention.metrics import PUBLISHED_BLOCKS

# Copies of blocks that wait for the store. Beyond it blocks are not published, so a slow store costs reuse, not memory.
MAX_BACKLOG_BLOCKS = 128


@dataclass(frozen=True)
class Published:
    """What another replica needs to go on with a generation."""

    first: FirstToken
    block_names: Sequence[bytes]
    tail_name: str


class Publisher:
    """Publishes complete blocks as they come. Owned by the engine and used on its loop."""

    def __init__(self, shards: Sequence[LayerShard]) -> None:
        self._shards = shards
        self._backlog = 0
        self._pending: dict[Generation, list[Awaitable[object]]] = {}

    def publish(self, generation: Generation, blocks: Sequence[NamedBlock]) -> None:
        """Starts to publish blocks that were just completed; their bytes are copied now."""
        if not blocks:
            return
        if self._backlog + len(blocks) > MAX_BACKLOG_BLOCKS:
            PUBLISHED_BLOCKS.labels("backlog_full").inc(len(blocks))
            return
        self._backlog += len(blocks)
        # A shard that is lost fails the generation by itself; its publications are only missed.
        done = asyncio.gather(*(shard.publish(blocks) for shard in self._shards), return_exceptions=True)
        done.add_done_callback(lambda _: self._landed(len(blocks)))
        if generation.hand_over:
            self._pending.setdefault(generation, []).append(done)

    async def publish_rest(self, generation: Generation, first: FirstToken, block_tokens: int) -> Published:
        """Wait until everything computed of a generation is in the store; its blocks are held until then.

        Blocks that this replica's memory had already may have left the store since, so all of them are looked up.
        """
        num_blocks, num_filled = divmod(generation.num_computed, block_tokens)
        names = generation.names.upto(num_blocks, generation.token_ids)
        tail_name = uuid4().hex if num_filled else ""
        work = self._pending.pop(generation, [])
        if num_filled:
            block_id = generation.block_ids[num_blocks]
            work += [shard.publish_tail(tail_name, block_id, num_filled) for shard in self._shards]
        await all_of(work)
        if num_blocks:
            blocks = [NamedBlock(block_id, name) for block_id, name in zip(generation.block_ids, names, strict=False)]
            await all_of(shard.publish_missing(blocks) for shard in self._shards)
        return Published(first, names, tail_name)

    def forget(self, generation: Generation) -> None:
        """A generation ended: nobody waits for its publications any more."""
        self._pending.pop(generation, None)

    def _landed(self, num_blocks: int) -> None:
        self._backlog -= num_blocks
