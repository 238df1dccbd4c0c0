"""What Redis wants to know of who connects: a password from a file, and TLS with files. Read at every connection."""

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RedisAccess:
    """Where password and certificates lie, so that they may change while we run.

    password_file  over the URL's own password
    ca             whom to trust where the URL says rediss://; none: the system's authorities
    cert, key      that we show there, if Redis asks
    """

    password_file: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

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
