"""The store over one or several real Redis servers: values come back exactly."""

import os
from contextlib import ExitStack
from itertools import pairwise

import pytest
import redis

from services.runtime.blob_format import CHUNK_BYTES
from services.runtime.blobs import PIPELINE_BYTES, BlobStore
from services.runtime.redis_server import RedisServer
from tests.services.runtime.conftest import Causes

BLOCK_BYTES = 64 * 70272  # one block of latent KV

SIZES = [0, 1, 4095, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, BLOCK_BYTES, PIPELINE_BYTES + 7]


@pytest.fixture
async def store(redis_server):
    store = BlobStore([redis_server.url], ttl_s=60)
    yield store
    await store.close()


@pytest.fixture
def raw(redis_server):
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


@pytest.mark.parametrize("size", SIZES)
async def test_a_value_comes_back(store, size):
    value = os.urandom(size)
    await store.put({"a": value})
    assert await store.get(["a"]) == [value]
    buffer = bytearray(size)
    assert await store.get_into(["a"], [memoryview(buffer)]) == [True]
    assert buffer == value


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param([], id="whole"),
        pytest.param([0, 1, 1], id="empty-pieces"),
        pytest.param([CHUNK_BYTES - 1], id="just-before-a-chunk"),
        pytest.param([CHUNK_BYTES, 2 * CHUNK_BYTES], id="along-chunks"),
        pytest.param([5, CHUNK_BYTES + 5, CHUNK_BYTES + 6], id="across-chunks"),
    ],
)
async def test_pieces_are_joined(store, cuts):
    value = os.urandom(3 * CHUNK_BYTES + 17)
    ends = [0, *cuts, len(value)]
    await store.put({"a": [memoryview(value)[i:j] for i, j in pairwise(ends)]})
    assert await store.get(["a"]) == [value]


async def test_many_values_in_the_order_of_their_names(store):
    values = {f"v{i}": os.urandom(SIZES[i % len(SIZES)] % (2 * CHUNK_BYTES)) for i in range(300)}
    await store.put(values)
    names = [*reversed(values), "none", "v3"]
    assert await store.get(names) == [values.get(name) for name in names]
    assert await store.exists(names) == [name in values for name in names]


async def test_nothing_is_asked_for(store, raw):
    await store.put({})
    assert await store.get([]) == []
    assert await store.get_into([], []) == []
    assert await store.exists([]) == []
    await store.delete([])
    assert raw.dbsize() == 0


async def test_names_that_look_like_keys_do_not_meet(store):
    values = {name: name.encode() * CHUNK_BYTES for name in ("a", "1:a", "0:a", "a:1", "\N{CRESCENT MOON}")}
    await store.put(values)
    assert await store.get(list(values)) == list(values.values())


async def test_namespaces_are_apart(redis_server):
    stores = [BlobStore([redis_server.url], ttl_s=60, namespace=namespace) for namespace in ("kv", "media")]
    await stores[0].put({"a": b"kv"})
    assert await stores[1].get(["a"]) == [None]
    for store in stores:
        await store.close()


async def test_every_key_has_a_time_to_live(store, raw):
    await store.put({f"v{size}": bytes(size) for size in SIZES})
    await store.put({"v1": b"again"})
    keys = list(raw.scan_iter())
    assert len(keys) == sum(1 + (-(-size // CHUNK_BYTES) if size > CHUNK_BYTES else 0) for size in SIZES)
    assert all(0 < raw.pttl(key) <= 60_000 for key in keys)
    assert all(raw.strlen(key) <= CHUNK_BYTES + 100 for key in keys)


async def test_values_end(redis_server, raw):
    store = BlobStore([redis_server.url], ttl_s=0.05)
    await store.put({"a": bytes(3 * CHUNK_BYTES)})
    while raw.dbsize():
        pass
    assert await store.get(["a"]) == [None]
    await store.close()


async def test_deleted_values_leave_nothing(store, raw):
    await store.put({f"v{size}": bytes(size) for size in SIZES})
    await store.delete([f"v{size}" for size in SIZES if size != 1] + ["none"])
    assert raw.dbsize() == 1
    assert await store.get(["v1"]) == [b"\0"]


async def test_pipelines_are_bounded(store, raw):
    values = {f"v{i}": os.urandom(BLOCK_BYTES) for i in range(12)}
    await store.put(values)
    # Redis closes the connection of a client with more unread answers than this.
    raw.config_set("client-output-buffer-limit", f"normal {20 << 20} 0 0")
    assert await store.get(list(values)) == list(values.values())
    many = {f"s{i}": os.urandom(CHUNK_BYTES) for i in range(64)}
    await store.put(many)
    assert await store.get(list(many)) == list(many.values())


async def test_reads_are_counted(store):
    causes = Causes()
    await store.put({"a": b"1", "b": bytes(2 * CHUNK_BYTES)})
    await store.get(["a", "b", "none"])
    await store.get_into(["a"], [memoryview(bytearray(1))])
    assert causes() == {"hit": 3, "missing": 1}


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]], ids=["same-order", "other-order"])
async def test_values_spread_over_instances(socket_folder, order):
    with ExitStack() as stack:
        servers = []
        for i in range(3):
            (socket_folder / str(i)).mkdir()
            servers.append(stack.enter_context(RedisServer(socket_folder / str(i))))
        store = BlobStore([server.url for server in servers], ttl_s=60)
        values = {f"v{i}": os.urandom(i) for i in range(300)}
        await store.put(values)
        for server in servers:
            with redis.Redis.from_url(server.url) as client:
                assert 50 < client.dbsize() < 150
        reader = BlobStore([servers[i].url for i in order], ttl_s=60)
        assert await reader.get(list(values)) == list(values.values())
        await store.close()
        await reader.close()


async def test_room_is_what_an_evicting_instance_has_and_what_a_refusing_one_has_left(socket_folder):
    (socket_folder / "a").mkdir()
    with RedisServer(socket_folder, max_bytes=20 << 20) as evicting, RedisServer(socket_folder / "a") as other:
        one, both = BlobStore([evicting.url], ttl_s=60), BlobStore([evicting.url, other.url], ttl_s=60)
        with redis.Redis.from_url(other.url) as client:
            client.config_set("maxmemory", 30 << 20)
            client.config_set("maxmemory-policy", "noeviction")
            await both.put({f"v{i}": os.urandom(1 << 20) for i in range(10)})
            used = int(client.info("memory")["used_memory"])
            assert await one.room() == 20 << 20
            assert abs(await both.room() - ((50 << 20) - used)) < 1 << 20
            client.config_set("maxmemory", 0)
            assert await both.room() is None
        await one.close()
        other.stop()
        assert await both.room() == 20 << 20, "an instance that is gone has no room"
        await both.close()
