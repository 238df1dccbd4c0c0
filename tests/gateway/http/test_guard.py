"""API keys and their limits: who comes in, how often, and what happens when Redis is gone."""

import asyncio
import gzip
import hashlib
import json
import tempfile
from pathlib import Path

import httpx
import openai
import pytest

from gateway.http import keys as keys_module
from services.runtime.metrics import metrics_port
from services.runtime.redis_server import RedisServer

CHAT = "/v1/chat/completions"
BODY = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}]}


def line(key, name=""):
    return f"{hashlib.sha256(key.encode()).hexdigest()} {name}\n"


@pytest.fixture
def keys_file(tmp_path, monkeypatch):
    monkeypatch.setattr(keys_module, "CHECK_S", 0.0)
    path = tmp_path / "keys"
    path.write_text("# who may come in\n\n" + line("sk-one", "one  # a comment") + line("sk-two").upper())
    return path


@pytest.fixture
def redis_server():
    with tempfile.TemporaryDirectory(prefix="moonshard-") as folder, RedisServer(Path(folder)) as server:
        yield server


async def get(site, headers, path="/v1/models"):
    return await site.http.get(path, headers=headers)


async def test_keys(start_site, keys_file):
    site = await start_site(keys_file=keys_file)
    good = [{"authorization": "Bearer sk-one"}, {"authorization": "bearer sk-two"}, {"x-api-key": "sk-one"}]
    bad = [{}, {"authorization": "Bearer"}, {"authorization": "Basic sk-one"}, {"x-api-key": "sk-on"}]
    bad += [{"x-api-key": ""}, {"authorization": f"Bearer {hashlib.sha256(b'sk-one').hexdigest()}"}]
    assert [(await get(site, headers)).status_code for headers in good] == [200] * 3
    for headers in bad:
        response = await get(site, headers)
        assert response.status_code == 401
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_authentication_error", "invalid_api_key")
        assert response.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/v1/nothing", "/tokenize", "/v1/messages", "/anthropic/v1/messages", CHAT])
async def test_every_endpoint_that_works_is_guarded(start_site, keys_file, path):
    site = await start_site(keys_file=keys_file)
    response = await site.http.post(path, json=BODY)
    assert response.status_code == 401
    if "messages" in path:
        assert response.json()["type"] == "error"
        assert response.json()["error"]["type"] == "authentication_error"
    assert response.headers["www-authenticate"] == 'Bearer realm="moonshard"'


DOCUMENTS = ("/docs", "/redoc", "/openapi.json", "/metrics")


async def test_what_needs_no_key(start_site, keys_file):
    site = await start_site(keys_file=keys_file, open_paths=("/docs", "/metrics"))
    for path in ("/", "/health", "/ping", "/live", "/version", "/docs", "/metrics", "/docs/"):
        assert (await site.http.get(path)).status_code == 200, path
    for path in ("/redoc", "/openapi.json", "/v1/models", "/nothing"):
        assert (await site.http.get(path)).status_code == 401, path


async def test_documents_need_a_key_by_default(start_site, keys_file):
    site = await start_site(keys_file=keys_file)
    for path in DOCUMENTS:
        assert (await site.http.get(path)).status_code == 401
        assert (await get(site, {"x-api-key": "sk-one"}, path)).status_code == 200


async def test_usage_by_key_is_on_the_metrics_port_alone(start_site, keys_file):
    site = await start_site(keys_file=keys_file)
    one = {"x-api-key": "sk-one"}
    assert (await site.http.post(CHAT, json=BODY, headers=one)).status_code == 200
    owner = hashlib.sha256(b"sk-one").hexdigest()[:16]
    assert owner not in (await get(site, one, "/metrics")).text
    with metrics_port("127.0.0.1:0") as address:
        private = await asyncio.to_thread(lambda: httpx.get(f"http://{address}/metrics", trust_env=False).text)
    assert f'moonshard_gateway_key_requests_total{{key="{owner}"}}' in private


