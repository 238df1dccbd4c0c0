"""API keys: a mounted file of digests, read again when it changes."""

import hashlib
import hmac
import logging
import re
import time
from pathlib import Path

from gateway.http.errors import InvalidKey
from services.runtime.errors import Unavailable

log = logging.getLogger(__name__)

CHECK_S = 1.0
DIGEST = re.compile(r"[0-9a-f]{64}")
ANYBODY = "anybody"


class ApiKeys:
    """Knows the API keys. Without a file, every request is accepted.

    One key per line of the file: the SHA-256 of the key in hexadecimal, then optionally a name; # begins a comment. A
    file without keys refuses every request. A file that becomes unreadable leaves the keys as they were.
    """

    def __init__(self, path: Path | None) -> None:
        """Raises Unavailable if there is a path and the file cannot be read."""
        self._path = path
        self._digests: tuple[bytes, ...] = ()
        self._version: tuple[int, int, int] | None = None
        self._checked_s = time.monotonic()
        if path is not None:
            self._read(path)

    @property
    def are_needed(self) -> bool:
        """Whether requests without a key are refused."""
        return self._path is not None

    def owner_of(self, key: str | None) -> str:
        """Return a short name of the key, the same in every gateway. Raises InvalidKey unless the key is known."""
        if self._path is None:
            return ANYBODY
        self._refresh(self._path)
        if not key:
            raise InvalidKey("an API key is needed: send it as `Authorization: Bearer KEY` or as `x-api-key`")
        digest = hashlib.sha256(key.encode()).hexdigest().encode()
        # All are compared, so that the time reveals nothing.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise InvalidKey("the API key is not known here")
        return digest[:16].decode()

    def _refresh(self, path: Path) -> None:
        now_s = time.monotonic()
        if now_s - self._checked_s < CHECK_S:
            return
        self._checked_s = now_s
        try:
            self._read(path)
        except Unavailable as error:
            log.error(error.message)

    def _read(self, path: Path) -> None:
        try:
            status = path.stat()
            version = (status.st_mtime_ns, status.st_ino, status.st_size)
            if version == self._version:
                return
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable(f"MOONSHARD_KEYS_FILE: cannot read the API keys: {error}") from error
        words = [line.split("#")[0].split() for line in lines]
        digests = [word[0].lower() for word in words if word]
        for number, digest in enumerate(digests, 1):
            if not DIGEST.fullmatch(digest):
                raise Unavailable(f"MOONSHARD_KEYS_FILE: entry {number} does not begin with a SHA-256 in hexadecimal")
        self._digests = tuple(digest.encode() for digest in digests)
        self._version = version
        log.info("API keys read", extra={"num_keys": len(digests)})
