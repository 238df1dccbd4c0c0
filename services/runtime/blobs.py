"""A store of named bytes over Redis, for latent KV and media features: a cache that returns exact values or nothing.

Every value has its name, its length and a seal; a short, damaged or misnamed value counts as missing. Every key has a
time to live.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias, TypeVar, cast

import xxhash

from services.runtime.blob_format import (
    CHUNK_BYTES,
    FIXED,
    MAX_HEAD_BYTES,
    Cause,
    Head,
    num_stored_chunks,
    pack,
)
from services.runtime.blob_seal import open_sealer
from services.runtime.errors import StoreUnavailable
from services.runtime.metrics import STORE_BYTES, STORE_READS, STORE_WRITES
from services.runtime.redis_access import NO_ACCESS, RedisAccess
from services.runtime.redis_connection import Buffer, RedisRefusal, Reply, command
from services.runtime.redis_instance import RETRY_S, RedisInstance

# Bytes of one pipeline: they bound the memory of both ends, and the time for which others wait for the connection.
PIPELINE_BYTES = 16 << 20
KEY_BYTES = 64 << 10  # least weight of a key, so that a pipeline has at most 256 keys
KINDS = frozenset({"kv", "tail", "media", "data", "head", "list", "recipe"})

Value: TypeAlias = Buffer | Sequence[Buffer]
Item = TypeVar("Item")
Result = TypeVar("Result")


class BlobStore:
    """Named values over one or several Redis instances; the name determines the instance.

    urls             redis://, rediss:// or unix://; all processes must spell them the same
    ttl_s            time to live of a value
    timeout_s        time limit of one pipeline: 16 MiB, or one larger value
    access           password, certificates and the key of the seals, the same for all instances
    wait_s           how long a call is retried while no instance answers; 0: callers continue without the store

    If an instance does not answer, its values count as missing, and new values for it are dropped. If no instance
    answers, every call raises StoreUnavailable, at once or within twice `timeout_s` (plus `wait_s`), until one answers
    again. A store belongs to the event loop that first uses it.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        ttl_s: float,
        timeout_s: float = 5.0,
        namespace: str = "moonshard",
        num_connections: int = 4,
        access: RedisAccess = NO_ACCESS,
        wait_s: float = 0.0,
    ) -> None:
        assert urls, "a store has at least one instance"
        self._instances = [
            RedisInstance(url, num_connections=num_connections, timeout_s=timeout_s, access=access) for url in urls
        ]
        self._seeds = [xxhash.xxh3_64_intdigest(url.encode()) for url in urls]
        self._ttl_ms = b"%d" % max(1, round(ttl_s * 1000))
        self._namespace = namespace.encode()
        self._sealer = open_sealer(access.mac_file)
        self._wait_s = wait_s

    async def put(self, items: Mapping[str, Value]) -> None:
        """Store values, each given whole or in pieces. They must not change before this returns."""
        pieces = {name: _pieces(value) for name, value in items.items()}
        sizes = {name: sum(map(len, value)) for name, value in pieces.items()}

        async def write(instance: RedisInstance, names: Sequence[str]) -> dict[str, int]:
            commands = []
            for name in names:
                strings = pack(name.encode(), pieces[name], self._sealer)
                # The head is written last, so that a reader who sees it finds the chunks.
                for i in reversed(range(len(strings))):
                    commands.append(command(b"SET", self._key(name, i), strings[i], b"PX", self._ttl_ms))
            await instance.run("put", commands)
            return {name: sizes[name] for name in names}

        stored = await self._on_instances(sizes, write)
        STORE_WRITES.labels("stored").inc(len(stored))
        STORE_WRITES.labels(Cause.UNREACHABLE).inc(len(items) - len(stored))
        STORE_BYTES.labels("written").inc(sum(stored.values()))

    async def get(self, names: Sequence[str], *, wait_s: float | None = None) -> list[bytearray | None]:
        """Return the values in the order of their names; None for missing ones. `wait_s` overrides the store's."""
        values = await self._read(dict.fromkeys(names), wait_s)
        return [cast(bytearray, values[name].obj) if name in values else None for name in names]

    async def get_into(self, names: Sequence[str], buffers: Sequence[memoryview]) -> list[bool]:
        """Read values into buffers, each exactly as long as its value; return which ones were read.

        The buffer of a value that counts as missing is undefined. Nothing is written to any buffer after this has
        returned, raised or was cancelled.
        """
        assert len(set(names)) == len(names), "two buffers for one name"
        values = await self._read({name: buffer.cast("B") for name, buffer in zip(names, buffers, strict=True)})
        return [name in values for name in names]

    async def exists(self, names: Sequence[str]) -> list[bool]:
        """Return which values exist, without checking their contents."""

        async def look(instance: RedisInstance, names: Sequence[str]) -> dict[str, bool]:
            replies = await instance.run("exists", [command(b"EXISTS", self._key(name, 0)) for name in names])
            return {name: reply == 1 for name, reply in zip(names, replies, strict=True)}

        found = await self._on_instances(dict.fromkeys(names, 0), look)
        return [found.get(name, False) for name in names]

    async def delete(self, names: Sequence[str]) -> None:
        """Delete values. Values on an instance that does not answer expire later."""

        async def drop(instance: RedisInstance, names: Sequence[str]) -> dict[str, None]:
            heads = await instance.run("delete", [self._read_command(name, FIXED.size) for name in names])
            keys = [
                self._key(name, i)
                for name, head in zip(names, heads, strict=True)
                for i in range(1 + num_stored_chunks(_string(head), self._sealer))
            ]
            await instance.run("delete", [command(b"UNLINK", key) for key in keys])
            return {}

        await self._on_instances(dict.fromkeys(names, 0), drop)

    async def room(self) -> int | None:
        """Return the bytes that the store has room for; None if there is no bound, or no instance answers.

        An instance that evicts counts with all its memory, one that refuses when full with its free memory, and one
        that does not answer with none.
        """
        room: list[int | None] = []
        for instance in self._instances:
            with suppress(StoreUnavailable):
                room.append(await instance.room_bytes())
        known = [each for each in room if each is not None]
        return sum(known) if room and len(known) == len(room) else None

    async def close(self) -> None:
        """Close all connections. No call may be in progress."""
        for instance in self._instances:
            instance.close()
        await asyncio.sleep(0)  # the event loop closes the sockets

    async def _read(
        self, buffers: Mapping[str, memoryview | None], wait_s: float | None = None
    ) -> dict[str, memoryview]:
        """Return the present and valid values, in the given buffers or in new ones."""
        wrong: dict[str, Cause] = {}

        async def read(instance: RedisInstance, names: Sequence[str]) -> dict[str, memoryview]:
            commands = [self._read_command(name, MAX_HEAD_BYTES + 1) for name in names]
            heads: dict[str, Head] = {}
            values: dict[str, memoryview] = {}
            for name, stored in zip(names, await instance.run("get", commands), strict=True):
                refused = isinstance(stored, RedisRefusal)
                head = Cause.DAMAGED if refused else Head.parse(name.encode(), _string(stored), self._sealer)
                buffer = buffers[name]
                if isinstance(head, Head) and buffer is not None and len(buffer) != head.length:
                    head = Cause.SHORT
                if isinstance(head, Cause):
                    wrong[name] = head
                    continue
                heads[name] = head
                values[name] = memoryview(bytearray(head.length)) if buffer is None else buffer
            for name, cause in (await self._read_values(instance, heads, values)).items():
                wrong[name] = cause
                del values[name]
            return values

        weights = {name: CHUNK_BYTES if buffer is None else len(buffer) for name, buffer in buffers.items()}
        values = await self._on_instances(weights, read, wait_s)
        outcomes = ((name, "hit" if name in values else wrong.get(name, Cause.UNREACHABLE)) for name in buffers)
        for (kind, outcome), count in Counter((_kind(name), outcome) for name, outcome in outcomes).items():
            STORE_READS.labels(kind, outcome).inc(count)
        STORE_BYTES.labels("read").inc(sum(map(len, values.values())))
        return values

    async def _read_values(
        self, instance: RedisInstance, heads: Mapping[str, Head], values: Mapping[str, memoryview]
    ) -> dict[str, Cause]:
        """Read the values announced by their heads; return the causes of invalid ones."""
        wrong: dict[str, Cause] = {}
        chunks = [
            (name, i, values[name][(i - 1) * CHUNK_BYTES : i * CHUNK_BYTES])
            for name, head in heads.items()
            for i in range(1, 1 + head.num_chunks)
        ]
        for batch in _batches(chunks, [len(sink) for _, _, sink in chunks]):
            commands = [command(b"GET", self._key(name, i)) for name, i, _ in batch]
            replies = await instance.run("get", commands, [sink for _, _, sink in batch])
            for (name, _, sink), reply in zip(batch, replies, strict=True):
                if reply != len(sink):
                    cause = Cause.DAMAGED if isinstance(reply, RedisRefusal) else Cause.SHORT
                    wrong.setdefault(name, Cause.MISSING if reply is None else cause)
        for name, head in heads.items():
            if not head.num_chunks:
                values[name][:] = head.inline
            if name not in wrong and not self._sealer.fits(name.encode(), values[name], head.seal):
                wrong[name] = Cause.DAMAGED
        return wrong

    async def _on_instances(
        self,
        weights: Mapping[str, int],
        work: Callable[[RedisInstance, Sequence[str]], Awaitable[Mapping[str, Result]]],
        wait_s: float | None = None,
    ) -> dict[str, Result]:
        """Do the work for batches of names that share an instance and fit a pipeline, and merge the results.

        The names of an instance that does not answer are left out. Raises StoreUnavailable if no instance answers, or
        if all that should do the work refused it, after `wait_s` of attempts.
        """
        give_up_at = time.monotonic() + (self._wait_s if wait_s is None else wait_s)
        while True:
            try:
                return await self._attempt(weights, work)
            except StoreUnavailable as failure:
                if time.monotonic() >= give_up_at:
                    raise
                await asyncio.sleep(failure.retry_after_s or RETRY_S)

    async def _attempt(
        self,
        weights: Mapping[str, int],
        work: Callable[[RedisInstance, Sequence[str]], Awaitable[Mapping[str, Result]]],
    ) -> dict[str, Result]:
        results: dict[str, Result] = {}
        failures: list[StoreUnavailable] = []
        failed: set[RedisInstance] = set()

        async def attempt(instance: RedisInstance, names: Sequence[str]) -> None:
            try:
                results.update(await work(instance, names))
            except StoreUnavailable as failure:
                failures.append(failure)
                failed.add(instance)

        homes: dict[RedisInstance, list[str]] = {}
        for name in weights:
            homes.setdefault(self._home(name), []).append(name)
        async with asyncio.TaskGroup() as group:
            for instance, names in homes.items():
                for batch in _batches(names, [weights[name] for name in names]):
                    group.create_task(attempt(instance, batch))
        if failures and all(instance.down or instance in failed for instance in self._instances):
            raise failures[0]
        return results

    def _home(self, name: str) -> RedisInstance:
        """Choose the instance by rendezvous hashing, so that a change of instances moves few names."""
        scores = [xxhash.xxh3_64_intdigest(name.encode(), seed) for seed in self._seeds]
        return self._instances[scores.index(max(scores))]

    def _key(self, name: str, index: int) -> bytes:
        """Return the key of the head (0) or a chunk (1 and up) of a value."""
        return b"%s:%d:%s" % (self._namespace, index, name.encode())

    def _read_command(self, name: str, num_bytes: int) -> list[Buffer]:
        """Return the command that reads the beginning of a head, which bounds the memory for the reply."""
        return command(b"GETRANGE", self._key(name, 0), b"0", b"%d" % (num_bytes - 1))


def _string(reply: Reply) -> bytes | bytearray:
    """Return a stored string; empty for any other reply."""
    return reply if isinstance(reply, bytes | bytearray) else b""


def _kind(name: str) -> str:
    """Return the kind of a value for the metrics: the first part of its name, if it is a known one."""
    kind = name.partition("/")[0]
    return kind if kind in KINDS else "other"


def _pieces(value: Value) -> list[memoryview]:
    pieces = [value] if isinstance(value, bytes | bytearray | memoryview) else value
    return [memoryview(piece).cast("B") for piece in pieces]


def _batches(items: Sequence[Item], weights: Sequence[int]) -> Iterator[Sequence[Item]]:
    """Cut items into batches for one pipeline, each of at least one item."""
    start, total = 0, 0
    for i, weight in enumerate(weights):
        if i > start and total + max(weight, KEY_BYTES) > PIPELINE_BYTES:
            yield items[start:i]
            start, total = i, 0
        total += max(weight, KEY_BYTES)
    if len(items) > start:
        yield items[start:]
