"""The wire without gRPC, for callers on the same node: length-prefixed frames over a Unix socket.

One blocking thread a connection: a wake-up by `recv` costs half of one through an event loop (DECISIONS.md).
"""

import asyncio
import errno
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
from services.wire.stream import FrameReader, with_length

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 64
SOCKET_BYTES: Final = 1 << 20


class RawSocket:
    """Listen at a path and answer every connection's frames in their order. Owned by the process's event loop."""

    def __init__(self, path: Path, compute: Compute) -> None:
        self._path = path
        self._compute = compute
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connections: dict[socket.socket, threading.Thread] = {}

    def start(self) -> None:
        """Begin to listen. A socket file left by a process that was killed is replaced."""
        self._path.unlink(missing_ok=True)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def stop(self, grace_s: float) -> None:
        """Answer the frames that have arrived, then end every connection; callers repeat later frames elsewhere."""
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)
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
        if len(self._connections) >= MAX_CONNECTIONS:
            log.warning("a caller was turned away", extra={"num_connections": len(self._connections)})
            connection.close()
            return
        connection.setblocking(True)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._serve, args=(connection, loop), name="raw-stream", daemon=True)
        self._connections[connection] = thread
        thread.start()

    def _serve(self, connection: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        try:
            with STREAMS.labels("unix").track_inprogress():
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

    def _answer(self, connection: socket.socket) -> None:
        frames = FrameReader()
        while num_received := connection.recv_into(frames.space()):
            for frame in frames.advance(num_received):
                _send(connection, with_length(self._compute.answer(frame)))

    def _forget(self, connection: socket.socket) -> None:
        del self._connections[connection]
        connection.close()


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
