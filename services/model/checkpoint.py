"""A checkpoint folder in the released format: tensors by name, memory-mapped.

Names are the released full names, "language_model.model.layers.3.self_attn.q_a_proj.weight".
"""

import hashlib
from collections.abc import KeysView
from pathlib import Path

import torch
from torch import Tensor

from services.checkpoint.config import CONFIG_FILE, ModelConfig, load_config
from services.checkpoint.folder import require_folder
from services.checkpoint.json_fields import read_json_object
from services.model.safetensors_file import DTYPES, SafetensorsFile, header_bytes
from services.runtime.errors import CheckpointError
from services.runtime.liveness import LIVENESS

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
TEXT_PREFIX = "language_model."
SAMPLES_PER_FILE = 64
SAMPLE_BYTES = 4096


class Checkpoint:
    """One checkpoint folder. Opening reads config, index and the header of every file, and so checks their sizes.

    Owned by the thread that loads the weights; data are read when a tensor is touched. Every fault of the files is a
    CheckpointError: a sentence with tensor, file, expected and found.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        require_folder(path)
        self.config: ModelConfig = load_config(path)
        self._file_of = self._read_index()
        # A download that was cut is found here, not after an hour of loading.
        self._files = {name: SafetensorsFile(path / name) for name in sorted(set(self._file_of.values()))}
        self._bytes_read = 0

    @property
    def names(self) -> KeysView[str]:
        """Names of all tensors, as the index spells them."""
        return self._file_of.keys()

    @property
    def bytes_read(self) -> int:
        """Bytes of the tensors handed out so far."""
        return self._bytes_read

    def has(self, name: str) -> bool:
        """Whether the index has the tensor."""
        return self._stored_name(name) in self._file_of

    def file_of(self, name: str) -> Path:
        """The file of a tensor, as the index says."""
        stored = self._stored_name(name)
        if stored not in self._file_of:
            raise CheckpointError(f"tensor {name}: expected in the index of {self.path}, found nothing of that name")
        return self.path / self._file_of[stored]

    def tensor(self, name: str, *, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The whole tensor, a view of the mapped file. CheckpointError unless it has the given shape and dtype."""
        view = self._view(name, shape, dtype)
        self._bytes_read += view.nbytes
        LIVENESS.add_loaded(view.nbytes)
        return view

    def digest(self) -> bytes:
        """32 bytes that identify the weights: SHA-256 of config, index, and of each file its size, header and samples.

        The samples are 64 pieces of 4 KiB spread evenly over a file, so 595 GB cost about 20 MB of reading.
        """
        state = hashlib.sha256()
        for name in (CONFIG_FILE, INDEX_FILE):
            file = self.path / name
            _update(state, name, file.read_bytes() if file.exists() else b"")
        for name in self._files:
            file = self.path / name
            try:
                _update(state, name, header_bytes(file) + _samples(file))
            except OSError as error:
                raise CheckpointError(f"{file}: expected a readable file, found: {error.strerror}") from error
        return state.digest()

    def _view(self, name: str, shape: tuple[int, ...] | None, dtype: torch.dtype | None) -> Tensor:
        path = self.file_of(name)
        stored = self._stored_name(name)
        file = self._files[path.name]
        if stored not in file.names:
            raise CheckpointError(
                f"tensor {name}: expected in {path} as the index says, found {self._whereabouts(stored)}"
            )
        found, found_shape = file.form(stored)
        expected = next((text for text, known in DTYPES.items() if known == dtype), None)
        if (dtype is not None and found != expected) or found not in DTYPES:
            raise CheckpointError(
                f"tensor {name} in {path}: expected dtype {expected or ' or '.join(DTYPES)}, found {found}"
            )
        if shape is not None and found_shape != tuple(shape):
            raise CheckpointError(f"tensor {name} in {path}: expected shape {list(shape)}, found {list(found_shape)}")
        return file.tensor(stored)

    def _whereabouts(self, stored: str) -> str:
        return next((f"it in {name}" for name, file in self._files.items() if stored in file.names), "it in no file")

    def _stored_name(self, name: str) -> str:
        # A text-only copy of the model may lack the wrapper's prefix.
        return name if name in self._file_of else name.removeprefix(TEXT_PREFIX)

    def _read_index(self) -> dict[str, str]:
        index = self.path / INDEX_FILE
        if not index.exists() and (self.path / SINGLE_FILE).exists():
            return dict.fromkeys(SafetensorsFile(self.path / SINGLE_FILE).names, SINGLE_FILE)
        file_of = read_json_object(index).get("weight_map")
        if not isinstance(file_of, dict) or not file_of:
            raise CheckpointError(
                f"{index}: field weight_map: expected a map of tensors to files, found {type(file_of)}"
            )
        for file in {str(file) for file in file_of.values()}:
            # A name with a path in it could point anywhere on the disk.
            if Path(file).name != file or file in ("", ".", ".."):
                raise CheckpointError(f"{index}: field weight_map: expected plain file names, found {file!r}")
            if not (self.path / file).is_file():
                raise CheckpointError(f"{self.path / file}: expected a file that {INDEX_FILE} names, found none")
        return {str(name): str(file) for name, file in file_of.items()}


def _update(state: "hashlib._Hash", name: str, content: bytes) -> None:
    state.update(f"{name}:{len(content)}:".encode())
    state.update(content)


def _samples(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as data:
        pieces = [size.to_bytes(8, "little")]
        for sample in range(SAMPLES_PER_FILE):
            data.seek(sample * max(size - SAMPLE_BYTES, 0) // (SAMPLES_PER_FILE - 1))
            pieces.append(data.read(SAMPLE_BYTES))
    return b"".join(pieces)
