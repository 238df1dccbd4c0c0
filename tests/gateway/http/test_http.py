"""What every answer has, whatever was asked: bodies, statuses and headers of errors, framing, small endpoints."""

import json
import re

import anthropic
import pytest
from openai import APIStatusError, NotFoundError

from gateway.dialects.chat.answer import ChunkWriter
from gateway.dialects.messages.answer import BlockWriter
from tests.gateway.streams import stream_chat

CHAT = "/v1/chat/completions"


def body_of(num_bytes: int) -> bytes:
    head = b'{"model":"kimi-k2.6","messages":[{"role":"user","content":"'
    return head + b"a" * (num_bytes - len(head) - 4) + b'"}]}'


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"5",
        b"NaN",
        b'{"model":NaN}',
        b'{"model":"\xff"}',
        b'{"model":"\\ud800"}',
        b'{"a":' * 2000,
        b"\x00",
        b"\xef\xbb\xbf{}",
    ],
    ids=repr,
)
async def test_what_is_not_a_json_object(site, raw):
    response = await site.http.post(CHAT, content=raw[:9000], headers={"content-type": "application/json"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("content-type", "text/plain"),
        ("content-type", "multipart/form-data; boundary=x"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("content-encoding", "gzip"),
        ("content-encoding", "br"),
    ],
)
async def test_other_forms_of_body(site, name, value):
    headers = {"content-type": "application/json", name: value}
    response = await site.http.post(CHAT, content=body_of(100), headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["param"].lower() == name


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/x+json"])
async def test_spellings_of_json(site, content_type):
    response = await site.http.post(CHAT, content=body_of(100), headers={"content-type": content_type})
    assert response.status_code == 200


async def test_size_limit(start_site):
    site = await start_site(max_body_bytes=1000)
    json_type = {"content-type": "application/json"}
    assert (await site.http.post(CHAT, content=body_of(1000), headers=json_type)).status_code == 200

    async def pieces():
        for _ in range(11):
            yield b"a" * 100

    for content in (body_of(1001), pieces()):
        response = await site.http.post(CHAT, content=content, headers=json_type)
        assert response.status_code == 413
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "request_too_large")


async def test_a_prompt_that_fills_the_context(site):
    messages = [{"role": "user", "content": "a" * 3 * site.context_tokens}]
    for stream in (False, True):
        response = await site.chat(messages=messages, stream=stream)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["code"] == "context_length_exceeded"
        words = "Invalid request: Your request exceeded model token limit: 2048 (requested: "
        assert int(error["message"].partition(words)[2].removesuffix(")")) >= site.context_tokens


async def test_the_longest_prompt_still_gets_a_token(site):
    overhead = (await site.chat(messages=[{"role": "user", "content": ""}])).json()["usage"]["prompt_tokens"]
    unit = "\x01\x02"  # two tokens, whatever stands beside them
    messages = [{"role": "user", "content": unit * ((site.context_tokens - overhead - 1) // 2)}]
    usage = (await site.chat(messages=messages)).json()["usage"]
    assert usage["completion_tokens"] == site.context_tokens - usage["prompt_tokens"] <= 2


@pytest.mark.parametrize("name", ["gpt-4", "", "KIMI-K2.6"])
async def test_unknown_model(site, name):
    with pytest.raises(NotFoundError) as caught:
        await site.openai.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hi"}])
    assert caught.value.body["code"] == "model_not_found"
    assert caught.value.body["type"] == "resource_not_found_error"
    assert caught.value.body["param"] == "model"


async def test_an_alias_is_echoed(site):
    body = (await site.chat(model="moonshotai/Kimi-K2.6")).json()
    assert body["model"] == "moonshotai/Kimi-K2.6"


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", CHAT, 405, "POST"),
        ("POST", "/v1/models", 405, "GET, HEAD"),
        ("DELETE", "/health", 405, "GET, HEAD"),
        ("POST", "/v1/embeddings", 404, None),
        ("GET", "/v1/chat/completions/", 405, "POST"),
        ("PUT", "/v1/files/", 405, "GET, HEAD, POST"),
        ("PUT", "/", 405, "GET, HEAD"),
        ("GET", "/" + "x" * 3000, 404, None),
        ("GET", "/v1/models/gpt-4", 404, None),
    ],
)
async def test_unknown_path_and_method(site, method, path, status, allow):
    response = await site.http.request(method, path)
    assert response.status_code == status
    assert response.headers.get("allow") == allow
    error = response.json()["error"]
    assert error["type"] == ("invalid_request_error" if allow else "resource_not_found_error")
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    "path",
    ["/", "/docs", "/redoc", "/openapi.json", "/v1/models", "/v1/models/kimi-k2.6", "/health", "/live", "/metrics"],
)
async def test_head_and_a_slash_at_the_end(site, path):
    whole = await site.http.get(path)
    head = await site.http.head(path)
    assert whole.status_code == head.status_code == (await site.http.get(f"{path}/")).status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == whole.headers["content-type"]


async def test_a_post_with_a_slash_at_the_end(site):
    body = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}]}
    assert (await site.http.post(f"{CHAT}/", json=body)).status_code == 200


