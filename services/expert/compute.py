"""From a request frame to its answer: in native code where the experts are packed for a CPU, else here."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from services.expert.metrics import BUCKETS, Traffic
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
from services.wire.native_shard import NativeShard, is_native

# Four tokens of K2.6: 32 experts at most, about 20 ms of reading. DECISIONS.md has the measurement.
INLINE_BYTES: Final = 1 << 16


class Compute:
    """The shard's arithmetic for all streams, one computation at a time.

    The kernels use every thread that the process was given, so a second computation beside the first would only be in
    its way: a lock gives turns. A small frame is computed where it arrives, in a stream's thread or on the event loop,
    because a wake-up costs more than its arithmetic; a large one never on the event loop.

    native  answers frames without the interpreter; None: they are answered here
    """

    def __init__(self, shard: ExpertShard, native: NativeShard | None = None) -> None:
        self.native = native
        self._shard = shard
        self._turn = threading.Lock()
        self._traffic = Traffic()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")

    def read_traffic(self) -> Traffic:
        """What was computed so far."""
        if self.native is None:
            return self._traffic
        counters = self.native.counters
        return Traffic(
            num_tokens=counters.tokens,
            received_bytes=counters.received_bytes,
            sent_bytes=counters.sent_bytes,
            refused=counters.refused,
            compute_s=counters.compute_ns / 1e9,
            frames=list(counters.frames)[: len(BUCKETS) + 1],
        )

    def answer(self, frame: Buffer) -> Sequence[Buffer]:
        """The answer frame, in parts, to a request frame. Blocks; for a stream's own thread."""
        if len(frame) > INLINE_BYTES:
            return self._thread.submit(self._in_turn, frame).result()
        return self._in_turn(frame)

    async def answer_async(self, frame: Buffer) -> Sequence[Buffer]:
        """The same for the event loop, which never waits for a turn."""
        if len(frame) <= INLINE_BYTES:
            if self.native is not None:
                if (found := self.native.answer_now(frame)) is not None:
                    return [found]
            elif self._turn.acquire(blocking=False):
                try:
                    return self._answer(frame)
                finally:
                    self._turn.release()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._in_turn, frame)

    def _in_turn(self, frame: Buffer) -> Sequence[Buffer]:
        if self.native is not None:
            return [self.native.answer(frame)]
        with self._turn:
            return self._answer(frame)

    def _answer(self, frame: Buffer) -> Sequence[Buffer]:
        traffic = self._traffic
        traffic.received_bytes += len(frame)
        name = NOBODY
        try:
            header = read_header(frame)
            name = header.name
            work = decode_request(header, frame)
            started = time.perf_counter()
            (total,) = to_host(self._shard.forward(name.layer, work))
            traffic.add_computation(time.perf_counter() - started, header.num_tokens)
            answer = encode_partial(name, total, header.dtype)
        except WireError as error:
            traffic.refused += 1
            answer = encode_refusal(name, error.message)
        traffic.sent_bytes += num_bytes(answer)
        return answer


def native_shard(shard: ExpertShard, threads: int) -> NativeShard | None:
    """The shard for native code; None where its experts are on a GPU or the native wire was not built."""
    if not is_native(shard.layers):
        return None
    return NativeShard(
        shard.layers,
        hidden_size=shard.hidden_size,
        local_index=shard.local_index,
        token_counts=dict(zip(shard.layer_ids, shard.token_counts, strict=True)),
        threads=threads,
        bucket_s=BUCKETS,
        layers_text=shard.layers_text,
        experts_text=shard.experts_text,
    )
