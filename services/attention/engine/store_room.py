"""How much of one prompt the store will hold, known before the prompt is computed."""

import asyncio
import logging

from services.runtime.blobs import BlobStore

log = logging.getLogger(__name__)

ASK_EVERY_S = 10.0
# Several prompts are on their way at a time, and one of them must not evict what others share.
SHARE = 4


class StoreRoom:
    """Asks the store from time to time. Lives on the service's loop; `num_blocks` may be read on any thread.

    block_bytes  of one block of all shards of the replica
    """

    def __init__(self, store: BlobStore | None, block_bytes: int) -> None:
        self._store = store
        self._block_bytes = block_bytes
        self._room: int | None = None if store is not None else 0
        self._watch: asyncio.Task[None] | None = None

    @property
    def num_blocks(self) -> int | None:
        """How many leading blocks of a prompt are published; later ones go to the decode replica alone. None: all."""
        return None if self._room is None else self._room // SHARE // self._block_bytes

    async def open(self) -> None:
        """Ask once, then keep asking."""
        if self._store is not None:
            self._room = await self._store.room()
            self._watch = asyncio.create_task(self._keep_asking(self._store))
            log.info("the store has room", extra={"bytes": self._room, "blocks_of_a_prompt": self.num_blocks})

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _keep_asking(self, store: BlobStore) -> None:
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            self._room = await store.room()
