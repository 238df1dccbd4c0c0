"""Both ends of a stream with lanes."""

import pytest

from protos import attention_pb2 as pb
from protos.attention_pb2_grpc import AttentionServiceStub, add_AttentionServiceServicer_to_server
from services.runtime.channels import open_channel
from services.runtime.errors import Unavailable
from services.runtime.lanes.caller import LaneStream
from services.runtime.server import start_server
from tests.services.runtime.lanes.ends import Service


@pytest.fixture
async def service():
    return Service()


@pytest.fixture
async def server(service):
    server, address = await start_server(lambda server: add_AttentionServiceServicer_to_server(service, server))
    server.address = address
    yield server
    await server.stop(None)


@pytest.fixture
async def stream(server):
    async with open_channel(server.address) as channel:
        call = AttentionServiceStub(channel).Generate()
        stream = LaneStream(call, pb.GenerateRequest, "the peer")
        yield stream
        stream.end(Unavailable("the test is over"))
