"""The parts of one attention process, and how they start and stop."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from services.attention.constraint.requests import Constraints
from services.attention.engine.engine import Engine
from services.attention.engine.store_room import StoreRoom
from services.attention.experts.experts import Experts
from services.attention.layers.offers import BlockServicer
from services.attention.layers.remote import RemoteLayers
from services.attention.layers.service import LayerServicer, LayerWorker
from services.attention.requests import ReplicaLimits
from services.runtime.blobs import BlobStore

SHARD_CHECK_S = 0.05


@dataclass(frozen=True)
class EngineReplica:
    """Shard 0: the engine, and what its service needs to know."""

    engine: Engine
    constraints: Constraints
    limits: ReplicaLimits
    experts: Experts
    further: list[RemoteLayers]
    block_servicer: BlockServicer
    room: StoreRoom
    store: BlobStore | None

    async def open(self, timeout_s: float | None) -> None:
        """Start the thread and connect it to experts and further shards, each within `timeout_s`; None: no limit."""
        await self.room.open()
        self.engine.start()
        await self.engine.run(self.experts.open())
        for shard in self.further:
            await self.engine.run(shard.open(timeout_s))

    async def serving(self) -> AsyncIterator[bool]:
        """Yield whether every further shard is connected, as it changes."""
        able = True
        while True:
            await asyncio.sleep(SHARD_CHECK_S)
            if able != all(shard.is_connected for shard in self.further):
                able = not able
                yield able

    async def close(self) -> None:
        for shard in self.further:
            await self.engine.run(shard.close())
        await self.engine.run(self.experts.close())
        await asyncio.to_thread(self.engine.stop, 10.0)
        await self.constraints.close()
        await self.room.close()
        if self.store is not None:
            await self.store.close()


@dataclass(frozen=True)
class FurtherShard:
    """Shard 1, 2, ...: layers that an engine elsewhere drives."""

    servicer: LayerServicer
    worker: LayerWorker
    experts: Experts
    block_servicer: BlockServicer
    store: BlobStore | None

    async def open(self) -> None:
        self.worker.start()
        await self.worker.run(self.experts.open)

    async def drain(self, grace_s: float) -> None:
        """End the engine's stream."""
        await self.servicer.drain()
        await self.servicer.wire.stop(grace_s)

    async def close(self) -> None:
        await self.worker.run(self.experts.close)
        await asyncio.to_thread(self.worker.stop)
        if self.store is not None:
            await self.store.close()
