"""Nobody to serve, too much to serve, too late to serve."""

import asyncio

import pytest

from services.runtime.errors import Overloaded
from tests.gateway.streams import stream_chat


@pytest.mark.slow
async def test_nobody_to_serve(start_site):
    site = await start_site(hold_s=0.2)
    await site.decodes[0].stop()
    await site.sees("decode", 0)
    for answer in (await site.chat(), await site.chat(stream=True), await site.http.get("/health")):
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "server_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
    assert not site.prefills[0].prefills
    await site.decodes[0].start()
    await site.ready()
    assert (await site.chat()).status_code == 200


async def test_no_tokenizer(start_site):
    site = await start_site(hold_s=0.1)
    await site.tokenizers[0].stop()
    await site.sees("tokenizer", 0)
    assert (await site.chat()).status_code == 503
    assert (await site.http.get("/ping")).status_code == 503


async def test_a_request_is_held_until_a_replica_is_back(start_site):
    site = await start_site(hold_s=20)
    await site.decodes[0].stop()
    await site.sees("decode", 0)
    asked = asyncio.create_task(site.chat())
    await asyncio.sleep(0.2)
    await site.decodes[0].start()
    assert (await asked).status_code == 200


async def test_too_many_open_requests(start_site):
    site = await start_site(max_open_requests=2)
    site.decodes[0].token_s = 0.2
    open_requests = [asyncio.create_task(site.chat()) for _ in range(2)]
    while site.decodes[0].num_running < 2:
        await asyncio.sleep(0.01)
    refused = await site.chat()
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("engine_overloaded_error", "engine_overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    site.decodes[0].token_s = 0
    assert [answer.status_code for answer in await asyncio.gather(*open_requests)] == [200, 200]
    assert (await site.chat()).status_code == 200


@pytest.mark.parametrize("prefills", [0, 1])
async def test_full_engines(start_site, prefills):
    site = await start_site(prefills=prefills)
    (site.prefills or site.decodes)[0].failure = Overloaded("the queue is full", retry_after_s=7.2)
    for answer in (await site.chat(), await site.chat(stream=True)):
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "8"
        assert answer.json()["error"]["code"] == "engine_overloaded"


async def test_a_full_decode_queue_is_waited_out_once_the_prompt_is_computed(start_site):
    site = await start_site()
    site.decodes[0].failure = Overloaded("the queue is full")
    asked = asyncio.create_task(stream_chat(site.http))
    while not site.decodes[0].decodes:
        await asyncio.sleep(0.01)
    site.decodes[0].failure = None
    assert (await asked).finish == {0: "stop"}


@pytest.mark.slow
async def test_but_not_for_ever(start_site):
    site = await start_site(resume_s=0.3)
    site.decodes[0].failure = Overloaded("the queue is full")
    assert (await site.chat()).status_code == 429
    assert (await stream_chat(site.http)).error["type"] == "engine_overloaded_error"


async def test_engines_that_report_a_full_queue_are_not_asked(site):
    site.decodes[0].load.num_waiting = 8
    await site.reports_of_load()
    answer = await site.chat()
    assert answer.status_code == 429
    assert not site.prefills[0].prefills


async def test_the_deadline(start_site):
    site = await start_site(request_s=0.5)
    site.decodes[0].token_s = 0.2
    answer = await site.chat()
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "timeout_error"
    assert answer.headers["x-should-retry"] == "false"
