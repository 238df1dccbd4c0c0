"""A client that leaves, at any moment and in any way: nothing goes on working for it."""

import asyncio

import httpx
import pytest

LONG = "</think>" + "abcdefgh" * 100 + "<|im_end|>"


async def all_quiet(site):
    async with asyncio.timeout(5):
        while any(engine.num_running for engine in site.engines) or site.gateway.pipeline.num_open:
            await asyncio.sleep(0.005)


@pytest.fixture
async def slow(start_site):
    site = await start_site(answer=LONG)
    site.decodes[0].token_s = 0.02
    return site


async def running(site):
    async with asyncio.timeout(5):
        while not site.decodes[0].num_running:
            await asyncio.sleep(0.005)


async def test_a_stream_is_left(slow):
    body = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with slow.http.stream("POST", "/v1/chat/completions", json=body) as response:
        async for _ in response.aiter_raw():
            break
    await all_quiet(slow)
    assert slow.decodes[0].num_sent < 50
    assert slow.decodes[0].num_cancelled == 1


async def test_a_whole_answer_is_left(slow):
    asked = asyncio.create_task(slow.chat(n=3))
    await running(slow)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await all_quiet(slow)
    assert slow.decodes[0].num_sent < 200


async def test_the_prompt_is_left(slow):
    slow.prefills[0].prefill_s = 30
    asked = asyncio.create_task(slow.chat())
    while not slow.prefills[0].prefills:
        await asyncio.sleep(0.005)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await all_quiet(slow)
    assert not slow.decodes[0].decodes


async def test_left_while_held(start_site):
    site = await start_site(hold_s=30)
    await site.decodes[0].stop()
    await site.sees("decode", 0)
    asked = asyncio.create_task(site.chat())
    while not site.gateway.pipeline.num_open:
        await asyncio.sleep(0.005)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await all_quiet(site)


@pytest.mark.slow
async def test_a_client_that_reads_nothing_is_left_to_itself(start_site):
    # It holds its own answer back, not the others.
    site = await start_site(answer="</think>" + "abcdefgh" * 200 + "<|im_end|>")
    body = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with site.http.stream("POST", "/v1/chat/completions", json=body):
        async with httpx.AsyncClient(base_url=site.url, timeout=20, trust_env=False) as other:
            answer = await other.post("/v1/chat/completions", json={**body, "stream": False})
        assert answer.status_code == 200
    await all_quiet(site)


async def test_half_a_body(site):
    host, port = site.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = ("POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json", "content-length: 1000")
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await writer.wait_closed()
    assert (await site.chat()).status_code == 200
    await all_quiet(site)
