"""A link on an event loop, for protocols whose frames are answered in any order."""

import asyncio
import socket

from services.runtime.errors import Unavailable
from services.wire.links import NativeLink, Room


class AsyncLink:
    """Sends and receives frames on the loop that made it; owns the socket and the link. One task receives.

    A frame is bytes, as over gRPC.
    """

    def __init__(self, sock: socket.socket, link: NativeLink) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._kept: list[bytes] = []  # until they are sent
        self._room: asyncio.Future[None] | None = None
        self._readable: asyncio.Future[None] | None = None
        self._open = True

    async def send(self, frame: bytes) -> None:
        """Send a frame. Returns when all of it is under way; Unavailable when the connection broke.

        Not to be called again before it returns.
        """
        self._check()
        self._kept.append(frame)
        self._link.queue(frame)
        while (room := self._link.flush()) is not Room.SENT:
            if room is Room.BROKEN:
                raise Unavailable("the connection broke")
            self._room = self._loop.create_future()
            if room is Room.WHEN_WRITABLE:
                self._loop.add_writer(self._sock, self._has_room)
            await self._room
            self._check()
        self._kept.clear()

    async def receive(self) -> bytes | None:
        """Wait for a frame; None at the end. WireError for one that makes no sense."""
        while self._open:
            is_there, frame = self._link.receive_now()
            if is_there:
                return frame
            self._readable = self._loop.create_future()
            self._loop.add_reader(self._sock, _wake, self._readable)
            try:
                await self._readable
            finally:
                if self._open:
                    self._loop.remove_reader(self._sock)
            self._has_room()  # through shared memory room is heard of as frames are
        return None

    def close(self) -> None:
        """End the connection; who waits is woken."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            for waits in (self._room, self._readable):
                _wake(waits)
            self._link.close()
            self._sock.close()

    def _has_room(self) -> None:
        if self._open:
            self._loop.remove_writer(self._sock)
        _wake(self._room)

    def _check(self) -> None:
        if not self._open:
            raise Unavailable("the connection was closed")


def _wake(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)
