"""While the store is down, hangs or is full, every call ends in time; calls succeed again when Redis does."""

import asyncio
import os
import random
import signal
import time

import pytest
import redis

from services.runtime.blob_format import CHUNK_BYTES
from services.runtime.blobs import BlobStore
from services.runtime.errors import StoreUnavailable
from services.runtime.redis_server import RedisServer
from tests.services.runtime.conftest import Causes

SMALL, LARGE = b"small" * 100, os.urandom(3 * CHUNK_BYTES + 1000)
TIMEOUT_S = 2.0


@pytest.fixture
async def store(redis_server):
    store = BlobStore([redis_server.url], ttl_s=60, timeout_s=TIMEOUT_S)
    yield store
    await store.close()


async def bounded(call, *, at_most_s: float = 2 * TIMEOUT_S + 1.0) -> BaseException | None:
    """Return the error of a call, which must end in time."""
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


@pytest.mark.slow
async def test_a_server_that_hangs(store, redis_server):
    await store.put({"a": SMALL})
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        calls = [asyncio.create_task(bounded(call)) for _ in range(4) for call in every_call(store)]
        ended = await asyncio.gather(*calls)
        assert {type(error) for error in ended} == {StoreUnavailable}
        # The store is known to be down, so calls are refused at once.
        assert isinstance(await bounded(store.get(["a"]), at_most_s=0.1), StoreUnavailable)
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    await asyncio.sleep(0.3)
    assert await store.get(["a"]) in ([SMALL], [None])  # the delete may have arrived


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


@pytest.mark.slow
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
