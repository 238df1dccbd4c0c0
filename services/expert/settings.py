"""Settings of an expert replica."""

from pathlib import Path

from pydantic import Field, PositiveInt

from services.model.device import Device
from services.runtime.settings import MAX_SOCKET_PATH_BYTES
from services.runtime.shards import ShardSettings

RAW_SUFFIX = ".raw"


class ExpertSettings(ShardSettings):
    """One field per MOONSHARD_* variable."""

    model: Path = Field(description="Folder of the checkpoint.")
    device: Device = Field("auto", description="auto (a GPU if there is one), cpu or cuda.")
    threads: PositiveInt | None = Field(
        None, description="Threads of the kernels, all together. None: one per core that PyTorch finds."
    )

    @property
    def raw_socket(self) -> Path | None:
        """The Unix socket of the wire without gRPC: beside the gRPC socket, if that is a Unix socket."""
        path = self.listen.removeprefix("unix:") + RAW_SUFFIX
        return Path(path) if self.listen.startswith("unix:") and len(path.encode()) <= MAX_SOCKET_PATH_BYTES else None
