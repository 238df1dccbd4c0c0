"""Processes are killed under eight streams; every client gets the same answer as without the loss."""

import asyncio
import contextlib
import json
import signal

import httpx
import pytest

from tests.cluster.client import TokenClient

NUM_STREAMS = 8
NUM_TOKENS = 60
NUM_DRAINED = 16
TIMEOUT_S = 240.0

TWO_OF_EACH = {"experts": 1, "expert_replicas": 2, "prefills": 2, "decodes": 2, "tokenizers": 2}


def body(seed, **how):
    text = f"Question {seed}: " + "tell me more. " * (3 + 5 * seed)
    return {
        "model": "kimi-k2.6",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": NUM_TOKENS,
        "temperature": 1.0,
        "seed": seed,
        "stream": True,
        "ignore_eos": True,
        **how,
    }


async def stream(client, seed, progress=None, request=None):
    """Join the pieces of one streamed answer: text by field, finish reason, usage."""
    text = {"reasoning_content": "", "content": ""}
    finish, usage, done = None, None, False
    async with client.stream("POST", "/v1/chat/completions", json=request or body(seed)) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                done = True
                continue
            chunk = json.loads(line.removeprefix("data: "))
            assert "error" not in chunk, chunk
            for choice in chunk["choices"]:
                for field in text:
                    text[field] += choice["delta"].get(field) or ""
                finish = choice["finish_reason"] or finish
                usage = choice.get("usage") or usage
            if progress is not None:
                progress(seed)
    assert done
    return text, finish, usage["completion_tokens"]


async def answers(cluster, disturb=None, after_events=NUM_STREAMS * 5):
    """Run all streams at once; call `disturb` once, while all of them are streaming."""
    count = 0
    flowing = asyncio.Event()

    def progress(_):
        nonlocal count
        count += 1
        if count == after_events:
            flowing.set()

    async with httpx.AsyncClient(base_url=cluster.url, timeout=TIMEOUT_S) as client:
        streams = asyncio.gather(*(stream(client, seed, progress) for seed in range(NUM_STREAMS)))
        if disturb is not None:
            flow = asyncio.create_task(flowing.wait())
            await asyncio.wait([flow, streams], return_when=asyncio.FIRST_COMPLETED)
            assert flow.done(), streams.result()
            await asyncio.to_thread(disturb)
        return await streams


@pytest.fixture
def doubled(start_cluster):
    return start_cluster(**TWO_OF_EACH)


@pytest.fixture(scope="module")
def undisturbed(start_cluster):
    return asyncio.run(answers(start_cluster(**TWO_OF_EACH)))


async def settle(cluster):
    """Wait until everything serves again and the engines are empty."""
    await asyncio.to_thread(cluster.wait_ready)
    async with TokenClient(cluster) as client:
        await client.idle()


@pytest.mark.parametrize("victim", ["decode-0", "decode-1", "prefill-0", "expert-0-0", "tokenizer-0", "redis-0"])
async def test_a_killed_process_is_not_noticed(doubled, undisturbed, victim):
    assert await answers(doubled, lambda: doubled.kill(victim)) == undisturbed
    await settle(doubled)


async def test_a_prefill_replica_killed_in_mid_prompt_is_not_noticed(doubled, undisturbed):
    # The first events come from the shortest prompts, while the longer prompts are still being computed.
    assert await answers(doubled, lambda: doubled.kill("prefill-1"), after_events=1) == undisturbed
    await settle(doubled)


async def test_every_kind_of_process_may_be_asked_to_stop(doubled):
    """Each process gets SIGTERM in turn, under sixteen streams that start again until then: no stream is cut."""
    async with httpx.AsyncClient(base_url=doubled.url, timeout=TIMEOUT_S) as client:
        over = asyncio.Event()

        async def keep_asking(seed):
            while not over.is_set():
                _, finish, num_tokens = await stream(client, seed)
                assert (finish, num_tokens) == ("length", NUM_TOKENS)

        streams = [asyncio.create_task(keep_asking(seed)) for seed in range(NUM_DRAINED)]
        for victim in ("decode-0", "prefill-0", "expert-0-0", "tokenizer-0", "redis-0"):
            await asyncio.to_thread(doubled.kill, victim, signal.SIGTERM)
            assert doubled.exit_codes(victim)[-1] == 0, victim
            assert not any(task.done() for task in streams), victim
        over.set()
        await asyncio.gather(*streams)
    await settle(doubled)


async def test_a_client_that_leaves_frees_its_blocks_at_once(doubled):
    async with httpx.AsyncClient(base_url=doubled.url, timeout=TIMEOUT_S) as client:
        for how in ({"stream": True}, {"stream": False}):
            request = client.post("/v1/chat/completions", json=body(1, max_tokens=3000, **how))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(request, 2.0)
    async with TokenClient(doubled) as tokens, asyncio.timeout(5.0):
        await tokens.idle()


@pytest.mark.parametrize("victim", ["decode-0", "expert-0-0", "tokenizer-0", "redis-0"])
async def test_without_a_second_replica_streams_wait_for_the_restart(start_cluster, undisturbed, victim):
    cluster = start_cluster(experts=1)
    assert await answers(cluster, lambda: cluster.kill(victim)) == undisturbed
    await settle(cluster)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_an_attention_shard_that_ends_takes_its_replica_out_until_it_is_back(start_cluster, undisturbed, number):
    cluster = start_cluster(experts=1, attention_shards=2)
    assert await answers(cluster, lambda: cluster.kill("decode-0-shard-1", number)) == undisturbed
    await settle(cluster)
