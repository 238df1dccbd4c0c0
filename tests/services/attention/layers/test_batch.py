"""Batches against a plain reading of their rows; micro-batches; bytes and back."""

from dataclasses import fields

import pytest
import torch

from services.attention.layers.batch import Batch, Row, make_batch, split
from services.runtime.errors import WireError

BLOCK = 4


def row(
    num_tokens: int, start: int = 0, *, first_block: int = 0, num_logits: int = 1, generated: bool | None = None
) -> Row:
    """A row with recognisable numbers: tokens 100 * block + i, blocks that count down. One token alone is generated."""
    num_blocks = -(-(start + num_tokens) // BLOCK)
    blocks = list(range(first_block + num_blocks, first_block, -1))
    generated = num_tokens == 1 if generated is None else generated
    return Row([100 * first_block + i for i in range(num_tokens)], start, blocks, num_logits, generated)


PLANS = {
    "nothing": [],
    "one-token-prompt": [row(1)],
    "one-decode": [row(1, 7)],
    "one-chunk": [row(9)],
    "chunk-in-mid-block": [row(6, 3)],
    "drafts": [
        row(4, 7, num_logits=4, generated=True),
        row(5, first_block=9),
        row(3, 20, first_block=20, num_logits=3, generated=True),
    ],
    "no-logits": [row(5, num_logits=0), row(1, 4, first_block=9, num_logits=0)],
    "mixed": [
        row(5, 2, first_block=10),
        row(1, 3, first_block=20),
        row(2, 0, first_block=30, num_logits=0),
        row(1, 16, first_block=40),
        row(1, 0, first_block=50, num_logits=0),
        row(11, 30, first_block=60),
    ],
    "prompt-of-one-token": [row(1, generated=False)],
    "generated-again": [row(6, 3, generated=True)],
    "generated-again-beside-others": [
        row(5, 6, first_block=10, generated=True),
        row(1, 9, first_block=20),
        row(4, 0, first_block=30),
        row(9, 12, first_block=40, generated=True),
        row(1, 8, first_block=50, generated=False),
    ],
}
EVERY_PLAN = pytest.mark.parametrize("rows", PLANS.values(), ids=PLANS.keys())


def slot(plan: Row, position: int) -> int:
    return plan.block_ids[position // BLOCK] * BLOCK + position % BLOCK


def same(one: Batch, other: Batch) -> bool:
    tensors = [field.name for field in fields(Batch) if field.name != "segments"]
    return (
        all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
        and all(getattr(one, name).dtype == getattr(other, name).dtype for name in tensors)
        and len(one.segments) == len(other.segments)
        and all(
            a.tokens == b.tokens and a.numbers == b.numbers and torch.equal(a.block_table, b.block_table)
            for a, b in zip(one.segments, other.segments, strict=True)
        )
    )


@EVERY_PLAN
def test_batch_says_what_its_rows_say(rows):
    batch = make_batch(rows, BLOCK)
    assert batch.num_tokens == sum(len(r.token_ids) for r in rows)
    for r, first in zip(rows, batch.row_starts.tolist(), strict=True):
        here = slice(first, first + len(r.token_ids))
        positions = list(range(r.start, r.start + len(r.token_ids)))
        assert batch.token_ids[here].tolist() == r.token_ids
        assert batch.positions[here].tolist() == positions
        assert batch.slots[here].tolist() == [slot(r, position) for position in positions]
    ends = [first + len(r.token_ids) for r, first in zip(rows, batch.row_starts.tolist(), strict=True)]
    lasts = [place for r, end in zip(rows, ends, strict=True) for place in range(end - r.num_logits, end)]
    assert batch.logit_rows.tolist() == lasts


@EVERY_PLAN
def test_decode_rows_come_first(rows):
    batch = make_batch(rows, BLOCK)
    decodes, chunks = [r for r in rows if r.is_generated], [r for r in rows if not r.is_generated]
    tokens = [(r, position) for r in decodes for position in range(r.start, r.start + len(r.token_ids))]
    assert batch.num_decode == len(tokens)
    assert batch.context_lens.tolist() == [position + 1 for _, position in tokens]
    for table, (r, position) in zip(batch.block_tables.tolist(), tokens, strict=True):
        blocks = r.block_ids[: position // BLOCK + 1]
        assert table == blocks + [0] * (len(table) - len(blocks))
    assert [s.context_len for s in batch.segments] == [r.start + len(r.token_ids) for r in chunks]
    assert [s.block_table.tolist() for s in batch.segments] == [r.block_ids for r in chunks]
    places = [place for s in batch.segments for place in range(s.tokens.start, s.tokens.stop)]
    assert places == list(range(batch.num_decode, batch.num_tokens))


def test_blocks_beyond_the_context_are_left_out():
    batch = make_batch([Row([5], 3, [7, 8, 9], True, True), Row([5, 6], 3, [1, 2, 3], True, False)], BLOCK)
    assert batch.block_tables.tolist() == [[7]]
    assert batch.segments[0].block_table.tolist() == [1, 2]


@EVERY_PLAN
@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_parts_concatenate_to_the_whole(rows, num_parts):
    batch = make_batch(rows, BLOCK)
    parts = split(batch, num_parts)
    assert len(parts) == max(1, min(num_parts, len(rows)))
    for name in ("token_ids", "positions", "slots", "context_lens"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert [s.block_table.tolist() for part in parts for s in part.segments] == [
        s.block_table.tolist() for s in batch.segments
    ]
    first, logit_rows, row_starts = 0, set(), set()
    for part in parts:
        places = [place for s in part.segments for place in range(s.tokens.start, s.tokens.stop)]
        assert places == list(range(part.num_decode, part.num_tokens))
        logit_rows |= {first + place for place in part.logit_rows.tolist()}
        row_starts |= {first + place for place in part.row_starts.tolist()}
        first += part.num_tokens
    assert logit_rows == set(batch.logit_rows.tolist())
    assert row_starts == set(batch.row_starts.tolist())


@pytest.mark.parametrize(
    "lengths, sizes",
    [
        pytest.param([1], [1], id="one-row"),
        pytest.param([8], [8], id="one-chunk-stays-whole"),
        pytest.param([1, 1], [1, 1], id="two-decodes"),
        pytest.param([1] * 5, [2, 3], id="odd-decodes"),
        pytest.param([1, 1, 1, 9], [3, 9], id="decodes-beside-a-chunk"),
        pytest.param([3, 9, 4], [12, 4], id="nearest-cut"),
        pytest.param([100, 2], [100, 2], id="unequal"),
    ],
)
def test_parts_are_near_equal(lengths, sizes):
    batch = make_batch([row(n, 8) for n in lengths], BLOCK)
    assert [part.num_tokens for part in split(batch)] == sizes


def test_the_tokens_of_a_row_stay_in_one_part():
    """The later ones attend to the earlier ones, whose latent KV another part might write too late."""
    rows = [row(5, 3, generated=True), row(1, 9, first_block=20), row(6, 1, first_block=30, generated=True)]
    assert [part.num_tokens for part in split(make_batch(rows, BLOCK), 3)] == [5, 1, 6]
    assert [part.num_tokens for part in split(make_batch(rows[:1], BLOCK), 3)] == [5]


@EVERY_PLAN
@pytest.mark.parametrize("carrier", [bytes, bytearray, memoryview])
def test_bytes_and_back(rows, carrier):
    batch = make_batch(rows, BLOCK)
    copy = Batch.from_bytes(carrier(batch.to_bytes()))
    assert same(copy, batch)
    assert all(same(Batch.from_bytes(part.to_bytes()), part) for part in split(batch))


@EVERY_PLAN
def test_a_copy_on_a_device_is_the_same(rows):
    """A GPU gets its steps by this copy; the CPU as the device runs the same code."""
    batch = make_batch(rows, BLOCK)
    copy = batch.copy_to(torch.device("cpu"))
    assert same(copy, batch)
    assert copy.token_ids.data_ptr() != batch.token_ids.data_ptr() or not rows


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:20], id="half-a-header"),
        pytest.param(lambda data: data[:-4], id="short"),
        pytest.param(lambda data: data + b"\0\0\0\0", id="long"),
        pytest.param(lambda data: b"XXXX" + data[4:], id="no-batch"),
        pytest.param(lambda data: data[:4] + b"\xff\xff\xff\xff" + data[8:], id="many-tokens"),
        pytest.param(lambda data: data[:-20] + b"\7\0\0\0" + data[-16:], id="segment-too-long"),
    ],
)
def test_damaged_bytes_are_refused(damage):
    data = make_batch([row(1, 3), row(5, 2)], BLOCK).to_bytes()
    with pytest.raises(WireError):
        Batch.from_bytes(damage(data))
