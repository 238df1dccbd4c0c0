"""Frames of the hot wire: what goes in comes out, and nonsense is refused by name."""

import struct

import pytest
import torch

from kernels.interface import RoutedTokens
from services.runtime.errors import WireError
from services.wire.frames import (
    HEADER_BYTES,
    MAGIC,
    MAX_MESSAGE_BYTES,
    CallName,
    Kind,
    Partial,
    Refusal,
    decode_answer,
    decode_request,
    encode_partial,
    encode_refusal,
    encode_request,
    num_bytes,
    read_header,
)
from services.wire.stream import FrameReader, with_length

NAME = CallName(epoch=2**63 + 5, call_id=2**40, step=7, layer=60, micro_batch=3)


def work(tokens: int = 3, top_k: int = 2, hidden: int = 5, dtype: torch.dtype = torch.bfloat16) -> RoutedTokens:
    generator = torch.Generator().manual_seed(0)
    return RoutedTokens(
        hidden=torch.randn(tokens, hidden, generator=generator).to(dtype),
        topk_ids=torch.randint(-1, 384, (tokens, top_k), generator=generator, dtype=torch.int32),
        topk_weights=torch.rand(tokens, top_k, generator=generator),
    )


def frame_of(sent: RoutedTokens) -> bytes:
    return b"".join(encode_request(NAME, sent))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "tokens, top_k, hidden",
    [
        pytest.param(1, 1, 1, id="smallest"),
        pytest.param(3, 8, 7, id="odd-hidden-size"),
        pytest.param(1, 8, 7168, id="one-token"),
        pytest.param(130, 8, 64, id="many-tokens"),
    ],
)
def test_a_request_comes_out_as_it_went_in(tokens, top_k, hidden, dtype):
    sent = work(tokens, top_k, hidden, dtype)
    frame = frame_of(sent)
    header = read_header(frame)
    assert header == (NAME, Kind.REQUEST, dtype, tokens, top_k, hidden)
    received = decode_request(header, frame)
    for a, b in zip(sent, received, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_nothing_is_copied_before_the_frame_is_joined():
    sent = work()
    parts = encode_request(NAME, sent)
    sent.hidden.fill_(0)
    assert not any(bytes(parts[-1]))


def test_a_strided_tensor_travels_row_by_row():
    sent = work(hidden=4)._replace(hidden=torch.arange(12.0).view(4, 3).T)
    frame = frame_of(sent)
    assert torch.equal(decode_request(read_header(frame), frame).hidden, sent.hidden)


def test_nan_travels():
    sent = work(dtype=torch.float32)
    sent.hidden[1, 1] = float("nan")
    frame = frame_of(sent)
    assert torch.equal(decode_request(read_header(frame), frame).hidden.isnan(), sent.hidden.isnan())


@pytest.mark.parametrize(
    "total, dtype, num_bytes_each",
    [
        pytest.param(torch.randn(4, 9).double(), torch.float32, 8, id="float32-run"),
        pytest.param(torch.tensor([[511.5, -511 - 2**-14]]).double(), torch.bfloat16, 4, id="bfloat16-run"),
        pytest.param(torch.tensor([[512.0, 1.0]]).double(), torch.bfloat16, 8, id="too-large-for-32-bits"),
        pytest.param(torch.tensor([[-512.0, 1.0]]).double(), torch.bfloat16, 8, id="too-small-for-32-bits"),
        pytest.param(torch.tensor([[1.0, float("nan")]]).double(), torch.bfloat16, 8, id="no-number"),
    ],
)
def test_a_partial_sum_comes_out_as_it_went_in(total, dtype, num_bytes_each):
    frame = b"".join(encode_partial(NAME, total, dtype))
    assert len(frame) == HEADER_BYTES + num_bytes_each * total.numel()
    answer = decode_answer(frame)
    assert isinstance(answer, Partial)
    assert answer.name == NAME
    torch.testing.assert_close(answer.total, total, rtol=0, atol=0, equal_nan=True)


def test_a_refusal_is_cut_to_a_bound_but_stays_readable():
    parts = encode_refusal(NAME, "schräg " * 1000)
    assert num_bytes(parts) <= HEADER_BYTES + MAX_MESSAGE_BYTES
    answer = decode_answer(b"".join(parts))
    assert isinstance(answer, Refusal)
    assert answer.name == NAME
    assert answer.message.startswith("schräg schräg")


GOOD = frame_of(work())
FIELDS = struct.Struct("<4sBBBxQQQIIIII12x")


def altered(**changes: object) -> bytes:
    names = ("magic", "version", "kind", "dtype", "epoch", "call_id", "step", "layer", "micro", "tokens", "k", "hidden")
    values = dict(zip(names, FIELDS.unpack_from(GOOD), strict=True)) | changes
    return FIELDS.pack(*values.values()) + GOOD[FIELDS.size :]


@pytest.mark.parametrize(
    "frame, complaint",
    [
        pytest.param(b"", "0 bytes is shorter", id="empty"),
        pytest.param(GOOD[:63], "63 bytes is shorter", id="half-a-header"),
        pytest.param(altered(magic=b"HTTP"), "begins with b'HTTP'", id="magic"),
        pytest.param(altered(version=1), "version 1, expected 2", id="version"),
        pytest.param(altered(kind=0), "kind 0", id="kind-zero"),
        pytest.param(altered(kind=2), "found a frame of kind PARTIAL", id="an-answer"),
        pytest.param(altered(dtype=9), "dtype code 9", id="dtype"),
        pytest.param(altered(dtype=2), "hidden states of torch.float64", id="dtype-of-sums"),
        pytest.param(altered(dtype=0), "has 142 bytes, expected 172", id="dtype-of-another-size"),
        pytest.param(GOOD[:-1], "has 141 bytes, expected 142", id="one-byte-short"),
        pytest.param(GOOD + b"x", "has 143 bytes, expected 142", id="one-byte-long"),
        pytest.param(altered(tokens=0), "0 tokens", id="no-tokens"),
        pytest.param(altered(k=0), "top_k 0", id="no-experts"),
        pytest.param(altered(hidden=0), "hidden size 0", id="no-numbers"),
        pytest.param(altered(tokens=2**32 - 1, hidden=2**32 - 1), "larger than any frame", id="enormous"),
    ],
)
def test_nonsense_is_refused(frame, complaint):
    with pytest.raises(WireError, match=complaint):
        decode_request(read_header(frame), frame)


@pytest.mark.parametrize(
    "frame, complaint",
    [
        pytest.param(GOOD, "found a request", id="a-request"),
        pytest.param(altered(kind=2, tokens=0), "0 tokens", id="no-tokens"),
        pytest.param(altered(kind=2), "partial sum is of torch.bfloat16", id="dtype-of-requests"),
        pytest.param(altered(kind=2, dtype=2), "expected 184", id="length"),
        pytest.param(altered(kind=2, dtype=3), "expected 124", id="length-in-steps"),
        pytest.param(MAGIC, "4 bytes is shorter", id="magic-only"),
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(frame, complaint):
    with pytest.raises(WireError, match=complaint):
        decode_answer(frame)


def pump(stream: bytes, piece_bytes: int, reader: FrameReader) -> list[bytes]:
    """Feeds the stream in pieces as a socket would, and collects the frames."""
    found = []
    while stream:
        space = reader.space()
        num = min(piece_bytes, len(space), len(stream))
        space[:num] = stream[:num]
        stream = stream[num:]
        found += [bytes(frame) for frame in reader.advance(num)]
    return found


@pytest.mark.parametrize("piece_bytes", [1, 3, 4, 1000, 1 << 30])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([0], id="empty-frame"),
        pytest.param([1, 0, 5, 64], id="small-ones"),
        pytest.param([(1 << 18) - 4, 10], id="just-fits-the-chunk"),
        pytest.param([(1 << 18) - 3, 10], id="just-does-not-fit"),
        pytest.param([100_000] * 7, id="many-chunks"),
        pytest.param([10, 700_000, 10, 700_000], id="large-between-small"),
    ],
)
def test_frames_are_cut_out_of_a_stream(sizes, piece_bytes):
    if piece_bytes < 1000 and sum(sizes) > 1000:
        piece_bytes *= 997  # still no divisor of anything
    frames = [bytes([i]) * size for i, size in enumerate(sizes)]
    stream = b"".join(b"".join(with_length([frame])) for frame in frames)
    assert pump(stream, piece_bytes, FrameReader()) == frames


def test_earlier_frames_survive_later_ones():
    reader = FrameReader()
    kept = []
    for fill in range(5):
        stream = b"".join(with_length([bytes([fill]) * 300_000]))
        while stream:
            space = reader.space()
            num = min(len(space), len(stream))
            space[:num] = stream[:num]
            stream = stream[num:]
            kept += reader.advance(num)
    assert [set(bytes(frame)) for frame in kept] == [{fill} for fill in range(5)]


def test_a_frame_that_announces_too_much_is_refused_before_memory_is_taken():
    with pytest.raises(WireError, match="announces 4294967295 bytes, at most 1000"):
        pump(b"\xff\xff\xff\xff", 4, FrameReader(max_frame_bytes=1000))
