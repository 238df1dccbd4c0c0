"""The Redis protocol, with answers cut at any place."""

import asyncio
import random
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
import redis

from services.runtime.redis_connection import SCRATCH_BYTES, RedisConnection, RedisError, command, connect
from services.runtime.redis_server import RedisServer
from tests.services.runtime.conftest import free_port

PING = command(b"PING")


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(data), data)


@asynccontextmanager
async def scripted_peer(socket_folder, pieces: list[bytes], *, close: bool = False):
    """Yield a connection to a server that answers its first bytes with these pieces."""

    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read(1)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if not close:
                await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        ended.set()

    path = f"{socket_folder}/peer.sock"
    async with await asyncio.start_unix_server(answer, path):
        connection = await connect(f"unix://{path}")
        try:
            yield connection
        finally:
            connection.close()
            await ended.wait()


def cuts_of(data: bytes, cut: str) -> list[bytes]:
    if cut == "whole":
        return [data]
    if cut == "bytes":
        return [data[i : i + 1] for i in range(len(data))]
    chosen = random.Random(cut)
    places = sorted({0, len(data), *(chosen.randrange(len(data)) for _ in range(20))})
    return [data[i:j] for i, j in pairwise(places)]


every_cut = pytest.mark.parametrize("cut", ["whole", "bytes", "random-1", "random-2"])


@every_cut
async def test_replies_of_every_kind(socket_folder, cut):
    sent = b"+OK\r\n:17\r\n$-1\r\n" + bulk(b"") + bulk(b"a\r\nb") + bulk(b"\r\n" * 200) + b":-3\r\n"
    async with scripted_peer(socket_folder, cuts_of(sent, cut)) as connection:
        replies = await connection.run([PING] * 7)
    assert replies == [b"OK", 17, None, b"", b"a\r\nb", b"\r\n" * 200, -3]


@every_cut
async def test_strings_go_to_their_sinks(socket_folder, cut):
    sent = bulk(b"12345") + b"$-1\r\n" + bulk(b"1234") + bulk(b"123456") + bulk(b"$9\r\nx") + bulk(b"")
    sinks = [bytearray(5), bytearray(5), bytearray(5), bytearray(5), bytearray(5), bytearray(0)]
    async with scripted_peer(socket_folder, cuts_of(sent, cut)) as connection:
        replies = await connection.run([PING] * 6, [memoryview(sink) for sink in sinks])
    assert replies == [5, None, 4, 6, 5, 0]
    assert sinks == [b"12345", bytes(5), bytes(5), bytes(5), b"$9\r\nx", b""]


@every_cut
async def test_pipelines_follow_each_other(socket_folder, cut):
    first, second = bulk(b"first"), bulk(b"other length") + b"+OK\r\n"
    async with scripted_peer(socket_folder, cuts_of(first, cut)) as connection:
        assert await connection.run([PING]) == [b"first"]
    async with scripted_peer(socket_folder, cuts_of(second, cut)) as connection:
        assert await connection.run([PING, PING], [memoryview(bytearray(3))] * 2) == [12, b"OK"]


async def test_strings_around_the_size_of_the_scratch(redis_server):
    connection = await connect(redis_server.url)
    chosen = random.Random(0)
    sizes = [SCRATCH_BYTES + delta for delta in range(-12, 3)] + [1, 2, 3 * SCRATCH_BYTES, 0]
    values = [chosen.randbytes(size) for size in sizes]
    await connection.run([command(b"SET", b"%d" % i, [value]) for i, value in enumerate(values)])
    reads = [command(b"GET", b"%d" % i) for i in range(len(values))]
    for _ in range(3):
        assert await connection.run(reads) == values
    sinks = [bytearray(size) for size in sizes]
    assert await connection.run(reads, [memoryview(sink) for sink in sinks]) == sizes
    assert sinks == values
    connection.close()
    await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "sent, error",
    [
        pytest.param(b"*1\r\n:1\r\n", "unknown kind of reply", id="array"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n", "unknown kind of reply", id="not-redis"),
        pytest.param(b"\r\n", "unknown kind of reply", id="empty-line"),
        pytest.param(b":x\r\n", "invalid literal", id="number"),
        pytest.param(b"$x\r\n", "invalid literal", id="length"),
        pytest.param(b"$-2\r\n", "a string of -2 bytes", id="negative"),
        pytest.param(b"$99999999999\r\n", "a string of 99999999999 bytes", id="too-long"),
        pytest.param(b"+OK\r\n+OK\r\n", "is closed", id="too-many"),
        pytest.param(b"+" + b"x" * 2 * SCRATCH_BYTES, "has no end", id="endless-line"),
    ],
)
async def test_what_is_no_reply_closes_the_connection(socket_folder, sent, error):
    async with scripted_peer(socket_folder, [sent]) as connection:
        with pytest.raises((RedisError, ConnectionError), match=error):
            await connection.run([PING])
            await connection.run([PING])
        assert connection.closed


async def test_an_error_reply_is_a_value_and_the_connection_stays_good(socket_folder):
    async with scripted_peer(socket_folder, [b"-OOM command not allowed\r\n+OK\r\n"]) as connection:
        refusal, status = await connection.run([PING, PING])
        assert (refusal.code, str(refusal)) == ("OOM", "OOM command not allowed")
        assert (status, connection.closed) == (b"OK", False)


@pytest.mark.parametrize("sent", [b"", b"$100\r\nabc", b"+OK"], ids=["nothing", "half-a-string", "half-a-line"])
async def test_a_peer_that_hangs_up(socket_folder, sent):
    async with scripted_peer(socket_folder, [sent], close=True) as connection:
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(connection.run([PING]), 5)
        with pytest.raises(ConnectionError, match="is closed"):
            await connection.run([PING])


async def test_a_cancelled_pipeline_closes_the_connection_and_leaves_its_sinks(socket_folder):
    sink = bytearray(1000)
    async with scripted_peer(socket_folder, [b"$1000\r\n" + b"a" * 10]) as connection:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.run([PING], [memoryview(sink)]), 0.2)
        assert connection.closed
        assert connection.get_buffer(-1).obj is not sink


def test_a_command_in_pieces():
    assert b"".join(command(b"SET", b"k", [b"", memoryview(b"ab"), bytearray(b"c")])) == (
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\nabc\r\n"
    )


async def test_user_password_and_database_come_from_the_url(socket_folder):
    port = free_port()
    with RedisServer(socket_folder, port=port) as server, redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "moon", "on", ">s@rd/1", "~*", "+@all")
        admin.config_set("requirepass", "pw")
        for url in (f"redis://:pw@127.0.0.1:{port}/3", f"redis://moon:s%40rd%2F1@127.0.0.1:{port}/3"):
            connection = await connect(url)
            await connection.run([command(b"SET", b"k", url.encode())])
            connection.close()
            with redis.Redis.from_url(f"redis://:pw@127.0.0.1:{port}/3") as third:
                assert third.get("k") == url.encode()
        for url in (f"redis://127.0.0.1:{port}/3", f"redis://:wrong@127.0.0.1:{port}/0"):
            with pytest.raises(RedisError, match=r"NOAUTH|WRONGPASS"):
                connection = await connect(url)
        await asyncio.sleep(0.01)


def test_it_is_a_protocol_of_asyncio():
    assert issubclass(RedisConnection, asyncio.BufferedProtocol)
