"""The health service for probes and callers (grpc.health.v1)."""

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.errors import NotFound

Status = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):
    """One state for the process and all its services. The metrics port answers whether it is alive.

    grpcio's own servicer never ends watchers, so a server with a watcher would stop only at the end of its grace.
    """

    def __init__(self, services: Collection[str]) -> None:
        self._services = {"", *services}
        self._serving = False
        self._draining = False
        self._closed = False
        self._changed = asyncio.Condition()

    async def set(self, serving: bool) -> None:
        """Set whether the process serves; at first it does not. No effect after `drain`."""
        self._serving = serving and not self._draining
        async with self._changed:
            self._changed.notify_all()

    async def drain(self) -> None:
        """Report NOT_SERVING from now on."""
        self._draining = True
        await self.set(False)

    async def close(self) -> None:
        """End the stream of every watcher."""
        self._closed = True
        await self.drain()

    async def Check(self, request: Any, context: Any) -> Any:
        if request.service not in self._services:
            raise NotFound(f"no service {request.service!r} here")
        return self._status(request)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        while not self._closed:
            sent = self._serving
            yield self._status(request)
            async with self._changed:
                await self._changed.wait_for(lambda: self._closed or self._serving != sent)  # noqa: B023
        yield self._status(request)

    def _status(self, request: Any) -> Any:
        if request.service not in self._services:
            return Status(status=Status.SERVICE_UNKNOWN)
        return Status(status=Status.SERVING if self._serving else Status.NOT_SERVING)
