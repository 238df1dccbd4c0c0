"""A small random checkpoint for all tests of reading checkpoints, and copies to damage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.local.random_checkpoint.write import write_random_checkpoint


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory) -> Path:
    """A tiny read-only checkpoint."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_random_checkpoint(folder)
    return folder


@pytest.fixture
def damaged(checkpoint_folder, tmp_path) -> Path:
    """A copy of the checkpoint for one test to change."""
    return shutil.copytree(checkpoint_folder, tmp_path / "damaged")


@pytest.fixture
def edit_header() -> Callable[[Path, Callable[[dict[str, Any]], object]], None]:
    """Change the header of a safetensors file, and keep the data."""

    def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])

    return edit
