"""A gateway as far as the autoscaler sees it: a DemandService that says what the test wants."""

import asyncio
from typing import Self

import grpc.aio

from protos import demand_pb2 as pb
from protos import demand_pb2_grpc
from services.runtime.server import start_server


class Gateway(demand_pb2_grpc.DemandServiceServicer):
    """Serves while it is entered; `say` is heard at once."""

    def __init__(self) -> None:
        self.address = "127.0.0.1:0"
        self._roles: dict[str, dict[str, int]] = {}
        self._changed = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Under the same address again after a stop."""
        self._server, self.address = await start_server(
            lambda server: demand_pb2_grpc.add_DemandServiceServicer_to_server(self, server), self.address
        )

    async def stop(self) -> None:
        """Gone at once."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    def say(self, **roles: int) -> None:
        """So many requests by role; a prefill replica's are prompts of 100 tokens."""
        self._roles = {role: {"num_requests": number} for role, number in roles.items()}
        if "prefill" in roles:
            self._roles["prefill"]["num_queued_tokens"] = 100 * roles["prefill"]
        self._changed.set()
        self._changed = asyncio.Event()

    async def Watch(self, request, context):
        while True:
            changed = self._changed
            yield pb.WatchDemandResponse(roles=[pb.RoleDemand(role=role, **of) for role, of in self._roles.items()])
            try:
                async with asyncio.timeout(request.every_s):
                    await changed.wait()
            except TimeoutError:
                continue
