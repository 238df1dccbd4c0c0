"""Files with the secrets for Redis: password and TLS, read at every connection, and the key of the values' MACs."""

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RedisAccess:
    """Paths of the files. All except the MAC's may change while the process runs.

    password_file  overrides the password of a URL
    ca             trusted authorities for rediss://; None: the system's
    cert, key      client certificate for Redis
    mac_file       key that authenticates stored values, read when a BlobStore opens; None: values have checksums only
    """

    password_file: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    mac_file: Path | None = None

    def password(self) -> str | None:
        """Return the password without its line end; None without a file. Raises OSError for an unreadable file."""
        return self.password_file.read_text().strip() if self.password_file is not None else None

    def ssl_context(self) -> ssl.SSLContext:
        """Return a context for one connection. Raises OSError if a file is unreadable or malformed."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None and self.key is not None:
            context.load_cert_chain(self.cert, self.key)
        return context


NO_ACCESS = RedisAccess()
