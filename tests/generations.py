"""Generations of tests: each on a stream of its own."""

from collections.abc import AsyncIterator
from typing import Any

from protos import attention_pb2 as pb
from services.runtime.errors import Unavailable
from services.runtime.lanes.caller import LaneStream


async def generate(
    stub: Any, start: pb.GenerationStart, *, silence_s: float = 120.0
) -> AsyncIterator[pb.GenerationTokens]:
    """Yield the messages of one generation to its last."""
    stream: LaneStream[pb.GenerationCommand, pb.GenerationTokens] = LaneStream(
        stub.Generate(), pb.GenerateRequest, "the replica"
    )
    try:
        lane = stream.open(2**20)
        lane.command().start.CopyFrom(start)
        while True:
            for part in await lane.receive(silence_s):
                yield part
                if part.finish_reason != pb.FINISH_REASON_UNSPECIFIED:
                    return
    finally:
        stream.end(Unavailable("the test has its tokens"))
