"""What an expert replica is told at start."""

from pathlib import Path
from typing import Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from services.runtime.settings import MAX_SOCKET_PATH_BYTES, ServiceSettings

RAW_SUFFIX = ".raw"


class ExpertSettings(ServiceSettings):
    """One field per MOONSHARD_* variable.

    threads  of the kernels, altogether; None: as many as torch finds cores
    """

    model: Path
    shard: NonNegativeInt = 0
    num_shards: PositiveInt = 1
    threads: PositiveInt | None = None

    @property
    def raw_socket(self) -> Path | None:
        """Where the hot wire without gRPC listens: beside the gRPC socket, if that is a Unix socket."""
        path = self.listen.removeprefix("unix:") + RAW_SUFFIX
        return Path(path) if self.listen.startswith("unix:") and len(path.encode()) <= MAX_SOCKET_PATH_BYTES else None

    @model_validator(mode="after")
    def _shard_exists(self) -> Self:
        if self.shard >= self.num_shards:
            raise ValueError(f"MOONSHARD_SHARD={self.shard} is outside 0..{self.num_shards - 1}")
        return self
