"""A vision replica inside the test process: the real server, decoders and store."""

import asyncio
import contextlib
import tempfile
from pathlib import Path

import pytest

from protos import vision_pb2 as pb
from protos.vision_pb2_grpc import VisionServiceStub, add_VisionServiceServicer_to_server
from services.local.random_checkpoint.write import write_random_checkpoint
from services.runtime.channels import open_channel
from services.runtime.redis_server import RedisServer
from services.runtime.server import start_server
from services.vision.assembly import assemble
from services.vision.settings import VisionSettings

KINDS = {"image": pb.IMAGE, "video": pb.VIDEO}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    write_random_checkpoint(folder, seed=7)
    return folder


@pytest.fixture
def redis():
    with tempfile.TemporaryDirectory(prefix="moonshard-") as folder, RedisServer(Path(folder)) as server:
        yield server


class Vision:
    """A client of one replica, and the replica itself."""

    def __init__(self, replica, channel):
        self.replica = replica
        self.stub = VisionServiceStub(channel)

    async def encode(self, data, kind="image", *, num_bytes=None, piece=10_000):
        call = self.stub.Encode(timeout=60)
        start = pb.MediaStart(kind=KINDS.get(kind, 0), num_bytes=len(data) if num_bytes is None else num_bytes)
        await call.write(pb.EncodeMediaRequest(start=start))
        for at in range(0, len(data), piece):
            await call.write(pb.EncodeMediaRequest(data=data[at : at + piece]))
        await call.done_writing()
        return await call

    @property
    def store(self):
        return self.replica.store


@pytest.fixture
async def start_vision(tiny_checkpoint, redis):
    """Start replicas with the given settings; they share the store."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**changes):
            defaults = {"listen": "127.0.0.1:0", "model": tiny_checkpoint, "store": redis.url, "dtype": "float32"}
            replica = assemble(VisionSettings(**{**defaults, "decoders": 1, **changes}))
            stack.push_async_callback(replica.close)
            running = asyncio.create_task(replica.batcher.run())
            stack.callback(running.cancel)
            server, address = await start_server(
                lambda server: add_VisionServiceServicer_to_server(replica.servicer, server)
            )
            stack.push_async_callback(server.stop, None)
            channel = open_channel(address)
            stack.push_async_callback(channel.close)
            return Vision(replica, channel)

        yield start
