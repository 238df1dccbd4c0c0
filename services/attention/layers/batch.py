"""The tensors of one step, made from its plan; cut into micro-batches; sent to the replica's further shards."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.model.device import to_device
from services.runtime.errors import WireError

# Magic, then the numbers of: tokens, decode rows, columns of block_tables, segments, logit rows, rows, segment blocks.
HEADER = struct.Struct("<4s7I")
MAGIC = b"MSB2"
SEGMENT_NUMBERS = 5  # tokens, context_len, blocks, prompt, prompt_len


@dataclass(frozen=True)
class Row:
    """What one generation contributes to a step: its next tokens and where their latent KV goes.

    Attention has two forms, which round differently. Prompt tokens take the expanded form (prefill), all in one
    segment; generated tokens take the absorbed form (decode), each as a row of its own with its own context. So the
    bits of a token depend neither on the size of a chunk nor on whether the token is computed again after a loss.
    """

    token_ids: Sequence[int]
    start: int  # position of the first of them
    block_ids: Sequence[int]  # the generation's blocks in order; enough for its last new token
    num_logits: int  # so many of its last tokens give logits
    is_generated: bool  # the tokens come from sampling; else from the prompt
    prompt: int = 0  # names the prompt among those that run; 0: nothing of it is kept from chunk to chunk
    prompt_len: int = 0  # tokens of the whole prompt


@dataclass(frozen=True, eq=False)
class Segment:
    """A prefill chunk: new prompt tokens of one generation."""

    tokens: slice  # its place in the flat tensors
    block_table: Tensor  # [blocks of the context] i32
    context_len: int  # tokens in the context, the chunk included
    prompt: int = 0  # as of `Row`
    prompt_len: int = 0

    @property
    def numbers(self) -> list[int]:
        """The segment without its place and its blocks; the order is that of SEGMENT_NUMBERS."""
        num_tokens = self.tokens.stop - self.tokens.start
        return [num_tokens, self.context_len, len(self.block_table), self.prompt, self.prompt_len]


@dataclass(frozen=True, eq=False)
class Batch:
    """One step in flat tensors: first the generated tokens (decode rows), then the segments (prefill chunks).

    token_ids, positions  [tokens] i64
    slots                 [tokens] i64, block * block_tokens + offset
    block_tables          [num_decode, max_blocks] i32, zeros past the context
    context_lens          [num_decode] i32, the row's own token included
    logit_rows            [logits] i64, flat index of the tokens that give logits, in the caller's order
    row_starts            [rows] i64, flat index of each `Row`'s first token, in the caller's order
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    context_lens: Tensor
    segments: tuple[Segment, ...]
    logit_rows: Tensor
    row_starts: Tensor

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    @property
    def num_decode(self) -> int:
        """Tokens [0, num_decode) are the decode rows."""
        return self.context_lens.shape[0]

    def to_bytes(self) -> bytes:
        """Return a header of counts, then the arrays as they are, little endian."""
        shapes = [segment.numbers for segment in self.segments]
        counts = (
            self.num_tokens,
            *self.block_tables.shape,
            len(self.segments),
            len(self.logit_rows),
            len(self.row_starts),
            sum(len(segment.block_table) for segment in self.segments),
        )
        wide = (self.token_ids, self.positions, self.slots, self.logit_rows, self.row_starts)
        narrow = (
            self.block_tables,
            self.context_lens,
            torch.tensor(shapes, dtype=torch.int32).reshape(-1, SEGMENT_NUMBERS),
        )
        arrays = (*wide, *narrow, *(s.block_table for s in self.segments))
        return HEADER.pack(MAGIC, *counts) + b"".join(array.numpy().tobytes() for array in arrays)

    @staticmethod
    def from_bytes(data: bytes | bytearray | memoryview) -> "Batch":
        """Return the batch that `to_bytes` wrote, in memory of its own. WireError if the bytes have another form."""
        if len(data) < HEADER.size:
            raise WireError(f"a batch has a header of {HEADER.size} bytes, the message has {len(data)}")
        magic, tokens, decode, columns, segments, logits, rows, blocks = HEADER.unpack_from(data)
        wide = [tokens, tokens, tokens, logits, rows]
        narrow = [decode * columns, decode, segments * SEGMENT_NUMBERS, blocks]
        expected = HEADER.size + 8 * sum(wide) + 4 * sum(narrow)
        if magic != MAGIC or len(data) != expected:
            raise WireError(f"a batch of {tokens} tokens has {expected} bytes, the message has {len(data)}")
        content = torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=HEADER.size).copy())
        return _from_arrays(content, wide, narrow, columns)

    def to(self, device: torch.device) -> "Batch":
        """Return this step on a device; itself if it is there already. The host does not wait."""
        return self if self.token_ids.device == device else self.copy_to(device)

    def copy_to(self, device: torch.device) -> "Batch":
        """Return this step in new memory on a device, by one copy. From the host only."""
        data = self.to_bytes()
        _, tokens, decode, columns, segments, logits, rows, blocks = HEADER.unpack_from(data)
        content = to_device(torch.frombuffer(bytearray(data), dtype=torch.uint8)[HEADER.size :], device)
        wide = [tokens, tokens, tokens, logits, rows]
        narrow = [decode * columns, decode, segments * SEGMENT_NUMBERS, blocks]
        return _from_arrays(content, wide, narrow, columns, [segment.numbers for segment in self.segments])


