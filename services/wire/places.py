"""Where a process takes connections beside gRPC."""

import logging
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from services.runtime.settings import MAX_SOCKET_PATH_BYTES
from services.runtime.shards import ShardSettings
from services.wire.links import cipher_path
from services.wire.listener import Place

log = logging.getLogger(__name__)

RAW_SUFFIX: Final = ".raw"


class WireSettings(ShardSettings):
    """A shard that others send frames to."""

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


def wire_places(settings: WireSettings, *, seals: bool) -> list[Place]:
    """Return where frames arrive. With TLS over TCP only where there is a libcrypto to seal them with."""
    places: list[Place] = [settings.raw_socket] if settings.raw_socket is not None else []
    if settings.wire_place is None:
        return places
    if seals:
        path = cipher_path()
        if path is None:
            log.warning("frames travel through gRPC: no libcrypto to seal them with")
            return places
        log.info("frames over TCP are sealed", extra={"libcrypto": path})
    return [*places, settings.wire_place]
