"""Frames between the engine and the other shards of its replica: a fixed header, then raw bytes."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from services.attention.layers.batch import Batch
from services.attention.layers.blocks import NamedBlock, OfferedBlock
from services.checkpoint.block_names import NAME_BYTES
from services.model.device import to_host
from services.runtime.errors import WireError

MAGIC = 0x4C59
VERSION = 2
HEADER = struct.Struct("<HBBQ")  # magic, version, kind, call
HELLO = struct.Struct("<QIIB32s")  # epoch, num_blocks, block_tokens, bytes of a number, fingerprint
FORWARD = struct.Struct("<QII")  # step, micro-batch, bytes of the batch
BLOCK = struct.Struct(f"<I{NAME_BYTES}s")  # block id, name
TAIL = struct.Struct("<II32s")  # block id, tokens, name in ASCII
OFFER = struct.Struct("<32sH")  # id in ASCII, bytes of an address
OFFERED = struct.Struct(f"<II{NAME_BYTES}s")  # block id, tokens, name
RESULT = struct.Struct("<i")  # a count or a truth
DTYPES = {4: torch.float32, 2: torch.bfloat16}


class FrameKind(IntEnum):
    """The kind of a request; its answer has the same kind, or FAILED."""

    HELLO = 1
    FORWARD = 2
    PUBLISH = 3
    PUBLISH_MISSING = 4
    PUBLISH_TAIL = 5
    FETCH = 6
    FETCH_TAIL = 7
    FAILED = 8
    OFFER = 9
    WITHDRAW = 10
    FETCH_OFFERED = 11


@dataclass(frozen=True)
class LayerFrame:
    """One message. `call` pairs an answer with its request."""

    kind: FrameKind
    call: int
    body: memoryview

    def to_bytes(self) -> bytes:
        return HEADER.pack(MAGIC, VERSION, self.kind, self.call) + self.body

    @classmethod
    def from_bytes(cls, data: bytes) -> "LayerFrame":
        if len(data) < HEADER.size:
            raise WireError(f"a layer frame of {len(data)} bytes is shorter than its header")
        magic, version, kind, call = HEADER.unpack_from(data)
        if (magic, version) != (MAGIC, VERSION) or kind not in FrameKind.__members__.values():
            raise WireError(f"not a layer frame of version {VERSION}: magic {magic:#x}, version {version}, kind {kind}")
        return cls(FrameKind(kind), call, memoryview(data)[HEADER.size :])


def frame(kind: FrameKind, call: int, body: bytes = b"") -> bytes:
    return LayerFrame(kind, call, memoryview(body)).to_bytes()


def pack_forward(step: int, micro_batch: int, batch: Batch, hidden: Tensor) -> bytes:
    """Return the body of FORWARD: the batch, then hidden [tokens, hidden_size] in the run's dtype."""
    data = batch.to_bytes()
    return b"".join((FORWARD.pack(step, micro_batch, len(data)), data, pack_hidden(hidden)))


def unpack_forward(body: memoryview, dtype: torch.dtype, hidden_size: int) -> tuple[int, int, Batch, Tensor]:
    """Return (step, micro-batch, batch, hidden)."""
    if len(body) < FORWARD.size:
        raise WireError(f"a FORWARD frame of {len(body)} bytes is too short")
    step, micro_batch, num_bytes = FORWARD.unpack_from(body)
    end = FORWARD.size + num_bytes
    batch = Batch.from_bytes(bytes(body[FORWARD.size : end]))
    hidden = unpack_hidden(body[end:], dtype, hidden_size)
    if len(hidden) != batch.num_tokens:
        raise WireError(f"a FORWARD frame has {len(hidden)} hidden rows for {batch.num_tokens} tokens")
    return step, micro_batch, batch, hidden


def pack_hidden(hidden: Tensor) -> bytes:
    (on_host,) = to_host(hidden)
    return on_host.contiguous().view(torch.uint8).numpy().tobytes()


def unpack_hidden(body: memoryview, dtype: torch.dtype, hidden_size: int) -> Tensor:
    """Return hidden [tokens, hidden_size], in memory that may be written to."""
    row_bytes = hidden_size * dtype.itemsize
    if len(body) == 0 or len(body) % row_bytes:
        raise WireError(f"{len(body)} bytes are not rows of {hidden_size} {dtype} numbers")
    return torch.frombuffer(bytearray(body), dtype=dtype).view(-1, hidden_size)


def pack_blocks(blocks: Sequence[NamedBlock]) -> bytes:
    return b"".join(BLOCK.pack(block.block_id, block.name) for block in blocks)


def unpack_blocks(body: memoryview, num_blocks: int) -> list[NamedBlock]:
    if len(body) % BLOCK.size:
        raise WireError(f"{len(body)} bytes are not a list of blocks")
    blocks = [NamedBlock(*fields) for fields in BLOCK.iter_unpack(body)]
    for block in blocks:
        check_block(block.block_id, num_blocks)
    return blocks


def pack_tail(tail_name: str, block_id: int, num_tokens: int) -> bytes:
    return TAIL.pack(block_id, num_tokens, tail_name.encode())


def unpack_tail(body: memoryview, num_blocks: int, block_tokens: int) -> tuple[str, int, int]:
    """Return (name, block id, tokens)."""
    if len(body) != TAIL.size:
        raise WireError(f"a tail of {len(body)} bytes, {TAIL.size} expected")
    block_id, num_tokens, name = TAIL.unpack(body)
    check_block(block_id, num_blocks)
    if not 0 < num_tokens < block_tokens:
        raise WireError(f"a tail of {num_tokens} tokens in blocks of {block_tokens}")
    return name.decode(), block_id, num_tokens


def pack_offer(offer: str, blocks: Sequence[OfferedBlock] = (), source: str = "") -> bytes:
    """Return the body of OFFER, WITHDRAW (no blocks) and FETCH_OFFERED (with the address of the shard that offers)."""
    address = source.encode()
    offered = (OFFERED.pack(block.block_id, block.num_tokens, block.name) for block in blocks)
    return b"".join((OFFER.pack(offer.encode(), len(address)), address, *offered))


def unpack_offer(body: memoryview, num_blocks: int, block_tokens: int) -> tuple[str, list[OfferedBlock], str]:
    """Return (offer, blocks, source)."""
    if len(body) < OFFER.size:
        raise WireError(f"an offer of {len(body)} bytes is too short")
    offer, num_bytes = OFFER.unpack_from(body)
    start = OFFER.size + num_bytes
    if (len(body) - start) % OFFERED.size or len(body) < start:
        raise WireError(f"an offer of {len(body)} bytes is not an address and a list of blocks")
    blocks = [OfferedBlock(block, name, tokens) for block, tokens, name in OFFERED.iter_unpack(body[start:])]
    for block in blocks:
        check_block(block.block_id, num_blocks)
        if not 0 < block.num_tokens <= block_tokens:
            raise WireError(f"{block.num_tokens} tokens offered of a block of {block_tokens}")
    return offer.decode(), blocks, bytes(body[OFFER.size : start]).decode()


def check_block(block_id: int, num_blocks: int) -> None:
    """Raise WireError unless the block exists, so that nothing is ever written outside the cache."""
    if block_id >= num_blocks:
        raise WireError(f"block {block_id} is outside 0..{num_blocks - 1}")
