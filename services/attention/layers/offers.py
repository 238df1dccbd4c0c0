"""Blocks that a replica holds for another one: what is offered, and the service that gives it."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import xxhash
from torch import Tensor

from protos import attention_pb2 as pb
from protos import attention_pb2_grpc
from services.attention.layers.blocks import OfferedBlock
from services.attention.layers.host_copy import HostCopy
from services.attention.metrics import HANDOFF_BYTES
from services.runtime.errors import InvalidRequest

Context = grpc.aio.ServicerContext[Any, Any]


def checksum(name: bytes, data: bytes | memoryview) -> bytes:
    """Return the digest of a block's bytes under its name."""
    digest = xxhash.xxh3_128(name)
    digest.update(data)
    return digest.digest()


class Offers:
    """The offers of one shard. They come and go on the thread that computes and are read on the service's loop.

    cache  [num_blocks, layers, block_tokens, latent_dim]
    """

    def __init__(self, cache: Tensor) -> None:
        self._cache = cache
        self._offers: dict[str, dict[bytes, OfferedBlock]] = {}

    def add(self, offer: str, blocks: Sequence[OfferedBlock]) -> None:
        """Offer blocks, which must not change before they are withdrawn."""
        self._offers[offer] = {block.name: block for block in blocks}

    def withdraw(self, offer: str) -> None:
        """Offer them no longer; from now on they may change."""
        self._offers.pop(offer, None)

    def clear(self) -> None:
        self._offers = {}

    async def read(self, offer: str, name: bytes) -> bytes | None:
        """Return the bytes of a block; None if it is not offered."""
        block = self._offers.get(offer, {}).get(name)
        if block is None:
            return None
        data = await HostCopy(self._cache[block.block_id, :, : block.num_tokens]).data()
        # If it was withdrawn meanwhile, these may be the bytes of another generation.
        return data if offer in self._offers else None


class BlockServicer(attention_pb2_grpc.BlockServiceServicer):
    """Gives offered blocks to other replicas.

    fingerprint  of the layers of this shard
    release      ends an offer on all shards of the replica; None on a further shard
    """

    def __init__(self, offers: Offers, fingerprint: bytes, release: Callable[[str], None] | None) -> None:
        self._offers = offers
        self._fingerprint = fingerprint
        self._release = release

    async def FetchBlocks(
        self, request: pb.FetchBlocksRequest, context: Context
    ) -> AsyncIterator[pb.FetchBlocksResponse]:
        if request.fingerprint != self._fingerprint:
            raise InvalidRequest("this shard has other layers, or another layout", field="fingerprint")
        for name in request.names:
            data = await self._offers.read(request.offer, name)
            if data is None:
                return
            HANDOFF_BYTES.labels("given").inc(len(data))
            yield pb.FetchBlocksResponse(data=data, checksum=checksum(name, data))

    async def ReleaseOffer(self, request: pb.ReleaseOfferRequest, context: Context) -> pb.ReleaseOfferResponse:
        if self._release is None:
            raise InvalidRequest("offers are released at shard 0", field="offer")
        self._release(request.offer)
        return pb.ReleaseOfferResponse()
