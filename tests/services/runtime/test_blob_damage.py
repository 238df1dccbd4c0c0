"""A damaged value of the store is never returned, and the kind of damage is counted."""

import os
import random

import pytest
import redis

from services.runtime.blob_format import CHUNK_BYTES
from services.runtime.blobs import BlobStore
from tests.services.runtime.conftest import Causes

SMALL, LARGE = b"small" * 100, os.urandom(3 * CHUNK_BYTES + 1000)


@pytest.fixture
async def store(redis_server):
    store = BlobStore([redis_server.url], ttl_s=60, namespace="kv")
    yield store
    await store.close()


@pytest.fixture
def raw(redis_server):
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


def rewrite(raw, key: str, change) -> None:
    """Change the value of a key, as a faulty disk or peer would."""
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


@pytest.mark.parametrize("value, key", [(SMALL, "kv:0:a"), (LARGE, "kv:0:a"), (LARGE, "kv:2:a")])
async def test_a_key_of_another_type_spoils_its_value_alone(store, raw, value, key):
    await store.put({"a": value, "b": value})
    raw.delete(key)
    raw.lpush(key, "x")
    causes = Causes()
    assert await store.get(["a", "b"]) == [None, value]
    assert causes() == {"damaged": 1, "hit": 1}
    await store.delete(["a"])
    await store.put({"a": value})
    assert await store.get(["a"]) == [value]