def make_batch(rows: Sequence[Row], block_tokens: int) -> Batch:
    """Make the batch of a plan. Rows may have any order and length."""
    assert all(row.token_ids for row in rows), "a row without tokens"
    order = sorted(range(len(rows)), key=lambda index: not rows[index].is_generated)
    ordered = [rows[index] for index in order]
    decodes = [row for row in ordered if row.is_generated]
    chunks = ordered[len(decodes) :]
    ends = np.cumsum([len(row.token_ids) for row in ordered], dtype=np.int64)
    row_ends = np.empty_like(ends)
    row_ends[order] = ends
    logit_rows = [np.arange(end - row.num_logits, end) for row, end in zip(rows, row_ends.tolist(), strict=True)]
    tables, positions_of_decodes, slots = _decode_places(decodes, block_tokens)
    segments, places = [], [(positions_of_decodes, slots)]
    for row, end in zip(chunks, ends[len(decodes) :].tolist(), strict=True):
        count, context_len = len(row.token_ids), row.start + len(row.token_ids)
        table = np.array(row.block_ids[: -(-context_len // block_tokens)], dtype=np.int32)
        positions = np.arange(row.start, context_len)
        places.append((positions, _slots(table[positions // block_tokens], positions, block_tokens)))
        segments.append(
            Segment(slice(end - count, end), torch.from_numpy(table), context_len, row.prompt, row.prompt_len)
        )
    return Batch(
        token_ids=torch.tensor([token for row in ordered for token in row.token_ids], dtype=torch.int64),
        positions=torch.from_numpy(np.concatenate([positions for positions, _ in places])),
        slots=torch.from_numpy(np.concatenate([slots for _, slots in places])),
        block_tables=torch.from_numpy(tables),
        context_lens=torch.from_numpy((positions_of_decodes + 1).astype(np.int32)),
        segments=tuple(segments),
        logit_rows=torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *logit_rows])),
        row_starts=torch.from_numpy(row_ends - np.array([len(row.token_ids) for row in rows], dtype=np.int64)),
    )


def split(batch: Batch, num_parts: int = 2) -> list[Batch]:
    """Cut a step between rows into parts of near-equal tokens, fewer if there are fewer rows.

    The parts follow one another in the flat tensors, so their concatenated results are those of the whole batch and
    `logit_rows` of the whole batch holds for them. A row is never cut: its later tokens attend to the earlier ones.
    """
    ends = sorted({*batch.row_starts.tolist(), batch.num_tokens} - {0})
    if not ends:
        return [batch]
    ideal = [batch.num_tokens * part / num_parts for part in range(1, num_parts)]
    cuts = {0, batch.num_tokens} | {min(ends, key=lambda end: abs(end - cut)) for cut in ideal}
    return [batch] if len(cuts) == 2 else [_part(batch, *cut) for cut in pairwise(sorted(cuts))]


def _part(batch: Batch, first: int, last: int) -> Batch:
    """Return the rows whose tokens are [first, last) of the flat tensors."""
    tokens, decode = slice(first, last), slice(min(first, batch.num_decode), min(last, batch.num_decode))
    return Batch(
        batch.token_ids[tokens],
        batch.positions[tokens],
        batch.slots[tokens],
        batch.block_tables[decode],
        batch.context_lens[decode],
        tuple(
            replace(s, tokens=slice(s.tokens.start - first, s.tokens.stop - first))
            for s in batch.segments
            if first <= s.tokens.start < last
        ),
        _within(batch.logit_rows, first, last),
        _within(batch.row_starts, first, last),
    )


def _within(indexes: Tensor, first: int, last: int) -> Tensor:
    return indexes[(indexes >= first) & (indexes < last)] - first


def _decode_places(
    rows: Sequence[Row], block_tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Return block tables, positions and slots of generated tokens, one row of a table for each token."""
    nothing = np.empty(0, dtype=np.int64)
    positions = np.concatenate([nothing, *(np.arange(row.start, row.start + len(row.token_ids)) for row in rows)])
    columns = positions // block_tokens
    tables = np.zeros((len(positions), columns.max(initial=-1) + 1), dtype=np.int32)
    place = 0
    for row in rows:
        for column in columns[place : place + len(row.token_ids)].tolist():
            tables[place, : column + 1] = row.block_ids[: column + 1]
            place += 1
    blocks = tables[np.arange(len(positions)), columns]
    return tables, positions, _slots(blocks, positions, block_tokens)


def _slots(blocks: NDArray[np.int32], positions: NDArray[np.int64], block_tokens: int) -> NDArray[np.int64]:
    return blocks.astype(np.int64) * block_tokens + positions % block_tokens


def _from_arrays(
    content: Tensor, wide: list[int], narrow: list[int], columns: int, segments: list[list[int]] | None = None
) -> Batch:
    """Return the batch whose arrays, 64 bits and then 32 bits wide, are these bytes.

    segments  their numbers, as in the bytes; given where the bytes are on a device, whose answer would take a wait
    """
    longs = _numbers(content[: 8 * sum(wide)], torch.int64)
    ints = _numbers(content[8 * sum(wide) :], torch.int32)
    token_ids, positions, slots, logit_rows, row_starts = longs.split_with_sizes(wide)
    block_tables, context_lens, shapes, segment_blocks = ints.split_with_sizes(narrow)
    return Batch(
        token_ids,
        positions,
        slots,
        block_tables.view(-1, columns) if columns else block_tables.view(len(context_lens), 0),
        context_lens,
        _segments(
            len(context_lens),
            len(token_ids),
            shapes.view(-1, SEGMENT_NUMBERS).tolist() if segments is None else segments,
            segment_blocks,
        ),
        logit_rows,
        row_starts,
    )


def _numbers(content: Tensor, dtype: torch.dtype) -> Tensor:
    # PyTorch cannot view an empty tensor of bytes as wider numbers.
    return content.view(dtype) if len(content) else torch.empty(0, dtype=dtype, device=content.device)


def _segments(first: int, last: int, shapes: list[list[int]], blocks: Tensor) -> tuple[Segment, ...]:
    """Return segments from their numbers; they must fill the tokens [first, last)."""
    if sum(shape[0] for shape in shapes) != last - first or sum(shape[2] for shape in shapes) != len(blocks):
        raise WireError(f"segments {shapes} do not fill {last - first} tokens and {len(blocks)} blocks")
    segments, start, block = [], first, 0
    for count, context_len, num_blocks, prompt, prompt_len in shapes:
        table = blocks[block : block + num_blocks]
        segments.append(Segment(slice(start, start + count), table, context_len, prompt, prompt_len))
        start, block = start + count, block + num_blocks
    return tuple(segments)
