"""A master behind Sentinel is found by its name, also after a failover. All servers are real, on loopback."""

import asyncio
import subprocess
from contextlib import ExitStack, contextmanager

import pytest
import redis

from services.runtime.blobs import BlobStore
from services.runtime.errors import StoreUnavailable
from services.runtime.redis_sentinel import check_sentinel_url, is_sentinel, master_url
from services.runtime.redis_server import RedisServer, find_redis_server
from tests.services.runtime.conftest import free_port

VALUES = {f"v{i}": b"x" * 1000 for i in range(32)}


@contextmanager
def sentinel(folder, master_port):
    """Run one Sentinel that decides alone and quickly; yield its port."""
    port = free_port()
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f"dir {folder}",
        f"sentinel monitor kimi 127.0.0.1 {master_port} 1",
        "sentinel down-after-milliseconds kimi 300",
        "sentinel failover-timeout kimi 2000",
    ]
    path = folder / "sentinel.conf"
    path.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen([find_redis_server(), path, "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


async def until(condition, timeout_s=60):
    async with asyncio.timeout(timeout_s):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


def asked(port, *words):
    with redis.Redis(port=port, socket_timeout=2) as client:
        try:
            return client.execute_command(*words)
        except redis.RedisError:
            return None


@pytest.mark.slow
async def test_the_store_survives_a_failover(socket_folder):
    with ExitStack() as stack:
        servers = []
        for name in ("one", "two"):
            (socket_folder / name).mkdir()
            servers.append(stack.enter_context(RedisServer(socket_folder / name, port=free_port())))
        master, replica = servers
        master_port = int(master.url.rpartition(":")[2].partition("/")[0])
        replica_port = int(replica.url.rpartition(":")[2].partition("/")[0])
        asked(replica_port, "REPLICAOF", "127.0.0.1", str(master_port))
        port = stack.enter_context(sentinel(socket_folder, master_port))
        await until(lambda: len(asked(port, "SENTINEL", "REPLICAS", "kimi") or ()) == 1)
        url = f"redis+sentinel://127.0.0.1:1;127.0.0.1:{port}/kimi/0"
        assert await master_url(url) == f"redis://127.0.0.1:{master_port}/0"
        store = BlobStore([url], ttl_s=60, timeout_s=2.0, wait_s=60)
        await store.put(VALUES)
        await until(lambda: asked(replica_port, "DBSIZE") == len(VALUES))
        master.kill()
        await store.put({"after": b"the failover"})
        assert await store.get([*VALUES, "after"]) == [*VALUES.values(), b"the failover"]
        assert await master_url(url) == f"redis://127.0.0.1:{replica_port}/0"
        await store.close()


async def test_no_sentinel_answers():
    store = BlobStore(["redis+sentinel://127.0.0.1:1/kimi/0"], ttl_s=60, timeout_s=2.0)
    with pytest.raises(StoreUnavailable) as failed:
        await store.get(["a"])
    assert failed.value.message == "the store does not answer"


def test_urls():
    assert is_sentinel("rediss+sentinel://a/kimi")
    assert not is_sentinel("redis://a/0")
    check_sentinel_url("redis+sentinel://:pw@a;[::1]:5/kimi")
    for wrong in ("redis+sentinel:///kimi/0", "redis+sentinel://a:1", "redis+sentinel://a:1/kimi/zero"):
        with pytest.raises(ValueError, match="redis\\+sentinel://host"):
            check_sentinel_url(wrong)
