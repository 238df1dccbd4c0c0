"""Mutual TLS between processes: certificates in files, read again when they change.

Connections that stand keep the certificates with which they were made; new ones take the new. Unix sockets never speak
TLS: they do not leave the machine, and the permissions of their folder say who may come.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc

from services.runtime.errors import Unavailable
from services.runtime.settings import ServiceSettings

CHECK_S = 1.0

Version = tuple[tuple[int, int, int], ...]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """Our certificate and its key, and the authority whose certificates we trust, all PEM.

    name  that every peer's certificate has to bear; empty: the host under which it is called
    """

    cert: Path
    key: Path
    ca: Path
    name: str = ""

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Certificate, key and authority. Unavailable if one cannot be read."""
        return _read(self.cert, "CERT"), _read(self.key, "KEY"), _read(self.ca, "CA")

    def version(self) -> Version | None:
        """Changes when a file does; None while one is not there, as for a moment when a mounted secret changes."""
        try:
            stats = [path.stat() for path in (self.cert, self.key, self.ca)]
        except OSError:
            return None
        return tuple((status.st_mtime_ns, status.st_ino, status.st_size) for status in stats)

    def channel_options(self) -> Sequence[tuple[str, int | str]]:
        """What a channel needs beside its credentials."""
        return (("grpc.ssl_target_name_override", self.name),) if self.name else ()


def tls_files(settings: ServiceSettings) -> TlsFiles | None:
    """The files that the settings name; None without TLS."""
    if settings.tls_cert is None or settings.tls_key is None or settings.tls_ca is None:
        return None
    return TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_ca, settings.tls_name)


def channel_credentials(tls: TlsFiles) -> grpc.ChannelCredentials:
    """For a channel that shows our certificate and trusts our authority's. Unavailable if a file cannot be read."""
    cert, key, ca = tls.read()
    return grpc.ssl_channel_credentials(ca, key, cert)


def server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """For a server that demands a certificate of every caller. Unavailable if a file cannot be read."""
    watch = Watch(tls)

    def configuration() -> grpc.ServerCertificateConfiguration:
        cert, key, ca = tls.read()
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """Asked by gRPC before each handshake; None: as before."""
        try:
            return configuration() if watch.changed() else None
        except Unavailable as error:
            log.error("%s; the certificates stay as they were", error)
            return None

    # The stubs of grpc do not know that None means "as before".
    fetcher = cast(Callable[[], grpc.ServerCertificateConfiguration], renewed)
    return grpc.dynamic_ssl_server_credentials(configuration(), fetcher, require_client_authentication=True)


class Watch:
    """Tells when files have changed, looking at most once a second."""

    def __init__(self, tls: TlsFiles) -> None:
        self._tls = tls
        self._version = tls.version()
        self._looked_s = time.monotonic()

    def changed(self) -> bool:
        """Whether they are others than at the last time that this was true, or at the beginning."""
        now_s = time.monotonic()
        if now_s - self._looked_s < CHECK_S:
            return False
        self._looked_s = now_s
        version = self._tls.version()
        if version is None or version == self._version:
            return False
        self._version = version
        return True


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"MOONSHARD_TLS_{what}: cannot read {path}: {error.strerror}") from error
