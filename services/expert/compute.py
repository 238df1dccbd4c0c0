"""From a request frame to its answer: decode, apply the experts, encode. One computation at a time."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from services.expert.metrics import COMPUTE_SECONDS, REFUSED_FRAMES, Traffic
from services.model.device import to_host
from services.model.expert_shard import ExpertShard
from services.runtime.errors import WireError
from services.wire.frames import (
    NOBODY,
    Buffer,
    decode_request,
    encode_partial,
    encode_refusal,
    num_bytes,
    read_header,
)

# Four tokens of K2.6: 32 experts at most, about 20 ms of reading. DECISIONS.md has the measurement.
INLINE_BYTES: Final = 1 << 16


class Compute:
    """The shard's arithmetic for all streams, one computation at a time.

    The kernels use every thread that the process was given, so a second computation beside the first would only get in
    its way: the lock gives turns. A small frame is computed where it arrives, in a stream's thread or on the event
    loop, because a wake-up costs more than its arithmetic; a large one always on the one compute thread.
    """

    def __init__(self, shard: ExpertShard) -> None:
        self._shard = shard
        self._turn = threading.Lock()
        self.traffic = Traffic()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")

    def answer(self, frame: Buffer) -> list[Buffer]:
        """The answer frame, in parts, to a request frame. Blocks; for a stream's own thread."""
        if len(frame) > INLINE_BYTES:
            return self._thread.submit(self._in_turn, frame).result()
        return self._in_turn(frame)

    async def answer_async(self, frame: Buffer) -> list[Buffer]:
        """The same for the event loop, which never waits for a turn."""
        if len(frame) <= INLINE_BYTES and self._turn.acquire(blocking=False):
            try:
                return self._answer(frame)
            finally:
                self._turn.release()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._in_turn, frame)

    def _in_turn(self, frame: Buffer) -> list[Buffer]:
        with self._turn:
            return self._answer(frame)

    def _answer(self, frame: Buffer) -> list[Buffer]:
        self.traffic.received_bytes += len(frame)
        name = NOBODY
        try:
            header = read_header(frame)
            name = header.name
            work = decode_request(header, frame)
            started = time.perf_counter()
            (total,) = to_host(self._shard.forward(name.layer, work))
            COMPUTE_SECONDS.observe(time.perf_counter() - started)
            self.traffic.num_tokens += header.num_tokens
            answer = encode_partial(name, total)
        except WireError as error:
            REFUSED_FRAMES.inc()
            answer = encode_refusal(name, error.message)
        self.traffic.sent_bytes += num_bytes(answer)
        return answer
