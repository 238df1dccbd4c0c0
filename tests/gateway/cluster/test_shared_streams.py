"""All generations of a gateway on one stream to each replica: what one of them does leaves the others alone."""

import asyncio

import pytest

from services.runtime.errors import NumericError
from tests.gateway.streams import stream_chat

THINKING_OFF = {"thinking": {"type": "disabled"}}


async def test_all_generations_share_a_stream(start_site):
    site = await start_site(decodes=2, tokenizers=2)
    for engine in site.decodes:
        engine.token_s = 0.005
    whole = (await site.chat()).json()["choices"][0]["message"]["content"]
    answers = await asyncio.gather(*(stream_chat(site.http) for _ in range(30)), *(site.chat() for _ in range(30)))
    assert {answer.text[0] for answer in answers[:30]} == {whole}
    assert {answer.json()["choices"][0]["message"]["content"] for answer in answers[30:]} == {whole}
    assert sum(len(engine.decodes) for engine in site.decodes) == 61
    assert all(engine.num_streams <= 1 for engine in site.decodes)


async def test_a_client_that_reads_nothing_delays_no_other(start_site):
    site = await start_site()
    site.say("x" * 1500 + "<|im_end|>")
    site.decodes[0].num_at_once = 50
    async with asyncio.timeout(20):
        async with site.http.stream("POST", "/v1/chat/completions", json=body(stream=True, max_tokens=1600)) as unread:
            assert unread.status_code == 200
            for _ in range(5):
                assert (await site.chat(max_tokens=1600)).json()["choices"][0]["finish_reason"] == "stop"
            read = [line async for line in unread.aiter_lines() if line.startswith("data:")]
    assert read[-1] == "data: [DONE]"


async def test_a_generation_that_fails_leaves_the_others_alone(start_site):
    site = await start_site(prefills=0)
    engine = site.decodes[0]
    engine.token_s = 0.02
    good = [asyncio.create_task(site.chat()) for _ in range(5)]
    while engine.num_running < 5:
        await asyncio.sleep(0.005)
    engine.failure, engine.fail_after = NumericError("NaN"), 0
    assert (await site.chat()).status_code == 500
    engine.failure = None
    assert [answer.status_code for answer in await asyncio.gather(*good)] == [200] * 5
    assert engine.num_streams == 1


@pytest.mark.parametrize("lost", ["decode", "tokenizer"])
@pytest.mark.slow
async def test_a_replica_that_is_lost_costs_none_of_its_answers(start_site, lost):
    site = await start_site(decodes=2, tokenizers=2, stall_s=2.0)
    for engine in site.decodes:
        engine.token_s = 0.02
    answers = [asyncio.create_task(site.chat()) for _ in range(20)]
    while sum(engine.num_sent for engine in site.decodes) < 60:
        await asyncio.sleep(0.005)
    await (site.decodes if lost == "decode" else site.tokenizers)[0].stop()
    found = [answer.json() for answer in await asyncio.gather(*answers)]
    assert len({answer["choices"][0]["message"]["content"] for answer in found}) == 1
    assert {answer["usage"]["completion_tokens"] for answer in found} == {len(site.answer_ids)}


def body(**fields):
    return {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}], **THINKING_OFF, **fields}
