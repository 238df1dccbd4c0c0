"""The choice of a transport, and callers that were not introduced."""

import asyncio
import os
import socket
import time
from contextlib import suppress

import pytest

from services.attention.experts import connection
from services.runtime.channels import open_channel
from services.runtime.errors import CheckpointError
from services.wire import connect, links, listener
from services.wire.frames import CallName, encode_request
from services.wire.introduction import Hello, LinkKind, pack_hello
from services.wire.introductions import Introductions
from services.wire.listener import INTRODUCTION_S, MAX_STRANGERS
from services.wire.stream import with_length
from tests.services.attention.experts.dispatching import assert_same, connected, dispatch, opened, remote
from tests.services.expert.serving import ServerThread, plain_sum, random_work, short_folder
from tests.services.runtime.certificates import Authority


async def assert_serves(experts, model, transport):
    work = random_work(model, 3)
    assert_same(await dispatch(experts, work), plain_sum(model, 2, work))
    assert [replica.transport for calls in experts._shards for replica in calls.replicas] == [transport]


async def test_the_fastest_transport_is_taken(stack, model):
    near = stack.enter_context(ServerThread(model, f"unix:{short_folder(stack)}/0", native=True))
    async with connected(model, [[near.address]], "auto") as experts:
        await assert_serves(experts, model, "shared")
    far = stack.enter_context(ServerThread(model, "127.0.0.1:0", native=True))
    async with connected(model, [[far.address]], "auto") as experts:
        await assert_serves(experts, model, "tcp")


async def test_grpc_serves_where_the_wire_cannot_be_reached(stack, model):
    """As behind a network policy that does not know the port, or a name with several pods behind it."""
    server = stack.enter_context(ServerThread(model, "127.0.0.1:0"))
    for wire in server.wires:
        wire._introductions = Introductions()
    async with connected(model, [[server.address]], "auto") as experts:
        await assert_serves(experts, model, "grpc")


@pytest.mark.parametrize("what", ["create_ring_memory", "memfd"])
async def test_a_unix_socket_serves_where_memory_cannot_be_shared(stack, model, monkeypatch, what):
    """As with a limit on memory, or a replica that cannot use what it was given."""
    server = stack.enter_context(ServerThread(model, f"unix:{short_folder(stack)}/0", native=True))
    if what == "memfd":
        monkeypatch.setattr(links, "_RING_BYTES", 5000)
    else:
        monkeypatch.setattr(os, "memfd_create", lambda *_: os.open("/nowhere", os.O_RDONLY))
    async with connected(model, [[server.address]], "auto") as experts:
        await assert_serves(experts, model, "unix")


async def test_grpc_serves_where_nothing_can_seal(stack, model, monkeypatch):
    server = stack.enter_context(ServerThread(model, "127.0.0.1:0", native=True, seals=True))
    monkeypatch.setattr(connect, "cipher_path", lambda: None)
    tls = Authority().write(short_folder(stack) / "tls")
    monkeypatch.setattr(connection, "open_channel", lambda address, tls: open_channel(address))
    experts = remote(model, [[server.address]], "auto", tls=tls)
    await experts.open()
    await assert_serves(experts, model, "grpc")
    await experts.close()


async def test_tcp_can_be_demanded_and_missing(stack, model):
    server = stack.enter_context(ServerThread(model, "127.0.0.1:0"))
    async with connected(model, [[server.address]], "tcp") as experts:
        await assert_serves(experts, model, "tcp")
    server.description.wire_port = 0
    with pytest.raises(CheckpointError, match="offers no wire over TCP"):
        async with opened(model, [[server.address]], "tcp"):
            pass


def caller(server):
    sock = socket.create_connection(("127.0.0.1", server.wires[-1].port), timeout=10)
    sock.settimeout(INTRODUCTION_S + 8)
    return sock


GOOD = Hello(LinkKind.STREAM, b"this token was issued by nobody.")


@pytest.mark.parametrize("native", [False, True], ids=["python", "native"])
@pytest.mark.parametrize(
    "said",
    [
        pytest.param(pack_hello(GOOD), id="another-token"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: expert\r\n\r\n".ljust(64), id="http"),
        pytest.param(pack_hello(GOOD)[:-1], id="too-short", marks=pytest.mark.slow),
        pytest.param(b"", id="silent", marks=pytest.mark.slow),
    ],
)
def test_a_caller_that_was_not_introduced_is_never_answered(stack, model, native, said):
    server = stack.enter_context(ServerThread(model, "127.0.0.1:0", native=native))
    frame = b"".join(with_length(encode_request(CallName(1, 1, 1, 2, 0), random_work(model, 1))))
    with caller(server) as sock:
        sock.sendall(said + (frame if len(said) >= len(pack_hello(GOOD)) else b""))
        started = time.monotonic()
        # Or a reset, if it hung up while our bytes were unread.
        with suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        assert time.monotonic() - started < INTRODUCTION_S + 5
    assert server.compute.read_traffic().received_bytes == 0


@pytest.mark.parametrize("seals, kind", [(True, LinkKind.STREAM), (False, LinkKind.SEALED), (False, LinkKind.RING)])
def test_a_caller_does_not_choose_what_protects_its_frames(stack, model, seals, kind):
    server = stack.enter_context(ServerThread(model, "127.0.0.1:0", native=True, seals=seals))
    with caller(server) as sock:
        sock.sendall(pack_hello(Hello(kind, server.introductions.issue().token)))
        assert sock.recv(1) == b""


def test_a_token_introduces_one_connection(stack, model):
    server = stack.enter_context(ServerThread(model, "127.0.0.1:0", native=True))
    hello = pack_hello(Hello(LinkKind.STREAM, server.introductions.issue().token))
    with caller(server) as first, caller(server) as second:
        first.sendall(hello)
        assert first.recv(4) == b"MSHI"
        second.sendall(hello)
        assert second.recv(4) == b""


def test_the_time_of_an_introduction_is_of_the_whole(stack, model, monkeypatch):
    monkeypatch.setattr(listener, "INTRODUCTION_S", 0.5)
    server = stack.enter_context(ServerThread(model, "127.0.0.1:0"))
    hello = pack_hello(Hello(LinkKind.STREAM, server.introductions.issue().token))
    with caller(server) as slow, pytest.raises(OSError):
        for i in range(len(hello)):
            slow.sendall(hello[i : i + 1])
            time.sleep(0.05)


@pytest.mark.slow
async def test_strangers_keep_no_caller_out_for_long(stack, model):
    server = stack.enter_context(ServerThread(model, "127.0.0.1:0", native=True))
    for _ in range(MAX_STRANGERS):
        stack.enter_context(caller(server))
    with caller(server) as turned_away:
        assert await asyncio.to_thread(turned_away.recv, 1) == b""
    await asyncio.sleep(INTRODUCTION_S + 0.5)
    async with connected(model, [[server.address]], "tcp") as experts:
        await assert_serves(experts, model, "tcp")
