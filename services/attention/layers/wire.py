"""The ways beside gRPC between an engine and its further shards, both ends."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc

from protos import attention_pb2 as pb
from services.runtime.errors import MoonshardError, Unavailable
from services.wire.async_link import AsyncLink
from services.wire.connect import TransportName, choose_transport, connect_wire
from services.wire.introductions import Introductions
from services.wire.library import LIBRARY
from services.wire.links import NativeLink
from services.wire.listener import Place, WireListener

log = logging.getLogger(__name__)

INTRODUCE: Final = "/moonshard.v1.LayerService/Introduce"
RUN: Final = "/moonshard.v1.LayerService/Run"
CONNECT_S: Final = 5.0


class LayerWire:
    """A further shard's listeners; without native code there are none. Owned by the service's event loop.

    serve  serves one engine's link to its end
    """

    def __init__(self, places: Sequence[Place], serve: Callable[[AsyncLink], Awaitable[None]], *, seals: bool) -> None:
        self._introductions = Introductions()
        self._seals = seals
        self._serve = serve
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners = [
            WireListener(place, self._serve_socket, self._introductions, seals=seals)
            for place in (places if LIBRARY is not None else ())
        ]

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        for listener in self._listeners:
            listener.start()

    async def stop(self, grace_s: float) -> None:
        await asyncio.gather(*(listener.stop(grace_s) for listener in self._listeners))

    async def introduce(self, _request: bytes, _context: object) -> pb.WireOffer:
        """Say how one engine may come in."""
        introduction = self._introductions.issue()
        return pb.WireOffer(
            raw_socket="".join(listener.path for listener in self._listeners),
            wire_port=sum(listener.port for listener in self._listeners),
            wire_token=introduction.token,
            wire_key=introduction.key if self._seals else b"",
        )

    def _serve_socket(self, sock: socket.socket, link: NativeLink | None, carrier: str) -> None:
        async def serve() -> None:
            assert link is not None
            await self._serve(AsyncLink(sock, link))

        assert self._loop is not None
        log.info("an engine came in", extra={"transport": carrier})
        asyncio.run_coroutine_threadsafe(serve(), self._loop).result()


class GrpcStream:
    """One call of LayerService.Run, with the methods of AsyncLink."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stream: Any = channel.stream_stream(RUN)()

    async def send(self, frame: bytes) -> None:
        await self._stream.write(frame)

    async def receive(self) -> bytes | None:
        frame = await self._stream.read()
        return frame if isinstance(frame, bytes) else None

    def close(self) -> None:
        self._stream.cancel()


class LayerConnector:
    """Opens an engine's streams to one further shard, each over the fastest transport that works.

    wanted  taken where the shard offers it
    """

    def __init__(self, address: str, wanted: TransportName, *, tls: bool) -> None:
        self._address = address
        self._wanted = wanted
        self._tls = tls
        self._failed: set[TransportName] = set()
        self.transport = wanted

    async def open(self, channel: grpc.aio.Channel) -> AsyncLink | GrpcStream:
        """Open a stream; Unavailable when that failed, and the next attempt takes another transport."""
        # The stubs do not know that messages are bytes where there are no serialisers.
        introduce: Any = channel.unary_unary(INTRODUCE, response_deserializer=pb.WireOffer.FromString)
        offer: pb.WireOffer = await introduce(b"", timeout=CONNECT_S)
        self.transport = transport = self._choose(offer)
        log.info("connecting to a layer shard", extra={"address": self._address, "transport": transport})
        if transport == "grpc":
            return GrpcStream(channel)
        try:
            async with asyncio.timeout(CONNECT_S):
                sock, link = await connect_wire(self._address, offer, transport, native=True)
        except (OSError, MoonshardError) as error:
            self._failed.add(transport)
            raise Unavailable(f"layer shard {self._address} over {transport}: {error}") from error
        assert link is not None
        return AsyncLink(sock, link)

    def retry_all(self) -> None:
        """A shard that comes back may offer what failed before."""
        self._failed.clear()

    def _choose(self, offer: pb.WireOffer) -> TransportName:
        if LIBRARY is None:
            return "grpc"
        for wanted in (self._wanted, "auto"):
            chosen = choose_transport(wanted, offer, tls=self._tls, native=True, failed=self._failed)
            if chosen is not None and (chosen == "grpc" or chosen not in self._failed):
                return chosen
        return "grpc"
