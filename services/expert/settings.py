"""What an expert replica is told at start."""

from pathlib import Path

from pydantic import PositiveInt

from services.model.device import Device
from services.runtime.settings import MAX_SOCKET_PATH_BYTES
from services.runtime.shards import ShardSettings

RAW_SUFFIX = ".raw"


class ExpertSettings(ShardSettings):
    """One field per MOONSHARD_* variable.

    threads  of the kernels, altogether; None: as many as torch finds cores
    """

    model: Path
    device: Device = "auto"
    threads: PositiveInt | None = None

    @property
    def raw_socket(self) -> Path | None:
        """Where the hot wire without gRPC listens: beside the gRPC socket, if that is a Unix socket."""
        path = self.listen.removeprefix("unix:") + RAW_SUFFIX
        return Path(path) if self.listen.startswith("unix:") and len(path.encode()) <= MAX_SOCKET_PATH_BYTES else None
