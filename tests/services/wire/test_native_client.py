"""The native client of the expert wire and a shard that a test plays over shared memory: wake-ups."""

import os
import socket
import threading
import time
from contextlib import ExitStack

import pytest
import torch

from kernels.interface import RoutedTokens
from services.wire.frames import CallName, encode_partial
from services.wire.library import LIBRARY
from services.wire.links import NativeLink, create_ring_memory
from services.wire.native_client import EventKind, NativeClient

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native wire is not built")

EPOCH = 7
WORK = RoutedTokens(torch.ones(1, 8), torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1))


def name(call_id):
    return CallName(EPOCH, call_id, step=0, layer=1, micro_batch=0)


def answer(call_id):
    return b"".join(encode_partial(name(call_id), torch.ones(1, 8, dtype=torch.float64), torch.float32))


@pytest.fixture
def ends():
    """A client with one ring, the shard's end of it, and the client's socket."""
    with ExitStack() as stack:
        near, far = (stack.enter_context(sock) for sock in socket.socketpair(socket.AF_UNIX))
        memory = create_ring_memory()
        stack.callback(os.close, memory)
        shard = NativeLink.ring(far, memory, is_shard=True)
        stack.callback(shard.close)
        client = NativeClient([[0]], EPOCH)
        index = client.add_link(NativeLink.ring(near, memory, is_shard=False))
        stack.callback(client.drop_link, index)
        yield client, index, shard, near


def test_an_answer_that_is_owed_wakes_after_one_that_nobody_awaits(ends):
    client, index, shard, near = ends
    calls = [client.dispatch(name(call_id), WORK) for call_id in (1, 2)]
    for call in calls:
        assert client.send(call, 0, index)
    assert shard.send(answer(99))
    assert [event.kind for event in client.poll(calls[0], 1.0)] == [EventKind.DROPPED]
    near.recv(64, socket.MSG_DONTWAIT)  # the wake-up of that one
    later = threading.Timer(0.2, shard.send, [answer(1)])
    later.start()
    started_s = time.monotonic()
    assert [event.kind for event in client.poll(calls[0], 5.0)] == [EventKind.ANSWERED]
    assert time.monotonic() - started_s < 2.5
    later.join()
