"""The folder of a checkpoint."""

from pathlib import Path

from services.runtime.errors import CheckpointError


def require_folder(path: Path) -> None:
    """Raise CheckpointError unless the path is a folder."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: expected a checkpoint folder, found {'a file' if path.exists() else 'none'}")
