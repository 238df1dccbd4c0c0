"""A running cluster's files: a private folder of sockets, and a state file by which other commands find it."""

import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from services.runtime.settings import MAX_SOCKET_PATH_BYTES

LONGEST_NAME = "prefill-99-shard-99.sock"


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for checkpoint, logs and state files of this user, by the XDG convention."""
    root = environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "moonshard"


class RunFolder:
    """A new folder for sockets that only this user may enter; `close` removes it with its contents."""

    def __init__(self, parent: Path | None = None) -> None:
        """Create it in `parent`, by default the folder for temporary files, or /tmp if that path is too long."""
        candidates = [parent] if parent is not None else [Path(tempfile.gettempdir()), Path("/tmp")]
        fitting = [folder for folder in candidates if _fits(folder)]
        if not fitting:
            raise ValueError(f"{candidates[0]} is too long a path for Unix sockets ({MAX_SOCKET_PATH_BYTES} bytes)")
        # mkdtemp uses mode 0700, which matters because a process that can open a socket can read all conversations.
        self.path = Path(tempfile.mkdtemp(prefix="moonshard-", dir=fitting[0]))
        self.store_key.touch(mode=0o600)
        self.store_key.write_text(secrets.token_hex(32))

    def socket(self, process: str) -> Path:
        """Return the path of a process's socket."""
        path = self.path / f"{process}.sock"
        assert len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES, path
        return path

    def metrics_socket(self, process: str) -> Path:
        """Return the path of a process's socket for metrics, which therefore need no port."""
        return self.path / f"{process}.prom"

    @property
    def store_key(self) -> Path:
        """Return the file with the key that authenticates values in Redis."""
        return self.path / "store.key"

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / "moonshard-12345678" / LONGEST_NAME)) <= MAX_SOCKET_PATH_BYTES


@dataclass(frozen=True)
class ProcessState:
    """A process as shown by `moonshard status`; pid is 0 during a restart."""

    name: str
    pid: int
    state: str
    address: str


@dataclass(frozen=True)
class ClusterState:
    """The state of a running cluster, for other commands."""

    url: str
    pid: int
    model: str
    log: str
    run_folder: str
    started_at: float
    processes: list[ProcessState] = field(default_factory=list)

    @staticmethod
    def from_json(text: str) -> "ClusterState":
        fields = json.loads(text)
        return ClusterState(**{**fields, "processes": [ProcessState(**process) for process in fields["processes"]]})


class StateFile:
    """A file in `folder`, named by the supervisor's pid, with the state of its cluster. Locked while the cluster runs.

    The lock ends with the supervisor, however that ends. So an unlocked file belongs to a supervisor that was killed;
    the next cluster removes it and its run folder (`sweep`).
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"cluster-{os.getpid()}.json"
        self._lock = self.path.with_suffix(".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def write(self, state: ClusterState) -> None:
        # Replaced as a whole, so that a reader never sees half a file.
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(asdict(state), indent=2))
        new.replace(self.path)

    def close(self) -> None:
        for path in (self.path, self.path.with_suffix(".lock")):
            path.unlink(missing_ok=True)
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def running_clusters(folder: Path) -> list[ClusterState]:
    """Return the running clusters of this user, the newest first."""
    states = [_read(path) for path in folder.glob("cluster-*.json") if _is_locked(path)]
    return sorted((state for state in states if state), key=lambda state: state.started_at, reverse=True)


def sweep(folder: Path) -> list[Path]:
    """Remove files and run folders of killed supervisors; return the removed run folders."""
    removed = []
    for path in folder.glob("cluster-*.json"):
        if _is_locked(path):
            continue
        state = _read(path)
        if state is not None and Path(state.run_folder).name.startswith("moonshard-"):
            shutil.rmtree(state.run_folder, ignore_errors=True)
            removed.append(Path(state.run_folder))
        path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)
    return removed


def _is_locked(path: Path) -> bool:
    try:
        with path.with_suffix(".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _read(path: Path) -> ClusterState | None:
    """Return None if the file has been removed or was written by another version."""
    try:
        return ClusterState.from_json(path.read_text())
    except (OSError, ValueError, TypeError, KeyError):
        return None
