"""Tokens for connections beside gRPC: given away over gRPC, each for one connection within half a minute."""

import hashlib
import secrets
import threading
import time
from typing import Final, NamedTuple

from services.wire.introduction import TOKEN_BYTES
from services.wire.links import KEY_BYTES

LIFETIME_S: Final = 30.0
MAX_ISSUED: Final = 1024


class Introduction(NamedTuple):
    """key  for a sealed link: 32 bytes for frames to the listener, then 32 for its answers"""

    token: bytes
    key: bytes


class Introductions:
    """The tokens that were issued and not used yet. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By a hash, so that looking one up takes as long whichever bytes of it are right. Oldest first.
        self._issued: dict[bytes, tuple[float, bytes]] = {}

    def issue(self) -> Introduction:
        """Return a token and a key that nobody else has."""
        made = Introduction(secrets.token_bytes(TOKEN_BYTES), secrets.token_bytes(2 * KEY_BYTES))
        with self._lock:
            self._forget_old()
            self._issued[_hashed(made.token)] = time.monotonic() + LIFETIME_S, made.key
        return made

    def redeem(self, token: bytes) -> bytes | None:
        """Return the key of a token, once; None for one that was never issued, was used, or is too old."""
        with self._lock:
            self._forget_old()
            found = self._issued.pop(_hashed(token), None)
        return found[1] if found is not None else None

    def _forget_old(self) -> None:
        now_s = time.monotonic()
        for name, (end_s, _) in list(self._issued.items()):
            if end_s > now_s and len(self._issued) < MAX_ISSUED:
                return
            del self._issued[name]


def _hashed(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
