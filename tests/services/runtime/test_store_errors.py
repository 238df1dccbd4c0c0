"""Error replies of Redis count as a lost value or an unavailable store; errors never contain an address."""

import asyncio
import os
import time
from contextlib import asynccontextmanager

import pytest
import redis

from services.runtime.blobs import BlobStore
from services.runtime.errors import StoreUnavailable
from services.runtime.redis_server import RedisServer

SMALL, LARGE = b"small" * 100, os.urandom(3 << 20)


@asynccontextmanager
async def store_at(url, **options):
    store = BlobStore([url], ttl_s=60, timeout_s=1.0, **options)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def refusing(folder, reply: bytes):
    """Run a server that answers every command with this error."""
    handlers = []

    async def answer(reader, writer):
        handlers.append(asyncio.current_task())
        while data := await reader.read(65536):
            writer.write(reply * data.count(b"*"))
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    async with await asyncio.start_unix_server(answer, f"{folder}/no.sock"):
        yield f"unix://{folder}/no.sock"
        await asyncio.gather(*handlers, return_exceptions=True)


@pytest.fixture
def raw(redis_server):
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


CODES = ["LOADING", "READONLY", "MASTERDOWN", "OOM", "MISCONF", "NOAUTH", "CLUSTERDOWN", "ERR"]


@pytest.mark.parametrize("code", CODES)
async def test_every_refusal_makes_the_store_unavailable_and_names_no_address(socket_folder, code):
    reply = f"-{code} it says 10.1.2.3:6379\r\n".encode()
    async with refusing(socket_folder, reply) as url, store_at(url) as store:
        for call in (store.put({"a": SMALL}), store.get(["a"]), store.exists(["a"]), store.delete(["a"])):
            with pytest.raises(StoreUnavailable) as refused:
                await call
            assert refused.value.message in {f"the store refuses ({code})", "the store does not answer"}
            assert refused.value.retry_after_s


async def test_a_server_that_is_gone_is_not_named(socket_folder):
    for url in (f"unix://{socket_folder}/none.sock", "redis://:secret@127.0.0.1:1/0"):
        async with store_at(url) as store:
            with pytest.raises(StoreUnavailable) as failed:
                await store.get(["a"])
            assert failed.value.message == "the store does not answer"


async def test_writes_that_are_refused_for_want_of_memory_leave_reads_alone(redis_server, raw):
    async with store_at(redis_server.url) as store:
        await store.put({"a": SMALL})
        raw.config_set("maxmemory-policy", "noeviction")
        raw.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable, match=r"the store refuses \(OOM\)"):
            await store.put({"b": SMALL})
        assert await store.get(["a", "b"]) == [SMALL, None], "at once, without a pause"


async def test_a_replica_takes_no_writes_until_it_is_master_again(redis_server, raw):
    async with store_at(redis_server.url) as store:
        await store.put({"a": SMALL})
        raw.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreUnavailable, match="READONLY"):
            await store.put({"b": SMALL})
        raw.replicaof("NO", "ONE")
        await asyncio.sleep(0.3)
        await store.put({"b": SMALL})
        assert await store.get(["a", "b"]) == [SMALL, SMALL]


async def test_a_store_that_waits_outlasts_a_refusal(redis_server, raw):
    async with store_at(redis_server.url, wait_s=20) as store:
        raw.replicaof("127.0.0.1", 1)
        writing = asyncio.create_task(store.put({"a": LARGE}))
        await asyncio.sleep(0.6)
        assert not writing.done()
        raw.replicaof("NO", "ONE")
        await writing
        assert await store.get(["a"]) == [LARGE]


async def test_a_store_that_waits_outlasts_a_restart(redis_server):
    async with store_at(redis_server.url, wait_s=20) as store:
        redis_server.kill()
        writing = asyncio.create_task(store.put({"a": SMALL}))
        await asyncio.sleep(0.6)
        await asyncio.to_thread(redis_server.start)
        await writing
        assert await store.get(["a"]) == [SMALL]


async def test_the_wait_has_an_end(socket_folder):
    async with store_at(f"unix://{socket_folder}/none.sock", wait_s=0.5) as store:
        started_s = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.put({"a": SMALL})
        assert 0.5 <= time.monotonic() - started_s < 3


async def test_one_full_instance_of_two_drops_its_own_values(socket_folder):
    for name in ("one", "two"):
        (socket_folder / name).mkdir()
    with RedisServer(socket_folder / "one") as one, RedisServer(socket_folder / "two") as two:
        with redis.Redis.from_url(one.url) as raw:
            raw.config_set("maxmemory-policy", "noeviction")
            raw.config_set("maxmemory", "1")
        store = BlobStore([one.url, two.url], ttl_s=60)
        values = {f"v{i}": SMALL for i in range(64)}
        await store.put(values)
        assert 10 < (await store.get(list(values))).count(None) < 54
        await store.close()
