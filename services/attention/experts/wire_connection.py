"""A connection to an expert replica beside gRPC: opened, introduced, and made into a link."""

import asyncio
import os
import socket
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

from protos import expert_pb2
from services.attention.experts.transports import TransportName
from services.runtime.errors import Unavailable
from services.wire.introduction import ANSWER, Hello, LinkKind, pack_hello
from services.wire.links import KEY_BYTES, NativeLink, create_ring_memory
from services.wire.stream import keep_alive

SOCKET_BYTES: Final = 1 << 20  # the system may allow less


class WireConnection(NamedTuple):
    """A socket whose next bytes are frames. link: None where there is no native code."""

    sock: socket.socket
    link: NativeLink | None


async def connect_wire(
    address: str, found: expert_pb2.DescribeShardResponse, transport: TransportName, *, native: bool
) -> WireConnection:
    """Connect to a replica over `shared`, `unix` or `tcp` with the token of its description.

    address  its address for gRPC; over TCP the wire is at the same host
    native   make a link, which `shared` and a description with a key need

    OSError or Unavailable when it cannot be reached, or does not accept the token.
    """
    kind = LinkKind.RING if transport == "shared" else LinkKind.SEALED if found.wire_key else LinkKind.STREAM
    if transport == "unix":
        kind = LinkKind.STREAM
    family, place = await _tcp_place(address, found.wire_port) if transport == "tcp" else _unix_place(found)
    with ExitStack() as undo:
        sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        if transport == "tcp":
            keep_alive(sock)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, place)
        hello = pack_hello(Hello(kind, found.wire_token))
        link: NativeLink | None = None
        if kind is LinkKind.RING:
            memory = create_ring_memory()
            try:
                # A few bytes into a new socket: this cannot block.
                socket.send_fds(sock, [hello], [memory])
                link = NativeLink.ring(sock, memory, is_shard=False)
            finally:
                os.close(memory)
        else:
            await loop.sock_sendall(sock, hello)
            if kind is LinkKind.SEALED:
                link = NativeLink.sealed(sock, found.wire_key[:KEY_BYTES], found.wire_key[KEY_BYTES:])
            elif native:
                link = NativeLink.stream(sock)
        if link is not None:
            undo.callback(link.close)
        if await loop.sock_recv(sock, len(ANSWER)) != ANSWER:
            raise Unavailable(f"{place}: the replica does not know its own token")
        undo.pop_all()
        return WireConnection(sock, link)


def _unix_place(found: expert_pb2.DescribeShardResponse) -> tuple[int, Any]:
    return socket.AF_UNIX, found.raw_socket


async def _tcp_place(address: str, port: int) -> tuple[int, Any]:
    # A replica that listens on a Unix socket is on this machine.
    host = "127.0.0.1" if address.startswith("unix:") else address.rpartition(":")[0].strip("[]")
    loop = asyncio.get_running_loop()
    family, _, _, _, place = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    return family, place
