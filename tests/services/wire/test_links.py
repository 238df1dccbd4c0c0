"""Links between two ends of a socket: frames of every size, ends, and peers that change, repeat or reorder bytes."""

import os
import random
import socket
import threading
from contextlib import ExitStack

import pytest

from services.runtime.errors import WireError
from services.wire.library import LIBRARY
from services.wire.links import _RING_BYTES, KEY_BYTES, NativeLink, cipher_path, create_ring_memory

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native wire is not built")

THERE, BACK = bytes(range(KEY_BYTES)), bytes(range(1, KEY_BYTES + 1))
KINDS = pytest.mark.parametrize("kind", ["stream", "sealed", "ring"])
SIZES = (0, 1, 15, 63, 64, 65, 4096, 70_000, _RING_BYTES // 2 - 64, _RING_BYTES // 2, 3 * _RING_BYTES + 1)


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def sockets(stack):
    return [stack.enter_context(sock) for sock in socket.socketpair(socket.AF_UNIX)]


def link(stack, made):
    stack.callback(made.close)
    return made


def pair(stack, kind):
    """A caller's and a shard's link, and their sockets."""
    near, far = sockets(stack)
    if kind == "stream":
        made = NativeLink.stream(near), NativeLink.stream(far)
    elif kind == "sealed":
        made = NativeLink.sealed(near, THERE, BACK), NativeLink.sealed(far, BACK, THERE)
    else:
        memory = create_ring_memory()
        made = NativeLink.ring(near, memory, is_shard=False), NativeLink.ring(far, memory, is_shard=True)
        os.close(memory)
    return *(link(stack, one) for one in made), near, far


def echo(shard):
    while (frame := shard.receive()) is not None and shard.send(frame):
        pass


@KINDS
def test_frames_of_every_size_come_back_as_they_were(stack, kind):
    caller, shard, near, _ = pair(stack, kind)
    thread = threading.Thread(target=echo, args=[shard])
    thread.start()
    for size in (*SIZES, *reversed(SIZES)):
        frame = random.Random(size).randbytes(size)
        assert caller.send(frame)
        assert caller.receive() == frame, size
    near.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert not thread.is_alive()


@KINDS
def test_a_stopped_link_gives_what_arrived_and_ends(stack, kind):
    caller, shard, _, _ = pair(stack, kind)
    for frame in (b"first", b"second"):
        assert caller.send(frame)
    shard.stop()
    caller.send(b"too late")
    received = iter(shard.receive, None)
    assert [next(received), next(received)] == [b"first", b"second"]
    assert shard.receive() is None
    assert shard.send(b"answer")  # the way back is still open
    assert caller.receive() == b"answer"


@KINDS
def test_the_end_of_the_peer_is_seen_by_a_sleeper_and_by_a_sender_without_room(stack, kind):
    for wait in (lambda one: one.receive(), lambda one: [one.send(bytes(1 << 20)) for _ in range(40)]):
        _, shard, near, _ = pair(stack, kind)
        thread = threading.Thread(target=wait, args=[shard])
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        near.shutdown(socket.SHUT_RDWR)
        near.close()
        thread.join(10)
        assert not thread.is_alive()


def test_memory_that_could_shrink_or_has_another_size_is_refused(stack):
    _, far = sockets(stack)
    unsealed = os.memfd_create("test")
    os.ftruncate(unsealed, 4096 + 2 * _RING_BYTES)
    short = create_ring_memory()
    for memory in (unsealed, os.open("/dev/null", os.O_RDWR)):
        with pytest.raises(WireError, match="no shared memory link"):
            NativeLink.ring(far, memory, is_shard=True)
        os.close(memory)
    os.close(short)


def recorded(stack, frames):
    """The sealed frames of a caller, as they would travel."""
    near, far = sockets(stack)
    caller = link(stack, NativeLink.sealed(near, THERE, BACK))
    found = []
    for frame in frames:
        assert caller.send(frame)
        found.append(far.recv(1 << 16))
    return found


def opened(stack, data):
    """What a shard makes of these bytes: frames, and whether it ended with a complaint."""
    near, far = sockets(stack)
    shard = link(stack, NativeLink.sealed(far, BACK, THERE))
    near.sendall(data)
    near.shutdown(socket.SHUT_WR)
    frames = []
    try:
        while (frame := shard.receive()) is not None:
            frames.append(frame)
    except WireError:
        return frames, True
    return frames, False


FRAMES = [bytes([i]) * (100 + i) for i in range(3)]


@pytest.mark.parametrize("size", [12, 64, 75, 4096])
def test_sealed_frames_show_their_length_only(stack, size):
    assert cipher_path(), "this machine's Python has TLS, so it has a libcrypto"
    frame = random.Random(size).randbytes(size)
    [sealed] = recorded(stack, [frame])
    assert sealed[:4] == (size + 16).to_bytes(4, "little")
    assert len(sealed) == 4 + size + 16
    assert not any(frame[i : i + 4] in sealed for i in range(size - 3))
    assert opened(stack, sealed) == ([frame], False)


def test_sealed_frames_open_once_and_in_order_only(stack):
    first, second, third = recorded(stack, FRAMES)
    assert opened(stack, first + second + third) == (FRAMES, False)
    assert opened(stack, first + first) == (FRAMES[:1], True)  # repeated
    assert opened(stack, second + first) == ([], True)  # reordered
    assert opened(stack, first + third) == (FRAMES[:1], True)  # left out
    assert opened(stack, first + second[:-1]) == (FRAMES[:1], False)  # cut off: as a lost connection
    other = recorded(stack, [b"x" * 200])[0]
    assert opened(stack, other[:4] + first[4:] + other) == ([], True)  # another length


def test_a_sealed_frame_with_any_other_bit_does_not_open(stack):
    [sealed] = recorded(stack, [bytes(100)])
    for bit in range(0, 8 * len(sealed), 3):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        assert opened(stack, bytes(changed))[0] == [], f"bit {bit}"


def test_each_direction_has_a_key_of_its_own(stack):
    """An answer cannot be sent back as a request."""
    near, far = sockets(stack)
    shard = link(stack, NativeLink.sealed(near, BACK, THERE))
    assert shard.send(b"y" * 100)
    assert opened(stack, far.recv(1 << 16)) == ([], True)
