"""Describes the first fault of a safetensors file that the library refuses, with expected and found value."""

import itertools
import json
import math
from pathlib import Path
from typing import Any, Final

LENGTH_BYTES: Final = 8
_ITEM_BYTES: Final = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8}


def describe_fault(path: Path, error: Exception) -> str:
    """Return a sentence about the fault; for an unknown one it ends with the library's message."""
    found = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        text = file.read(min(length, found))
    if not 2 <= length <= found - LENGTH_BYTES:
        return (
            f"{path}: expected a safetensors header that fits the file, found header length {length} in a file of "
            f"{found} bytes"
        )
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as wrong:
        return f"{path}: expected a JSON header, found: {wrong}"
    if not isinstance(header, dict):
        return f"{path}: expected a JSON object as header, found {type(header).__name__}"
    header.pop("__metadata__", None)
    fault = next(filter(None, itertools.starmap(_entry_fault, header.items())), "") or _layout_fault(
        header, LENGTH_BYTES + length, found
    )
    return f"{path}: {fault or f'expected a safetensors file, found: {error}'}"


def _entry_fault(name: str, entry: Any) -> str:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        return f"tensor {name}: expected dtype, shape and data_offsets, found {entry}"
    if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        return f"tensor {name}: expected whole numbers as shape and offsets, found {entry}"
    size = math.prod(shape) * _ITEM_BYTES.get(dtype, 0)
    if dtype in _ITEM_BYTES and end - begin != size:
        return f"tensor {name}: expected {size} bytes for {dtype} {list(shape)}, found data offsets {begin}..{end}"
    return ""


def _layout_fault(header: dict[str, Any], data_begin: int, found: int) -> str:
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, next_end = entry["data_offsets"]
        if begin != end:
            what = "overlaps the tensor before it" if begin < end else "leaves a gap before it"
            return f"tensor {name}: expected data offset {end}, found {begin}, which {what}"
        end = next_end
    expected = data_begin + end
    if found == expected:
        return ""
    cut = "; it is truncated" if found < expected else ""
    return f"expected {expected} bytes as its header says, found {found} bytes{cut}"
