"""The store when things go wrong: damage is never returned, and no wait is without bound."""

import asyncio
import os
import random
import signal
import time
from collections import Counter

import pytest
import redis
from prometheus_client import REGISTRY

from services.runtime.blob_format import CHUNK_BYTES
from services.runtime.blobs import BlobStore
from services.runtime.errors import StoreUnavailable
from services.runtime.redis_server import RedisServer

SMALL, LARGE = b"small" * 100, os.urandom(3 * CHUNK_BYTES + 1000)
TIMEOUT_S = 2.0


@pytest.fixture
async def store(redis_server):
    store = BlobStore([redis_server.url], ttl_s=60, timeout_s=TIMEOUT_S, namespace="kv")
    yield store
    await store.close()


@pytest.fixture
def raw(redis_server):
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


class Causes:
    """How many values were missing and why, since this was made."""

    def __init__(self) -> None:
        self._before = self._now()

    def _now(self) -> Counter:
        family = next(family for family in REGISTRY.collect() if family.name == "moonshard_store_reads")
        return Counter({s.labels["outcome"]: s.value for s in family.samples if s.name.endswith("_total")})

    def __call__(self) -> dict[str, float]:
        return dict(self._now() - self._before)


def rewrite(raw, key: str, change) -> None:
    """Changes what lies under a key, as a faulty disk or peer would."""
    raw.set(key, bytes(change(bytearray(raw.get(key)))), px=60_000)


def flip(position: int, bit: int):
    def change(stored: bytearray) -> bytearray:
        stored[position] ^= 1 << bit
        return stored

    return change


async def nothing_is_returned(store: BlobStore, name: str, length: int) -> None:
    assert await store.get([name]) == [None]
    assert await store.get_into([name], [memoryview(bytearray(length))]) == [False]


async def test_any_flipped_bit_of_a_small_value(store, raw):
    await store.put({"a": SMALL})
    intact = raw.get("kv:0:a")
    for position in range(len(intact)):
        rewrite(raw, "kv:0:a", flip(position, position % 8))
        assert await store.get(["a"]) == [None], f"byte {position}"
        raw.set("kv:0:a", intact, px=60_000)
    assert await store.get(["a"]) == [SMALL]


async def test_flipped_bits_of_a_large_value(store, raw):
    await store.put({"a": LARGE})
    places = [(0, position) for position in range(raw.strlen("kv:0:a"))]
    chunks = range(1, 5)
    chosen = random.Random(0)
    places += [(i, chosen.randrange(raw.strlen(f"kv:{i}:a"))) for i in chunks for _ in range(8)]
    places += [(i, position) for i in chunks for position in (0, -1)]
    for i, position in places:
        intact = raw.get(f"kv:{i}:a")
        rewrite(raw, f"kv:{i}:a", flip(position, chosen.randrange(8)))
        assert await store.get(["a"]) == [None], f"key {i}, byte {position}"
        raw.set(f"kv:{i}:a", intact, px=60_000)
    assert await store.get(["a"]) == [LARGE]


@pytest.mark.parametrize(
    "value, key, change, cause",
    [
        pytest.param(SMALL, "kv:0:a", lambda stored: stored[:-1], "short", id="small-truncated"),
        pytest.param(SMALL, "kv:0:a", lambda stored: stored[:10], "short", id="truncated-in-the-head"),
        pytest.param(SMALL, "kv:0:a", lambda stored: stored[:0], "missing", id="emptied"),
        pytest.param(SMALL, "kv:0:a", lambda stored: stored + b"x", "short", id="small-with-more"),
        pytest.param(SMALL, "kv:0:a", lambda stored: stored + LARGE, "short", id="small-with-much-more"),
        pytest.param(SMALL, "kv:0:a", lambda stored: stored[:-1] + b"x", "damaged", id="small-changed"),
        pytest.param(LARGE, "kv:0:a", lambda stored: stored + b"x", "short", id="head-with-more"),
        pytest.param(LARGE, "kv:2:a", lambda stored: stored[:-1], "short", id="chunk-truncated"),
        pytest.param(LARGE, "kv:2:a", lambda stored: stored + b"x", "short", id="chunk-with-more"),
        pytest.param(LARGE, "kv:4:a", lambda stored: stored * 3000, "short", id="last-chunk-with-much-more"),
        pytest.param(LARGE, "kv:4:a", lambda stored: stored[::-1], "damaged", id="last-chunk-reversed"),
    ],
)
async def test_damage_counts_as_missing_and_its_cause_is_counted(store, raw, value, key, change, cause):
    await store.put({"a": value, "b": value})
    rewrite(raw, key, change)
    causes = Causes()
    await nothing_is_returned(store, "a", len(value))
    assert causes() == {cause: 2}
    assert await store.get(["b"]) == [value]


