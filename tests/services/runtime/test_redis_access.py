"""Redis with TLS and a password: the store's client and that of rate limits, with secrets that change."""

import asyncio
import re
import ssl
from contextlib import asynccontextmanager

import pytest

from gateway.http.limits import KeyLimits
from gateway.settings import GatewaySettings
from services.runtime.blobs import BlobStore
from services.runtime.errors import StoreUnavailable
from services.runtime.redis_access import RedisAccess
from services.runtime.redis_connection import command, connect
from tests.services.runtime.certificates import Authority


@asynccontextmanager
async def behind_tls(redis_url, context):
    """Terminate TLS in front of a Redis server, whose build may lack TLS; yield the port."""

    connections: set[asyncio.Task] = set()

    async def pass_on(reader, writer):
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader, writer):
        connections.add(asyncio.current_task())
        far_reader, far_writer = await asyncio.open_unix_connection(redis_url.removeprefix("unix://"))
        await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(0.05)  # the event loop closes the sockets


@pytest.fixture
def authority():
    return Authority()


@pytest.fixture
def access(authority, tmp_path):
    files = authority.write(tmp_path / "client")
    (tmp_path / "password").write_text("open sesame\n")
    return RedisAccess(tmp_path / "password", files.ca, files.cert, files.key)


@pytest.fixture
async def server_context(authority, tmp_path):
    files = authority.write(tmp_path / "server", "localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
async def url(redis_server, server_context):
    connection = await connect(redis_server.url)
    await connection.run([command(b"CONFIG", b"SET", b"requirepass", b"open sesame")])
    connection.close()
    async with behind_tls(redis_server.url, server_context) as port:
        yield f"rediss://localhost:{port}/0"


async def test_the_store_comes_in_with_a_certificate_and_a_password(url, access):
    store = BlobStore([url], ttl_s=60, access=access)
    await store.put({"small": b"abc", "large": bytes(5 << 20)})
    assert await store.get(["small", "large"]) == [b"abc", bytes(5 << 20)]
    await store.close()


async def test_a_password_that_changes_is_read_again(redis_server, tmp_path):
    path = tmp_path / "password"
    path.write_text("old")
    access = RedisAccess(path)
    connection = await connect(redis_server.url)
    for word in (b"old", b"new"):
        await connection.run([command(b"CONFIG", b"SET", b"requirepass", word)])
        path.write_bytes(word)
        again = await connect(redis_server.url, access)
        assert await again.run([command(b"PING")]) == [b"PONG"]
        again.close()
    connection.close()


@pytest.mark.parametrize(
    "spoil, reason",
    [
        pytest.param(lambda a, other: RedisAccess(a.password_file, other.ca, a.cert, a.key), "certificate", id="ca"),
        pytest.param(
            lambda a, other: RedisAccess(a.password_file, a.ca),
            "(?i)certificate.required|closed|reset",
            id="no-client-certificate",
        ),
        pytest.param(lambda a, other: RedisAccess(None, a.ca, a.cert, a.key), "NOAUTH", id="no-password"),
        pytest.param(lambda a, other: RedisAccess(other.cert, a.ca, a.cert, a.key), "WRONGPASS", id="wrong-password"),
        pytest.param(lambda a, other: RedisAccess(a.ca / "none", a.ca, a.cert, a.key), "none", id="no-password-file"),
    ],
)
async def test_without_one_of_them_the_store_is_unavailable(url, access, tmp_path, spoil, reason, caplog):
    """The log has the reason; the error, which clients see, has only the fact."""
    store = BlobStore([url], ttl_s=60, access=spoil(access, Authority().write(tmp_path / "other")))
    with pytest.raises(StoreUnavailable, match="the store ") as refused:
        await store.put({"name": b"value"})
    (line,) = [record for record in caplog.records if record.message == "store failed"]
    assert re.search(reason, line.reason)
    assert line.store == url
    for text in ("sesame", "localhost", str(tmp_path)):
        assert text not in str(refused.value)
    await store.close()


async def test_the_limits_come_in_too(url, access, tmp_path):
    settings = GatewaySettings(
        listen="127.0.0.1:0",
        tokenizers=("127.0.0.1:1",),
        decodes=("127.0.0.1:1",),
        limits_store=(url,),
        requests_per_minute=5,
        store_password_file=access.password_file,
        store_ca=access.ca,
        store_cert=access.cert,
        store_key=access.key,
    )
    limits = KeyLimits(settings)
    headers = [await limits.admit("somebody") for _ in range(2)]
    assert [given["x-ratelimit-remaining-requests"] for given in headers] == ["4", "3"]
    await limits.close()
