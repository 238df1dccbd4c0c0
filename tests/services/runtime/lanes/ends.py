"""The ends of lanes that tests drive."""

import asyncio
from contextlib import aclosing

from protos import attention_pb2 as pb
from protos.attention_pb2_grpc import AttentionServiceServicer
from protos.lanes_pb2 import LaneCall
from services.runtime.lanes.records import LANES
from services.runtime.lanes.server import LaneServer, LaneServers

WAIT_S = 10.0


class Handler:
    """A call that the test drives: it sends what the test says."""

    def __init__(self, service, lane, server):
        self.service, self.lane, self.server = service, lane, server
        self.commands = []
        self.is_closed = False
        self.record = None

    def take(self, command):
        self.record = self.record or LANES.get().begin(command.start.call)
        self.commands.append(command)
        self.service.arrived.set()

    def close(self):
        self.is_closed = True
        self.service.arrived.set()

    def send(self, *token_ids, last=False):
        finish = pb.STOP if last else pb.FINISH_REASON_UNSPECIFIED
        part = pb.GenerationTokens(lane=self.lane, token_ids=token_ids, finish_reason=finish)
        self.server.send(part, is_last=last)


class Service(AttentionServiceServicer):
    """`handlers`: all lanes that were opened, in order."""

    def __init__(self):
        self.handlers = []
        self.streams = LaneServers()
        self.arrived = asyncio.Event()

    async def Generate(self, requests, context):
        stream = LaneServer(pb.GenerationTokens, self.make)
        with self.streams.serving(stream):
            async with aclosing(stream.serve(requests)) as batches:
                async for parts in batches:
                    yield pb.GenerateResponse(parts=parts)

    def make(self, lane, server):
        self.handlers.append(Handler(self, lane, server))
        return self.handlers[-1]

    async def until(self, condition):
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.arrived.clear()
                await self.arrived.wait()


async def begin(stream, service, *, max_parts=1000, **call):
    """Open a lane; return both of its ends."""
    num_before = len(service.handlers)
    lane = stream.open(max_parts)
    lane.command().start.call.CopyFrom(LaneCall(**call))
    await service.until(lambda: len(service.handlers) > num_before)
    return lane, service.handlers[-1]


async def tokens(lane, count):
    found = []
    while len(found) < count:
        found += [token for part in await lane.receive(WAIT_S) for token in part.token_ids]
    return found