async def test_pages_of_listed_origins(start_site, keys_file):
    site = await start_site(keys_file=keys_file, cors_origins=("https://app.test",))
    asked = {"origin": "https://app.test", "access-control-request-method": "POST"}
    preflight = await site.http.options(CHAT, headers={**asked, "access-control-request-headers": "authorization"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.test"
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    other = await site.http.options(CHAT, headers={**asked, "origin": "https://evil.test"})
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers
    for headers, status in (({"x-api-key": "sk-one"}, 200), ({}, 401)):
        answer = await get(site, {**headers, "origin": "https://app.test"})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://app.test"


async def test_no_origin_is_listed_by_default(site):
    asked = {"origin": "https://app.test", "access-control-request-method": "POST"}
    answer = await site.http.options(CHAT, headers=asked)
    assert answer.status_code == 204
    assert "access-control-allow-origin" not in answer.headers


async def test_the_sdk_sees_its_own_error(start_site, keys_file):
    site = await start_site(keys_file=keys_file)
    with pytest.raises(openai.AuthenticationError):
        await site.openai.models.list()
    assert (await site.openai.with_options(api_key="sk-two").models.list()).data


async def test_the_file_is_read_again_when_it_changes(start_site, keys_file):
    site = await start_site(keys_file=keys_file)
    new, old = {"x-api-key": "sk-new"}, {"x-api-key": "sk-one"}
    assert (await get(site, new)).status_code == 401
    keys_file.write_text(line("sk-new"))
    assert (await get(site, new)).status_code == 200
    assert (await get(site, old)).status_code == 401
    # As a mounted secret changes: another file under the same name.
    other = keys_file.with_name("other")
    other.write_text(line("sk-one"))
    other.replace(keys_file)
    assert (await get(site, old)).status_code == 200
    for broken in ("not a digest", None):
        keys_file.unlink() if broken is None else keys_file.write_text(broken)
        assert (await get(site, old)).status_code == 200
        assert (await get(site, new)).status_code == 401
    keys_file.write_text("# nobody")
    assert (await get(site, old)).status_code == 401


@pytest.mark.parametrize("shared", [False, True])
async def test_requests_per_minute(start_site, keys_file, redis_server, shared):
    store = (redis_server.url,) if shared else ()
    site = await start_site(keys_file=keys_file, requests_per_minute=3, limits_store=store)
    other = await start_site(keys_file=keys_file, requests_per_minute=3, limits_store=store)
    one = {"authorization": "Bearer sk-one"}
    seen = []
    for gateway in (site, other, site):
        response = await gateway.http.post(CHAT, json=BODY, headers=one)
        assert response.status_code == 200
        assert response.headers["x-ratelimit-limit-requests"] == "3"
        assert response.headers["x-ratelimit-reset-requests"].endswith("s")
        seen.append(response.headers["x-ratelimit-remaining-requests"])
    assert seen == (["2", "1", "0"] if shared else ["2", "2", "1"])
    response = await other.http.post(CHAT, json=BODY, headers=one)
    assert response.status_code == (429 if shared else 200)
    if shared:
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_reached_error", "rate_limit_exceeded")
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
        anthropic = await site.http.post("/v1/messages", json={**BODY, "max_tokens": 5}, headers=one)
        assert anthropic.status_code == 429
        assert anthropic.json()["error"]["type"] == "rate_limit_error"
        assert (await get(site, one)).status_code == 200
    assert (await other.http.post(CHAT, json=BODY, headers={"x-api-key": "sk-two"})).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.slow
async def test_tokens_per_minute(start_site, redis_server, stream):
    site = await start_site(tokens_per_minute=60, limits_store=(redis_server.url,))
    first = await site.http.post(CHAT, json={**BODY, "stream": stream, "stream_options": None})
    assert first.status_code == 200
    assert first.headers["x-ratelimit-remaining-tokens"] == "60"
    left, used = 60, len(site.prefills[0].prefills[0].prompt.token_ids) + len(site.answer_ids)
    while left > 0:
        response = await site.http.post(CHAT, json=BODY)
        assert response.status_code == 200
        left -= used
        assert abs(int(response.headers["x-ratelimit-remaining-tokens"]) - max(0, left)) <= 2
        if left > 0 and left - used <= 0:
            break
    last = await site.http.post(CHAT, json=BODY)
    assert last.status_code == 429
    assert "tokens per minute" in last.json()["error"]["message"]


async def test_without_redis_everybody_comes_in(start_site, redis_server):
    site = await start_site(requests_per_minute=1, limits_store=(redis_server.url,))
    assert (await site.chat()).status_code == 200
    assert (await site.chat()).status_code == 429
    redis_server.kill()
    async with asyncio.timeout(10):
        answers = [await site.chat() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    metrics = (await site.http.get("/metrics")).text
    assert "moonshard_gateway_uncounted_requests_total 0.0" not in metrics


async def test_gzip(start_site):
    site = await start_site(max_body_bytes=10_000)
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    raw = json.dumps(BODY).encode()

    async def send(content):
        return await site.http.post(CHAT, content=content, headers=headers)

    assert (await send(gzip.compress(raw))).status_code == 200
    bomb = gzip.compress(b" " * 5_000_000 + raw)
    assert len(bomb) < 10_000
    assert (await send(bomb)).status_code == 413
    whole = gzip.compress(raw)
    for broken in (b"", raw, whole[:-5], whole + b"x", whole + whole):
        response = await send(broken)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "Content-Encoding"


async def test_engines_know_whose_prompt_it_is(start_site, keys_file):
    """So that keys share the steps of a replica, whatever number of prompts each sends."""
    site = await start_site(keys_file=keys_file)
    for key in ("sk-one", "sk-two", "sk-one"):
        assert (await site.http.post(CHAT, json=BODY, headers={"x-api-key": key})).status_code == 200
    one, two, again = (request.prompt.tenant for request in site.prefills[0].prefills)
    assert one == again != two
    assert one and two
