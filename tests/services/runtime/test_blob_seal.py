"""With a key, readers accept only values stored by processes that have the key."""

import os

import pytest
import redis

from services.runtime.blob_format import CHUNK_BYTES, FIXED
from services.runtime.blob_seal import CHECKSUM, SEAL_BYTES, Mac, open_sealer
from services.runtime.blobs import BlobStore
from services.runtime.redis_access import RedisAccess
from services.runtime.settings import StoreSettings, load
from tests.services.runtime.conftest import Causes

SMALL, LARGE = b"small" * 100, os.urandom(3 * CHUNK_BYTES + 1000)


@pytest.fixture
async def open_store(redis_server, tmp_path):
    opened = []

    def open_it(key: bytes = b"") -> BlobStore:
        path = tmp_path / f"key-{key.hex()[:8]}"
        path.write_bytes(key)
        access = RedisAccess(mac_file=path) if key else RedisAccess()
        opened.append(BlobStore([redis_server.url], ttl_s=60, namespace="kv", access=access))
        return opened[-1]

    yield open_it
    for store in opened:
        await store.close()


@pytest.fixture
def raw(redis_server):
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


OURS, OTHER = b"a key of 16 or more bytes", b"another key, as long as it"


@pytest.mark.parametrize("value", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
async def test_who_has_the_key_reads_and_nobody_else_writes(open_store, value):
    ours, same = open_store(OURS), open_store(OURS)
    await ours.put({"kv/a": value})
    assert await same.get(["kv/a"]) == [value]
    for forger in (open_store(OTHER), open_store()):
        assert await forger.get(["kv/a"]) == [None]
        await forger.put({"kv/a": value})
        causes = Causes()
        assert await ours.get(["kv/a"]) == [None]
        assert causes() == {"damaged": 1}


async def test_any_flipped_bit_of_head_or_value(open_store, raw):
    store = open_store(OURS)
    await store.put({"a": SMALL})
    intact = raw.get("kv:0:a")
    for position in range(len(intact)):
        changed = bytearray(intact)
        changed[position] ^= 1 << position % 8
        raw.set("kv:0:a", bytes(changed), px=60_000)
        assert await store.get(["a"]) == [None], f"byte {position}"


async def test_the_value_of_another_name_under_a_head_that_fits(open_store, raw):
    """An attacker can rewrite the name in the head, but the seal covers it."""
    store = open_store(OURS)
    await store.put({"a": SMALL, "b": SMALL[::-1]})
    other = bytearray(raw.get("kv:0:b"))
    other[FIXED.size : FIXED.size + 1] = b"a"
    raw.set("kv:0:a", bytes(other), px=60_000)
    assert await store.get(["a"]) == [None]


async def test_chunks_in_another_order(open_store, raw):
    store = open_store(OURS)
    await store.put({"a": LARGE})
    first, second = raw.get("kv:1:a"), raw.get("kv:2:a")
    raw.set("kv:1:a", second, px=60_000)
    raw.set("kv:2:a", first, px=60_000)
    assert await store.get(["a"]) == [None]


def test_a_seal_covers_name_and_value_as_two_things():
    mac = Mac(OURS)
    seal = mac.seal(b"ab", [b"c", b"de"])
    assert mac.fits(b"ab", b"cde", seal)
    assert not mac.fits(b"a", b"bcde", seal)
    assert not mac.fits(b"abc", b"de", seal)


def test_two_seals_of_one_value_differ_and_both_fit():
    mac = Mac(OURS)
    seals = {mac.seal(b"a", [SMALL]) for _ in range(100)}
    assert len(seals) == 100
    assert all(len(seal) == SEAL_BYTES and mac.fits(b"a", SMALL, seal) for seal in seals)


def test_without_a_file_values_have_checksums():
    assert open_sealer(None) is CHECKSUM


@pytest.mark.parametrize(("content", "reason"), [(b"short\n", "holds 5 bytes"), (None, "No such file")])
def test_a_file_without_a_key_stops_the_process(monkeypatch, capsys, tmp_path, content, reason):
    path = tmp_path / "mac"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("MOONSHARD_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("MOONSHARD_STORE_MAC_FILE", str(path))
    with pytest.raises(SystemExit) as stop:
        load(StoreSettings)
    assert stop.value.code == 2
    assert "MOONSHARD_STORE_MAC_FILE" in (said := capsys.readouterr().err)
    assert reason in said
