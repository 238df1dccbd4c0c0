"""Connections beside gRPC: shared memory and a Unix socket on one machine, TCP between machines.

One blocking thread a connection: a wake-up by `recv` costs half of one through an event loop.
"""

import asyncio
import errno
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.runtime.errors import WireError
from services.wire.introduction import ANSWER, LinkKind, close_all, is_own_user, receive_hello
from services.wire.introductions import Introductions
from services.wire.library import LIBRARY
from services.wire.links import KEY_BYTES, NativeLink
from services.wire.stream import keep_alive

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 64
MAX_STRANGERS: Final = 16  # connections that have not introduced themselves yet
INTRODUCTION_S: Final = 2.0
SOCKET_BYTES: Final = 1 << 20

Place = Path | tuple[str, int]
# Serves one connection to its end, on a thread of its own: its socket, its link (None without native code), and its
# carrier's name in metrics.
Serve = Callable[[socket.socket, NativeLink | None, str], None]


@dataclass
class _Connection:
    """link  None until it is introduced, and where there is no native code"""

    thread: threading.Thread
    link: NativeLink | None = None
    is_known: bool = False


class WireListener:
    """Listen at a place and have every introduced connection served. Owned by the process's event loop.

    place          path of a Unix socket, for processes of this user; or host and port, 0: any free one
    introductions  a caller has to say one of their tokens first
    seals          frames over TCP must be sealed
    """

    def __init__(self, place: Place, serve: Serve, introductions: Introductions, *, seals: bool = False) -> None:
        self._place = place
        self._serve_link = serve
        self._introductions = introductions
        self._is_unix = isinstance(place, Path)
        self._kinds = (
            {LinkKind.STREAM, LinkKind.RING} if self._is_unix else {LinkKind.SEALED if seals else LinkKind.STREAM}
        )
        family = _family(place)
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._connections: dict[socket.socket, _Connection] = {}

    @property
    def port(self) -> int:
        """The port over TCP, once it has started; 0 for a Unix socket."""
        return 0 if self._is_unix else int(self._listener.getsockname()[1])

    @property
    def path(self) -> str:
        """The path of a Unix socket; empty over TCP."""
        return str(self._place) if self._is_unix else ""

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
        connections = list(self._connections.items())
        for sock, connection in connections:
            # The thread answers what is there and then finds the end.
            if connection.link is not None:
                connection.link.stop()
            else:
                _shut_down(sock, socket.SHUT_RD)
        await asyncio.gather(*(asyncio.to_thread(connection.thread.join, grace_s) for _, connection in connections))
        for sock, connection in list(self._connections.items()):
            if connection.thread.is_alive():
                log.warning("a stream did not end in time", extra={"grace_s": grace_s})
                _shut_down(sock, socket.SHUT_RDWR)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Too many open files, or the caller is gone again: neither is a reason to stop listening.
            log.warning("a caller could not be accepted", extra={"reason": error.strerror})
            return
        num_strangers = sum(not known.is_known for known in self._connections.values())
        if len(self._connections) >= MAX_CONNECTIONS or num_strangers >= MAX_STRANGERS:
            log.warning("a caller was turned away", extra={"num_connections": len(self._connections)})
            connection.close()
            return
        connection.setblocking(True)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        if not self._is_unix:
            keep_alive(connection)
        loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._serve, args=(connection, loop), name="wire", daemon=True)
        self._connections[connection] = _Connection(thread)
        thread.start()

    def _serve(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        connection = self._connections[sock]
        try:
            kind = self._introduce(sock, connection)
            self._serve_link(sock, connection.link, self._carrier(kind))
        except WireError as error:
            log.warning("a stream was ended", extra={"reason": error.message})
        except OSError as error:
            log.info("a caller is gone", extra={"reason": errno.errorcode.get(error.errno or 0, str(error))})
        finally:
            loop.call_soon_threadsafe(self._forget, sock)

    def _introduce(self, sock: socket.socket, connection: _Connection) -> LinkKind:
        """Make the link of a caller that says a token within two seconds. WireError: it is turned away."""
        if self._is_unix and not is_own_user(sock, os.getuid()):
            raise WireError("a process of another user was turned away")
        hello, descriptors = receive_hello(sock, INTRODUCTION_S)
        try:
            key = self._introductions.redeem(hello.token)
            if key is None:
                raise WireError("a caller without a token of this replica was turned away")
            if hello.kind not in self._kinds:
                raise WireError(f"a caller asked for a {hello.kind.name} link, which this place does not have")
            connection.link = _open_link(sock, hello.kind, descriptors, key)
        finally:
            close_all(descriptors)
        connection.is_known = True
        sock.settimeout(None)
        sock.sendall(ANSWER)
        return hello.kind

    def _carrier(self, kind: LinkKind) -> str:
        """The name in metrics."""
        over_socket = "unix" if self._is_unix else "tcp"
        return {LinkKind.RING: "shared", LinkKind.SEALED: "sealed"}.get(kind, over_socket)

    def _forget(self, sock: socket.socket) -> None:
        link = self._connections.pop(sock).link
        if link is not None:
            link.close()
        sock.close()


def _open_link(sock: socket.socket, kind: LinkKind, descriptors: Sequence[int], key: bytes) -> NativeLink | None:
    """The link of an introduced caller; None without native code."""
    if LIBRARY is None:
        if kind is not LinkKind.STREAM:
            raise WireError(f"there is no native wire here for a {kind.name} link")
        return None
    if kind is LinkKind.RING:
        if not descriptors:
            raise WireError("an introduction came without its memory")
        return NativeLink.ring(sock, descriptors[0], is_shard=True)
    if kind is LinkKind.SEALED:
        return NativeLink.sealed(sock, key[KEY_BYTES:], key[:KEY_BYTES])
    return NativeLink.stream(sock)


def _family(place: Place) -> socket.AddressFamily:
    if isinstance(place, Path):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in place[0] else socket.AF_INET


def _shut_down(connection: socket.socket, how: int) -> None:
    try:
        connection.shutdown(how)
    except OSError:
        # The caller has already closed it.
        return
