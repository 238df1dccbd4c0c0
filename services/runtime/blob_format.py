"""The layout of a value in Redis: one key up to 1 MiB, else a head and separate chunks of 1 MiB.

A head is, little endian: the magic of the sealer, the size of the name (u16), the length of the value (u64), the seal
of name and value (32 bytes, blob_seal.py); then the name; then the value itself if it fits. Chunks are bare bytes: the
seal covers them all and their order.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from services.runtime.blob_seal import SEAL_BYTES, Sealer
from services.runtime.redis_connection import Buffer

CHUNK_BYTES = 1 << 20
MAX_NAME_BYTES = 1024
MAX_VALUE_BYTES = 256 << 20
FIXED = struct.Struct(f"<4sHQ{SEAL_BYTES}s")
MAX_HEAD_BYTES = FIXED.size + MAX_NAME_BYTES + CHUNK_BYTES


class Cause(StrEnum):
    """The reason why a value counts as missing."""

    MISSING = "missing"  # the value, or a part of it, is not there
    SHORT = "short"  # its length is wrong
    DAMAGED = "damaged"  # its bytes have changed, or were sealed with another key
    MISNAMED = "misnamed"  # it belongs to another name
    UNREACHABLE = "unreachable"  # its instance does not answer


@dataclass(frozen=True)
class Head:
    """The head of a value, which is read before its chunks. `inline` has the whole of a small value."""

    length: int
    seal: bytes
    inline: memoryview

    @property
    def num_chunks(self) -> int:
        return num_chunks(self.length)

    @classmethod
    def parse(cls, name: bytes, stored: bytes | bytearray, sealer: Sealer) -> Self | Cause:
        """Return the head for this name, or the cause why it counts as missing. The value is not checked yet."""
        if not stored:
            return Cause.MISSING
        if len(stored) < FIXED.size:
            return Cause.SHORT
        magic, name_bytes, length, seal = FIXED.unpack_from(stored)
        if magic != sealer.magic or length > MAX_VALUE_BYTES:
            return Cause.DAMAGED
        value_at = FIXED.size + len(name)
        if name_bytes != len(name) or stored[FIXED.size : value_at] != name:
            return Cause.MISNAMED
        inline = memoryview(stored)[value_at:]
        if len(inline) != (0 if num_chunks(length) else length):
            return Cause.SHORT
        return cls(length, seal, inline)


def num_stored_chunks(stored: bytes | bytearray, sealer: Sealer) -> int:
    """Return the number of chunks after a head, of which at least the fixed part is given; 0 if it is not a head."""
    if len(stored) < FIXED.size:
        return 0
    magic, _, length, _ = FIXED.unpack_from(stored)
    return num_chunks(length) if magic == sealer.magic and length <= MAX_VALUE_BYTES else 0


def num_chunks(length: int) -> int:
    """Return the number of chunks of a value; 0 if the head contains it."""
    return 0 if length <= CHUNK_BYTES else -(-length // CHUNK_BYTES)


def pack(name: bytes, pieces: Sequence[memoryview], sealer: Sealer) -> list[list[Buffer]]:
    """Return the strings to store, each in pieces: the head, then the chunks. Nothing is copied."""
    length = sum(map(len, pieces))
    assert len(name) <= MAX_NAME_BYTES and length <= MAX_VALUE_BYTES, f"{len(name)}-byte name, {length}-byte value"
    head: list[Buffer] = [FIXED.pack(sealer.magic, len(name), length, sealer.seal(name, pieces)), name]
    if not num_chunks(length):
        return [[*head, *pieces]]
    return [head, *_cut(pieces)]


def _cut(pieces: Sequence[memoryview]) -> Iterator[list[Buffer]]:
    chunk: list[Buffer] = []
    room = CHUNK_BYTES
    for piece in pieces:
        rest = piece
        while len(rest):
            chunk.append(rest[:room])
            room -= len(chunk[-1])
            rest = rest[len(chunk[-1]) :]
            if not room:
                yield chunk
                chunk, room = [], CHUNK_BYTES
    if chunk:
        yield chunk
