"""Settings of an expert replica."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from services.model.device import Device
from services.runtime.settings import MAX_SOCKET_PATH_BYTES
from services.runtime.shards import ShardSettings

RAW_SUFFIX = ".raw"


class ExpertSettings(ShardSettings):
    """One field per MOONSHARD_* variable."""

    model: Path = Field(description="Folder of the checkpoint.")
    device: Device = Field("auto", description="auto (a GPU if there is one), cpu or cuda.")
    kernels: Literal["auto", "amx", "avx512bf16", "avx512", "avx2", "portable", "reference"] = Field(
        "auto", description="Arithmetic of a CPU; auto: what the rule in kernels/README.md chooses."
    )
    threads: PositiveInt | None = Field(
        None, description="Threads of the kernels, all together. None: one per core that PyTorch finds."
    )

    wire_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        None,
        description="TCP port for frames without gRPC; 0: any free one. None: through gRPC only. With TLS these frames "
        "are sealed, or travel through gRPC where there is no libcrypto.",
    )

    @property
    def wire_place(self) -> tuple[str, int] | None:
        """Host and port of the wire over TCP, at the host of the gRPC port; this machine only behind a Unix socket."""
        if self.wire_port is None:
            return None
        host = "127.0.0.1" if self.listen.startswith("unix:") else self.listen.rpartition(":")[0].strip("[]")
        return host, self.wire_port

    @property
    def raw_socket(self) -> Path | None:
        """The Unix socket of the wire without gRPC: beside the gRPC socket, if that is a Unix socket."""
        path = self.listen.removeprefix("unix:") + RAW_SUFFIX
        return Path(path) if self.listen.startswith("unix:") and len(path.encode()) <= MAX_SOCKET_PATH_BYTES else None
