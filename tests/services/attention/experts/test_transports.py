"""The choice of a transport, and callers that were not introduced."""

import asyncio
import socket
import time
from contextlib import suppress

import pytest

from services.expert.wire_socket import INTRODUCTION_S, MAX_STRANGERS
from services.runtime.errors import CheckpointError
from services.wire.frames import CallName, encode_request
from services.wire.stream import INTRODUCTION, with_length
from tests.services.attention.experts.dispatching import assert_same, connected, dispatch, opened
from tests.services.expert import serving
from tests.services.expert.serving import ServerThread, plain_sum, random_work, short_folder


async def assert_serves(experts, model, transport):
    work = random_work(model, 3)
    assert_same(await dispatch(experts, work), plain_sum(model, 2, work))
    assert [replica.transport for calls in experts._shards for replica in calls.replicas] == [transport]


async def test_the_fastest_transport_is_taken(stack, model):
    near = stack.enter_context(ServerThread(model, f"unix:{short_folder(stack)}/0", native=True))
    async with connected(model, [[near.address]], "auto") as experts:
        await assert_serves(experts, model, "unix")
    far = stack.enter_context(ServerThread(model, "127.0.0.1:0", native=True))
    async with connected(model, [[far.address]], "auto") as experts:
        await assert_serves(experts, model, "tcp")


async def test_grpc_serves_where_the_wire_cannot_be_reached(stack, model, monkeypatch):
    """As behind a network policy that does not know the port, or a name with several pods behind it."""
    server = stack.enter_context(ServerThread(model, "127.0.0.1:0"))
    for wire in server.wires:
        wire._token = b"of another process"
    async with connected(model, [[server.address]], "auto") as experts:
        await assert_serves(experts, model, "grpc")


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


@pytest.mark.parametrize("native", [False, True], ids=["python", "native"])
@pytest.mark.parametrize(
    "said",
    [
        pytest.param(INTRODUCTION + bytes(len(serving.TOKEN)), id="another-token"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: expert\r\n\r\n".ljust(64), id="http"),
        pytest.param(INTRODUCTION + serving.TOKEN[:-1], id="too-short"),
        pytest.param(b"", id="silent"),
    ],
)
def test_a_caller_that_was_not_introduced_is_never_answered(stack, model, native, said):
    server = stack.enter_context(ServerThread(model, "127.0.0.1:0", native=native))
    frame = b"".join(with_length(encode_request(CallName(1, 1, 1, 2, 0), random_work(model, 1))))
    with caller(server) as sock:
        sock.sendall(said + (frame if len(said) >= len(INTRODUCTION + serving.TOKEN) else b""))
        started = time.monotonic()
        # Or a reset, if it hung up while our bytes were unread.
        with suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        assert time.monotonic() - started < INTRODUCTION_S + 5
    assert server.compute.read_traffic().received_bytes == 0


async def test_strangers_keep_no_caller_out_for_long(stack, model):
    server = stack.enter_context(ServerThread(model, "127.0.0.1:0", native=True))
    for _ in range(MAX_STRANGERS):
        stack.enter_context(caller(server))
    with caller(server) as turned_away:
        assert await asyncio.to_thread(turned_away.recv, 1) == b""
    await asyncio.sleep(INTRODUCTION_S + 0.5)
    async with connected(model, [[server.address]], "tcp") as experts:
        await assert_serves(experts, model, "tcp")