async def test_the_first_page(site):
    here = (await site.http.get("/")).json()
    assert here["name"] == "Moonshard"
    for path in (here["docs"], here["openapi"]):
        assert (await site.http.get(path)).status_code == 200
    page = await site.http.get("/", headers={"accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert "/docs" in page.text


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_documentation_needs_no_other_host(site, path):
    page = (await site.http.get(path)).text
    assert not re.search(r"<script|<link|<img|src=|(href|url)[=(][\"']?(https?:)?//", page)
    for said in ("POST /v1/chat/completions", "GET /v1/models/{name}", "ChatCompletionRequest", "max_tokens"):
        assert said in page


async def test_every_answer_has_ids(site):
    answers = [await site.chat(), await site.chat(model=5), await site.chat(stream=True), await site.http.get("/no")]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4
    assert all(len(answer.headers["x-trace-id"]) == 32 for answer in answers)


@pytest.mark.slow
async def test_a_silent_stream_is_kept_alive(start_site):
    site = await start_site(keep_alive_s=0.1)
    site.decodes[0].token_s = 0.35
    site.say("</think>ab<|im_end|>")
    request = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with site.http.stream("POST", CHAT, json=request) as response:
        raw = b"".join([piece async for piece in response.aiter_raw()])
    assert raw.count(b": keep-alive\n\n") >= 4
    assert (await stream_chat(site.http)).text[0] == "ab"


async def test_events_are_sent_as_they_come(site):
    engine = site.decodes[0]
    engine.token_s = 0.05
    site.say("</think>abcdefgh<|im_end|>")
    stream = await site.openai.chat.completions.create(
        model="kimi-k2.6", messages=[{"role": "user", "content": "Hi"}], stream=True
    )
    seen = [engine.num_sent async for chunk in stream if chunk.choices[0].delta.content]
    assert seen[0] < seen[-1]


async def test_models(site):
    models = await site.openai.models.list()
    assert [model.id for model in models.data] == ["kimi-k2.6"]
    entry = (await site.http.get("/v1/models")).json()["data"][0]
    assert entry["max_model_len"] == entry["context_length"] == entry["max_input_tokens"] == site.context_tokens
    assert entry["supports_image_in"] is False
    assert (await site.openai.models.retrieve("moonshotai/Kimi-K2.6")).id == "moonshotai/Kimi-K2.6"


async def test_the_other_sdk_lists_models_too(site):
    async with anthropic.AsyncAnthropic(base_url=site.url, api_key="none") as client:
        assert [model.id async for model in client.models.list()] == ["kimi-k2.6"]
        assert (await client.models.retrieve("kimi-k2.6")).display_name == "Kimi K2.6"


async def test_small_endpoints(site):
    assert (await site.http.get("/health")).status_code == (await site.http.get("/ping")).status_code == 200
    assert (await site.http.get("/version")).json().keys() == {"version"}
    await site.chat()
    await site.chat(model=1)
    text = (await site.http.get("/metrics")).text
    assert 'moonshard_gateway_requests_total{dialect="chat",status="200"}' in text
    assert 'moonshard_gateway_requests_total{dialect="chat",status="400"}' in text
    for name in ("first_token_seconds_count", "inter_token_seconds_count", 'tokens_total{kind="cached"}'):
        assert f"moonshard_gateway_{name}" in text


async def test_the_openapi_page_describes_the_body(site):
    document = (await site.http.get("/openapi.json")).json()
    schema = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ChatCompletionRequest"}
    assert "messages" in document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert "$defs" not in json.dumps(document)
    assert (await site.http.get("/docs")).status_code == 200


async def test_the_sdk_sees_our_errors(site):
    with pytest.raises(APIStatusError) as caught:
        await site.openai.chat.completions.create(model="kimi-k2.6", messages=[])
    assert caught.value.status_code == 400
    assert caught.value.body["param"] == "messages"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (CHAT, "max_tokens"),
        ("/v1/completions", "max_tokens"),
        ("/v1/messages", "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
    ],
)
@pytest.mark.parametrize("value", ["18446744073709551616", "9223372036854775808", "1e300"])
async def test_numbers_that_no_answer_can_repeat(site, path, field, value):
    body = {"model": "kimi-k2.6", "stream": True, field: 7}
    body |= {"/v1/completions": {"prompt": "Hi"}, "/v1/responses": {"input": "Hi"}}.get(
        path, {"messages": [{"role": "user", "content": "Hi"}]}
    )
    raw = json.dumps(body).replace(f'"{field}": 7', f'"{field}": {value}')
    response = await site.http.post(path, content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(field)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_a_writer_that_breaks_ends_its_stream_with_an_error(site, path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    for writer in (ChunkWriter, BlockWriter):
        monkeypatch.setattr(writer, "write", fail)
    body = {"model": "kimi-k2.6", "stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    response = await site.http.post(path, json=body)
    assert response.status_code == 200
    events = response.text.strip().split("\n\n")
    assert "the server failed to answer this request" in events[-1 if path == "/v1/messages" else -2]
