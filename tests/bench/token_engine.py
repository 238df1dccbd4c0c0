"""A decode replica that computes nothing: at each step every running generation gets one token, the same one always.

    python -m tests.bench.token_engine TOKEN_ID STEP_S CONTEXT_TOKENS

The first line of its output is its address; each further one is a generation that has ended, as JSON: seed, when it was
called and when each token was sent, in seconds of the monotonic clock that all processes share.
"""

import asyncio
import json
import sys
import time

import uvloop

from protos import attention_pb2 as pb
from protos.attention_pb2_grpc import AttentionServiceServicer, add_AttentionServiceServicer_to_server
from services.runtime.lanes.server import LaneServer
from services.runtime.server import start_server


class TokenLane:
    """One generation."""

    def __init__(self, lane: int, running: dict[int, "TokenLane"], server: LaneServer) -> None:
        self.lane = lane
        self.called = time.perf_counter()
        self.said: list[float] = []
        self.start: pb.GenerationStart
        self.server = server
        self._running = running

    def take(self, command: pb.GenerationCommand) -> None:
        self.start = command.start
        self._running[id(self)] = self

    def close(self) -> None:
        self._running.pop(id(self), None)

    def step(self, token_id: int, now: float) -> None:
        """Send a token."""
        self.said.append(now)
        is_last = len(self.said) == self.start.sampling.max_new_tokens
        finish = pb.LENGTH if is_last else pb.FINISH_REASON_UNSPECIFIED
        part = pb.GenerationTokens(lane=self.lane, token_ids=[token_id], finish_reason=finish)
        self.server.send(part, is_last=is_last)
        if is_last:
            self.close()
            note = {"seed": self.start.sampling.seed, "called": self.called, "said": self.said}
            print(json.dumps(note), flush=True)


class TokenEngine(AttentionServiceServicer):
    """One replica."""

    def __init__(self, token_id: int, step_s: float, context_tokens: int) -> None:
        self._token_id = token_id
        self._step_s = step_s
        self._load = pb.GetLoadResponse(
            num_free_blocks=10**6, num_blocks=10**6, block_tokens=64, max_waiting=10**4, context_tokens=context_tokens
        )
        self._running: dict[int, TokenLane] = {}

    async def Generate(self, requests, context):
        stream = LaneServer(pb.GenerationTokens, lambda lane, server: TokenLane(lane, self._running, server))
        async for parts in stream.serve(requests):
            yield pb.GenerateResponse(parts=parts)

    async def GetLoad(self, request, context):
        return self._load

    async def run(self) -> None:
        """Make steps for ever, at fixed times, so that slow readers slow nothing down."""
        next_s = time.perf_counter()
        while True:
            next_s = max(next_s + self._step_s, time.perf_counter())
            await asyncio.sleep(next_s - time.perf_counter())
            now = time.perf_counter()
            for lane in list(self._running.values()):
                lane.step(self._token_id, now)


async def serve(token_id: int, step_s: float, context_tokens: int) -> None:
    """Serve until the process is ended."""
    engine = TokenEngine(token_id, step_s, context_tokens)
    _, address = await start_server(lambda server: add_AttentionServiceServicer_to_server(engine, server))
    print(address, flush=True)
    await engine.run()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
