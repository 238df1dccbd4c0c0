"""Links in native code: frames over a connected socket, plain or sealed, or through memory that two processes share."""

import ctypes
import enum
import fcntl
import os
import socket
from typing import Final, Self

from services.runtime.errors import WireError
from services.wire.frames import Buffer
from services.wire.library import LIBRARY

_PAGE_BYTES: Final = 4096
_RING_BYTES: Final = 1 << 22  # one direction; a frame of up to half of it is read where it lies
KEY_BYTES: Final = 32


class Result(enum.IntEnum):
    """How waiting for a frame ended; the values of link.h."""

    READY = 0
    AGAIN = 1
    ENDED = 2  # between two frames
    GONE = 3
    TOO_LARGE = 4
    FORGED = 5


class Room(enum.IntEnum):
    """Whether what was queued is sent; the values of links.cpp."""

    BROKEN = 0
    SENT = 1
    WHEN_WRITABLE = 2
    WHEN_READABLE = 3


class NativeLink:
    """One connection. The socket stays its owner's to close, after `close`."""

    def __init__(self, link: int | None, name: str) -> None:
        assert LIBRARY is not None
        if not link:
            raise WireError(f"no {name} link is possible on this connection")
        self._library = LIBRARY
        self._link: int | None = link

    @classmethod
    def stream(cls, sock: socket.socket) -> Self:
        """Frames behind their length."""
        assert LIBRARY is not None
        return cls(LIBRARY.wire_link_stream(sock.fileno()), "stream")

    @classmethod
    def ring(cls, sock: socket.socket, memory: int, *, is_shard: bool) -> Self:
        """Frames through `memory`, which may be closed after this. WireError where it is not two rings."""
        assert LIBRARY is not None
        return cls(LIBRARY.wire_link_ring(sock.fileno(), memory, is_shard), "shared memory")

    @classmethod
    def sealed(cls, sock: socket.socket, send_key: bytes, receive_key: bytes) -> Self:
        """Frames behind their length, authenticated and encrypted. WireError without libcrypto."""
        assert LIBRARY is not None
        assert len(send_key) == len(receive_key) == KEY_BYTES
        return cls(LIBRARY.wire_link_sealed(sock.fileno(), send_key, receive_key), "sealed")

    def release(self) -> int:
        """Give the native link away: its new owner ends it."""
        assert self._link is not None
        link, self._link = self._link, None
        return link

    @property
    def address(self) -> int:
        """The native link, for native code that uses it while this object lives."""
        assert self._link is not None
        return self._link

    def receive(self) -> bytes | None:
        """Wait for a frame; None at the end. WireError for a frame that is too large or does not open."""
        return self._receive(wait=True)[1]

    def receive_now(self) -> tuple[bool, bytes | None]:
        """Return whether there is a frame, or the end, and the frame. Else the socket becomes readable with more."""
        return self._receive(wait=False)

    def queue(self, frame: bytes) -> None:
        """Add a frame to those that `flush` sends. It must be kept until all is sent."""
        self._library.wire_link_queue(self._link, frame, len(frame))

    def flush(self) -> Room:
        """Send what there is room for."""
        return Room(self._library.wire_link_flush(self._link))

    def _receive(self, *, wait: bool) -> tuple[bool, bytes | None]:
        found, size = ctypes.c_void_p(), ctypes.c_size_t()
        result = Result(self._library.wire_link_receive(self._link, wait, ctypes.byref(found), ctypes.byref(size)))
        if result is Result.READY:
            return True, ctypes.string_at(found.value or 0, size.value)
        if result in (Result.TOO_LARGE, Result.FORGED):
            raise WireError(f"a frame is {result.name.lower().replace('_', ' ')}")
        return result is not Result.AGAIN, None

    def send(self, frame: Buffer) -> bool:
        """Send a frame; False if the connection broke."""
        content = bytes(frame)
        return bool(self._library.wire_link_send(self._link, content, len(content)))

    def stop(self) -> None:
        """Have the frames that arrived answered, and then the link end. From any thread."""
        if self._link is not None:
            self._library.wire_link_stop(self._link)

    def close(self) -> None:
        """Free the native link, if it is still ours."""
        if self._link is not None:
            self._library.wire_link_delete(self.release())


def create_ring_memory() -> int:
    """Return a descriptor of memory for two rings, sealed: neither process can shrink it under the other."""
    memory = os.memfd_create("moonshard-wire", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, _PAGE_BYTES + 2 * _RING_BYTES)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(memory)
        raise
    return memory


def cipher_path() -> str | None:
    """Return the file of the libcrypto that seals frames; None: there is none, or no native wire."""
    path = LIBRARY.wire_cipher_path() if LIBRARY is not None else None
    return path.decode() if path else None
