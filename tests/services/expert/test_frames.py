"""What a replica does with frames, sane or not, over either carrier."""

import asyncio
import socket
import struct
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.interface import RoutedTokens
from services.expert.compute import INLINE_BYTES, Compute, native_shard
from services.expert.metrics import TrafficCollector
from services.model.checkpoint import Checkpoint
from services.model.expert_load import ExpertLoadCollector
from services.model.expert_shard import ExpertShard, load_expert_shard
from services.model.text_weights import expert_tensors
from services.runtime.channels import open_channel
from services.runtime.errors import CheckpointError, WireError
from services.wire.frames import CallName, Partial, Refusal, decode_answer, encode_request
from services.wire.library import LIBRARY
from services.wire.listener import MAX_CONNECTIONS
from services.wire.stream import FrameReader, with_length
from tests.services.expert.serving import ServerThread, introduced, plain_sum, random_work, short_folder

NAME = CallName(epoch=1, call_id=42, step=3, layer=2, micro_batch=1)
BAD_FRAMES = pytest.mark.parametrize(
    "spoil, complaint",
    [
        pytest.param(lambda frame: b"", "shorter than its header", id="empty"),
        pytest.param(lambda frame: frame[:20], "shorter than its header", id="short"),
        pytest.param(lambda frame: b"XXXX" + frame[4:], "begins with b'XXXX'", id="magic"),
        pytest.param(lambda frame: frame[:4] + b"\7" + frame[5:], "version 7", id="version"),
        pytest.param(lambda frame: frame[:-1], "bytes, expected", id="truncated"),
        pytest.param(lambda frame: patched(frame, "<I", 44, 2**31), "bytes, expected", id="impossible-size"),
        pytest.param(lambda frame: patched(frame, "<I", 40, 2**20), "would be larger than any frame", id="large-sums"),
        pytest.param(lambda frame: patched(frame, "<I", 32, 0), "layer 0 has no routed experts", id="dense-layer"),
        pytest.param(lambda frame: patched(frame, "<I", 32, 99), "expected one of 3 of 1 to 3", id="unknown-layer"),
        pytest.param(lambda frame: patched(frame, "<i", 64, 16), "expert 16 does not exist", id="unknown-expert"),
        pytest.param(lambda frame: patched(frame, "<i", 64, -2), "expert -2 does not exist", id="negative-expert"),
        pytest.param(lambda frame: patched(frame, "<i", 64, 9), "expert 9 is not on this shard", id="not-here"),
    ],
)


def patched(frame: bytes, form: str, offset: int, value: int) -> bytes:
    return frame[:offset] + struct.pack(form, value) + frame[offset + 4 :]


def good_frame(model, num_tokens=3) -> tuple[RoutedTokens, bytes]:
    """Tokens for shard 0 of 2, which has the experts 0 to 7."""
    work = random_work(model, num_tokens, experts=range(8))
    return work, b"".join(encode_request(NAME, work))


def assert_refused(answer: bytes, complaint: str, frame: bytes) -> None:
    answer = decode_answer(answer)
    assert isinstance(answer, Refusal)
    assert complaint in answer.message
    readable = len(frame) >= 64 and frame[:5] == b"MSEX\2"
    assert answer.name.call_id == (42 if readable else 0)


def assert_right(answer: bytes, model, work: RoutedTokens) -> None:
    answer = decode_answer(answer)
    assert isinstance(answer, Partial)
    assert answer.name == NAME
    torch.testing.assert_close(answer.total.float(), plain_sum(model, NAME.layer, work), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", params=["python", "native"])
def server(model, request):
    if request.param == "native" and LIBRARY is None:
        pytest.skip("the native wire is not built")
    # One server for all bad frames: each of them must leave it as it was.
    with ExitStack() as stack:
        address = f"unix:{short_folder(stack)}/0"
        yield stack.enter_context(ServerThread(model, address, 0, 2, native=request.param == "native"))


@BAD_FRAMES
async def test_a_bad_frame_is_refused_on_a_stream_that_goes_on(model, server, spoil, complaint):
    work, good = good_frame(model)
    bad = spoil(good)
    before = server.compute.read_traffic().refused
    async with open_channel(server.address) as channel:
        stream = channel.stream_stream("/moonshard.v1.ExpertService/Dispatch")()
        await stream.write(bad)
        assert_refused(await stream.read(), complaint, bad)
        await stream.write(good)
        assert_right(await stream.read(), model, work)
        await stream.done_writing()
    assert server.compute.read_traffic().refused == before + 1


@BAD_FRAMES
def test_a_bad_frame_is_refused_on_a_socket_that_goes_on(model, server, spoil, complaint):
    work, good = good_frame(model)
    bad = spoil(good)
    with connect(server) as sock:
        # Both at once, so that they arrive in one piece.
        sock.sendall(b"".join([*with_length([bad]), *with_length([good])]))
        refusal, answer = receive(sock, 2)
        assert_refused(refusal, complaint, bad)
        assert_right(answer, model, work)


def test_a_frame_that_announces_too_much_ends_its_connection_only(model, server):
    work, good = good_frame(model)
    with connect(server) as sane, connect(server) as mad:
        mad.sendall(b"\xff\xff\xff\xff and so on")
        assert mad.recv(1) == b""
        sane.sendall(b"".join(with_length([good])))
        assert_right(receive(sane, 1)[0], model, work)


def test_a_caller_that_leaves_in_mid_frame_disturbs_nobody(model, server):
    work, good = good_frame(model)
    stream = b"".join(with_length([good]))
    for cut in (1, 4, 70, len(stream) - 1):
        with connect(server) as sock:
            sock.sendall(stream[:cut])
    with connect(server) as sock:
        sock.sendall(stream)
        assert_right(receive(sock, 1)[0], model, work)


def test_connections_are_bounded(model, stack):
    server = stack.enter_context(ServerThread(model, f"unix:{short_folder(stack)}/0", 0, 2))
    work, good = good_frame(model)
    held = [stack.enter_context(connect(server)) for _ in range(MAX_CONNECTIONS)]
    for sock in held:
        sock.sendall(b"".join(with_length([good])))
        assert_right(receive(sock, 1)[0], model, work)
    with socket.socket(socket.AF_UNIX) as turned_away:
        turned_away.connect(server.address.removeprefix("unix:") + ".raw")
        assert turned_away.recv(1) == b""


def test_a_socket_file_that_was_left_behind_is_replaced(model, stack):
    folder = short_folder(stack)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "0.raw"))
    server = stack.enter_context(ServerThread(model, f"unix:{folder}/0", 0, 2))
    work, good = good_frame(model)
    with connect(server) as sock:
        sock.sendall(b"".join(with_length([good])))
        assert_right(receive(sock, 1)[0], model, work)


