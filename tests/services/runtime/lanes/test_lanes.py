"""Many calls in one stream: their order, their ends and their errors, each for itself."""

import asyncio
from contextlib import aclosing

import pytest

from protos import attention_pb2 as pb
from protos.attention_pb2_grpc import AttentionServiceStub
from services.runtime.channels import open_channel
from services.runtime.errors import (
    DeadlineExceeded,
    KvMissing,
    NumericError,
    Overloaded,
    Unavailable,
    WireError,
)
from services.runtime.lanes import caller
from services.runtime.lanes import server as lane_server
from services.runtime.lanes.server import LaneServer
from tests.services.runtime.lanes.ends import WAIT_S, begin, tokens


async def test_each_lane_gets_its_own_in_order(stream, service):
    ends = [await begin(stream, service) for _ in range(5)]
    for token in range(200):
        for number, (_, handler) in enumerate(ends):
            handler.send(1000 * number + token)
        if token % 7 == 0:
            await asyncio.sleep(0)
    for number, (lane, _) in enumerate(ends):
        assert await tokens(lane, 200) == [1000 * number + token for token in range(200)]


async def test_what_gathers_in_a_turn_is_one_message(server, service):
    async with open_channel(server.address) as channel:
        call = AttentionServiceStub(channel).Generate()
        starts = [pb.GenerationCommand(lane=lane, start=pb.GenerationStart()) for lane in range(1, 31)]
        await call.write(pb.GenerateRequest(parts=starts))
        await service.until(lambda: len(service.handlers) == 30)
        for handler in service.handlers:
            handler.send(1)
        assert len((await call.read()).parts) == 30
        call.cancel()


async def test_cancelling_one_lane_leaves_the_others(stream, service):
    (one, one_end), (other, other_end) = [await begin(stream, service) for _ in range(2)]
    one.close(is_over=False)
    await service.until(lambda: one_end.is_closed)
    one_end.send(1)  # too late: dropped
    other_end.send(2)
    assert await tokens(other, 1) == [2]
    assert not other_end.is_closed


async def test_a_lane_that_is_over_is_not_cancelled(stream, service):
    lane, end = await begin(stream, service)
    end.send(1, last=True)
    assert await tokens(lane, 1) == [1]
    lane.close(is_over=True)
    await begin(stream, service)
    assert not end.is_closed
    assert len(end.commands) == 1


@pytest.mark.parametrize(
    "error",
    [
        KvMissing("3 of 7"),
        NumericError("NaN"),
        Overloaded("64 wait", retry_after_s=1.5),
        DeadlineExceeded("late", field="x"),
    ],
)
async def test_an_error_ends_one_lane_behind_what_came_before(stream, service, error):
    (one, one_end), (other, other_end) = [await begin(stream, service) for _ in range(2)]
    one_end.send(1)
    one_end.server.fail(one_end.lane, error)
    other_end.send(2)
    assert await tokens(other, 1) == [2]
    assert await tokens(one, 1) == [1]
    with pytest.raises(type(error)) as caught:
        await one.receive(WAIT_S)
    assert (caught.value.message, caught.value.field, caught.value.retry_after_s) == (
        error.message,
        error.field,
        error.retry_after_s,
    )
    one.close(is_over=False)
    await begin(stream, service)
    assert not one_end.is_closed, "the peer has ended it already"


async def test_silence_ends_one_lane_and_the_peer_is_told(stream, service):
    (one, one_end), (other, other_end) = [await begin(stream, service) for _ in range(2)]
    with pytest.raises(DeadlineExceeded, match="nothing came from the peer"):
        await one.receive(0.05)
    one.close(is_over=False)
    await service.until(lambda: one_end.is_closed)
    other_end.send(2)
    assert await tokens(other, 1) == [2]


async def test_a_stream_that_breaks_ends_all_lanes(stream, service, server):
    ends = [await begin(stream, service) for _ in range(3)]
    for _, handler in ends:
        handler.send(7)
    for lane, _ in ends:
        assert await tokens(lane, 1) == [7]
    await server.stop(None)
    for lane, handler in ends:
        with pytest.raises(Unavailable) as caught:
            await lane.receive(WAIT_S)
        assert caught.value.__cause__ is not None, "each lane raises an error of its own"
        assert handler.is_closed
    assert not stream.takes_lanes


