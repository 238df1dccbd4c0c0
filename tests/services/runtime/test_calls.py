"""Calls of all four kinds, through `open_channel` and `start_server`: errors, deadlines, cancellation, metadata."""

import asyncio
import json
import logging

import grpc.aio
import pytest
from grpc._cython.cygrpc import ExecuteBatchError
from prometheus_client import REGISTRY

from services.runtime.channels import call_metadata, open_channel
from services.runtime.errors import (
    DeadlineExceeded,
    InvalidRequest,
    KvMissing,
    MoonshardError,
    NumericError,
    Overloaded,
    Unavailable,
    WireError,
)
from services.runtime.logs import JsonFormatter
from services.runtime.server import start_server
from tests.services.runtime.probe import KINDS, SERVICE, Probe, converse
from tests.waiting import until

WAIT_S = 10.0


async def act(message: bytes) -> None:
    match message:
        case b"kv-missing":
            raise KvMissing("3 of 7 KV blocks are gone", retry_after_s=0.5)
        case b"invalid":
            raise InvalidRequest("no such role", field="messages[0].\N{CRESCENT MOON}")
        case b"long":
            raise InvalidRequest("\N{CRESCENT MOON}" * 100_000, field="\N{CRESCENT MOON}" * 100_000)
        case b"nan":
            raise NumericError("logits of layer 3 are NaN")
        case b"no-reply":
            raise ExecuteBatchError("the client has left")
        case b"defect":
            raise KeyError("hunter2")
        case b"inner-cancel":
            task = asyncio.create_task(asyncio.sleep(60))
            task.cancel()
            await task
        case b"sleep":
            await asyncio.sleep(60)


@pytest.fixture(params=["tcp", "unix"])
async def peer(request, socket_folder):
    probe = Probe(act)
    listen = "127.0.0.1:0" if request.param == "tcp" else f"unix:{socket_folder}/deeper/p.sock"
    server, address = await start_server(probe.add_to, listen)
    async with open_channel(address) as channel:
        yield probe, channel
    await server.stop(None)


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("size", [0, 1, 100, 9 << 20], ids=lambda size: f"{size}-bytes")
async def test_messages_of_any_size_pass(peer, kind, size):
    message = bytes(size)
    assert await converse(peer[1], kind, message, timeout=WAIT_S) == message


@every_kind
async def test_an_error_arrives_as_the_class_that_was_raised(peer, kind):
    with pytest.raises(KvMissing, match="3 of 7 KV blocks are gone") as raised:
        await converse(peer[1], kind, b"kv-missing")
    assert raised.value.retry_after_s == 0.5
    with pytest.raises(InvalidRequest) as raised:
        await converse(peer[1], kind, b"invalid")
    assert raised.value.field == "messages[0].\N{CRESCENT MOON}"


@every_kind
async def test_an_endless_message_is_cut(peer, kind):
    with pytest.raises(InvalidRequest) as raised:
        await converse(peer[1], kind, b"long")
    assert 100 < len(raised.value.message) < 1000
    assert len(raised.value.field) == 200


@every_kind
async def test_a_defect_shows_nothing_of_itself_but_is_logged(peer, kind, caplog):
    with pytest.raises(MoonshardError) as raised:
        await converse(peer[1], kind, b"defect", metadata=call_metadata("r-7"))
    assert type(raised.value) is MoonshardError
    assert raised.value.message == "internal error"
    (record,) = [record for record in caplog.records if record.exc_info]
    line = json.loads(JsonFormatter("test").format(record))
    assert (line["level"], line["request_id"]) == ("error", "r-7")
    assert "KeyError: 'hunter2'" in line["stack"]


@every_kind
async def test_an_error_of_ours_on_the_server_is_logged_and_sent(peer, kind, caplog):
    with pytest.raises(NumericError, match="layer 3"):
        await converse(peer[1], kind, b"nan")
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]


@every_kind
async def test_a_handler_whose_helper_was_cancelled_still_answers(peer, kind):
    with pytest.raises(Unavailable, match="was cancelled"):
        await converse(peer[1], kind, b"inner-cancel", timeout=WAIT_S)


@every_kind
async def test_a_deadline_ends_both_sides(peer, kind):
    probe, channel = peer
    with pytest.raises(DeadlineExceeded):
        await converse(channel, kind, b"sleep", timeout=0.2)
    assert await asyncio.wait_for(probe.left.get(), WAIT_S) == kind


@every_kind
async def test_a_client_that_leaves_ends_the_handler(peer, kind):
    probe, channel = peer
    caller = asyncio.create_task(converse(channel, kind, b"sleep"))
    await asyncio.sleep(0.2)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert await asyncio.wait_for(probe.left.get(), WAIT_S) == kind


@pytest.mark.parametrize("kind", ["unary_stream", "stream_stream"])
async def test_a_handler_that_stands_at_a_yield_is_closed_when_the_client_leaves(peer, kind):
    probe, channel = peer
    # The answer exceeds the flow-control window and is never read, so the handler waits.
    start = getattr(channel, kind)(f"/{SERVICE}/{kind}")
    call = start(bytes(8 << 20)) if kind == "unary_stream" else start()
    if kind == "stream_stream":
        await call.write(bytes(8 << 20))
    await asyncio.sleep(0.3)
    call.cancel()
    assert await asyncio.wait_for(probe.left.get(), WAIT_S) == kind


