"""ExpertService over gRPC: the stream of raw frames, and the description of this replica."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio

from protos import expert_pb2
from services.expert.compute import Compute
from services.expert.metrics import STREAMS
from services.runtime.errors import Unavailable
from services.wire.introductions import Introductions

SERVICE: Final = expert_pb2.DESCRIPTOR.services_by_name["ExpertService"].full_name


class ExpertServicer:
    """Apply this shard's routed experts. Stateless between messages, except for the set of open streams.

    introductions  issued with descriptions, for connections beside gRPC
    seals          their frames over TCP are sealed: callers come over TLS
    """

    def __init__(
        self,
        description: expert_pb2.DescribeShardResponse,
        compute: Compute,
        introductions: Introductions,
        *,
        seals: bool = False,
    ) -> None:
        self._description = description
        self._compute = compute
        self._introductions = introductions
        self._seals = seals
        self._draining = False
        self._reading: set[asyncio.Task[None]] = set()
        self._streams: set[asyncio.Task[None]] = set()

    async def Dispatch(self, requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        """Answer frame after frame until the caller ends the stream, or this replica drains."""
        if self._draining:
            raise Unavailable("this expert replica is shutting down")
        # Metadata before the first frame say that the stream is served.
        await context.send_initial_metadata(())
        with STREAMS.labels("grpc").track_inprogress(), _Membership(self._streams):
            while (frame := await self._read(context)) is not grpc.aio.EOF:
                await context.write(b"".join(await self._compute.answer_async(frame)))

    async def Describe(
        self, request: expert_pb2.DescribeShardRequest, context: object
    ) -> expert_pb2.DescribeShardResponse:
        """Describe the experts and the checkpoint of this replica. Unavailable while it drains."""
        if self._draining:
            raise Unavailable("this expert replica is shutting down")
        if not request.introduce:
            return self._description
        answer = expert_pb2.DescribeShardResponse()
        answer.CopyFrom(self._description)
        introduction = self._introductions.issue()
        answer.wire_token = introduction.token
        # A key that travelled in the clear would seal nothing.
        answer.wire_key = introduction.key if self._seals else b""
        return answer

    async def drain(self) -> None:
        """End every stream after the current frame; callers repeat later frames elsewhere."""
        self._draining = True
        for task in self._reading:
            task.cancel()
        while self._streams:
            await asyncio.wait(self._streams)

    async def _read(self, context: "grpc.aio.ServicerContext[bytes, bytes]") -> Any:
        if self._draining:
            return grpc.aio.EOF
        with _Membership(self._reading) as task:
            try:
                return await context.read()
            except asyncio.CancelledError:
                if not self._draining:
                    raise
                task.uncancel()
                return grpc.aio.EOF


def add_expert_service(servicer: ExpertServicer, server: grpc.aio.Server) -> None:
    """Register the service, Dispatch with identity serialisers: its frames are never protobuf."""
    handlers = {
        "Dispatch": grpc.stream_stream_rpc_method_handler(servicer.Dispatch),
        "Describe": grpc.unary_unary_rpc_method_handler(
            servicer.Describe,
            request_deserializer=expert_pb2.DescribeShardRequest.FromString,
            response_serializer=expert_pb2.DescribeShardResponse.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class _Membership:
    """Membership of the current task in a set, while inside."""

    def __init__(self, tasks: "set[asyncio.Task[None]]") -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks, self._task = tasks, task

    def __enter__(self) -> "asyncio.Task[None]":
        self._tasks.add(self._task)
        return self._task

    def __exit__(self, *_: object) -> None:
        self._tasks.discard(self._task)
