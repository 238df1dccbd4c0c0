"""The engine's side of a further shard, which runs its layers in another process."""

import asyncio
import logging
from collections.abc import Awaitable, Sequence

import grpc
import torch
from torch import Tensor

from services.attention.layers import frames as wire
from services.attention.layers.batch import Batch
from services.attention.layers.blocks import NamedBlock, OfferedBlock
from services.attention.layers.frames import FrameKind, LayerFrame
from services.attention.layers.wire import GrpcStream, LayerConnector
from services.runtime.channels import open_channel
from services.runtime.errors import DeadlineExceeded, MoonshardError, Unavailable, WireError
from services.runtime.tls import TlsFiles
from services.wire.async_link import AsyncLink
from services.wire.connect import TransportName

log = logging.getLogger(__name__)

RECONNECT_S = 0.2
PEER_BLOCK_S = 0.1  # more for each block that comes from another replica


class RemoteLayers:
    """A shard that this engine drives. Owned by the engine and used on its loop only.

    When the stream breaks, the shard's latent KV is lost: calls in flight fail with Unavailable, `take_loss` reports it
    once, and the shard is connected again in the background.
    """

    def __init__(
        self,
        address: str,
        hello: bytes,
        dtype: torch.dtype,
        hidden_size: int,
        deadline_s: float,
        tls: TlsFiles | None = None,
        transport: TransportName = "auto",
    ) -> None:
        self._connector = LayerConnector(address, transport, tls=tls is not None)
        self._address = address
        self._tls = tls
        self._hello = hello
        self._dtype = dtype
        self._hidden_size = hidden_size
        self._deadline_s = deadline_s
        self._calls: dict[int, asyncio.Future[memoryview]] = {}
        self._next_call = 1
        self._outgoing: asyncio.Queue[bytes] | None = None
        self._connected = asyncio.Event()
        self._was_connected = False
        self._lost = False
        self._connection: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether the stream stands. For any thread."""
        return self._connected.is_set()

    async def open(self, timeout_s: float | None) -> None:
        """Connect; Unavailable if the shard does not answer in time. None: it may load as long as it takes."""
        self._connection = asyncio.create_task(self._keep_connected())
        connected = asyncio.create_task(self._connected.wait())
        await asyncio.wait({connected, self._connection}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._connection.done():
            self._connection.result()
        if not connected.done():
            connected.cancel()
            raise Unavailable(f"shard {self._address} did not answer within {timeout_s:g} s")

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.cancel()
            await asyncio.gather(self._connection, return_exceptions=True)

    async def forward(self, step: int, micro_batch: int, batch: Batch, hidden: Tensor) -> Tensor:
        body = await self._call(FrameKind.FORWARD, wire.pack_forward(step, micro_batch, batch, hidden))
        return wire.unpack_hidden(body, self._dtype, self._hidden_size)

    def publish(self, blocks: Sequence[NamedBlock]) -> Awaitable[bool]:
        # The frame is queued before this returns, so the shard copies the blocks before it computes the next step.
        return self._truth(self._call(FrameKind.PUBLISH, wire.pack_blocks(blocks)))

    async def publish_missing(self, blocks: Sequence[NamedBlock]) -> bool:
        return await self._truth(self._call(FrameKind.PUBLISH_MISSING, wire.pack_blocks(blocks)))

    def publish_tail(self, tail_name: str, block_id: int, num_tokens: int) -> Awaitable[bool]:
        return self._truth(self._call(FrameKind.PUBLISH_TAIL, wire.pack_tail(tail_name, block_id, num_tokens)))

    async def fetch(self, blocks: Sequence[NamedBlock]) -> int:
        return self._number(await self._call(FrameKind.FETCH, wire.pack_blocks(blocks)))

    async def fetch_tail(self, tail_name: str, block_id: int, num_tokens: int) -> bool:
        return await self._truth(self._call(FrameKind.FETCH_TAIL, wire.pack_tail(tail_name, block_id, num_tokens)))

    def offer(self, offer: str, blocks: Sequence[OfferedBlock]) -> Awaitable[bool]:
        return self._truth(self._call(FrameKind.OFFER, wire.pack_offer(offer, blocks)))

    def withdraw(self, offer: str) -> None:
        # The shard takes frames in order, so it knows before it computes the next step. Its answer changes nothing.
        if self._outgoing is not None:
            self._outgoing.put_nowait(wire.frame(FrameKind.WITHDRAW, 0, wire.pack_offer(offer)))

    async def fetch_offered(self, source: str, offer: str, blocks: Sequence[OfferedBlock]) -> int:
        body = wire.pack_offer(offer, blocks, source)
        return self._number(await self._call(FrameKind.FETCH_OFFERED, body, len(blocks) * PEER_BLOCK_S))

    def take_loss(self) -> bool:
        lost, self._lost = self._lost, False
        return lost

    def _call(self, kind: FrameKind, body: bytes, more_s: float = 0.0) -> Awaitable[memoryview]:
        answer: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        # Until the engine has taken a loss it may count on latent KV that is gone, even if the shard is back already.
        if self._outgoing is None or self._lost:
            answer.set_exception(Unavailable(f"shard {self._address} is not connected"))
            return answer
        call, self._next_call = self._next_call, self._next_call + 1
        self._calls[call] = answer
        self._outgoing.put_nowait(wire.frame(kind, call, body))
        return self._bounded(answer, call, self._deadline_s + more_s)

    async def _bounded(self, answer: "asyncio.Future[memoryview]", call: int, deadline_s: float) -> memoryview:
        try:
            async with asyncio.timeout(deadline_s):
                return await answer
        except TimeoutError:
            raise DeadlineExceeded(f"shard {self._address} took more than {deadline_s:g} s") from None
        finally:
            self._calls.pop(call, None)

    async def _truth(self, answer: Awaitable[memoryview]) -> bool:
        return bool(self._number(await answer))

    @staticmethod
    def _number(body: memoryview) -> int:
        (number,) = wire.RESULT.unpack(body)
        return int(number)

    async def _keep_connected(self) -> None:
        refusal = ""
        while True:
            try:
                await self._converse()
            except (grpc.aio.AioRpcError, MoonshardError, TimeoutError) as error:
                is_refusal = isinstance(error, WireError)
                if is_refusal and not self._was_connected:
                    raise  # the shard refuses our layout, and no retry helps
                # The loss of a connection that stood and a new refusal are warnings; other failures are for debugging.
                is_news = self._connected.is_set() or (is_refusal and str(error) != refusal)
                log.log(logging.WARNING if is_news else logging.DEBUG, "shard %s: %s", self._address, error)
                refusal = str(error) if is_refusal else refusal
            finally:
                self._lose()
            await asyncio.sleep(RECONNECT_S)

    async def _converse(self) -> None:
        async with open_channel(self._address, tls=self._tls) as channel:
            stream = await self._connector.open(channel)
            try:
                await self._use(stream)
            finally:
                stream.close()

    async def _use(self, stream: AsyncLink | GrpcStream) -> None:
        await stream.send(wire.frame(FrameKind.HELLO, 0, self._hello))
        async with asyncio.timeout(self._deadline_s):
            first = await stream.receive()
        if first is None:
            raise Unavailable(f"{self._address} ended the stream")
        self._check_hello(LayerFrame.from_bytes(first))
        self._connector.retry_all()
        self._outgoing = asyncio.Queue()
        writer = asyncio.create_task(self._write(stream, self._outgoing))
        self._connected.set()
        self._was_connected = True
        try:
            while (data := await stream.receive()) is not None:
                self._take(LayerFrame.from_bytes(data))
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, stream: AsyncLink | GrpcStream, outgoing: "asyncio.Queue[bytes]") -> None:
        while True:
            await stream.send(await outgoing.get())

    def _check_hello(self, answer: LayerFrame) -> None:
        if answer.kind == FrameKind.FAILED:
            raise WireError(f"shard {self._address} refused: {bytes(answer.body).decode(errors='replace')}")
        if answer.kind != FrameKind.HELLO:
            raise WireError(f"shard {self._address} answered {answer.kind.name} to HELLO")

    def _take(self, answer: LayerFrame) -> None:
        waiting = self._calls.get(answer.call)
        if waiting is None or waiting.done():
            return
        if answer.kind == FrameKind.FAILED:
            waiting.set_exception(Unavailable(f"shard {self._address}: {bytes(answer.body).decode(errors='replace')}"))
        else:
            waiting.set_result(answer.body)

    def _lose(self) -> None:
        if self._connected.is_set():
            self._lost = True
        self._connected.clear()
        self._outgoing = None
        for waiting in self._calls.values():
            if not waiting.done():
                waiting.set_exception(Unavailable(f"shard {self._address} was lost"))
        self._calls.clear()
