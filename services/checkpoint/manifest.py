"""A checkpoint's manifest: SHA-256 of every file, in the format of `sha256sum`. It detects a single flipped bit."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from services.checkpoint.folder import require_folder
from services.runtime.errors import CheckpointError

MANIFEST_FILE: Final = "SHA256SUMS"
THREADS: Final = 8  # hashing and reading release the interpreter lock
# Files that affect a checkpoint's results; a manifest must have all of them.
_SUFFIXES: Final = (".safetensors", ".json", ".model")
_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def write_manifest(folder: Path) -> int:
    """Write SHA256SUMS of a folder that is known to be correct; return the number of files."""
    names = _names(folder)
    lines = [f"{digest}  {name}\n" for name, digest in zip(names, _digests(folder, names), strict=True)]
    (folder / MANIFEST_FILE).write_text("".join(lines))
    return len(names)


def verify(folder: Path) -> int:
    """Compare every file with SHA256SUMS; return the number of files.

    Raises CheckpointError that names every file that differs, is missing, or is not in the manifest.
    """
    expected = _read_manifest(folder / MANIFEST_FILE)
    here = set(_names(folder))
    faults = [
        f"{folder / name}: expected a file of the manifest, found none" for name in sorted(expected.keys() - here)
    ]
    faults += [
        f"{folder / name}: expected in {MANIFEST_FILE}, found no line" for name in sorted(here - expected.keys())
    ]
    names = sorted(expected.keys() & here)
    faults += [
        f"{folder / name}: expected SHA-256 {expected[name]}, found {found}"
        for name, found in zip(names, _digests(folder, names), strict=True)
        if found != expected[name]
    ]
    if faults:
        raise CheckpointError("\n".join(faults))
    return len(names)


def _names(folder: Path) -> list[str]:
    require_folder(folder)
    return sorted(path.name for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())


def _read_manifest(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: expected a manifest, found none; write one beside a copy that is known to be right: "
            f"`moonshard verify-checkpoint --write FOLDER`"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: expected a readable file, found: {error}") from error
    expected: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise CheckpointError(
                f"{path} line {number}: expected 64 hexadecimal digits and a file name, found {line!r}"
            )
        digest, name = match.groups()
        if Path(name).suffix in _SUFFIXES:
            expected[name.removeprefix("./")] = digest
    return expected


def _digests(folder: Path, names: Sequence[str]) -> Iterable[str]:
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda name: _digest(folder / name), names))


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: expected a readable file, found: {error.strerror}") from error
