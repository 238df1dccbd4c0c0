"""Recipes that all replicas share and that outlast their processes: a cache in the store, of a fixed size.

The digest of an ask picks one of `NUM_PLACES` names; what lies there is replaced. So nothing that clients send makes
the cache larger, and a recipe that is lost costs some milliseconds.
"""

import asyncio
import json
from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

from services.attention.constraint.compiler import Verdict
from services.attention.constraint.recipes import Ask, Recipe
from services.runtime.blobs import BlobStore
from services.runtime.errors import InvalidRequest, StoreUnavailable

NUM_PLACES = 2048
MAX_BYTES = 32 * 1024  # of one value; larger recipes are not shared
# A store that is slower than this is of no help.
READ_S = 0.25
MAX_WRITING = 64


class RecipeStore:
    """Belongs to the event loop that uses it, as its store does."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._writing: set[asyncio.Task[None]] = set()

    async def find(self, asks: Sequence[Ask]) -> dict[Ask, Verdict]:
        """Return what is known of some asks; nothing if the store cannot be read."""
        digests = {ask: _digest(ask) for ask in asks}
        names = list({_name(digest) for digest in digests.values()})
        try:
            async with asyncio.timeout(READ_S):
                values = dict(zip(names, await self._store.get(names), strict=True))
        except (StoreUnavailable, TimeoutError):
            return {}
        read = {ask: _verdict(values[_name(digest)], digest) for ask, digest in digests.items()}
        return {ask: verdict for ask, verdict in read.items() if verdict is not None}

    def keep(self, ask: Ask, verdict: Verdict) -> None:
        """Write in the background; what is too large or too much is dropped."""
        made = {"recipe": verdict.dump()} if isinstance(verdict, Recipe) else {"refusal": verdict.message}
        digest = _digest(ask)
        value = json.dumps({"digest": digest.hex(), **made}).encode()
        if len(value) <= MAX_BYTES and len(self._writing) < MAX_WRITING:
            task = asyncio.create_task(self._write(_name(digest), value))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def close(self) -> None:
        """Wait for what is being written. The store may be closed then."""
        await asyncio.gather(*self._writing)

    async def _write(self, name: str, value: bytes) -> None:
        try:
            await self._store.put({name: value})
        except StoreUnavailable:
            return  # it is compiled again


def _verdict(value: bytearray | None, digest: bytes) -> Verdict | None:
    """Read a value; None if it is of another ask, or of a writer who does not know the format."""
    try:
        found = json.loads(value or b"{}")
        if found.get("digest") != digest.hex():
            return None
        return Recipe.load(found["recipe"]) if "recipe" in found else InvalidRequest(str(found["refusal"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _name(digest: bytes) -> str:
    return f"recipe/{int.from_bytes(digest[:8]) % NUM_PLACES}"


def _digest(ask: Ask) -> bytes:
    return blake2b(json.dumps(ask).encode(), key=_version(), digest_size=32).digest()


@cache
def _version() -> bytes:
    """Return what recipes depend on beside the ask: the library, and every line of this folder."""
    code = blake2b(version("llguidance").encode(), digest_size=32)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        code.update(path.read_bytes())
    return code.digest()
