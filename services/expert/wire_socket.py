"""The hot wire without gRPC: length-prefixed frames over a Unix socket on one machine, over TCP between machines.

One blocking thread a connection: a wake-up by `recv` costs half of one through an event loop (DECISIONS.md).
"""

import asyncio
import errno
import hmac
import logging
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.expert.compute import Compute
from services.expert.metrics import STREAMS
from services.runtime.errors import WireError
from services.wire.frames import Buffer, num_bytes
from services.wire.native_shard import End
from services.wire.stream import INTRODUCTION, FrameReader, keep_alive, with_length

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 64
MAX_STRANGERS: Final = 16  # connections that have not introduced themselves yet
INTRODUCTION_S: Final = 2.0
SOCKET_BYTES: Final = 1 << 20

Place = Path | tuple[str, int]


class WireSocket:
    """Listen at a place and answer every connection's frames in their order. Owned by the process's event loop.

    place  path of a Unix socket, which only this user can open; or host and port, 0: any free one
    token  over TCP a caller has to say it first; Describe tells it over the control stream
    """

    def __init__(self, place: Place, compute: Compute, token: bytes = b"") -> None:
        self._place = place
        self._compute = compute
        self._token = token
        self._is_unix = isinstance(place, Path)
        family = _family(place)
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._strangers: set[socket.socket] = set()

    @property
    def port(self) -> int:
        """The port over TCP, once it has started; 0 for a Unix socket."""
        return 0 if self._is_unix else int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Begin to listen. A socket file left by a process that was killed is replaced."""
        if isinstance(self._place, Path):
            self._place.unlink(missing_ok=True)
            self._listener.bind(str(self._place))
        else:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(self._place)
        self._listener.listen()
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def stop(self, grace_s: float) -> None:
        """Answer the frames that have arrived, then end every connection; callers repeat later frames elsewhere."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        if isinstance(self._place, Path):
            self._place.unlink(missing_ok=True)
        threads = list(self._connections.values())
        for connection in list(self._connections):
            # The thread reads what is there and then finds the end of the stream.
            _shut_down(connection, socket.SHUT_RD)
        await asyncio.gather(*(asyncio.to_thread(thread.join, grace_s) for thread in threads))
        for connection, thread in list(self._connections.items()):
            if thread.is_alive():
                log.warning("a stream did not end in time", extra={"grace_s": grace_s})
                _shut_down(connection, socket.SHUT_RDWR)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Too many open files, or the caller is gone again: neither is a reason to stop listening.
            log.warning("a caller could not be accepted", extra={"reason": error.strerror})
            return
        if len(self._connections) >= MAX_CONNECTIONS or len(self._strangers) >= MAX_STRANGERS:
            log.warning("a caller was turned away", extra={"num_connections": len(self._connections)})
            connection.close()
            return
        connection.setblocking(True)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._serve, args=(connection, loop), name="wire", daemon=True)
        self._connections[connection] = thread
        if not self._is_unix:
            keep_alive(connection)
            self._strangers.add(connection)
        thread.start()

    def _serve(self, connection: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        try:
            if not self._is_unix and not self._is_introduced(connection, loop):
                log.warning("a caller without the token of this replica was turned away")
                return
            with STREAMS.labels("unix" if self._is_unix else "tcp").track_inprogress():
                if self._compute.native is None:
                    self._answer(connection)
                elif (end := self._compute.native.serve(connection.fileno())) is not End.CLOSED:
                    log.info("a stream ended", extra={"reason": end.name.lower()})
        except WireError as error:
            log.warning("a stream made no sense", extra={"reason": error.message})
        except OSError as error:
            log.info("a caller is gone", extra={"reason": errno.errorcode.get(error.errno or 0, str(error))})
        finally:
            loop.call_soon_threadsafe(self._forget, connection)

    def _is_introduced(self, connection: socket.socket, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether the caller knows the token. It has two seconds to say so."""
        expected = INTRODUCTION + self._token
        connection.settimeout(INTRODUCTION_S)
        try:
            said = b""
            while len(said) < len(expected) and (more := connection.recv(len(expected) - len(said))):
                said += more
        except TimeoutError:
            return False
        if not hmac.compare_digest(said, expected):
            return False
        connection.settimeout(None)
        connection.sendall(INTRODUCTION)
        loop.call_soon_threadsafe(self._strangers.discard, connection)
        return True

    def _answer(self, connection: socket.socket) -> None:
        frames = FrameReader()
        while num_received := connection.recv_into(frames.space()):
            for frame in frames.advance(num_received):
                _send(connection, with_length(self._compute.answer(frame)))

    def _forget(self, connection: socket.socket) -> None:
        self._strangers.discard(connection)
        del self._connections[connection]
        connection.close()


def _family(place: Place) -> socket.AddressFamily:
    if isinstance(place, Path):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in place[0] else socket.AF_INET


def _send(connection: socket.socket, parts: Sequence[Buffer]) -> None:
    num_sent = connection.sendmsg(parts)
    if num_sent < num_bytes(parts):
        # A signal or a full socket cut it short.
        connection.sendall(b"".join(parts)[num_sent:])


def _shut_down(connection: socket.socket, how: int) -> None:
    try:
        connection.shutdown(how)
    except OSError:
        # The caller has already closed it.
        return
