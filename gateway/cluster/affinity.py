"""Affinity: the replica that has met the beginning of a prompt or of a conversation before."""

from array import array
from collections import OrderedDict
from collections.abc import Sequence

import xxhash

from protos.tokenizer_pb2 import RenderRequest

CHUNK_TOKENS = 256


def chain_hashes(token_ids: Sequence[int]) -> list[int]:
    """Return one hash for each whole chunk of a prompt, which also covers all chunks before it."""
    raw = array("I", token_ids)
    digest = xxhash.xxh3_64()
    hashes: list[int] = []
    for start in range(0, len(raw) - CHUNK_TOKENS + 1, CHUNK_TOKENS):
        digest.update(raw[start : start + CHUNK_TOKENS].tobytes())
        hashes.append(digest.intdigest())
    return hashes


def conversation_key(request: RenderRequest) -> bytes:
    """Return a name that all turns of a conversation share: a digest of its messages up to the user's first."""
    digest = xxhash.xxh3_64()
    for message in request.messages:
        digest.update(message.SerializeToString(deterministic=True))
        if message.role == "user":
            break
    return digest.digest()


class PrefixMap:
    """Hash of a prompt's beginning -> address of the last replica that computed it; the oldest are forgotten.

    A hint only: the replica may have evicted the blocks.
    """

    def __init__(self, bound: int = 65536) -> None:
        self._bound = bound
        self._addresses: OrderedDict[int, str] = OrderedDict()

    def cached_tokens(self, hashes: Sequence[int]) -> dict[str, int]:
        """Return how many leading tokens of the prompt each replica computed, by address."""
        found: dict[str, int] = {}
        for count, name in enumerate(hashes, start=1):
            address = self._addresses.get(name)
            if address is None:
                break
            found[address] = count * CHUNK_TOKENS
        return found

    def remember(self, hashes: Sequence[int], address: str) -> None:
        """Note that a replica has computed this prompt."""
        for name in hashes:
            self._addresses[name] = address
            self._addresses.move_to_end(name)
        while len(self._addresses) > self._bound:
            self._addresses.popitem(last=False)
