"""The engine's end of the stream to a further shard that a test plays: losses, refusals, nonsense."""

import asyncio
import contextlib
import logging

import grpc
import pytest
import torch

from protos import attention_pb2 as pb
from services.attention.layers import frames as wire
from services.attention.layers import remote
from services.attention.layers.frames import FrameKind, LayerFrame
from services.attention.layers.remote import RemoteLayers
from services.runtime.errors import Unavailable
from services.runtime.server import start_server
from tests.waiting import until


class PlayedShard:
    """A shard that answers HELLO and then repeats frames until `drop`; `answer` replaces its answer to HELLO."""

    def __init__(self) -> None:
        self.answer = wire.frame(FrameKind.HELLO, 0)
        self.num_streams = 0
        self._answers: asyncio.Queue[bytes | None] = asyncio.Queue()

    def drop(self) -> None:
        """End the stream that stands; the next one is accepted."""
        self._answers.put_nowait(None)

    async def run(self, requests, _context):
        self.num_streams += 1
        self._answers = answers = asyncio.Queue()
        await anext(requests)
        yield self.answer
        reader = asyncio.create_task(self._read(requests, answers))
        while (answer := await answers.get()) is not None:
            yield answer
        reader.cancel()

    async def _read(self, requests, answers):
        async for data in requests:
            frame = LayerFrame.from_bytes(data)
            answers.put_nowait(wire.frame(frame.kind, frame.call, wire.RESULT.pack(1)))
        answers.put_nowait(None)

    async def introduce(self, _request, _context):
        return pb.WireOffer()

    def add_to(self, server) -> None:
        methods = {
            "Run": grpc.stream_stream_rpc_method_handler(self.run),
            "Introduce": grpc.unary_unary_rpc_method_handler(
                self.introduce, response_serializer=pb.WireOffer.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("moonshard.v1.LayerService", methods),))


@pytest.fixture
async def played(monkeypatch):
    """A played shard and an engine's end that is connected to it."""
    monkeypatch.setattr(remote, "RECONNECT_S", 0.01)
    async with contextlib.AsyncExitStack() as stack:
        shard = PlayedShard()
        server, address = await start_server(shard.add_to, "127.0.0.1:0")
        stack.push_async_callback(server.stop, None)
        layers = RemoteLayers(address, b"hello", torch.float32, 8, deadline_s=5.0)
        stack.push_async_callback(layers.close)
        await layers.open(10.0)
        yield shard, layers


async def test_nothing_passes_between_a_loss_and_its_report(played):
    """A step must not go on over a shard that came back empty in the middle of it."""
    shard, layers = played
    assert await layers.publish([])
    shard.drop()
    await until(lambda: shard.num_streams == 2 and layers.is_connected, 5)
    with pytest.raises(Unavailable, match="is not connected"):
        await layers.publish([])
    assert layers.take_loss()
    assert await layers.publish([])
    assert not layers.take_loss()


async def test_a_shard_that_refuses_for_a_while_is_found_again(played, caplog):
    shard, layers = played
    good, shard.answer = shard.answer, wire.frame(FrameKind.FAILED, 0, b"not \xff now")
    with caplog.at_level(logging.WARNING, remote.__name__):
        shard.drop()
        await until(lambda: shard.num_streams >= 5, 5)
    assert [record for record in caplog.messages if "not \N{REPLACEMENT CHARACTER} now" in record] == caplog.messages[
        -1:
    ]
    assert not layers.is_connected
    shard.answer = good
    await until(lambda: layers.is_connected, 5)
    assert layers.take_loss()
    assert await layers.publish([])


async def test_a_frame_that_makes_no_sense_costs_one_connection(played):
    shard, layers = played
    good, shard.answer = shard.answer, wire.frame(FrameKind.HELLO, 0)[:-1]
    shard.drop()
    await until(lambda: shard.num_streams >= 3, 5)
    shard.answer = good
    await until(lambda: layers.is_connected, 5)
    layers.take_loss()
    assert await layers.publish([])
