"""Blocks from another replica, for a hand-off that the store does not hold."""

import asyncio
import logging
from collections.abc import Sequence

from protos import attention_pb2 as pb
from protos.attention_pb2_grpc import BlockServiceStub
from services.attention.layers.offers import checksum
from services.attention.metrics import FETCHED_BLOCKS, HANDOFF_BYTES
from services.runtime.channels import open_channel
from services.runtime.errors import MoonshardError
from services.runtime.tls import TlsFiles

log = logging.getLogger(__name__)

SILENCE_S = 10.0  # between two blocks
RELEASE_S = 5.0


class Peers:
    """Fetches the blocks of one shard. Lives on the service's event loop and knows no tensors.

    Losing a peer is never an error: what does not arrive, or arrives damaged, is computed again.
    """

    def __init__(self, fingerprint: bytes, tls: TlsFiles | None) -> None:
        self._fingerprint = fingerprint
        self._tls = tls

    async def fetch(self, source: str, offer: str, names: Sequence[bytes], buffers: Sequence[memoryview]) -> int:
        """Fill the buffers with the blocks; return how many of the leading ones are there, verified."""
        count = 0
        try:
            async with open_channel(source, tls=self._tls) as channel:
                request = pb.FetchBlocksRequest(fingerprint=self._fingerprint, offer=offer, names=names)
                blocks = aiter(BlockServiceStub(channel).FetchBlocks(request))
                for name, buffer in zip(names, buffers, strict=True):
                    async with asyncio.timeout(SILENCE_S):
                        block = await anext(blocks)
                    if len(block.data) != len(buffer) or block.checksum != checksum(name, block.data):
                        log.warning("a block from %s is damaged", source)
                        break
                    buffer[:] = block.data
                    count += 1
        except (MoonshardError, TimeoutError, StopAsyncIteration) as error:
            log.warning("%s gave %d of %d blocks: %s", source, count, len(names), error or type(error).__name__)
        FETCHED_BLOCKS.labels("from_peer").inc(count)
        FETCHED_BLOCKS.labels("missing").inc(len(names) - count)
        HANDOFF_BYTES.labels("taken").inc(sum(map(len, buffers[:count])))
        return count

    async def release(self, source: str, offer: str) -> None:
        """Let a replica free the blocks of an offer; if it cannot be reached, it does so after a while by itself."""
        try:
            async with open_channel(source, tls=self._tls) as channel:
                await BlockServiceStub(channel).ReleaseOffer(pb.ReleaseOfferRequest(offer=offer), timeout=RELEASE_S)
        except MoonshardError as error:
            log.warning("%s cannot release an offer: %s", source, error)
