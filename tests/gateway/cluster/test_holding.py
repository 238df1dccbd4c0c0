"""Roles at zero: requests are held, their demand is told, they are answered when the role is there."""

import asyncio
import contextlib

import pytest

from gateway.cluster.demand import serve_demand
from protos import demand_pb2_grpc
from protos.demand_pb2 import WatchDemandRequest
from services.runtime.channels import open_channel
from services.runtime.errors import MoonshardError
from tests.gateway.streams import events_of, stream_chat

MAX_WATCHERS = 16


class Watcher:
    """The autoscaler's end: the last thing that a gateway told."""

    def __init__(self, address) -> None:
        self._channel = open_channel(address)
        self.told = []

    async def __aenter__(self):
        self._task = asyncio.create_task(self._read())
        await self.until(lambda roles: roles)
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()

    async def _read(self):
        async for response in demand_pb2_grpc.DemandServiceStub(self._channel).Watch(WatchDemandRequest()):
            self.told.append({role.role: role for role in response.roles})

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not (self.told and condition(self.told[-1])):
                await asyncio.sleep(0.005)
        return self.told[-1]


@pytest.fixture
async def watched(start_site):
    """A site that holds, and what it tells."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**settings):
            site = await start_site(wake_s=20, keep_alive_s=0.1, **settings)
            cluster = site.gateway.cluster
            server, address = await serve_demand("127.0.0.1:0", cluster.demand, cluster.pools)
            stack.push_async_callback(server.stop, None)
            return site, await stack.enter_async_context(Watcher(address))

        yield start


async def asleep(site):
    """All engines are gone."""
    for engine in site.engines:
        await engine.stop()
    await site.sees("prefill", 0)
    await site.sees("decode", 0)


async def test_the_first_request_to_a_cold_cluster_is_answered(watched):
    site, watcher = await watched()
    await asleep(site)
    assert (await site.http.get("/health")).json() == {"status": "holding"}
    asked = asyncio.create_task(site.chat())
    roles = await watcher.until(lambda roles: roles["decode"].num_held)
    # The whole path, though the request waits for the decode replica alone.
    assert {name for name, role in roles.items() if role.num_requests} == {"tokenizer", "prefill", "decode"}
    assert roles["decode"].num_requests == 1
    assert roles["prefill"].num_queued_tokens > 0
    for engine in site.engines:
        await engine.start()
    assert (await asked).status_code == 200
    roles = await watcher.until(lambda roles: not roles["decode"].num_requests)
    assert not any(role.num_requests or role.num_held or role.num_queued_tokens for role in roles.values())
    assert [replica.num_blocks for replica in roles["decode"].replicas] == [100]


async def test_a_held_stream_gets_comments(watched):
    site, _ = await watched()
    await asleep(site)
    body = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    raw = b""
    async with site.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        async for piece in response.aiter_bytes():
            raw += piece
            if raw.count(b": keep-alive") == 3 and not site.decodes[0].is_up:
                for engine in site.engines:
                    await engine.start()
    assert raw.startswith(b": keep-alive\n\n" * 3)
    assert events_of(raw)[-1] == "[DONE]"


@pytest.mark.slow
async def test_running_requests_need_no_prefill_replica(watched):
    site, watcher = await watched()
    site.decodes[0].token_s = 0.05
    asked = asyncio.create_task(stream_chat(site.http))
    roles = await watcher.until(lambda roles: roles["decode"].num_requests and not roles["prefill"].num_requests)
    assert (roles["tokenizer"].num_requests, roles["prefill"].num_queued_tokens) == (1, 0)
    assert (await asked).finish == {0: "stop"}


async def test_counting_tokens_wakes_nobody(watched):
    site, watcher = await watched()
    await asleep(site)
    await site.http.post(
        "/v1/messages/count_tokens", json={"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}]}
    )
    assert (await site.http.get("/v1/models")).status_code == 200
    assert not any(roles["decode"].num_requests or roles["prefill"].num_requests for roles in watcher.told)


async def test_too_many_held_requests_are_refused(watched):
    site, watcher = await watched(max_held=2)
    await asleep(site)
    asked = [asyncio.create_task(site.chat()) for _ in range(2)]
    await watcher.until(lambda roles: roles["decode"].num_held == 2)
    refused = await site.chat()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "engine_overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert (await site.http.get("/health")).status_code == 503
    for engine in site.engines:
        await engine.start()
    assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200, 200]


async def test_a_client_that_leaves_is_no_demand_any_more(watched):
    site, watcher = await watched()
    await asleep(site)
    asked = asyncio.create_task(site.chat())
    await watcher.until(lambda roles: roles["decode"].num_held)
    asked.cancel()
    await watcher.until(lambda roles: not roles["decode"].num_held and not roles["decode"].num_requests)


async def test_nobody_wakes(start_site):
    """Without an autoscaler nothing is held for longer than before."""
    site = await start_site(hold_s=0.1)
    await asleep(site)
    assert (await site.http.get("/health")).status_code == 503
    assert (await site.http.get("/live")).status_code == 200
    assert (await site.chat()).status_code == 503


async def test_hopeless(start_site):
    site = await start_site(wake_s=0.3, hold_s=0.1)
    await asleep(site)
    answer = await site.chat()
    assert answer.status_code == 503
    assert 1 <= int(answer.headers["retry-after"]) <= 30


async def test_a_gateway_is_not_ready_where_nothing_wakes_what_sleeps(start_site):
    """As after an installation whose autoscaler does not come up."""
    site = await start_site(wake_s=20)
    await asleep(site)
    answer = await site.http.get("/health")
    assert answer.status_code == 503
    assert "no autoscaler reads the demand" in answer.text


async def test_a_gateway_without_a_tokenizer_is_not_ready(watched):
    site, _ = await watched()
    for tokenizer in site.tokenizers:
        await tokenizer.stop()
    await site.sees("tokenizer", 0)
    answer = await site.http.get("/health")
    assert answer.status_code == 503
    assert "no tokenizer is ready" in answer.text


async def test_an_autoscaler_that_restarts_leaves_the_gateway_ready(start_site, monkeypatch):
    site = await start_site(wake_s=20)
    cluster = site.gateway.cluster
    await asleep(site)
    with cluster.demand.watch():
        assert cluster.can_hold
    assert cluster.can_hold
    monkeypatch.setattr("gateway.cluster.demand.AUTOSCALER_RESTART_S", 0.0)
    assert not cluster.can_hold


async def test_watchers_are_bounded(start_site):
    site = await start_site()
    cluster = site.gateway.cluster
    server, address = await serve_demand("127.0.0.1:0", cluster.demand, cluster.pools)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, None)
        for _ in range(MAX_WATCHERS):
            await stack.enter_async_context(Watcher(address))
        with pytest.raises(MoonshardError, match="16 watch the demand already"):
            async with open_channel(address) as channel:
                await anext(aiter(demand_pb2_grpc.DemandServiceStub(channel).Watch(WatchDemandRequest())))


@pytest.mark.parametrize(
    "path, end",
    [
        ("/v1/chat/completions", b'"finish_reason":"stop"'),
        ("/v1/messages", b"event: message_stop"),
        ("/v1/responses", b"event: response.completed"),
    ],
)
async def test_a_stream_that_waits_for_its_prompt_gets_comments_too(watched, path, end):
    """Rendering, or seeing, waits for a role that wakes."""
    site, _ = await watched()
    await site.tokenizers[0].stop()
    await site.sees("tokenizer", 0)
    body = {"model": "kimi-k2.6", "stream": True, "max_tokens": 64}
    body |= {"input": "Hi"} if "responses" in path else {"messages": [{"role": "user", "content": "Hi"}]}
    if "responses" in path:
        del body["max_tokens"]
    raw = b""
    async with site.http.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        async for piece in response.aiter_bytes():
            raw += piece
            if raw.count(b": keep-alive") == 3 and not site.tokenizers[0].is_up:
                await site.tokenizers[0].start()
    assert raw.startswith(b": keep-alive\n\n" * 3)
    assert end in raw


@pytest.mark.parametrize(
    "path, last",
    [
        ("/v1/chat/completions", b'"code":null}}\n\ndata: [DONE]\n\n'),
        ("/v1/messages", b'"type":"overloaded_error","message":"no tokenizer replica is ready"}}\n\n'),
        ("/v1/responses", b'"message":"no tokenizer replica is ready","param":null}\n\n'),
    ],
)
async def test_a_stream_that_waits_in_vain_ends_with_an_error(start_site, path, last):
    site = await start_site(wake_s=0.5, keep_alive_s=0.1)
    await site.tokenizers[0].stop()
    await site.sees("tokenizer", 0)
    body = {"model": "kimi-k2.6", "stream": True}
    body |= {"input": "Hi"} if "responses" in path else {"messages": [{"role": "user", "content": "Hi"}]}
    if path == "/v1/messages":
        body["max_tokens"] = 64
    answer = await site.http.post(path, json=body)
    assert answer.status_code == 200
    assert answer.content.endswith(last)
    assert site.gateway.pipeline.num_open == 0


async def test_a_client_that_leaves_before_its_prompt_is_there(watched):
    site, watcher = await watched()
    await site.tokenizers[0].stop()
    await site.sees("tokenizer", 0)
    asked = asyncio.create_task(site.chat(stream=True))
    await asyncio.sleep(0.3)
    asked.cancel()
    await watcher.until(lambda roles: not any(role.num_requests or role.num_held for role in roles.values()))
    assert site.gateway.pipeline.num_open == 0
