"""The connection to one replica of an expert shard: opened, checked, supervised, opened again."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

import grpc

from protos import expert_pb2, expert_pb2_grpc
from services.attention.experts.in_flight import Call, ShardCalls
from services.attention.experts.metrics import LIVE_REPLICAS, STREAMS
from services.attention.experts.native_wire import LinkEvents, NativeWire
from services.attention.experts.transports import GrpcTransport, SocketTransport, Transport
from services.runtime.channels import open_channel
from services.runtime.errors import CheckpointError, MoonshardError, Unavailable
from services.runtime.tls import TlsFiles
from services.wire.connect import TransportName, choose_transport, connect_wire
from services.wire.frames import Buffer

log = logging.getLogger(__name__)

CONNECT_S: Final = 5.0
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 1.0
STEADY_S: Final = 0.5  # what breaks sooner counts as a failed attempt
DISPATCH: Final = "/moonshard.v1.ExpertService/Dispatch"
SOCKET_NAMES: Final = {"shared": "shared memory", "unix": "raw Unix socket", "tcp": "wire over TCP"}


@dataclass(frozen=True)
class ShardIdentity:
    """The description that every replica of an expert shard must give, else its sums would be of another model."""

    shard: int
    num_shards: int
    expert_ids: tuple[int, ...]
    checkpoint_digest: bytes

    def check(self, address: str, found: expert_pb2.DescribeShardResponse) -> None:
        """CheckpointError when the replica at `address` is not one of this shard."""
        complaint = ""
        if (found.shard, found.num_shards) != (self.shard, self.num_shards):
            complaint = f"expected shard {self.shard} of {self.num_shards}, found {found.shard} of {found.num_shards}"
        elif tuple(found.expert_ids) != self.expert_ids:
            complaint = f"expected {_summary(self.expert_ids)}, found {_summary(found.expert_ids)}"
        elif found.checkpoint_digest != self.checkpoint_digest:
            complaint = (
                f"expected the checkpoint {self.checkpoint_digest.hex()[:16]}, "
                f"found {found.checkpoint_digest.hex()[:16]}"
            )
        if complaint:
            raise CheckpointError(f"expert replica {address}: {complaint}")


class ReplicaConnection:
    """One replica of an expert shard and its stream, used on the loop of its shard's calls only.

    calls    is notified when the stream opens, breaks, or brings an answer
    wire     native code for sockets; None: Python
    refusal  set while the peer is the wrong one
    """

    def __init__(
        self,
        address: str,
        expected: ShardIdentity,
        calls: ShardCalls,
        transport: TransportName,
        tls: TlsFiles | None = None,
        wire: NativeWire | None = None,
    ) -> None:
        self.address = address
        self.state = "is not connected yet"
        self.suspect = False
        self.in_flight: dict[int, Call] = {}
        self.refusal: CheckpointError | None = None
        self._expected = expected
        self._calls = calls
        self._wire = wire
        self.transport: TransportName = transport
        self.carrier: str = transport  # in logs and metrics: sealed is TCP with encryption
        self._wanted: TransportName = transport
        self._failed: set[TransportName] = set()
        self._tls = tls
        self._stream: Transport | None = None
        self._broken: asyncio.Future[str] | None = None

    @property
    def live(self) -> bool:
        return self._stream is not None

    def send(self, call: Call) -> None:
        assert self._stream is not None
        self._stream.send(call)

    def disconnect(self, reason: str) -> None:
        """Break the stream; `run` opens a new one."""
        if self._stream is None or self._broken is None:
            return
        self._stream.close()
        self._stream = None
        LIVE_REPLICAS.labels(self._expected.shard).dec()
        STREAMS.labels(self.carrier).dec()
        self.state = f"was lost: {reason}"
        if not self._broken.done():
            self._broken.set_result(reason)
        self._calls.on_lost(self)

    async def run(self) -> None:
        """Connect, and connect again whenever the stream breaks, until cancelled."""
        pause_s = FIRST_PAUSE_S
        try:
            while True:
                began_s = time.monotonic()
                failure = await self._attempt()
                if failure is None and time.monotonic() - began_s > STEADY_S:
                    pause_s = FIRST_PAUSE_S
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        finally:
            self.disconnect("closed here")

    async def _attempt(self) -> MoonshardError | None:
        """One connection from opening to loss; the error if it could not be opened."""
        async with AsyncExitStack() as stack:
            try:
                channel = await stack.enter_async_context(open_channel(self.address, tls=self._tls))
                self._broken = asyncio.get_running_loop().create_future()
                self._stream = await self._connect(channel)
            except MoonshardError as error:
                self._say(error)
                return error
            self.refusal = None
            self.suspect = False
            self.state = "is connected"
            stands = {"address": self.address, "shard": self._expected.shard, "transport": self.carrier}
            log.info("expert replica connected", extra=stands)
            LIVE_REPLICAS.labels(self._expected.shard).inc()
            STREAMS.labels(self.carrier).inc()
            self._calls.on_up()
            reason = await self._broken
            self._failed.clear()  # what comes back may offer what failed before
            log.warning("expert replica lost", extra={"address": self.address, "reason": reason})
            return None

    def _say(self, error: MoonshardError) -> None:
        self.refusal = error if isinstance(error, CheckpointError) else None
        if self.state != str(error):
            log.info("expert replica not there", extra={"address": self.address, "reason": str(error)})
        self.state = str(error)

    async def _connect(self, channel: grpc.aio.Channel) -> Transport:
        """An open stream to a replica whose description is right."""
        try:
            found = await expert_pb2_grpc.ExpertServiceStub(channel).Describe(
                expert_pb2.DescribeShardRequest(introduce=self._wanted != "grpc"), timeout=CONNECT_S
            )
            self._expected.check(self.address, found)
            self.transport = self._choose(found)
            self.carrier = "sealed" if self.transport == "tcp" and found.wire_key else self.transport
            if self.transport != "grpc":
                return await self._connect_socket(found)
            stream: Any = channel.stream_stream(DISPATCH)()
            # The replica answers with its metadata as soon as it serves the stream.
            async with asyncio.timeout(CONNECT_S):
                await stream.initial_metadata()
            if stream.done():
                raise Unavailable(f"{self.address} refused the stream: {await stream.details()}")
            return GrpcTransport(stream, self._take, self.disconnect)
        except TimeoutError as error:
            raise Unavailable(f"no stream within {CONNECT_S} s") from error

    def _choose(self, found: expert_pb2.DescribeShardResponse) -> TransportName:
        """The transport to this replica: as set, else the fastest that it offers and that did not fail before."""
        chosen = choose_transport(
            self._wanted, found, tls=self._tls is not None, native=self._wire is not None, failed=self._failed
        )
        if chosen is None:
            raise CheckpointError(
                f"expert replica {self.address} offers no {SOCKET_NAMES[self._wanted]}: "
                "use MOONSHARD_EXPERT_TRANSPORT=auto or grpc"
            )
        return chosen

    async def _connect_socket(self, found: expert_pb2.DescribeShardResponse) -> Transport:
        try:
            # Not wait_for, which may swallow a cancellation in Python 3.11.
            async with asyncio.timeout(CONNECT_S):
                connected = await connect_wire(self.address, found, self.transport, native=self._wire is not None)
        except (OSError, MoonshardError) as error:
            # A network policy or another pod behind the name: the next transport is used from now on.
            self._failed.add(self.transport)
            raise Unavailable(f"{SOCKET_NAMES[self.transport]}: {_words(error)}") from error
        if self._wire is None or connected.link is None:
            return SocketTransport(connected.sock, self._take, self.disconnect)
        told = LinkEvents(self._answered, self._refused, self._dropped, self.disconnect)
        return self._wire.open(connected.sock, connected.link, told)

    def _answered(self, call: Call) -> None:
        self._calls.on_answer(self, call)

    def _refused(self, call: Call, complaint: str) -> None:
        self._calls.on_refusal(self, call, complaint)

    def _dropped(self) -> None:
        self._calls.on_dropped(self)

    def _take(self, frame: Buffer) -> None:
        self._calls.on_frame(self, frame)


def _words(error: OSError | MoonshardError) -> str:
    if isinstance(error, MoonshardError):
        return error.message
    return error.strerror or str(error) or type(error).__name__


def _summary(expert_ids: Sequence[int]) -> str:
    return f"{len(expert_ids)} experts from {min(expert_ids, default=None)} to {max(expert_ids, default=None)}"
