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
from services.runtime.server import start_server


class TokenEngine(AttentionServiceServicer):
    """One replica. `step` is an event that the next step sets and replaces."""

    def __init__(self, token_id: int, step_s: float, context_tokens: int) -> None:
        self._token_id = token_id
        self._step_s = step_s
        self._load = pb.GetLoadResponse(
            num_free_blocks=10**6, num_blocks=10**6, block_tokens=64, max_waiting=10**4, context_tokens=context_tokens
        )
        self._step = asyncio.Event()

    async def Decode(self, request, context):
        called = time.perf_counter()
        most = request.sampling.max_new_tokens
        said: list[float] = []
        while len(said) < most:
            await self._step.wait()
            said.append(time.perf_counter())
            is_last = len(said) == most
            if is_last:
                print(json.dumps({"seed": request.sampling.seed, "called": called, "said": said}), flush=True)
            finish = pb.LENGTH if is_last else pb.FINISH_REASON_UNSPECIFIED
            yield pb.DecodeResponse(token_ids=[self._token_id], finish_reason=finish)

    async def GetLoad(self, request, context):
        return self._load

    async def run(self) -> None:
        """Make steps for ever, at fixed times, so that slow readers slow nothing down."""
        next_s = time.perf_counter()
        while True:
            next_s = max(next_s + self._step_s, time.perf_counter())
            await asyncio.sleep(next_s - time.perf_counter())
            step, self._step = self._step, asyncio.Event()
            step.set()


async def serve(token_id: int, step_s: float, context_tokens: int) -> None:
    """Serve until the process is ended."""
    engine = TokenEngine(token_id, step_s, context_tokens)
    _, address = await start_server(lambda server: add_AttentionServiceServicer_to_server(engine, server))
    print(address, flush=True)
    await engine.run()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
