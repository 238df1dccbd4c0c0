"""Frames in a stream of bytes, each behind its length: for transports without message borders."""

import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from services.runtime.errors import WireError
from services.wire.frames import MAX_FRAME_BYTES, Buffer, num_bytes

_LENGTH: Final = struct.Struct("<I")
_CHUNK_BYTES: Final = 1 << 18


def with_length(frame: Sequence[Buffer]) -> list[Buffer]:
    """The parts of a frame behind its length, u32 little endian."""
    return [_LENGTH.pack(num_bytes(frame)), *frame]


def keep_alive(connection: socket.socket) -> None:
    """Options of a TCP connection: no delay of small frames, and a peer whose host is gone is noticed within 20 s."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)


class FrameReader:
    """Cut received bytes into frames. Used by one connection: fill `space()`, then call `advance` with the length.

    Small frames are copied out of one buffer; a large frame is received in place. Each frame owns its memory.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._chunk = memoryview(bytearray(_CHUNK_BYTES))
        self._begin = 0
        self._end = 0
        self._large: memoryview | None = None
        self._num_filled = 0

    def space(self) -> memoryview:
        """Buffer for the next bytes; never empty."""
        if self._large is not None:
            return self._large[self._num_filled :]
        if self._begin == self._end:
            self._begin = self._end = 0
        elif self._end == _CHUNK_BYTES:
            rest = bytes(self._chunk[self._begin : self._end])
            self._begin, self._end = 0, len(rest)
            self._chunk[: self._end] = rest
        return self._chunk[self._end :]

    def advance(self, num_received: int) -> Iterator[Buffer]:
        """The frames that are complete now. WireError for one that is larger than any frame may be."""
        if self._large is not None:
            self._num_filled += num_received
            if self._num_filled == len(self._large):
                yield self._large
                self._large = None
            return
        self._end += num_received
        while self._end - self._begin >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._chunk, self._begin)
            if length > self._max_frame_bytes:
                raise WireError(f"a frame announces {length} bytes, at most {self._max_frame_bytes} are allowed")
            body = self._begin + _LENGTH.size
            if body + length <= self._end:
                self._begin = body + length
                yield bytes(self._chunk[body : self._begin])
            elif _LENGTH.size + length > _CHUNK_BYTES:
                self._start_large(length, body)
                return
            else:
                return

    def _start_large(self, length: int, body: int) -> None:
        # Not a bytearray, which would be filled with zeros first.
        self._large = np.empty(length, dtype=np.uint8).data
        self._num_filled = self._end - body
        self._large[: self._num_filled] = self._chunk[body : self._end]
        self._begin = self._end = 0