@pytest.mark.parametrize("i", range(5))
async def test_a_missing_part(store, raw, i):
    await store.put({"a": LARGE})
    raw.delete(f"kv:{i}:a")
    causes = Causes()
    await nothing_is_returned(store, "a", len(LARGE))
    assert causes() == {"missing": 2}


@pytest.mark.parametrize("value", [SMALL, LARGE], ids=["small", "large"])
async def test_the_value_of_another_name(store, raw, value):
    await store.put({"a": value, "b": value})
    for key in raw.scan_iter("kv:*:b"):
        raw.copy(key, key.replace(b":b", b":a"), replace=True)
    causes = Causes()
    await nothing_is_returned(store, "a", len(value))
    assert causes() == {"misnamed": 2}


async def test_chunks_of_another_name_or_in_another_order(store, raw):
    other = bytes(len(LARGE))
    await store.put({"a": LARGE, "b": other})
    raw.copy("kv:2:b", "kv:2:a", replace=True)
    await nothing_is_returned(store, "a", len(LARGE))
    await store.put({"a": LARGE})
    first = raw.get("kv:1:a")
    raw.copy("kv:2:a", "kv:1:a", replace=True)
    raw.set("kv:2:a", first, px=60_000)
    causes = Causes()
    await nothing_is_returned(store, "a", len(LARGE))
    assert causes() == {"damaged": 2}


@pytest.mark.parametrize("length", [0, len(LARGE) - 1, len(LARGE) + 1])
async def test_a_buffer_of_another_length(store, length):
    await store.put({"a": LARGE})
    causes = Causes()
    assert await store.get_into(["a"], [memoryview(bytearray(length))]) == [False]
    assert causes() == {"short": 1}


async def test_a_key_of_another_type(store, raw):
    raw.lpush("kv:0:a", "x")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await store.get(["a"])


async def bounded(call, *, at_most_s: float = 2 * TIMEOUT_S + 1.0) -> BaseException | None:
    """The error of a call that must end in time."""
    started = time.monotonic()
    (result,) = await asyncio.gather(call, return_exceptions=True)
    assert time.monotonic() - started < at_most_s
    return result if isinstance(result, BaseException) else None


def every_call(store: BlobStore):
    return [
        store.put({"a": SMALL}),
        store.get(["a"]),
        store.get_into(["a"], [memoryview(bytearray(1))]),
        store.exists(["a"]),
        store.delete(["a"]),
    ]


async def works_again(store: BlobStore) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            await store.put({"new": LARGE})
            break
        except StoreUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    assert await store.get(["new", "a"]) == [LARGE, None]


async def test_a_server_that_was_killed_and_returns(store, redis_server):
    await store.put({"a": SMALL})
    redis_server.kill()
    for call in every_call(store):
        assert isinstance(await bounded(call), StoreUnavailable)
    redis_server.start()
    await works_again(store)


async def test_a_server_killed_in_mid_operation(store, redis_server):
    values = {f"v{i}": LARGE for i in range(40)}
    await store.put(values)
    reads = [asyncio.create_task(bounded(store.get(list(values)))) for _ in range(3)]
    writes = [asyncio.create_task(bounded(store.put(values))) for _ in range(3)]
    await asyncio.sleep(0.02)
    redis_server.kill()
    ended = await asyncio.gather(*reads, *writes)
    assert {type(error) for error in ended} == {StoreUnavailable}
    redis_server.start()
    await works_again(store)