async def test_a_command_to_a_stream_that_breaks_says_why_it_broke(stream, service, server):
    lane, _ = await begin(stream, service)
    stopping = asyncio.create_task(server.stop(None))
    while stream.takes_lanes:
        lane.command().start.SetInParent()
        await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await lane.receive(WAIT_S)
    await stopping


async def test_a_caller_that_leaves_closes_its_lanes(stream, service):
    ends = [await begin(stream, service) for _ in range(3)]
    stream.end(Unavailable("gone"))
    await service.until(lambda: all(handler.is_closed for _, handler in ends))


async def test_a_lane_that_nobody_reads_is_bounded_and_delays_no_other(stream, service):
    (slow, slow_end), (quick, quick_end) = [await begin(stream, service, max_parts=10) for _ in range(2)]
    for token in range(50):
        slow_end.send(token)
        quick_end.send(token)
        assert await tokens(quick, 1) == [token]
    assert await tokens(slow, 10) == list(range(10))
    with pytest.raises(WireError, match="more than 10 messages"):
        await slow.receive(WAIT_S)


async def test_a_retired_stream_ends_with_its_last_lane(stream, service):
    lane, end = await begin(stream, service)
    stream.retire()
    assert not stream.takes_lanes
    end.send(1)
    assert await tokens(lane, 1) == [1]
    lane.close(is_over=False)
    await service.until(lambda: end.is_closed)


async def test_an_old_stream_takes_no_lanes(stream, service, monkeypatch):
    assert stream.takes_lanes
    now = asyncio.get_running_loop().time()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now + caller.MAX_AGE_S + 1)
    assert not stream.takes_lanes


async def test_a_drain_lets_lanes_end_and_none_begin(stream, service):
    lane, end = await begin(stream, service)
    service.streams.drain()
    late = stream.open(1)
    late.command().start.SetInParent()
    with pytest.raises(Unavailable, match="shutting down"):
        await late.receive(WAIT_S)
    end.send(1, last=True)
    assert await tokens(lane, 1) == [1]
    with pytest.raises(Unavailable, match="ended the stream"):
        await lane.receive(WAIT_S)


class Quiet:
    """A call that sends nothing by itself."""

    def __init__(self):
        self.begun = asyncio.Event()
        self.is_closed = False

    def take(self, command):
        self.begun.set()

    def close(self):
        self.is_closed = True


async def test_a_caller_that_breaks_is_noticed_while_parts_keep_coming():
    async def requests():
        yield pb.GenerateRequest(parts=[pb.GenerationCommand(lane=1, start=pb.GenerationStart())])
        raise Unavailable("the caller is gone")

    handler = Quiet()
    stream = LaneServer(pb.GenerationTokens, lambda lane, server: handler)
    with pytest.raises(Unavailable, match="the caller is gone"):
        async with asyncio.timeout(WAIT_S), aclosing(stream.serve(requests())) as batches:
            stream.send(pb.GenerationTokens(lane=1), is_last=False)
            async for _ in batches:
                await handler.begun.wait()
                await asyncio.sleep(0)
                stream.send(pb.GenerationTokens(lane=1), is_last=False)  # before the stream looks again
    assert handler.is_closed


async def test_what_waits_to_be_read_holds_no_other_lane(stream, service):
    """A part of a message keeps all of it in memory, so a lane that lags keeps copies."""
    lane = stream.open(9)
    message = pb.GenerateResponse(parts=[pb.GenerationTokens(lane=1, token_ids=[token]) for token in range(4)])
    for part in message.parts:
        lane.put(part)
    for part in message.parts:
        part.token_ids[0] = 99
    assert [part.token_ids[0] for part in await lane.receive(WAIT_S)][1:] == [1, 2, 3]


async def test_the_lanes_of_a_stream_are_bounded(stream, service, monkeypatch):
    monkeypatch.setattr(lane_server, "MAX_LANES", 2)
    for _ in range(2):
        await begin(stream, service)
    third = stream.open(1)
    third.command().start.SetInParent()
    with pytest.raises(Overloaded):
        await third.receive(WAIT_S)
