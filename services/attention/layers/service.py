"""A further shard's side of the stream from the engine."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import torch
import uvloop

from protos import attention_pb2 as pb
from services.attention.layers import frames as wire
from services.attention.layers.frames import FrameKind, LayerFrame
from services.attention.layers.local import LocalLayers
from services.attention.layers.wire import LayerWire
from services.runtime.errors import MoonshardError, WireError
from services.wire.async_link import AsyncLink
from services.wire.listener import Place

log = logging.getLogger(__name__)


class LayerWorker:
    """The thread that runs the shard's layers, with an event loop of its own. Frames start in order."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="layers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def run(self, work: Callable[[], Awaitable[Any]]) -> "asyncio.Future[Any]":
        """Run a coroutine on the thread; the future belongs to the caller's loop."""

        async def call() -> Any:
            try:
                return await work()
            except MoonshardError:
                raise
            except Exception:
                log.exception("a frame failed")
                raise MoonshardError("internal error in a layer shard") from None

        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call(), self._loop))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        with torch.inference_mode():
            self._loop.run_forever()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


class LayerServicer:
    """Serves one engine at a time, the newest one. The blocks of the shard belong to that engine.

    places  where it may come in beside gRPC
    seals   frames over TCP are sealed
    """

    def __init__(
        self,
        layers: LocalLayers,
        worker: LayerWorker,
        hello: bytes,
        dtype: torch.dtype,
        hidden_size: int,
        places: Sequence[Place] = (),
        *,
        seals: bool = False,
    ) -> None:
        self.wire = LayerWire(places, self.serve_link, seals=seals)
        self._layers = layers
        self._worker = worker
        self._hello = hello
        self._dtype = dtype
        self._hidden_size = hidden_size
        _, self._num_blocks, self._block_tokens, _, _ = wire.HELLO.unpack(hello)
        self._working: set[asyncio.Task[None]] = set()
        self._engine = 0  # a count of engines; the last one is served
        self._answers: set[asyncio.Queue[bytes | None]] = set()

    def handler(self) -> Any:
        """Return the handler of LayerService. Frames are their own format, so there are no serialisers."""
        methods: dict[str, Any] = {
            "Run": grpc.stream_stream_rpc_method_handler(self.run),
            "Introduce": grpc.unary_unary_rpc_method_handler(
                self.wire.introduce, response_serializer=pb.WireOffer.SerializeToString
            ),
        }
        return grpc.method_handlers_generic_handler("moonshard.v1.LayerService", methods)

    async def serve_link(self, link: AsyncLink) -> None:
        """Serve one engine's link to its end, as `run` does."""
        try:
            async for answer in self.run(_frames(link)):
                await link.send(answer)
        except MoonshardError as error:
            log.info("the link of an engine ended", extra={"reason": error.message})
        finally:
            link.close()

    async def run(
        self, requests: AsyncIterator[bytes], _context: "grpc.aio.ServicerContext[bytes, bytes] | None" = None
    ) -> AsyncIterator[bytes]:
        """Serve one engine's stream: HELLO first, then frames, each answered once, in any order."""
        data = await anext(requests, None)
        if data is None:
            return
        refusal = self._refusal(data)
        if refusal:
            yield wire.frame(FrameKind.FAILED, 0, refusal.encode())
            return
        # Only now: a caller that is silent or refused leaves the engine that is served alone.
        self._engine += 1
        engine = self._engine
        # Frames of the engine before may still write into blocks that belong to the new one now.
        await asyncio.gather(*self._working, return_exceptions=True)
        await self._worker.run(self._forget_engine)
        yield wire.frame(FrameKind.HELLO, 0)
        answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._answers.add(answers)
        reader = asyncio.create_task(self._read(requests, answers, engine))
        try:
            while (answer := await answers.get()) is not None:
                yield answer
        finally:
            reader.cancel()
            self._answers.discard(answers)

    async def drain(self) -> None:
        """End the stream, so that the engine gives its generations back to their callers."""
        for answers in self._answers:
            answers.put_nowait(None)

    async def _read(self, requests: AsyncIterator[bytes], answers: "asyncio.Queue[bytes | None]", engine: int) -> None:
        try:
            async for data in requests:
                if engine != self._engine:
                    break
                task = asyncio.create_task(self._answer(LayerFrame.from_bytes(data), answers))
                self._working.add(task)
                task.add_done_callback(self._working.discard)
        finally:
            answers.put_nowait(None)

    async def _answer(self, request: LayerFrame, answers: "asyncio.Queue[bytes | None]") -> None:
        try:
            body = await self._worker.run(lambda: self._serve(request))
            answers.put_nowait(wire.frame(request.kind, request.call, body))
        except MoonshardError as error:
            answers.put_nowait(wire.frame(FrameKind.FAILED, request.call, str(error).encode()))

    async def _forget_engine(self) -> None:
        self._layers.offers.clear()
        self._layers.forget_prompts()

    async def _serve(self, request: LayerFrame) -> bytes:
        if request.kind == FrameKind.FORWARD:
            step, micro_batch, batch, hidden = wire.unpack_forward(request.body, self._dtype, self._hidden_size)
            return wire.pack_hidden(await self._layers.forward(step, micro_batch, batch, hidden))
        if request.kind in {FrameKind.OFFER, FrameKind.WITHDRAW, FrameKind.FETCH_OFFERED}:
            return wire.RESULT.pack(await self._exchange(request))
        return wire.RESULT.pack(await self._move(request))

    async def _exchange(self, request: LayerFrame) -> int:
        offer, blocks, source = wire.unpack_offer(request.body, self._num_blocks, self._block_tokens)
        if request.kind == FrameKind.OFFER:
            return await self._layers.offer(offer, blocks)
        if request.kind == FrameKind.FETCH_OFFERED:
            return await self._layers.fetch_offered(source, offer, blocks)
        self._layers.withdraw(offer)
        return 1

    async def _move(self, request: LayerFrame) -> int:
        if request.kind in {FrameKind.PUBLISH_TAIL, FrameKind.FETCH_TAIL}:
            tail = wire.unpack_tail(request.body, self._num_blocks, self._block_tokens)
            if request.kind == FrameKind.PUBLISH_TAIL:
                return await self._layers.publish_tail(*tail)
            return await self._layers.fetch_tail(*tail)
        blocks = wire.unpack_blocks(request.body, self._num_blocks)
        if request.kind == FrameKind.PUBLISH:
            return await self._layers.publish(blocks)
        if request.kind == FrameKind.PUBLISH_MISSING:
            return await self._layers.publish_missing(blocks)
        if request.kind == FrameKind.FETCH:
            return await self._layers.fetch(blocks)
        raise WireError(f"{request.kind.name} is not a request")

    def _refusal(self, data: bytes) -> str:
        """Return why an engine with this first frame cannot be served; empty: it can."""
        try:
            first = LayerFrame.from_bytes(data)
        except WireError as error:
            return error.message
        if first.kind != FrameKind.HELLO or len(first.body) != wire.HELLO.size:
            return "a stream begins with HELLO"
        (_, num_blocks, *theirs), (_, _, *ours) = wire.HELLO.unpack(first.body), wire.HELLO.unpack(self._hello)
        if num_blocks > self._num_blocks:
            return (
                f"the engine has {num_blocks} blocks, this shard has room for {self._num_blocks}: "
                "set MOONSHARD_NUM_BLOCKS of all shards to one number"
            )
        names = ("block_tokens", "bytes of a number", "checkpoint, layers or layout")
        differing = [name for name, a, b in zip(names, theirs, ours, strict=True) if a != b]
        return f"engine and shard differ in {', '.join(differing)}" if differing else ""


async def _frames(link: AsyncLink) -> AsyncIterator[bytes]:
    while (frame := await link.receive()) is not None:
        yield frame
