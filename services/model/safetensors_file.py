"""One safetensors file: its header checked, its data memory-mapped. Nothing in it is ever executed.

Layout: u64 header length, JSON header {name: {dtype, shape, data_offsets}}, then the data without gaps.
"""

import itertools
import json
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.runtime.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "I32": torch.int32, "F16": torch.float16, "I64": torch.int64}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: dtype as the file spells it, shape, and its bytes' place in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """A safetensors file, mapped read-only as far as the disk is concerned; pages are read when touched.

    The mapping is private: a tensor handed out is a view of it and lives as long as that view does.
    Raises CheckpointError when the header does not describe exactly this file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                self.size_bytes = os.fstat(file.fileno()).st_size
                header = _read_header(path, file.read(8), self.size_bytes, file.read)
                # Copy-on-write, because torch warns about memory that it may not write to.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CheckpointError(f"{path}: expected a readable file, found: {error.strerror}") from error
        self.entries = _check_entries(path, header.values, header.data_begin, self.size_bytes)

    def tensor(self, name: str) -> Tensor:
        """A view of the mapped bytes. The name must be in `entries` and its dtype in DTYPES."""
        entry = self.entries[name]
        dtype = DTYPES[entry.dtype]
        if entry.begin == entry.end:
            return torch.zeros(entry.shape, dtype=dtype)
        count = math.prod(entry.shape)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=entry.begin).view(entry.shape)


def header_bytes(path: Path) -> bytes:
    """The raw header of a file, length included, for fingerprints. CheckpointError when it is not there."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            return start + _header_text(path, start, os.fstat(file.fileno()).st_size, file.read)
    except OSError as error:
        raise CheckpointError(f"{path}: expected a readable file, found: {error.strerror}") from error


@dataclass(frozen=True)
class _Header:
    values: dict[str, Any]
    data_begin: int


def _header_text(path: Path, start: bytes, size_bytes: int, read: Any) -> bytes:
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size_bytes - 8):
        raise CheckpointError(
            f"{path}: expected a safetensors header that fits the file, found header length {length} "
            f"in a file of {size_bytes} bytes"
        )
    text: bytes = read(length)
    return text


def _read_header(path: Path, start: bytes, size_bytes: int, read: Any) -> _Header:
    text = _header_text(path, start, size_bytes, read)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
            raise CheckpointError(f"{path}: tensor {twice}: expected one entry in the header, found two")
        return values

    try:
        values = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a JSON header, found: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object as header, found {type(values).__name__}")
    values.pop("__metadata__", None)
    return _Header(values, 8 + len(text))


def _check_entries(path: Path, values: dict[str, Any], data_begin: int, size_bytes: int) -> dict[str, Entry]:
    entries = {name: _entry(path, name, value, data_begin) for name, value in values.items()}
    placed = sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))
    end = data_begin
    for name, entry in placed:
        if entry.begin != end:
            what = "overlaps the tensor before it" if entry.begin < end else "leaves a gap before it"
            raise CheckpointError(
                f"{path}: tensor {name}: expected data offset {end - data_begin}, found {entry.begin - data_begin}, "
                f"which {what}"
            )
        end = entry.end
        if end > size_bytes:
            raise CheckpointError(
                f"{path}: tensor {name}: expected data up to byte {end}, found a file of {size_bytes} bytes; "
                "it is truncated"
            )
    if end != size_bytes:
        raise CheckpointError(f"{path}: expected {end} bytes as its header says, found {size_bytes}")
    return entries


def _entry(path: Path, name: str, value: Any, data_begin: int) -> Entry:
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: tensor {name}: expected dtype, shape and data_offsets, found {value}"
        ) from error
    numbers = list(itertools.chain(shape, (begin, end)))
    if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in numbers):
        raise CheckpointError(f"{path}: tensor {name}: expected whole numbers as shape and offsets, found {value}")
    if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise CheckpointError(
            f"{path}: tensor {name}: expected {math.prod(shape) * DTYPES[dtype].itemsize} bytes for {dtype} "
            f"{list(shape)}, found data offsets {begin}..{end}"
        )
    return Entry(dtype, shape, data_begin + begin, data_begin + end)
