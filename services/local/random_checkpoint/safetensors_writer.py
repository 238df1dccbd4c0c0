"""Writes a folder of safetensors files and their index, piece by piece, in bounded memory."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from services.model.checkpoint import INDEX_FILE
from services.model.tensor_names import TensorSpec

Pieces = Callable[[TensorSpec], Iterable[Tensor]]


def write_safetensors(folder: Path, files: Sequence[Sequence[TensorSpec]], pieces: Pieces) -> None:
    """Write one file per list of tensors, named like the release's shards, and the index of all of them.

    pieces  yields a tensor's data in consecutive parts
    """
    weight_map: dict[str, str] = {}
    for number, specs in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{len(files):06d}.safetensors"
        _write_file(folder / name, specs, pieces)
        weight_map |= dict.fromkeys((spec.name for spec in specs), name)
    total = sum(_num_bytes(spec) for specs in files for spec in specs)
    write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file in the release's format: two spaces, sorted keys."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _write_file(path: Path, specs: Sequence[TensorSpec], pieces: Pieces) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        begin, end = end, end + _num_bytes(spec)
        header[spec.name] = {"dtype": _dtype_name(spec.dtype), "shape": spec.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spec in specs:
            for piece in pieces(spec):
                file.write(piece.contiguous().view(torch.uint8).numpy().data)
        assert file.tell() == 8 + len(text) + end


def _num_bytes(spec: TensorSpec) -> int:
    return math.prod(spec.shape) * spec.dtype.itemsize


def _dtype_name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "BF16", torch.float32: "F32", torch.int32: "I32"}[dtype]
