"""The raw frames of ExpertService.Dispatch, equal on every transport.

A frame is a header of 64 bytes and, right behind it, its tensors row by row; everything little endian.

    request  topk_ids [tokens, top_k] i32 | topk_weights [tokens, top_k] f32 | hidden [tokens, hidden] f32 or bf16
    partial  sum over the shard's experts [tokens, hidden] f64, or i32 in steps of the grid
    error    message in UTF-8

The ids come first because they keep every tensor aligned, however odd the hidden size. Partial sums are exact
(`kernels/grid.py`): in a bf16 run they travel as whole steps in 32 bits if all of a frame fit, else in f64.
"""

import enum
import struct
import warnings
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor

from kernels.grid import STEPS
from kernels.interface import RoutedTokens
from services.runtime.errors import WireError

Buffer = bytes | bytearray | memoryview

MAGIC: Final = b"MSEX"
VERSION: Final = 2
MAX_FRAME_BYTES: Final = 1 << 29  # 9,000 tokens of K2.6 with sums in f64
MAX_MESSAGE_BYTES: Final = 2048

# magic, version, kind, dtype, reserved, epoch, call id, step, layer, micro-batch, tokens, top_k, hidden, padding
_HEADER: Final = struct.Struct("<4sBBBxQQQIIIII12x")
HEADER_BYTES: Final = _HEADER.size
assert HEADER_BYTES == 64
_MAX_SUMS: Final = (MAX_FRAME_BYTES - 2 * HEADER_BYTES) // 8  # beside the header and what a link adds

_DTYPES: Final = {0: torch.float32, 1: torch.bfloat16, 2: torch.float64, 3: torch.int32}
_DTYPE_CODES: Final = {dtype: code for code, dtype in _DTYPES.items()}
_HIDDEN_DTYPES: Final = (torch.float32, torch.bfloat16)
_SUM_DTYPES: Final = (torch.float64, torch.int32)
_STEP: Final = STEPS[torch.bfloat16]  # of sums in i32

with warnings.catch_warnings():
    # Torch warns, once a process, about tensors over memory that Python counts as immutable. Ours are only read.
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


class Kind(enum.IntEnum):
    """The content behind the header."""

    REQUEST = 1
    PARTIAL = 2
    ERROR = 3


# A look-up, because a call of the enumeration costs as much as the rest of the header.
_KINDS: Final = {int(kind): kind for kind in Kind}


class CallName(NamedTuple):
    """Names one call. Experts are idempotent by it; an answer repeats the name of its request."""

    epoch: int  # one life of an attention process
    call_id: int  # unique in the epoch; a repeated frame keeps it
    step: int
    layer: int
    micro_batch: int


NOBODY: Final = CallName(0, 0, 0, 0, 0)


class Header(NamedTuple):
    """The first 64 bytes of a frame."""

    name: CallName
    kind: Kind
    dtype: torch.dtype
    num_tokens: int
    top_k: int
    hidden_size: int


class Partial(NamedTuple):
    """One shard's answer: its exact weighted sum [tokens, hidden] f64."""

    name: CallName
    total: Tensor


class Refusal(NamedTuple):
    """One shard's answer to a frame that it cannot make sense of."""

    name: CallName
    message: str


def encode_request(name: CallName, work: RoutedTokens) -> list[Buffer]:
    """The parts of a request frame, in order; tensors are not copied and must not change until the answer is there."""
    tokens, hidden_size = work.hidden.shape
    top_k = work.topk_ids.shape[1]
    assert work.topk_ids.shape == work.topk_weights.shape == (tokens, top_k)
    assert work.topk_ids.dtype == torch.int32
    assert work.topk_weights.dtype == torch.float32
    header = _header(name, Kind.REQUEST, _DTYPE_CODES[work.hidden.dtype], tokens, top_k, hidden_size)
    return [header, _bytes_of(work.topk_ids), _bytes_of(work.topk_weights), _bytes_of(work.hidden)]


def encode_partial(name: CallName, total: Tensor, dtype: torch.dtype) -> list[Buffer]:
    """The parts of an answer.

    total  [tokens, hidden] f64, on the grid of the run
    dtype  of the run
    """
    assert total.dtype == torch.float64
    if dtype == torch.bfloat16 and bool((total.abs() < 2**31 * _STEP).all()):
        total = (total / _STEP).int()
    header = _header(name, Kind.PARTIAL, _DTYPE_CODES[total.dtype], total.shape[0], 0, total.shape[1])
    return [header, _bytes_of(total)]


