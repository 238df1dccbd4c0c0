"""The engine's native connections and a shard that floods them: the event loop goes on."""

import asyncio
import socket
import threading
import time

import pytest
import torch

from services.attention.experts.native_wire import LinkEvents, NativeWire
from services.wire.frames import CallName, encode_partial
from services.wire.library import LIBRARY
from services.wire.links import NativeLink
from services.wire.stream import with_length

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native wire is not built")


async def test_answers_without_an_end_leave_the_loop_its_turns():
    frame = encode_partial(CallName(1, 9, 0, 1, 0), torch.ones(1, 1, dtype=torch.float64), torch.float32)
    answers = b"".join(bytes(part) for part in with_length(frame)) * 1000
    near, far = socket.socketpair(socket.AF_UNIX)
    stop = threading.Event()

    def flood():
        end_s = time.monotonic() + 5
        while not stop.is_set() and time.monotonic() < end_s:
            far.sendall(answers)

    dropped = []
    wire = NativeWire([[0]], epoch=1)
    transport = wire.open(
        near, NativeLink.stream(near), LinkEvents(*[lambda *_: None] * 2, lambda: dropped.append(1), print)
    )
    thread = threading.Thread(target=flood)
    thread.start()
    try:
        started_s = time.monotonic()
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert time.monotonic() - started_s < 2.5
        assert dropped
    finally:
        stop.set()
        while thread.is_alive():
            await asyncio.sleep(0.01)  # the loop receives what the thread still sends
        transport.close()
        far.close()
