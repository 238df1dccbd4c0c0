"""Transports of frames to one expert replica and back in Python: a gRPC stream, or a socket (Unix, TCP)."""

import asyncio
import itertools
import select
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc

from services.runtime.errors import MoonshardError, WireError
from services.wire.frames import Buffer
from services.wire.stream import FrameReader, with_length

if TYPE_CHECKING:
    from services.attention.experts.in_flight import Call

_PARTS_A_CALL: Final = 64  # Linux takes at most 1024 in one sendmsg
_PATIENCE_MS: Final = 1  # how long a full socket may take to have room again before the rest is left to the loop

OnFrame = Callable[[Buffer], None]
OnLost = Callable[[str], None]


class Transport(Protocol):
    """One open stream. Calls `on_frame` for every answer and `on_lost`, once, when it breaks; neither from `send`.

    Owned by one replica and used on the loop that opened it.
    """

    def send(self, call: "Call") -> None:
        """Send a call's frame at once; the rest of one that does not fit into the socket follows when there is room."""

    def close(self) -> None:
        """End the stream; no callback is called after it."""


class GrpcTransport:
    """One call of ExpertService.Dispatch, raw bytes both ways."""

    def __init__(self, stream: "grpc.aio.StreamStreamCall[bytes, bytes]", on_frame: OnFrame, on_lost: OnLost) -> None:
        self._stream = stream
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._backlog: deque[bytes] = deque()
        self._writing = False
        self._reader = asyncio.get_running_loop().create_task(self._read())

    def send(self, call: "Call") -> None:
        self._backlog.append(b"".join(call.frame()))
        if not self._writing:
            self._writing = True
            self._resume(self._write())

    def close(self) -> None:
        self._reader.cancel()
        self._stream.cancel()

    async def _write(self) -> None:
        try:
            while self._backlog:
                await self._stream.write(self._backlog.popleft())
            self._writing = False
        except MoonshardError:
            # The reader fails as well and reports it.
            self._backlog.clear()

    def _resume(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine until it waits.

        A task would begin in the loop's next pass, after the caller's own computation, which should overlap with this.
        """
        try:
            future: asyncio.Future[Any] = work.send(None)
        except (StopIteration, asyncio.CancelledError):
            return
        # As a task does, so that the future accepts its awaiter.
        future._asyncio_future_blocking = False
        future.add_done_callback(lambda _: self._resume(work))

    async def _read(self) -> None:
        try:
            while isinstance(frame := await self._stream.read(), bytes):  # else it is grpc.aio.EOF
                self._on_frame(frame)
            reason = "it ended the stream"
        except MoonshardError as error:
            reason = error.message
        self._on_lost(reason)


class SocketTransport:
    """A connected socket with length-prefixed frames, read and written by the loop itself: no other thread."""

    def __init__(self, sock: socket.socket, on_frame: OnFrame, on_lost: OnLost) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._frames = FrameReader()
        self._backlog: deque[memoryview] = deque()
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._loop.add_reader(sock, self._read)

    def send(self, call: "Call") -> None:
        idle = not self._backlog
        self._backlog.extend(memoryview(part) for part in with_length(call.frame()))
        if idle and self._open:
            self._write(_PATIENCE_MS)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()

    def _write(self, patience_ms: int = 0) -> None:
        while self._backlog:
            try:
                parts = list(itertools.islice(self._backlog, _PARTS_A_CALL))
                self._drop(self._sock.sendmsg(parts))
            except BlockingIOError:
                # The replica reads in a thread of its own, so room comes quickly unless it is computing.
                if patience_ms and _writable(self._sock, patience_ms):
                    continue
                self._loop.add_writer(self._sock, self._write)
                return
            except OSError as error:
                self._backlog.clear()
                self._loop.call_soon(self._lose, f"sending failed: {error.strerror}")
                return
        if not patience_ms:
            self._loop.remove_writer(self._sock)

    def _drop(self, num_sent: int) -> None:
        while num_sent:
            part = self._backlog.popleft()
            if num_sent < len(part):
                self._backlog.appendleft(part[num_sent:])
                return
            num_sent -= len(part)

    def _read(self) -> None:
        try:
            num_received = self._sock.recv_into(self._frames.space())
            if num_received == 0:
                self._lose("it closed the connection")
                return
            for frame in self._frames.advance(num_received):
                # An answer that makes no sense closes the stream; what follows it does not count.
                if self._open:
                    self._on_frame(frame)
        except BlockingIOError:
            return
        except (OSError, WireError) as error:
            self._lose(f"receiving failed: {error}")

    def _lose(self, reason: str) -> None:
        if self._open:
            self.close()
            self._on_lost(reason)


def _writable(sock: socket.socket, patience_ms: int) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(patience_ms))
