"""Connections: how many, how large and how slow a head may be; every refusal in the form of the path's dialect."""

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from tests.gateway.http.raw_client import head_of, raw_connection

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
BODY = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}]}


def check_form(path, body, code, anthropic_type="invalid_request_error"):
    if path == MESSAGES:
        assert (body["type"], body["error"]["type"]) == ("error", anthropic_type)
        assert body["request_id"].startswith("req-")
    else:
        assert (body["error"]["type"], body["error"]["code"]) == ("invalid_request_error", code)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_a_header_without_an_end(start_site, path):
    site = await start_site(max_header_bytes=5000)
    async with raw_connection(site) as raw:
        await raw.send(f"POST {path} HTTP/1.1\r\nx-long: ".encode())
        sending = asyncio.create_task(raw.send(*[b"a" * 1000] * 40_000))
        status, headers, body = await raw.answer()
        assert status == 431
        assert "5000 bytes" in body["error"]["message"]
        assert headers["connection"] == "close"
        check_form(path, body, "headers_too_large")
        await raw.closed()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_long_url_and_many_headers(start_site):
    site = await start_site(max_header_bytes=5000, max_headers=20)
    many = [f"x-{number}: 1" for number in range(20)]
    for head, said in (
        (head_of("/" + "x" * 5000, method="GET"), "5000 bytes"),
        (head_of(CHAT, *many), "20 headers"),
        (head_of(CHAT, "transfer-encoding: chunked") + b"0\r\nx-trailer: " + b"a" * 300_000, "5000 bytes"),
        (head_of(CHAT, "transfer-encoding: chunked") + b"1;" + b"a" * 300_000, "5000 bytes"),
    ):
        async with raw_connection(site) as raw:
            await raw.send(head)
            status, _, body = await raw.answer()
            assert status == 431
            assert said in body["error"]["message"]
    assert (await site.http.get("/live", headers={f"x-{number}": "1" for number in range(10)})).status_code == 200


async def test_a_slow_head(start_site):
    site = await start_site(header_s=0.3)
    async with raw_connection(site) as raw:
        sending = asyncio.create_task(raw.send(*[bytes([byte]) for byte in head_of(MESSAGES)], pause_s=0.05))
        status, _, body = await raw.answer()
        assert status == 408
        assert "0.3 s" in body["error"]["message"]
        sending.cancel()
        assert await raw.closed() == b""


async def test_a_connection_that_sends_nothing_is_closed(start_site):
    site = await start_site(header_s=0.2)
    async with raw_connection(site) as raw:
        assert await raw.closed() == b""


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.slow
async def test_a_slow_body(start_site, path):
    site = await start_site(body_s=0.3, body_bytes_per_s=1000)
    async with raw_connection(site) as raw:
        await raw.send(head_of(path, "content-type: application/json", "content-length: 100000"))
        sending = asyncio.create_task(raw.send(*[b"{"] * 100, pause_s=0.05))
        status, _, body = await raw.answer()
        assert status == 408
        assert "1000 bytes/s" in body["error"]["message"]
        check_form(path, body, "request_timeout")
        assert await raw.closed() == b""
        sending.cancel()


async def test_a_body_at_the_slowest_rate_is_waited_for(start_site):
    site = await start_site(body_s=0.3, body_bytes_per_s=1000)
    whole = b'{"model":"kimi-k2.6","messages":[{"role":"user","content":"%s"}]}' % (b"a" * 900)
    async with raw_connection(site) as raw:
        await raw.send(head_of(CHAT, "content-type: application/json", f"content-length: {len(whole)}"))
        await raw.send(*[whole[at : at + 250] for at in range(0, len(whole), 250)], pause_s=0.15)
        assert (await raw.answer())[0] == 200


@pytest.mark.slow
async def test_a_body_that_nobody_reads_is_not_waited_for(site):
    async with raw_connection(site) as raw:
        await raw.send(head_of("/live", "content-length: 1000", method="GET"))
        assert (await raw.answer())[0] == 200
        sending = asyncio.create_task(raw.send(*[b"x"] * 1000, pause_s=0.05))
        began_s = time.monotonic()
        await raw.closed()
        assert time.monotonic() - began_s < 4
        sending.cancel()


@pytest.mark.parametrize(
    "raw_bytes", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n", b"GET http:// HTTP/1.1\r\nhost: x\r\n\r\n"]
)
async def test_what_is_not_http(site, raw_bytes):
    async with raw_connection(site) as raw:
        await raw.send(raw_bytes)
        status, _, body = await raw.answer()
        assert status == 400
        check_form("", body, None)


@pytest.mark.slow
async def test_a_broken_chunk_ends_the_request(site):
    async with raw_connection(site) as raw:
        await raw.send(head_of(MESSAGES, "content-type: application/json", "transfer-encoding: chunked"), b"zz\r\n")
        status, _, body = await raw.answer()
        assert status == 400
        check_form(MESSAGES, body, None)
        assert await raw.closed() == b""


async def test_idle_connections_give_way(start_site):
    site = await start_site(max_connections=6, header_s=60)
    async with AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(raw_connection(site)) for _ in range(10)]
        await idle[0].closed()
        assert (await site.http.get("/live")).status_code == 200
        assert (await site.chat()).status_code == 200


@pytest.mark.parametrize("limit", ["max_connections", "max_address_connections"])
async def test_too_many_requests_at_once(start_site, limit):
    site = await start_site(**{limit: 4})
    site.decodes[0].token_s = 30
    await site.http.aclose()
    async with AsyncExitStack() as stack:
        for _ in range(4):
            raw = await stack.enter_async_context(raw_connection(site))
            body = b'{"model":"kimi-k2.6","messages":[{"role":"user","content":"Hi"}]}'
            await raw.send(head_of(CHAT, "content-type: application/json", f"content-length: {len(body)}"), body)
        while site.gateway.pipeline.num_open < 4:
            await asyncio.sleep(0.01)
        more = await stack.enter_async_context(raw_connection(site))
        await more.send(head_of(MESSAGES, "content-length: 0"))
        status, headers, body = await more.answer()
        assert status == 529
        assert body["error"]["type"] == "overloaded_error"
        assert int(headers["retry-after"]) >= 1
        assert "4 connections" in body["error"]["message"]
        alive = await stack.enter_async_context(raw_connection(site))
        await alive.send(head_of("/live", method="GET"))
        assert (await alive.answer())[0] == 200
