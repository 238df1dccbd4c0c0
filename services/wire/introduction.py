"""The first bytes of a connection: who calls, by a token from the control stream, and which link follows."""

import enum
import os
import socket
import struct
import time
from typing import Final, NamedTuple

from services.runtime.errors import WireError

ANSWER: Final = b"MSHI"  # said by the shard once the caller is known
TOKEN_BYTES: Final = 32
_VERSION: Final = 2
_HELLO: Final = struct.Struct(f"<4sBB2x{TOKEN_BYTES}s")
HELLO_BYTES: Final = _HELLO.size


class LinkKind(enum.IntEnum):
    """What carries the frames behind the introduction."""

    STREAM = 0
    RING = 1  # the descriptor of its memory comes with the introduction
    SEALED = 2


class Hello(NamedTuple):
    """The words of a caller."""

    kind: LinkKind
    token: bytes


def pack_hello(hello: Hello) -> bytes:
    return _HELLO.pack(ANSWER, _VERSION, hello.kind, hello.token)


def unpack_hello(data: bytes) -> Hello:
    """WireError when it is not one of ours."""
    if len(data) != HELLO_BYTES:
        raise WireError(f"an introduction has {len(data)} bytes, expected {HELLO_BYTES}")
    magic, version, kind, token = _HELLO.unpack(data)
    if (magic, version) != (ANSWER, _VERSION) or kind not in LinkKind.__members__.values():
        raise WireError("the first bytes are no introduction of this version")
    return Hello(LinkKind(kind), token)


def is_own_user(connection: socket.socket, user: int) -> bool:
    """Whether the process at the other end of a Unix socket belongs to `user`."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return bool(struct.unpack("3i", found)[1] == user)


def receive_hello(connection: socket.socket, limit_s: float) -> tuple[Hello, list[int]]:
    """Receive an introduction and the descriptors that came with it, which are the caller's to close.

    WireError when it is not one of ours, OSError when the connection ends or the whole takes longer than `limit_s`.
    Changes the timeout of the socket.
    """
    end_s = time.monotonic() + limit_s
    said, descriptors = b"", list[int]()
    try:
        while len(said) < HELLO_BYTES:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("the introduction took too long")
            connection.settimeout(left_s)
            more, found, _, _ = socket.recv_fds(
                connection, HELLO_BYTES - len(said), 1, getattr(socket, "MSG_CMSG_CLOEXEC", 0)
            )
            descriptors += found
            if not more:
                raise ConnectionResetError("the caller left before it introduced itself")
            said += more
        return unpack_hello(said), descriptors
    except (OSError, WireError):
        close_all(descriptors)
        raise


def close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
