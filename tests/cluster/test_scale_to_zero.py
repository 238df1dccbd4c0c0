"""A cluster whose processes start on demand: none computes without a request, and the first request is answered."""

import asyncio
import json
import time

import httpx
import pytest

from tests.cluster.harness import Cluster, small_topology

ALWAYS = {"redis-0", "tokenizer-0", "gateway", "autoscaler"}
ON_DEMAND = {"expert-0-0", "prefill-0", "decode-0"}
IDLE_S = 2.0
TIMEOUT_S = 200.0


@pytest.fixture(scope="module")
def sleepy(tiny_checkpoint, tmp_path_factory):
    topology = small_topology(
        tiny_checkpoint,
        settings={"gateway": {"KEEP_ALIVE_S": "0.5"}},
        experts=1,
        idle_s=IDLE_S,
    )
    with Cluster(topology, tmp_path_factory.mktemp("sleepy") / "cluster.log") as cluster:
        yield cluster


async def until(condition, what):
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s, what
        await asyncio.sleep(0.05)


async def ask(cluster, seed):
    """Return the text of one streamed answer, and the comments before its first event."""
    body = {
        "model": "kimi-k2.6",
        "messages": [{"role": "user", "content": f"Question {seed}"}],
        "max_tokens": 12,
        "seed": seed,
        "stream": True,
        "ignore_eos": True,
    }
    text, num_comments = "", 0
    async with (
        httpx.AsyncClient(base_url=cluster.url, timeout=TIMEOUT_S) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                for choice in chunk["choices"]:
                    text += (choice["delta"].get("reasoning_content") or "") + (choice["delta"].get("content") or "")
            num_comments += line == ": keep-alive" and not text
    return text, num_comments


async def test_counting_wakes_nobody(sleepy):
    assert set(sleepy.pids) == ALWAYS
    async with httpx.AsyncClient(base_url=sleepy.url, timeout=TIMEOUT_S) as client:
        assert (await client.get("/health")).json() == {"status": "holding"}
        body = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}]}
        assert (await client.post("/v1/messages/count_tokens", json={**body, "max_tokens": 1})).status_code == 200
        await asyncio.sleep(1)
    assert set(sleepy.pids) == ALWAYS


async def test_from_zero_and_back_again(sleepy):
    """The third time while the idle processes are ending."""
    everything = ALWAYS | ON_DEMAND
    answers = []
    for cycle in range(3):
        asked = asyncio.gather(*(ask(sleepy, seed) for seed in range(4)))
        # All roles of a path wake together: none waits until another one is ready.
        await until(lambda: set(sleepy.pids) == everything, "all processes start")
        answers.append(await asked)
        if cycle == 0:
            assert all(num_comments for _, num_comments in answers[0]), "held streams got comments"
        if cycle == 1:
            await until(lambda: set(sleepy.pids) != everything, "the first idle process ends")
        else:
            await until(lambda: set(sleepy.pids) == ALWAYS, "idle processes end")
    texts = [[text for text, _ in answer] for answer in answers]
    assert texts[0] == texts[1] == texts[2]
