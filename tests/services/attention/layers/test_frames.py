"""Frames between the shards of a replica: what is written is read back, and nothing else is accepted."""

import pytest
import torch

from services.attention.layers import frames as wire
from services.attention.layers.batch import Row, make_batch
from services.attention.layers.blocks import NamedBlock, OfferedBlock
from services.attention.layers.frames import FrameKind, LayerFrame
from services.runtime.errors import WireError

NAME = b"n" * 32


def test_a_frame_comes_back():
    frame = LayerFrame.from_bytes(wire.frame(FrameKind.PUBLISH, 2**40, b"body"))
    assert (frame.kind, frame.call, bytes(frame.body)) == (FrameKind.PUBLISH, 2**40, b"body")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(wire.frame(FrameKind.HELLO, 1)[:-1], id="short-header"),
        pytest.param(b"\0\0" + wire.frame(FrameKind.HELLO, 1)[2:], id="magic"),
        pytest.param(wire.HEADER.pack(wire.MAGIC, 9, 1, 1), id="version"),
        pytest.param(wire.HEADER.pack(wire.MAGIC, wire.VERSION, 99, 1), id="kind"),
    ],
)
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(WireError):
        LayerFrame.from_bytes(data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_comes_back(dtype):
    batch = make_batch([Row([1, 2, 3], 0, [4], True, False), Row([9], 17, [1, 2], True, True)], 16)
    hidden = torch.randn(4, 8).to(dtype)
    body = memoryview(wire.pack_forward(7, 1, batch, hidden))
    step, micro_batch, same_batch, same_hidden = wire.unpack_forward(body, dtype, 8)
    assert (step, micro_batch) == (7, 1)
    assert same_batch.to_bytes() == batch.to_bytes()
    assert torch.equal(same_hidden, hidden)


@pytest.mark.parametrize("cut", [0, 5, 60, -1, -8])
def test_a_cut_step_is_refused(cut):
    batch = make_batch([Row([1, 2, 3], 0, [4], True, False)], 16)
    body = wire.pack_forward(7, 1, batch, torch.zeros(3, 8))
    with pytest.raises(WireError):
        wire.unpack_forward(memoryview(body[:cut]), torch.float32, 8)


def test_rows_and_tokens_must_agree():
    batch = make_batch([Row([1, 2, 3], 0, [4], True, False)], 16)
    with pytest.raises(WireError, match="2 hidden rows for 3 tokens"):
        wire.unpack_forward(memoryview(wire.pack_forward(7, 1, batch, torch.zeros(2, 8))), torch.float32, 8)


def test_blocks_come_back_and_stay_inside_the_cache():
    blocks = [NamedBlock(0, NAME), NamedBlock(7, b"m" * 32)]
    assert wire.unpack_blocks(memoryview(wire.pack_blocks(blocks)), 8) == blocks
    with pytest.raises(WireError, match="block 7 is outside"):
        wire.unpack_blocks(memoryview(wire.pack_blocks(blocks)), 7)
    with pytest.raises(WireError):
        wire.unpack_blocks(memoryview(wire.pack_blocks(blocks)[:-1]), 8)


def test_tails_come_back_and_stay_inside_their_block():
    tail = wire.pack_tail("f" * 32, 3, 5)
    assert wire.unpack_tail(memoryview(tail), 8, 16) == ("f" * 32, 3, 5)
    for num_blocks, block_tokens in ((3, 16), (8, 5)):
        with pytest.raises(WireError):
            wire.unpack_tail(memoryview(tail), num_blocks, block_tokens)
    with pytest.raises(WireError):
        wire.unpack_tail(memoryview(tail[:-1]), 8, 16)


OFFER = "f" * 32


@pytest.mark.parametrize("source", ["", "unix:/run/a.sock", "[::1]:7000"])
@pytest.mark.parametrize("blocks", [[], [OfferedBlock(0, NAME, 16), OfferedBlock(7, b"m" * 32, 3)]])
def test_offers_come_back(source, blocks):
    body = memoryview(wire.pack_offer(OFFER, blocks, source))
    assert wire.unpack_offer(body, 8, 16) == (OFFER, blocks, source)


@pytest.mark.parametrize(
    "body, num_blocks, block_tokens",
    [
        pytest.param(b"short", 8, 16, id="short"),
        pytest.param(wire.pack_offer(OFFER, [OfferedBlock(1, NAME, 16)])[:-1], 8, 16, id="cut"),
        pytest.param(wire.OFFER.pack(OFFER.encode(), 50), 8, 16, id="address-cut"),
        pytest.param(wire.pack_offer(OFFER, [OfferedBlock(8, NAME, 16)]), 8, 16, id="block-outside"),
        pytest.param(wire.pack_offer(OFFER, [OfferedBlock(1, NAME, 17)]), 8, 16, id="too-many-tokens"),
        pytest.param(wire.pack_offer(OFFER, [OfferedBlock(1, NAME, 0)]), 8, 16, id="no-tokens"),
    ],
)
def test_what_is_no_offer_is_refused(body, num_blocks, block_tokens):
    with pytest.raises(WireError):
        wire.unpack_offer(memoryview(body), num_blocks, block_tokens)
