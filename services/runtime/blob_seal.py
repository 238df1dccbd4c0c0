"""Seals of stored values: a checksum detects damage, a MAC also forgery.

A seal is 32 bytes over name and value. With a key it is a random nonce and an AES-256-GMAC; BLAKE2b derives the GMAC's
key from the store's key and the nonce, so no pair of key and IV repeats, and AES hardware does the work.
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
    """Makes and checks seals. `magic` begins every value and distinguishes the two kinds."""

    magic: bytes

    def seal(self, name: bytes, pieces: Sequence[Buffer]) -> bytes: ...
    def fits(self, name: bytes, value: Buffer, seal: bytes) -> bool: ...


class Checksum:
    """Detects damage, but not forgery: a writer can compute the checksum of a forged value."""

    magic = b"msb2"

    def seal(self, name: bytes, pieces: Sequence[Buffer]) -> bytes:
        digest = xxhash.xxh3_128(name)
        for piece in pieces:
            digest.update(piece)
        return digest.digest().ljust(SEAL_BYTES, b"\0")

    def fits(self, name: bytes, value: Buffer, seal: bytes) -> bool:
        return self.seal(name, [value]) == seal


class Mac:
    """Detects damage and forgery, because only processes with the key can make a valid seal."""

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
        # The key is used once, so the IV may be constant. The length of the name separates name and value.
        mac = Cipher(AES256(key), GCM(bytes(12))).encryptor()
        mac.authenticate_additional_data(len(name).to_bytes(4, "little") + name)
        for piece in pieces:
            mac.authenticate_additional_data(piece)
        mac.finalize()
        return mac.tag


CHECKSUM: Final = Checksum()


def open_sealer(key_file: Path | None) -> Sealer:
    """Return a MAC with the file's key, or checksums without a file. Raises OSError or ValueError for a bad file."""
    if key_file is None:
        return CHECKSUM
    key = key_file.read_bytes().strip()
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(f"{key_file} holds {len(key)} bytes, a key has {MIN_KEY_BYTES} or more")
    return Mac(key)
