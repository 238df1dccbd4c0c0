"""Media from the web: which hosts, which addresses, how much, how long."""

import asyncio
import ipaddress
import socket
from contextlib import asynccontextmanager

import pytest

from gateway.request.fetch import MediaFetcher, is_public
from services.runtime.errors import InvalidRequest


@asynccontextmanager
async def web(answers):
    """A server that answers each path with raw bytes; None hangs. Yields (port, paths asked for)."""
    asked = []

    async def serve(reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split()[1].decode()
            asked.append(path)
            answer = answers[path]
            if answer is None:
                await asyncio.sleep(60)
            writer.write(answer)
            await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()
        server.close_clients() if hasattr(server, "close_clients") else None


def ok(body):
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body)


def moved(to):
    return b"HTTP/1.1 302 Found\r\nlocation: %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % to.encode()


def fetcher(*hosts, max_bytes=1000, fetch_s=5.0, loopback=True):
    if not loopback:
        return MediaFetcher(hosts, max_bytes=max_bytes, fetch_s=fetch_s)
    return MediaFetcher(
        hosts, max_bytes=max_bytes, fetch_s=fetch_s, may_reach=lambda address: str(address) == "127.0.0.1"
    )


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "64:ff9b:1::a9fe:a9fe",
        "64:ff9b:1:ffff::1",
        "::169.254.169.254",
        "::8.8.8.8",
        "fec0::1",
        "feff::1",
        "2002:0a00:0001::1",
        "2002:7f00:0001::",
        "64:ff9b::10.0.0.1",
    ],
)
def test_inside(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_outside(address):
    assert is_public(ipaddress.ip_address(address))


async def test_a_file_and_redirects():
    async with web({"/a": ok(b"PNG"), "/b": moved("/a"), "/c": moved("b")}) as (port, asked):
        for path in "abc":
            assert await fetcher("127.0.0.1").fetch_media(f"http://127.0.0.1:{port}/{path}") == b"PNG"
        assert asked == ["/a", "/b", "/a", "/c", "/b", "/a"]


@pytest.mark.parametrize(
    ("hosts", "url"),
    [
        ((), "http://127.0.0.1/"),
        (("example.com",), "http://127.0.0.1/"),
        (("example.com",), "http://example.com.evil.test/"),
        ((".example.com",), "http://badexample.com/"),
        (("*",), "ftp://127.0.0.1/"),
        (("*",), "file:///etc/passwd"),
        (("*",), "http://user:pw@127.0.0.1/"),
        (("*",), "http:///x"),
        (("*",), "http://[::1/"),
        (("*",), "http://127.0.0.1:99999/"),
        (("*",), "http://127.0.0.1/\u00e4"),
    ],
)
async def test_refused_before_any_connection(hosts, url):
    with pytest.raises(InvalidRequest):
        await fetcher(*hosts).fetch_media(url)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"])
async def test_a_private_address_is_refused_however_it_is_spelled(host):
    async with web({"/": ok(b"secret")}) as (port, asked):
        with pytest.raises(InvalidRequest, match=r"address that this server does not visit|cannot be read"):
            await fetcher("*", loopback=False).fetch_media(f"http://{host}:{port}/")
        assert asked == []


async def test_every_address_of_a_name_is_tried(monkeypatch):
    async def look_up(host, port, **options):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in listed]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    anywhere = MediaFetcher(("*",), max_bytes=1000, fetch_s=5, may_reach=lambda address: address.is_loopback)
    async with web({"/": ok(b"PNG")}) as (port, asked):
        # Nobody listens on the first: the server is bound to 127.0.0.1 alone.
        listed = ["127.0.0.2", "127.0.0.1"]
        assert await anywhere.fetch_media(f"http://two.test:{port}/") == b"PNG"
        listed = ["127.0.0.1", "10.0.0.1"]
        with pytest.raises(InvalidRequest, match="does not visit"):
            await anywhere.fetch_media(f"http://two.test:{port}/")
        listed = ["127.0.0.2"]
        with pytest.raises(InvalidRequest, match="cannot be read"):
            await anywhere.fetch_media(f"http://two.test:{port}/")
        assert asked == ["/"]


async def test_a_redirect_is_asked_the_same_questions():
    answers = {"/host": moved("http://other.test/"), "/file": moved("file:///etc/passwd"), "/meta": None}
    async with web(answers) as (port, _):
        answers["/meta"] = moved("http://169.254.169.254/latest/")
        with pytest.raises(InvalidRequest, match="not on the list"):
            await fetcher("127.0.0.1").fetch_media(f"http://127.0.0.1:{port}/host")
        with pytest.raises(InvalidRequest, match="must be http"):
            await fetcher("*").fetch_media(f"http://127.0.0.1:{port}/file")
        with pytest.raises(InvalidRequest, match="does not visit"):
            await fetcher("*").fetch_media(f"http://127.0.0.1:{port}/meta")


async def test_bounds():
    answers = {
        "/big": ok(b"x" * 1001),
        "/fits": ok(b"x" * 1000),
        "/endless": b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b"x" * 5000,
        "/slow": None,
        "/loop": moved("/loop"),
        "/gone": b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "/nonsense": b"what?\r\n\r\n",
    }
    said = {"/big": "1000 bytes", "/endless": "1000 bytes", "/slow": "within", "/loop": "redirects", "/gone": "404"}
    async with web(answers) as (port, _):
        at = f"http://127.0.0.1:{port}"
        assert len(await fetcher("*").fetch_media(at + "/fits")) == 1000
        for path, message in {**said, "/nonsense": "cannot be read"}.items():
            with pytest.raises(InvalidRequest, match=message):
                await fetcher("*", fetch_s=0.5 if path == "/slow" else 5.0).fetch_media(at + path)
