"""Moves blocks of one shard's cache to and from the store and other replicas."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from services.attention.layers.blocks import NamedBlock, OfferedBlock
from services.attention.layers.handoff import Handoff
from services.attention.layers.host_copy import HostCopy
from services.attention.layers.offers import Offers
from services.attention.layers.peers import Peers
from services.model.device import landing, to_device

# Blocks that are fetched at a time: it bounds the memory where they land before they go to a GPU.
WINDOW = 64

T = TypeVar("T")
Fetch = Callable[[Sequence[bytes], Sequence[memoryview]], Coroutine[Any, Any, int]]
"""Fills buffers with the blocks of these names; returns how many of the leading ones are there."""


class CachedBlocks:
    """The part of `LayerShard` that moves blocks. Used on the loop that computes; the service's loop does the I/O.

    cache    [num_blocks, layers, block_tokens, latent_dim], on the device that computes
    handoff  to the store; None: there is none
    """

    def __init__(
        self, cache: Tensor, handoff: Handoff | None, peers: Peers, io_loop: asyncio.AbstractEventLoop
    ) -> None:
        self.offers = Offers(cache)
        self._cache = cache
        self._handoff = handoff
        self._peers = peers
        self._io_loop = io_loop

    def publish(self, blocks: Sequence[NamedBlock]) -> Awaitable[bool]:
        if self._handoff is None:
            return _done(False)
        copies = [(block.name, HostCopy(self._cache[block.block_id])) for block in blocks]
        return self._on_io_loop(self._publish(self._handoff, copies))

    async def publish_missing(self, blocks: Sequence[NamedBlock]) -> bool:
        if self._handoff is None:
            return False
        missing = await self._on_io_loop(self._handoff.missing([block.name for block in blocks]))
        if missing is None:
            return False
        return not missing or await self.publish([blocks[index] for index in missing])

    def publish_tail(self, tail_name: str, block_id: int, num_tokens: int) -> Awaitable[bool]:
        if self._handoff is None:
            return _done(False)
        filled = HostCopy(self._cache[block_id, :, :num_tokens])
        return self._on_io_loop(self._publish_tail(self._handoff, tail_name, filled))

    async def fetch(self, blocks: Sequence[NamedBlock]) -> int:
        if self._handoff is None:
            return 0
        places = [self._cache[block.block_id] for block in blocks]
        return await self._fill([block.name for block in blocks], places, self._handoff.fetch)

    async def fetch_tail(self, tail_name: str, block_id: int, num_tokens: int) -> bool:
        if self._handoff is None:
            return False
        data = await self._on_io_loop(self._handoff.fetch_tail(tail_name))
        place = self._cache[block_id, :, :num_tokens]
        if data is None or len(data) != place.numel() * place.element_size():
            return False
        place.copy_(to_device(torch.frombuffer(bytearray(data), dtype=place.dtype), place.device).view(place.shape))
        return True

    def offer(self, offer: str, blocks: Sequence[OfferedBlock]) -> Awaitable[bool]:
        self.offers.add(offer, blocks)
        return _done(True)

    def withdraw(self, offer: str) -> None:
        self.offers.withdraw(offer)

    async def fetch_offered(self, source: str, offer: str, blocks: Sequence[OfferedBlock]) -> int:
        places = [self._cache[block.block_id, :, : block.num_tokens] for block in blocks]
        fetch = partial(self._peers.fetch, source, offer)
        return await self._fill([block.name for block in blocks], places, fetch)

    async def release(self, source: str, offer: str) -> None:
        """Let another replica free the blocks of an offer. Of shard 0 alone."""
        await self._on_io_loop(self._peers.release(source, offer))

    async def _fill(self, names: Sequence[bytes], places: Sequence[Tensor], fetch: Fetch) -> int:
        """Let `fetch` fill the places, as many of the leading ones as it can; return how many."""
        count = 0
        while count < len(places):
            window = slice(count, count + WINDOW)
            found = await self._fill_window(names[window], places[window], fetch)
            count += found
            if found < len(places[window]):
                break
        return count

    async def _fill_window(self, names: Sequence[bytes], places: Sequence[Tensor], fetch: Fetch) -> int:
        # Contiguous memory of the host is written in place. numpy has no bf16, so all tensors are seen as bytes.
        direct = [place.is_cpu and place.is_contiguous() for place in places]
        landings = [place if here else landing(place) for place, here in zip(places, direct, strict=True)]
        in_bytes = [landed.view(torch.uint8).flatten() for landed in landings]
        buffers = [memoryview(cast(Any, landed.numpy())) for landed in in_bytes]
        count = await self._on_io_loop(fetch(names, buffers))
        for place, landed, here in zip(places[:count], landings, direct, strict=False):
            if not here:
                place.copy_(landed, non_blocking=True)
        return count

    @staticmethod
    async def _publish(handoff: Handoff, copies: Sequence[tuple[bytes, HostCopy]]) -> bool:
        return await handoff.publish([(name, await copy.data()) for name, copy in copies])

    @staticmethod
    async def _publish_tail(handoff: Handoff, tail_name: str, filled: HostCopy) -> bool:
        return await handoff.publish_tail(tail_name, await filled.data())

    def _on_io_loop(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._io_loop))


def _done(result: bool) -> Awaitable[bool]:
    done = asyncio.get_running_loop().create_future()
    done.set_result(result)
    return done
