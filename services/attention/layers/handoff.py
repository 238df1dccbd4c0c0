"""Latent KV in the store, for hand-off, prefix-cache hits, preemption and moves between replicas."""

from collections.abc import Sequence

from services.attention.metrics import FETCHED_BLOCKS, HANDOFF_BYTES, PUBLISHED_BLOCKS
from services.runtime.blobs import BlobStore
from services.runtime.errors import StoreUnavailable

# Blocks of one round trip. A miss ends the fetch, so a larger window would read more in vain.
FETCH_WINDOW = 8


class Handoff:
    """Publishes and fetches the blocks of one shard. Lives on the service's event loop and knows no tensors.

    Losing the store is never an error: a block that cannot be published or fetched is computed again.
    """

    def __init__(self, store: BlobStore, fingerprint: bytes) -> None:
        self._store = store
        self._layout = fingerprint.hex()

    async def publish(self, blocks: Sequence[tuple[bytes, bytes]]) -> bool:
        """Store (name, bytes) pairs; False if the store is gone."""
        return await self._put({self._block_key(name): data for name, data in blocks}, len(blocks))

    async def publish_tail(self, tail_name: str, data: bytes) -> bool:
        """Store the filled part of a generation's last block under the request's own name."""
        return await self._put({self._tail_key(tail_name): data}, 1)

    async def missing(self, names: Sequence[bytes]) -> list[int] | None:
        """Return the indexes of names that the store does not have; None if it is gone."""
        try:
            known = await self._store.exists([self._block_key(name) for name in names])
        except StoreUnavailable:
            return None
        return [index for index, exists in enumerate(known) if not exists]

    async def fetch(self, names: Sequence[bytes], buffers: Sequence[memoryview]) -> int:
        """Fill the buffers with the blocks; return how many of the leading ones are there, verified."""
        count = 0
        try:
            while count < len(names):
                window = slice(count, count + FETCH_WINDOW)
                keys = [self._block_key(name) for name in names[window]]
                found = await self._store.get_into(keys, buffers[window])
                leading = found.index(False) if False in found else len(found)
                count += leading
                if leading < len(found):
                    break
        except StoreUnavailable:
            FETCHED_BLOCKS.labels("store_unavailable").inc()
            return count
        FETCHED_BLOCKS.labels("found").inc(count)
        FETCHED_BLOCKS.labels("missing").inc(len(names) - count)
        HANDOFF_BYTES.labels("fetched").inc(sum(len(buffer) for buffer in buffers[:count]))
        return count

    async def fetch_tail(self, tail_name: str) -> bytes | bytearray | None:
        """Return the filled part of a last block and delete it, since it is of use once; None if it is not there."""
        key = self._tail_key(tail_name)
        try:
            (data,) = await self._store.get([key])
            await self._store.delete([key])
        except StoreUnavailable:
            FETCHED_BLOCKS.labels("store_unavailable").inc()
            return None
        FETCHED_BLOCKS.labels("missing" if data is None else "found").inc()
        HANDOFF_BYTES.labels("fetched").inc(len(data or b""))
        return data

    async def _put(self, items: dict[str, bytes], num_blocks: int) -> bool:
        try:
            await self._store.put(items)
        except StoreUnavailable:
            PUBLISHED_BLOCKS.labels("store_unavailable").inc(num_blocks)
            return False
        PUBLISHED_BLOCKS.labels("stored").inc(num_blocks)
        HANDOFF_BYTES.labels("published").inc(sum(len(data) for data in items.values()))
        return True

    def _block_key(self, name: bytes) -> str:
        return f"kv/{self._layout}/{name.hex()}"

    def _tail_key(self, tail_name: str) -> str:
        return f"tail/{self._layout}/{tail_name}"
