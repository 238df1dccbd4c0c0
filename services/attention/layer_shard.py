"""A contiguous range of layers with its latent KV, as the engine sees it: in this process, or in another."""

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from services.attention.batch import Batch
from services.attention.dispatch import Experts
from services.attention.handoff import Handoff
from services.attention.layers import forward_layers
from services.attention.roster import NamedBlock
from services.attention.weights import LayerWeights
from services.model.config import TextConfig

T = TypeVar("T")


class LayerShard(Protocol):
    """What the engine asks of every shard of its replica, itself included. Used on the engine's loop only.

    The methods that are no coroutines take what they need before they return, so the blocks may change afterwards.
    """

    async def forward(self, step: int, micro_batch: int, batch: Batch, hidden: Tensor) -> Tensor:
        """Runs the shard's layers on hidden [tokens, hidden_size] and writes the batch's latent KV."""

    def publish(self, blocks: Sequence[NamedBlock]) -> Awaitable[bool]:
        """Stores complete blocks."""

    async def publish_missing(self, blocks: Sequence[NamedBlock]) -> bool:
        """Stores those blocks that the store has lost; the caller holds them until this is done."""

    def publish_tail(self, tail_name: str, block_id: int, num_tokens: int) -> Awaitable[bool]:
        """Stores the first num_tokens of a block under the request's own name."""

    async def fetch(self, blocks: Sequence[NamedBlock]) -> int:
        """Fills blocks from the store; returns how many of the leading ones were there."""

    async def fetch_tail(self, tail_name: str, block_id: int, num_tokens: int) -> bool:
        """Fills the beginning of a block from the store."""

    @property
    def is_connected(self) -> bool:
        """Whether it can be used now. While it cannot, generations wait; their callers may go elsewhere meanwhile."""

    def take_loss(self) -> bool:
        """True once after the shard has lost its latent KV."""


class LocalLayers:
    """The layers of this process. Owns the latent KV: [num_blocks, layers, block_tokens, latent_dim]."""

    def __init__(
        self,
        config: TextConfig,
        layers: Sequence[LayerWeights],
        cache: Tensor,
        experts: Experts,
        latent_norm_eps: float,
        handoff: Handoff | None,
        io_loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._config = config
        self._layers = layers
        self._cache = cache
        # numpy has no bf16, so blocks are seen as bytes: [num_blocks, bytes of a block].
        self._bytes = cache.view(torch.uint8).flatten(1).numpy()
        self._experts = experts
        self._latent_norm_eps = latent_norm_eps
        self._handoff = handoff
        self._io_loop = io_loop

    async def forward(self, step: int, micro_batch: int, batch: Batch, hidden: Tensor) -> Tensor:
        return await forward_layers(
            hidden,
            batch,
            self._layers,
            self._cache,
            self._config,
            self._experts,
            step=step,
            micro_batch=micro_batch,
            latent_norm_eps=self._latent_norm_eps,
        )

    def publish(self, blocks: Sequence[NamedBlock]) -> Awaitable[bool]:
        if self._handoff is None:
            return _nothing_done()
        copies = [(block.name, self._bytes[block.block_id].tobytes()) for block in blocks]
        return self._on_io_loop(self._handoff.publish(copies))

    async def publish_missing(self, blocks: Sequence[NamedBlock]) -> bool:
        if self._handoff is None:
            return False
        missing = await self._on_io_loop(self._handoff.missing([block.name for block in blocks]))
        return not missing or await self.publish([blocks[index] for index in missing])

    def publish_tail(self, tail_name: str, block_id: int, num_tokens: int) -> Awaitable[bool]:
        if self._handoff is None:
            return _nothing_done()
        filled = self._cache[block_id, :, :num_tokens].contiguous().view(torch.uint8).numpy().tobytes()
        return self._on_io_loop(self._handoff.publish_tail(tail_name, filled))

    async def fetch(self, blocks: Sequence[NamedBlock]) -> int:
        if self._handoff is None:
            return 0
        buffers = [memoryview(self._bytes[block.block_id]) for block in blocks]
        return await self._on_io_loop(self._handoff.fetch([block.name for block in blocks], buffers))

    async def fetch_tail(self, tail_name: str, block_id: int, num_tokens: int) -> bool:
        if self._handoff is None:
            return False
        data = await self._on_io_loop(self._handoff.fetch_tail(tail_name))
        place = self._cache[block_id, :, :num_tokens]
        if data is None or len(data) != place.numel() * place.element_size():
            return False
        place.copy_(torch.frombuffer(bytearray(data), dtype=place.dtype).view(place.shape))
        return True

    @property
    def is_connected(self) -> bool:
        return True

    def take_loss(self) -> bool:
        return False

    def _on_io_loop(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._io_loop))


def _nothing_done() -> Awaitable[bool]:
    done = asyncio.get_running_loop().create_future()
    done.set_result(False)
    return done


async def all_of(work: Iterable[Awaitable[T]]) -> list[T]:
    """Results of all, after every one has ended; the first error if there is one."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast(list[T], results)
