"""The server's end of a stream that carries many calls, a lane each (protos/lanes.proto)."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from protos.lanes_pb2 import LaneError
from services.runtime.errors import MAX_MESSAGE_BYTES, MoonshardError, Overloaded, Unavailable

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)
P = TypeVar("P")

MAX_LANES = 4096  # of one stream; the real bounds are those of the services


class LaneHandler(Protocol[C_contra]):
    """One call on a shared stream."""

    def take(self, command: C_contra) -> None:
        """Take the next command; the first one starts the call. A cancel comes as `close`."""

    def close(self) -> None:
        """Give the call up: its caller has cancelled it or is gone."""


class LaneServer(Generic[C, P]):
    """Serves the lanes of one stream: hands commands to the handlers of their lanes, and sends parts in batches.

    While a message is being sent, which waits for a caller that reads slowly, further parts gather for the next one.
    """

    def __init__(self, part: type[P], make_handler: Callable[[int, "LaneServer[C, P]"], LaneHandler[C]]) -> None:
        self._part = part
        self._make_handler = make_handler
        self._handlers: dict[int, LaneHandler[C]] = {}
        self._outbox: list[P] = []
        self._filled = asyncio.Event()
        self._is_draining = False

    def drain(self) -> None:
        """Open no more lanes, and end the stream when the last one is over."""
        self._is_draining = True
        self._filled.set()

    def send(self, part: P, *, is_last: bool) -> None:
        """Send a part. After a lane's last part its handler is dropped, without a call of `close`."""
        self._outbox.append(part)
        if is_last:
            self._handlers.pop(part.lane, None)  # type: ignore[attr-defined]
        self._filled.set()

    def fail(self, lane: int, error: MoonshardError) -> None:
        """Send the error that ends a lane."""
        self.send(self._part(lane=lane, error=lane_error(error)), is_last=True)  # type: ignore[call-arg]

    async def serve(self, requests: AsyncIterator[Any]) -> AsyncGenerator[Sequence[P], None]:
        """Yield the parts of each response, until the caller leaves or a drain is over. To be closed by its user."""
        reading = asyncio.create_task(self._read(requests))
        reading.add_done_callback(lambda _: self._filled.set())
        try:
            while True:
                await self._filled.wait()
                self._filled.clear()
                if self._outbox:
                    parts, self._outbox = self._outbox, []
                    yield parts
                if reading.done():
                    # The caller has closed its side: it reads to the end of its lanes, if there are any.
                    reading.result()
                    self._is_draining = True
                if self._is_draining and not self._handlers and not self._outbox:
                    return
        finally:
            reading.cancel()
            for handler in self._handlers.values():
                handler.close()
            self._handlers.clear()

    async def _read(self, requests: AsyncIterator[Any]) -> None:
        async for request in requests:
            for command in request.parts:
                self._take(command)

    def _take(self, command: Any) -> None:
        if command.HasField("cancel"):
            if (handler := self._handlers.pop(command.lane, None)) is not None:
                handler.close()
                self._filled.set()
            return
        handler = self._handlers.get(command.lane)
        if handler is None:
            if self._is_draining:
                self.fail(command.lane, Unavailable("this replica is shutting down"))
                return
            if len(self._handlers) >= MAX_LANES:
                self.fail(command.lane, Overloaded(f"{MAX_LANES} calls share this stream, which is the limit"))
                return
            handler = self._handlers[command.lane] = self._make_handler(command.lane, self)
        handler.take(command)


def lane_error(error: MoonshardError) -> LaneError:
    """Return an error for the caller, who restores it."""
    return LaneError(
        kind=type(error).__name__,
        message=error.message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore"),
        field=error.field,
        retry_after_s=error.retry_after_s,
    )


class LaneServers:
    """The open streams of one service, so that a drain reaches them all."""

    def __init__(self) -> None:
        self._open: set[LaneServer[Any, Any]] = set()
        self._is_draining = False

    @contextmanager
    def serving(self, stream: LaneServer[Any, Any]) -> Iterator[None]:
        """Count a stream while it is served. Raises Unavailable in a drain."""
        if self._is_draining:
            raise Unavailable("this replica is shutting down")
        self._open.add(stream)
        try:
            yield
        finally:
            self._open.discard(stream)

    def drain(self) -> None:
        """Let no stream and no lane begin, and each stream end with its last lane."""
        self._is_draining = True
        for stream in self._open:
            stream.drain()
