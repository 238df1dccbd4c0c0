"""What proves that a stored value is the one that was put: a checksum against damage, a MAC against forgery.

A seal is 32 bytes over name and value. With a key it is a random nonce and an AES-256-GMAC under a key of its own, that
BLAKE2b derives from the key of the store and the nonce: no pair of key and IV repeats, and AES hardware does the work.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import xxhash
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM

Buffer: TypeAlias = bytes | bytearray | memoryview

SEAL_BYTES = 32
NONCE_BYTES = 16
MIN_KEY_BYTES = 16


class Sealer(Protocol):
    """Makes and checks seals. `magic` begins every value, so that the two kinds are never mistaken for each other."""

    magic: bytes

    def seal(self, name: bytes, pieces: Sequence[Buffer]) -> bytes: ...
    def fits(self, name: bytes, value: Buffer, seal: bytes) -> bool: ...


class Checksum:
    """Finds damage. A writer of the store can also write a fitting checksum."""

    magic = b"msb2"

    def seal(self, name: bytes, pieces: Sequence[Buffer]) -> bytes:
        digest = xxhash.xxh3_128(name)
        for piece in pieces:
            digest.update(piece)
        return digest.digest().ljust(SEAL_BYTES, b"\0")

    def fits(self, name: bytes, value: Buffer, seal: bytes) -> bool:
        return self.seal(name, [value]) == seal


class Mac:
    """Finds damage and forgery: only processes with the key can make a seal that fits."""

    magic = b"msm2"

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.blake2b(key, digest_size=32, person=b"moonshard-store").digest()

    def seal(self, name: bytes, pieces: Sequence[Buffer]) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._tag(nonce, name, pieces)

    def fits(self, name: bytes, value: Buffer, seal: bytes) -> bool:
        nonce, tag = seal[:NONCE_BYTES], seal[NONCE_BYTES:]
        return hmac.compare_digest(self._tag(nonce, name, [value]), tag)

    def _tag(self, nonce: bytes, name: bytes, pieces: Sequence[Buffer]) -> bytes:
        key = hashlib.blake2b(nonce, key=self._key, digest_size=32).digest()
        # The key is used once, so the IV may be constant. The length of the name keeps name and value apart.
        mac = Cipher(AES256(key), GCM(bytes(12))).encryptor()
        mac.authenticate_additional_data(len(name).to_bytes(4, "little") + name)
        for piece in pieces:
            mac.authenticate_additional_data(piece)
        mac.finalize()
        return mac.tag


CHECKSUM: Final = Checksum()


def open_sealer(key_file: Path | None) -> Sealer:
    """A MAC with the key of the file, or checksums without one. OSError or ValueError if the file holds no key."""
    if key_file is None:
        return CHECKSUM
    key = key_file.read_bytes().strip()
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(f"{key_file} holds {len(key)} bytes, a key has {MIN_KEY_BYTES} or more")
    return Mac(key)
