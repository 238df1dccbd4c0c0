"""Requests to the Anthropic dialect that can never be served: a 4xx in its form, with the field in the message."""

import anthropic
import pytest

from tests.gateway.dialects.message_streams import anthropic_client

HI = {"role": "user", "content": "Hi"}
BASE = {"model": "kimi-k2.6", "max_tokens": 500, "messages": [HI]}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def message(**fields):
    return {"messages": [HI, fields]}


def user(**block):
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, block]}]}


def assistant(**block):
    return {"messages": [HI, {"role": "assistant", "content": [block]}, HI]}


def result(**fields):
    return {"messages": [{"role": "user", "content": [{"type": "tool_result", **fields}]}]}


MALFORMED = [
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": ["Hi"]}, "messages.0"),
    (message(content="x"), "messages.1.role"),
    (message(role="tool", content="x"), "messages.1.role"),
    (message(role="user"), "messages.1.content"),
    (message(role="user", content=5), "messages.1.content"),
    (message(role="assistant", content=None), "messages.1.content"),
    (message(role="system", content=[{"type": "image"}]), "messages.1.content.0.type"),
    (message(role="user", content=["x"]), "messages.1.content.0"),
    (user(text="x"), "messages.0.content.1.type"),
    (user(type="audio"), "messages.0.content.1.type"),
    (user(type="text"), "messages.0.content.1.text"),
    (user(type="text", text=5), "messages.0.content.1.text"),
    (user(type="thinking", thinking="x"), "messages.0.content.1.type"),
    (user(type="image"), "messages.0.content.1.source"),
    (user(type="image", source={}), "messages.0.content.1.source.type"),
    (user(type="image", source={"type": "file", "file_id": "x"}), "messages.0.content.1.source.type"),
    (user(type="image", source={"type": "base64"}), "messages.0.content.1.source.data"),
    (user(type="image", source={"type": "base64", "data": "aa"}), "messages.0.content.1.source"),
    (user(type="image", source={"type": "url", "url": "http://x/y"}), "messages.0.content.1.source"),
    (user(type="document", source={"type": "base64", "data": "x"}), "messages.0.content.1.source.type"),
    (result(), "messages.0.content.0.tool_use_id"),
    (result(tool_use_id=""), "messages.0.content.0.tool_use_id"),
    (result(tool_use_id="a", content=5), "messages.0.content.0.content"),
    (result(tool_use_id="a", content=[{"type": "tool_use"}]), "messages.0.content.0.content.0.type"),
    (assistant(type="thinking"), "messages.1.content.0.thinking"),
    (assistant(type="thinking", thinking="x", signature=5), "messages.1.content.0.signature"),
    (assistant(type="tool_use", id="a", name="f", input="{}"), "messages.1.content.0.input"),
    (assistant(type="tool_use", id="a", input={}), "messages.1.content.0.name"),
    (assistant(type="tool_use", name="f", input={}), "messages.1.content.0.id"),
    (assistant(type="nonsense"), "messages.1.content.0.type"),
    ({"system": 5}, "system"),
    ({"system": [{"type": "image"}]}, "system.0.type"),
    ({"system": [{"type": "text"}]}, "system.0.text"),
    ({"tools": {}}, "tools"),
    ({"tools": ["f"]}, "tools.0"),
    ({"tools": [{"input_schema": {}}]}, "tools.0.name"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name"),
    ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
    ({"tools": [{"name": "f", "input_schema": []}]}, "tools.0.input_schema"),
    ({"tools": [TOOL, TOOL]}, "tools.1.name"),
    ({"tools": [{**TOOL, "type": "function"}]}, "tools.0.type"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": {"type": "required"}}, "tool_choice.type"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
    ({"thinking": True}, "thinking"),
    ({"thinking": {}}, "thinking.type"),
    ({"thinking": {"type": "on"}}, "thinking.type"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "adaptive", "display": "loud"}}, "thinking.display"),
    ({"output_config": {"format": {"type": "yaml"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
]
ONLY_WITH_ANSWER = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"stop_sequences": [""]}, "stop_sequences.0"),
    ({"stream": "yes"}, "stream"),
    ({"max_tokens": 1024, "thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens"),
]


async def refused(site, path, fields):
    """The message of a refusal, whose form is checked."""
    response = await site.http.post(path, json={**BASE, **fields})
    assert response.status_code == 400, (path, fields, response.text)
    body = response.json()
    assert body.keys() == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == response.headers["request-id"]
    assert body["error"].keys() == {"type", "message"}
    assert body["error"]["type"] == "invalid_request_error"
    return body["error"]["message"]


@pytest.mark.slow
async def test_malformed_requests_name_their_field(site):
    rows = [("/v1/messages", *row) for row in [*MALFORMED, *ONLY_WITH_ANSWER]]
    rows += [("/anthropic/v1/messages/count_tokens", *row) for row in MALFORMED]
    rows += [("/v1/messages", {"stream": True, **fields}, field) for fields, field in MALFORMED]
    wrong = [
        (fields, field, complaint)
        for path, fields, field in rows
        if not (complaint := await refused(site, path, fields)).startswith(f"{field}:")
    ]
    assert wrong == []
    assert not any(engine.prefills or engine.decodes for engine in site.engines)


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
        ("POST", "/anthropic/v1/nothing", 404, "not_found_error"),
    ],
)
async def test_paths_of_the_dialect(site, method, path, status, kind):
    response = await site.http.request(method, path, json={})
    assert response.status_code == status
    assert response.json()["error"]["type"] == kind


async def test_errors_that_are_not_the_bodys(start_site):
    site = await start_site(max_body_bytes=9000, hold_s=0.1)
    post = site.http.post
    cases = [
        (await post("/v1/messages", json={**BASE, "model": "gpt-4"}), 404, "not_found_error"),
        (await post("/v1/messages", content=b"x" * 9001), 413, "request_too_large"),
        (await post("/v1/messages", content=b"{"), 400, "invalid_request_error"),
    ]
    await site.decodes[0].stop()
    await site.sees("decode", 0)
    cases.append((await post("/v1/messages", json=BASE), 529, "overloaded_error"))
    for response, status, kind in cases:
        assert (response.status_code, response.json()["error"]["type"]) == (status, kind)
    assert int(cases[-1][0].headers["retry-after"]) >= 1


async def test_a_prompt_that_is_too_long(site):
    body = {**BASE, "messages": [{"role": "user", "content": "\x01\x02" * 2000}]}
    count = (await site.http.post("/v1/messages/count_tokens", json=body)).json()["input_tokens"]
    async with anthropic_client(site.url) as client:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await client.messages.create(**body)
    message = caught.value.body["error"]["message"]
    assert message.startswith(f"prompt is too long: {count} tokens > {site.context_tokens} maximum")
    assert f"This model's maximum context length is {site.context_tokens} tokens" in message


async def test_long_input_is_not_echoed(site):
    for fields in (
        {"model": "z" * 5000},
        message(role="z" * 5000),
        assistant(type="z" * 5000),
        {"tools": [{**TOOL, "type": "z" * 5000}]},
    ):
        response = await site.http.post("/v1/messages", json={**BASE, **fields})
        assert 400 <= response.status_code < 500
        assert "z" * 100 not in response.text
