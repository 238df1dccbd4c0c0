"""A safetensors file, memory-mapped by the safetensors library: opening reads the header, access reads pages."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from services.model.safetensors_faults import LENGTH_BYTES, describe_fault
from services.runtime.errors import CheckpointError

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "I32": torch.int32, "F16": torch.float16, "I64": torch.int64}


class SafetensorsFile:
    """A file; raises CheckpointError if its size and layout differ from its header.

    The mapping is private, so writing to a tensor changes no file; a tensor keeps the mapping alive.
    """

    def __init__(self, path: Path) -> None:
        try:
            opened: Any = safe_open(path, framework="pt")
        except OSError as error:
            raise CheckpointError(f"{path}: expected a readable file, found: {error.strerror or error}") from error
        except SafetensorError as error:
            raise CheckpointError(describe_fault(path, error)) from error
        self._file = opened
        self.names: frozenset[str] = frozenset(opened.keys())

    def form(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return the dtype, in the file's spelling, and the shape of a tensor in `names`."""
        part = self._file.get_slice(name)
        return part.get_dtype(), tuple(part.get_shape())

    def tensor(self, name: str) -> Tensor:
        """Return a view of the mapped bytes of a tensor in `names`."""
        view: Tensor = self._file.get_tensor(name)
        return view


def header_bytes(path: Path) -> bytes:
    """The raw header of a file, its length included, for fingerprints."""
    with path.open("rb") as file:
        length = file.read(LENGTH_BYTES)
        return length + file.read(int.from_bytes(length, "little"))