async def test_our_own_cancellation_is_no_error(peer):
    call = peer[1].stream_stream(f"/{SERVICE}/stream_stream")()
    await call.write(b"one")
    assert await call.read() == b"one"
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()


async def test_a_stream_is_read_to_its_end(peer):
    call = peer[1].stream_stream(f"/{SERVICE}/stream_stream")()
    for message in (b"one", b"two"):
        await call.write(message)
    await call.done_writing()
    assert [message async for message in call] == [b"one", b"two"]
    call = peer[1].unary_stream(f"/{SERVICE}/unary_stream")(b"once")
    assert await call.read() == b"once"
    assert await call.read() is grpc.aio.EOF


async def test_an_error_after_messages_ends_the_stream(peer):
    call = peer[1].stream_stream(f"/{SERVICE}/stream_stream")()
    await call.write(b"one")
    await call.write(b"kv-missing")
    messages = aiter(call)
    assert await anext(messages) == b"one"
    with pytest.raises(KvMissing):
        await anext(messages)


async def test_writing_to_a_stream_that_ended_says_why(peer):
    call = peer[1].stream_stream(f"/{SERVICE}/stream_stream")()
    await call.write(b"kv-missing")
    with pytest.raises(KvMissing):
        await call.read()
    with pytest.raises(KvMissing, match="3 of 7"):
        await call.write(b"more")


async def test_a_refusal_arrives_while_messages_are_still_sent(peer):
    async def send():
        call = peer[1].stream_unary(f"/{SERVICE}/stream_unary")(timeout=WAIT_S)
        await call.write(b"invalid")
        for _ in range(20):
            await call.write(bytes(100_000))
        await call.done_writing()
        await call

    # Where in a write the refusal arrives is chance.
    for _ in range(5):
        outcomes = await asyncio.gather(*(send() for _ in range(20)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {InvalidRequest}


async def test_a_connection_that_breaks_while_messages_are_sent(peer, monkeypatch):
    async def never():
        await asyncio.sleep(60)

    async def at_once():
        pass

    monkeypatch.setattr("services.runtime.channels.STATUS_S", 0.1)
    call = peer[1].stream_unary(f"/{SERVICE}/stream_unary")(timeout=WAIT_S)
    await call.write(b"invalid")
    with pytest.raises(InvalidRequest):
        await call
    monkeypatch.setattr(call._call, "wait_for_connection", at_once)
    monkeypatch.setattr(call._call, "code", never)
    with pytest.raises(Unavailable, match="while a message was sent"):
        await call.write(b"more")


async def test_a_reply_that_cannot_be_sent_leaves_no_error_in_the_log(peer, caplog):
    with pytest.raises(DeadlineExceeded):
        await converse(peer[1], "unary_unary", b"no-reply", timeout=0.5)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_method_that_is_not_there(peer):
    with pytest.raises(WireError):
        await peer[1].unary_unary(f"/{SERVICE}/none")(b"")


async def test_calls_leave_a_line_and_a_figure(peer, caplog):
    caplog.set_level(logging.DEBUG, logger="server")
    method = f"/{SERVICE}/unary_unary"

    def count(code: str) -> float:
        return REGISTRY.get_sample_value("moonshard_rpc_seconds_count", {"method": method, "code": code}) or 0

    before = count("OK"), count("FAILED_PRECONDITION")
    await converse(peer[1], "unary_unary", b"a", metadata=call_metadata("r-1"))
    await converse(peer[1], "unary_unary", b"a")
    with pytest.raises(KvMissing):
        await converse(peer[1], "unary_unary", b"kv-missing")

    def lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "server"]

    # The client has its status before the server writes the line.
    await until(lambda: len(lines()) == 3)
    assert [(line.levelname, line.request_id, line.code, line.method) for line in lines()] == [
        ("INFO", "r-1", "OK", method),
        ("DEBUG", "", "OK", method),
        ("INFO", "", "FAILED_PRECONDITION", method),
    ]
    assert (count("OK"), count("FAILED_PRECONDITION")) == (before[0] + 2, before[1] + 1)
    assert REGISTRY.get_sample_value("moonshard_rpcs_running", {"method": method}) == 0


async def test_nobody_there(socket_folder):
    async with open_channel(f"unix:{socket_folder}/none.sock") as channel:
        for kind in KINDS:
            with pytest.raises(Unavailable):
                await converse(channel, kind, b"", timeout=WAIT_S)


async def test_a_server_that_stops_cuts_calls_as_unavailable(socket_folder):
    server, address = await start_server(Probe(act).add_to, f"unix:{socket_folder}/p.sock")
    async with open_channel(address) as channel:
        callers = [asyncio.create_task(converse(channel, kind, b"sleep", timeout=WAIT_S)) for kind in KINDS]
        await asyncio.sleep(0.3)
        await server.stop(None)
        ended = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(error) for error in ended] == [Unavailable] * len(KINDS)


async def test_an_overloaded_peer_is_another_error_than_none(socket_folder):
    async def refuse(message: bytes) -> None:
        raise Overloaded("64 wait", retry_after_s=1)

    server, address = await start_server(Probe(refuse).add_to, f"unix:{socket_folder}/p.sock")
    async with open_channel(address) as channel:
        with pytest.raises(Overloaded):
            await converse(channel, "unary_unary", b"")
    await server.stop(None)
