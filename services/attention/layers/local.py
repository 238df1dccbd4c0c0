"""A contiguous range of layers with its latent KV, as the engine sees it: in this process, or in another."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from services.attention.experts.experts import Experts
from services.attention.layers.batch import Batch
from services.attention.layers.blocks import NamedBlock
from services.attention.layers.cuda_graphs import Layers, StepGraphs, without_waiting
from services.attention.layers.formulas import forward_layers
from services.attention.layers.handoff import Handoff
from services.attention.layers.host_copy import HostCopy
from services.attention.layers.weights import LayerWeights
from services.checkpoint.config import TextConfig
from services.model.device import landing, to_device

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
    """The layers of this process. Owns the latent KV, on the device that computes.

    cache   [num_blocks, layers, block_tokens, latent_dim]; one block more where steps are recorded. In FP8 the last
            dimension is bytes (`kernels/reference/latent_fp8.py`)
    graphs  makes the recorded steps from the layers; None: every step is launched anew
    """

    def __init__(
        self,
        config: TextConfig,
        layers: Sequence[LayerWeights],
        cache: Tensor,
        experts: Experts,
        latent_norm_eps: float,
        handoff: Handoff | None,
        io_loop: asyncio.AbstractEventLoop,
        graphs: Callable[[Layers], StepGraphs] | None = None,
    ) -> None:
        self._config = config
        self._layers = layers
        self._cache = cache
        self._experts = experts
        self._latent_norm_eps = latent_norm_eps
        self._handoff = handoff
        self._io_loop = io_loop
        self._graphs = None if graphs is None else graphs(lambda *inputs: without_waiting(self._launch(0, 0, *inputs)))

    async def forward(self, step: int, micro_batch: int, batch: Batch, hidden: Tensor) -> Tensor:
        hidden = to_device(hidden, self._cache.device)
        if self._graphs is not None and (replayed := self._graphs.run(batch, hidden)) is not None:
            return replayed
        return await self._launch(step, micro_batch, batch.to(self._cache.device), hidden)

    async def _launch(self, step: int, micro_batch: int, batch: Batch, hidden: Tensor) -> Tensor:
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
        copies = [(block.name, HostCopy(self._cache[block.block_id])) for block in blocks]
        return self._on_io_loop(self._publish(self._handoff, copies))

    async def publish_missing(self, blocks: Sequence[NamedBlock]) -> bool:
        if self._handoff is None:
            return False
        missing = await self._on_io_loop(self._handoff.missing([block.name for block in blocks]))
        return not missing or await self.publish([blocks[index] for index in missing])

    def publish_tail(self, tail_name: str, block_id: int, num_tokens: int) -> Awaitable[bool]:
        if self._handoff is None:
            return _nothing_done()
        filled = HostCopy(self._cache[block_id, :, :num_tokens])
        return self._on_io_loop(self._publish_tail(self._handoff, tail_name, filled))

    async def fetch(self, blocks: Sequence[NamedBlock]) -> int:
        if self._handoff is None:
            return 0
        # numpy has no bf16, so blocks are seen as bytes.
        places = [self._cache[block.block_id].view(torch.uint8).flatten() for block in blocks]
        on_host = [place if place.is_cpu else landing(place) for place in places]
        buffers = [memoryview(cast(Any, bytes_of_block.numpy())) for bytes_of_block in on_host]
        count = await self._on_io_loop(self._handoff.fetch([block.name for block in blocks], buffers))
        for place, landed in zip(places[:count], on_host, strict=False):
            if place is not landed:
                place.copy_(landed, non_blocking=True)
        return count

    async def fetch_tail(self, tail_name: str, block_id: int, num_tokens: int) -> bool:
        if self._handoff is None:
            return False
        data = await self._on_io_loop(self._handoff.fetch_tail(tail_name))
        place = self._cache[block_id, :, :num_tokens]
        if data is None or len(data) != place.numel() * place.element_size():
            return False
        place.copy_(to_device(torch.frombuffer(bytearray(data), dtype=place.dtype), place.device).view(place.shape))
        return True

    @property
    def is_connected(self) -> bool:
        return True

    def take_loss(self) -> bool:
        return False

    @staticmethod
    async def _publish(handoff: Handoff, copies: Sequence[tuple[bytes, HostCopy]]) -> bool:
        return await handoff.publish([(name, await copy.data()) for name, copy in copies])

    @staticmethod
    async def _publish_tail(handoff: Handoff, tail_name: str, filled: HostCopy) -> bool:
        return await handoff.publish_tail(tail_name, await filled.data())

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
