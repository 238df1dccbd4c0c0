"""A connection to a shard beside gRPC: chosen, opened, introduced, and made into a link."""

import asyncio
import os
import socket
from collections.abc import Container
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol

from services.runtime.errors import Unavailable
from services.wire.introduction import ANSWER, Hello, LinkKind, pack_hello
from services.wire.links import KEY_BYTES, NativeLink, cipher_path, create_ring_memory
from services.wire.stream import keep_alive

TransportName = Literal["auto", "shared", "unix", "tcp", "grpc"]
AUTOMATIC: Final[tuple[TransportName, ...]] = ("shared", "unix", "tcp", "grpc")  # the fastest first
SOCKET_BYTES: Final = 1 << 20  # the system may allow less


class WireOffer(Protocol):
    """What a shard says about itself over gRPC to a caller that asked to be introduced."""

    @property
    def raw_socket(self) -> str:
        """Path of a Unix socket; empty: none."""

    @property
    def wire_port(self) -> int:
        """TCP port at its host; 0: none."""

    @property
    def wire_token(self) -> bytes: ...

    @property
    def wire_key(self) -> bytes:
        """Seals frames over TCP; empty without TLS."""


class WireConnection(NamedTuple):
    """A socket whose next bytes are frames. link: None where there is no native code."""

    sock: socket.socket
    link: NativeLink | None


def choose_transport(
    wanted: TransportName, offer: WireOffer, *, tls: bool, native: bool, failed: Container[TransportName] = ()
) -> TransportName | None:
    """Return the transport to a shard: the wanted one, or for auto the fastest that did not fail; None: not offered.

    tls     frames over TCP must be sealed
    native  there is native code here
    """
    is_near = bool(offer.raw_socket) and (wanted != "auto" or Path(offer.raw_socket).is_socket())
    can_seal = bool(offer.wire_key) and native and cipher_path() is not None
    offered = {
        "shared": is_near and native,
        "unix": is_near,
        "tcp": bool(offer.wire_port) and (not tls or can_seal),
        "grpc": True,
    }
    if wanted == "auto":
        return next(name for name in AUTOMATIC if offered[name] and (name == "grpc" or name not in failed))
    return wanted if offered[wanted] else None


async def connect_wire(address: str, offer: WireOffer, transport: TransportName, *, native: bool) -> WireConnection:
    """Connect to a shard over `shared`, `unix` or `tcp` with the token of its offer.

    address  its address for gRPC; over TCP the wire is at the same host
    native   make a link, which `shared` and an offer with a key need

    OSError or Unavailable when it cannot be reached, or does not accept the token.
    """
    kind = LinkKind.RING if transport == "shared" else LinkKind.SEALED if offer.wire_key else LinkKind.STREAM
    if transport == "unix":
        kind = LinkKind.STREAM
    family, place = await _tcp_place(address, offer.wire_port) if transport == "tcp" else _unix_place(offer)
    with ExitStack() as undo:
        sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        if transport == "tcp":
            keep_alive(sock)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, place)
        hello = pack_hello(Hello(kind, offer.wire_token))
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
                link = NativeLink.sealed(sock, offer.wire_key[:KEY_BYTES], offer.wire_key[KEY_BYTES:])
            elif native:
                link = NativeLink.stream(sock)
        if link is not None:
            undo.callback(link.close)
        if await loop.sock_recv(sock, len(ANSWER)) != ANSWER:
            raise Unavailable(f"{place}: it does not know its own token")
        undo.pop_all()
        return WireConnection(sock, link)


def _unix_place(offer: WireOffer) -> tuple[int, Any]:
    return socket.AF_UNIX, offer.raw_socket


async def _tcp_place(address: str, port: int) -> tuple[int, Any]:
    # A replica that listens on a Unix socket is on this machine.
    host = "127.0.0.1" if address.startswith("unix:") else address.rpartition(":")[0].strip("[]")
    loop = asyncio.get_running_loop()
    family, _, _, _, place = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    return family, place