async def test_a_server_that_hangs(store, redis_server):
    await store.put({"a": SMALL})
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        calls = [asyncio.create_task(bounded(call)) for _ in range(4) for call in every_call(store)]
        ended = await asyncio.gather(*calls)
        assert {type(error) for error in ended} == {StoreUnavailable}
        # Known to be down: refused at once.
        assert isinstance(await bounded(store.get(["a"]), at_most_s=0.1), StoreUnavailable)
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    await asyncio.sleep(0.3)
    assert await store.get(["a"]) in ([SMALL], [None])  # the delete above may have arrived


async def test_a_server_that_was_never_there(socket_folder):
    store = BlobStore([f"unix://{socket_folder}/none.sock"], ttl_s=1, timeout_s=TIMEOUT_S)
    for call in every_call(store):
        assert isinstance(await bounded(call, at_most_s=0.3), StoreUnavailable)


async def test_one_instance_of_two_takes_only_its_own_values(socket_folder):
    servers = []
    for name in ("one", "two"):
        (socket_folder / name).mkdir()
        servers.append(RedisServer(socket_folder / name))
        servers[-1].start()
    store = BlobStore([server.url for server in servers], ttl_s=60, timeout_s=TIMEOUT_S)
    try:
        values = {f"v{i}": SMALL for i in range(64)}
        await store.put(values)
        servers[0].kill()
        causes = Causes()
        got = await store.get(list(values))
        assert 10 < got.count(None) < 54
        assert causes() == {"hit": 64 - got.count(None), "unreachable": got.count(None)}
        await store.put(values)
        assert [value is None for value in await store.get(list(values))] == [value is None for value in got]
        assert (await store.exists(list(values))).count(False) == got.count(None)
        lost = [name for name, value in zip(values, got, strict=True) if value is None]
        assert await store.get(lost) == [None] * len(lost)
        servers[1].kill()
        assert isinstance(await bounded(store.get(list(values))), StoreUnavailable)
        for server in servers:
            server.start()
        await asyncio.sleep(0.3)
        await store.put(values)
        assert await store.get(list(values)) == list(values.values())
    finally:
        await store.close()
        for server in servers:
            server.stop()


async def test_a_cancelled_read_writes_nothing_more_and_spoils_nothing(store):
    values = {f"v{i}": os.urandom(4 * CHUNK_BYTES) for i in range(12)}
    await store.put(values)
    chosen = random.Random(1)
    for _ in range(25):
        buffers = [bytearray(len(value)) for value in values.values()]
        reader = asyncio.create_task(store.get_into(list(values), [memoryview(buffer) for buffer in buffers]))
        await asyncio.sleep(chosen.random() * 0.03)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        after = [bytes(buffer) for buffer in buffers]
        assert await store.get(["v1"]) == [values["v1"]]
        assert [bytes(buffer) for buffer in buffers] == after
    assert await store.get(list(values)) == list(values.values())


async def test_a_full_server_is_unavailable_and_reads_go_on(socket_folder):
    with RedisServer(socket_folder, max_bytes=4 << 20) as server, redis.Redis.from_url(server.url) as raw:
        raw.config_set("maxmemory-policy", "noeviction")
        store = BlobStore([server.url], ttl_s=60, timeout_s=TIMEOUT_S)
        await store.put({"a": SMALL})
        with pytest.raises(StoreUnavailable, match="OOM"):
            await store.put({f"v{i}": LARGE for i in range(8)})
        await asyncio.sleep(0.3)
        assert await store.get(["a"]) == [SMALL]
        await store.close()


async def test_a_server_short_of_memory_drops_values_but_never_half_of_one(socket_folder):
    with RedisServer(socket_folder, max_bytes=32 << 20) as server:
        store = BlobStore([server.url], ttl_s=60, timeout_s=TIMEOUT_S)
        values = {f"v{i}": os.urandom(len(LARGE)) for i in range(20)}
        for name, value in values.items():
            await store.put({name: value})
        got = await store.get(list(values))
        assert None in got
        assert all(value in (None, values[name]) for name, value in zip(values, got, strict=True))
        await store.put({"new": SMALL})
        assert await store.get(["new"]) == [SMALL]
        await store.close()
