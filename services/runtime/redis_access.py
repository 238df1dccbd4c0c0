"""Files with the secrets for Redis: password and TLS, read at every connection, and the key of the values' MACs."""

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RedisAccess:
    """Paths of the files. All but the MAC's may change while the process runs.

    password_file  wins over the password of a URL
    ca             authorities that are trusted for rediss://; None: those of the system
    cert, key      presented to Redis, if it asks
    mac_file       key that authenticates stored values, read when a BlobStore opens; None: values have checksums only
    """

    password_file: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    mac_file: Path | None = None

    def password(self) -> str | None:
        """Without the end of its line; None if there is no file. OSError if it cannot be read."""
        return self.password_file.read_text().strip() if self.password_file is not None else None

    def ssl_context(self) -> ssl.SSLContext:
        """For one connection. OSError if a file cannot be read or makes no sense."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None and self.key is not None:
            context.load_cert_chain(self.cert, self.key)
        return context


NO_ACCESS = RedisAccess()