@pytest.mark.parametrize("native", [False, True], ids=["python", "native"])
async def test_small_and_large_frames_of_many_streams_take_turns(model, native):
    shard = load_expert_shard(Checkpoint(model), range(16))
    compute = Compute(shard, native_shard(shard, threads=1) if native else None)
    works = [random_work(model, num_tokens, seed=num_tokens) for num_tokens in (1, 2, 400, 3, 500)]
    frames = [b"".join(encode_request(NAME, work)) for work in works]
    assert any(len(frame) > INLINE_BYTES for frame in frames)
    for _ in range(3):
        blocking = [asyncio.to_thread(compute.answer, frame) for frame in frames]
        answers = await asyncio.gather(*blocking, *(compute.answer_async(frame) for frame in frames))
        for answer, work in zip(answers, works * 2, strict=True):
            assert_right(b"".join(answer), model, work)
    tokens, traffic = list(TrafficCollector(compute.read_traffic).collect())[:2]
    assert [sample.value for sample in tokens.samples] == [6 * sum(len(work.hidden) for work in works)]
    assert {s.labels["direction"]: s.value for s in traffic.samples} == {
        "in": 6 * sum(len(frame) for frame in frames),
        "out": 6 * sum(64 + 8 * work.hidden.numel() for work in works),
    }


def test_tokens_are_counted_by_expert_and_by_layer(model):
    shard = load_expert_shard(Checkpoint(model), [3, 4, 9])
    ids = torch.tensor([[3, 9, -1], [9, -1, -1]], dtype=torch.int32)
    shard.forward(2, RoutedTokens(torch.zeros(2, 128), ids, torch.ones(2, 3)))
    shard.forward(3, RoutedTokens(torch.zeros(2, 128), ids[:1], torch.ones(1, 3)))
    by_expert, by_layer = ExpertLoadCollector(shard).collect()
    assert {s.labels["expert"]: s.value for s in by_expert.samples} == {"3": 2, "4": 0, "9": 3}
    assert {s.labels["layer"]: s.value for s in by_layer.samples} == {"1": 0, "2": 3, "3": 2}
    assert np.array_equal(shard.token_counts, [[0, 0, 0], [1, 0, 2], [1, 0, 1]])


def test_nan_in_a_token_stays_in_that_token(model):
    shard = load_expert_shard(Checkpoint(model), range(16))
    work = random_work(model, 5)
    clean = shard.forward(1, work)
    work.hidden[2] = float("nan")
    total = shard.forward(1, work)
    assert total[2].isnan().all()
    assert torch.equal(total[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


@pytest.mark.parametrize("expert_ids", [[], [1, 1], [-1], [16], [3, 99]])
def test_a_shard_needs_distinct_experts_of_the_model(model, expert_ids):
    with pytest.raises(CheckpointError, match="expected"):
        load_expert_shard(Checkpoint(model), expert_ids)


def test_experts_may_have_any_order(model):
    work = random_work(model, 4)
    shard = load_expert_shard(Checkpoint(model), list(reversed(range(16))))
    torch.testing.assert_close(shard.forward(2, work).float(), plain_sum(model, 2, work), rtol=1e-5, atol=1e-5)


def test_a_shard_refuses_what_it_does_not_hold(model):
    shard = load_expert_shard(Checkpoint(model), [5])
    assert isinstance(shard, ExpertShard)
    assert shard.nbytes >= sum(t.nbytes for t in expert_tensors(Checkpoint(model), 1, 5))
    with pytest.raises(WireError, match="expert 4 is not on this shard, which holds 1 of 5 to 5"):
        shard.forward(1, RoutedTokens(torch.zeros(1, 128), torch.tensor([[4]], dtype=torch.int32), torch.ones(1, 1)))


def connect(server: ServerThread) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(str(Path(server.address.removeprefix("unix:") + ".raw")))
    return introduced(server, sock)


def receive(sock: socket.socket, num_frames: int) -> list[bytes]:
    reader, frames = FrameReader(), []
    while len(frames) < num_frames:
        num_received = sock.recv_into(reader.space())
        assert num_received, "the connection was closed"
        frames += [bytes(frame) for frame in reader.advance(num_received)]
    return frames