def encode_refusal(name: CallName, message: str) -> list[Buffer]:
    """The parts of an error answer. NOBODY is the name where the frame's own could not be read."""
    return [_header(name, Kind.ERROR, 0, 0, 0, 0), message.encode()[:MAX_MESSAGE_BYTES]]


def num_bytes(parts: Sequence[Buffer]) -> int:
    """The length of a frame in parts."""
    return sum(len(part) for part in parts)


def read_header(frame: Buffer) -> Header:
    """The header of a frame. WireError when it is too short, not one of ours or of another version."""
    if len(frame) < HEADER_BYTES:
        raise WireError(f"a frame of {len(frame)} bytes is shorter than its header of {HEADER_BYTES}")
    magic, version, kind, dtype, epoch, call_id, step, layer, micro_batch, *sizes = _HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise WireError(f"a frame begins with {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise WireError(f"a frame has version {version}, expected {VERSION}")
    if kind not in _KINDS:
        raise WireError(f"a frame has kind {kind}, expected 1 to {len(_KINDS)}")
    if dtype not in _DTYPES:
        raise WireError(f"a frame has dtype code {dtype}, expected 0 to {len(_DTYPES) - 1}")
    return Header(CallName(epoch, call_id, step, layer, micro_batch), _KINDS[kind], _DTYPES[dtype], *sizes)


def decode_request(header: Header, frame: Buffer) -> RoutedTokens:
    """The tensors of a request. WireError when the sizes in the header are impossible or not those of the frame."""
    if header.kind is not Kind.REQUEST:
        raise WireError(f"expected a request, found a frame of kind {header.kind.name}")
    if header.dtype not in _HIDDEN_DTYPES:
        raise WireError(f"a request has hidden states of {header.dtype}, expected float32 or bfloat16")
    tokens, top_k, hidden_size = header.num_tokens, header.top_k, header.hidden_size
    if not (tokens and top_k and hidden_size):
        raise WireError(f"a request has {tokens} tokens, top_k {top_k}, hidden size {hidden_size}; none may be 0")
    if tokens * hidden_size > _MAX_SUMS:
        raise WireError(f"the sums of {tokens} tokens, hidden size {hidden_size} would be larger than any frame")
    topk_bytes = tokens * top_k * 4
    _check_length(frame, 2 * topk_bytes + tokens * hidden_size * header.dtype.itemsize, header)
    return RoutedTokens(
        hidden=_tensor(frame, header.dtype, HEADER_BYTES + 2 * topk_bytes, tokens, hidden_size),
        topk_ids=_tensor(frame, torch.int32, HEADER_BYTES, tokens, top_k),
        topk_weights=_tensor(frame, torch.float32, HEADER_BYTES + topk_bytes, tokens, top_k),
    )


def decode_answer(frame: Buffer) -> Partial | Refusal:
    """Decode a shard's answer. WireError when the frame is not a well-formed answer."""
    header = read_header(frame)
    if header.kind is Kind.ERROR:
        return Refusal(header.name, bytes(frame[HEADER_BYTES:]).decode(errors="replace"))
    if header.kind is Kind.REQUEST:
        raise WireError("expected an answer, found a request")
    tokens, hidden_size = header.num_tokens, header.hidden_size
    if not (tokens and hidden_size):
        raise WireError(f"a partial sum has {tokens} tokens and hidden size {hidden_size}; none may be 0")
    if header.dtype not in _SUM_DTYPES:
        raise WireError(f"a partial sum is of {header.dtype}, expected float64 or int32")
    _check_length(frame, tokens * hidden_size * header.dtype.itemsize, header)
    total = _tensor(frame, header.dtype, HEADER_BYTES, tokens, hidden_size)
    return Partial(header.name, total if header.dtype == torch.float64 else total.double() * _STEP)


def _header(name: CallName, kind: Kind, dtype: int, num_tokens: int, top_k: int, hidden_size: int) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, kind, dtype, *name, num_tokens, top_k, hidden_size)


def _bytes_of(tensor: Tensor) -> memoryview:
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.view(torch.int16)  # numpy has no bf16
    return memoryview(cast(Any, tensor.contiguous().numpy())).cast("B")


def _tensor(frame: Buffer, dtype: torch.dtype, offset: int, rows: int, columns: int) -> Tensor:
    return torch.frombuffer(frame, dtype=dtype, count=rows * columns, offset=offset).view(rows, columns)


def _check_length(frame: Buffer, payload_bytes: int, header: Header) -> None:
    if len(frame) != HEADER_BYTES + payload_bytes:
        raise WireError(
            f"a frame of {header.num_tokens} tokens, top_k {header.top_k}, hidden size {header.hidden_size} "
            f"has {len(frame)} bytes, expected {HEADER_BYTES + payload_bytes}"
        )
