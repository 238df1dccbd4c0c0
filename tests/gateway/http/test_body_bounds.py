"""Bodies: how much they hold together, what they unfold to, how many values they have and how deep they nest."""

import asyncio
import gzip
import json
import time

import pytest

from gateway.http.errors import BodyTooLarge
from gateway.http.json_bounds import JsonBounds, load_object
from services.runtime.errors import InvalidRequest
from tests.gateway.http.test_guard import keys_file, line  # noqa: F401 - a fixture

CHAT = "/v1/chat/completions"
GZIP = {"content-type": "application/json", "content-encoding": "gzip"}
JSON = {"content-type": "application/json"}
BODY = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 60}
BOUNDS = JsonBounds(max_values=10, max_containers=5, max_depth=4)


async def longest_wait_for_life(site, asked):
    """The longest wait for /live, in seconds, while this runs."""
    longest_s = 0.0
    while not asked.done():
        began_s = time.monotonic()
        assert (await site.http.get("/live")).status_code == 200
        longest_s = max(longest_s, time.monotonic() - began_s)
        await asyncio.sleep(0.005)
    return longest_s


def tools_of(path, depth):
    """Tools of a dialect whose schema nests so deep."""
    schema: object = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    if path == CHAT:
        return {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}
    if path == "/v1/messages":
        return {"tools": [{"name": "f", "input_schema": schema}]}
    return {"tools": [{"type": "function", "name": "f", "parameters": schema}]}


@pytest.mark.parametrize(
    ("raw", "decoded"),
    [
        (b'{"a":[1,2,[3]]}', {"a": [1, 2, [3]]}),
        (b'{"[[[[[[,,,,,,,,,,,":1}', {"[[[[[[,,,,,,,,,,,": 1}),
        (b'{"\\"[[[[[[":"\\\\","b":"[[[[[[\\\\\\"[["}', {'"[[[[[[': "\\", "b": '[[[[[[\\"[['}),
        (b'{"a":"' + b"\\\\" * (1 << 19) + b'","b":"[[[[[["}', {"a": "\\" * (1 << 19), "b": "[[[[[["}),
        (b'{"ab":"' + b'\\"' * (1 << 20) + b'[[[[[["}', {"ab": '"' * (1 << 20) + "[[[[[["}),
    ],
    ids=["plain", "in-a-name", "escapes", "a-piece-ends-in-an-escape", "a-piece-ends-before-one"],
)
def test_what_is_within_the_bounds(raw, decoded):
    assert load_object(raw, BOUNDS) == decoded


@pytest.mark.parametrize(
    ("raw", "error", "said", "field"),
    [
        (b'{"a":[[],[],[],[]]}', BodyTooLarge, "more than 5 objects and lists", None),
        (b'{"a":[1,2,3,4,5,6,7,8,9,10]}', BodyTooLarge, "more than 10 values", None),
        (b'{"a\\"":"\\\\","b":[1,2,3,4,5,6,7,8,9]}', BodyTooLarge, "more than 10 values", None),
        (b'{"a":[0,{"b":[{}]}]}', InvalidRequest, "more than 4 deep", "a.1.b.0"),
        (b'{"a":["', InvalidRequest, "not valid JSON", None),
        (b'{"a":[[[[[["\\', BodyTooLarge, "more than 5", None),
        (b'{"a":"\\"[[[[[[[', InvalidRequest, "not valid JSON", None),
        (b"[]", InvalidRequest, "must be a JSON object", None),
    ],
    ids=["containers", "values", "after-escapes", "depth", "no-end", "no-end-after-many", "all-in-a-string", "a-list"],
)
def test_what_is_not(raw, error, said, field):
    with pytest.raises(error, match=said) as caught:
        load_object(raw, BOUNDS)
    assert caught.value.field == field


def test_quotes_without_an_end_cost_no_more_than_their_length():
    raw = b'{"a":"' + b'\\",' * (1 << 20)
    began_s = time.process_time()
    with pytest.raises(InvalidRequest):
        load_object(raw, JsonBounds(max_values=1000, max_containers=1000, max_depth=9))
    assert time.process_time() - began_s < 2


@pytest.mark.parametrize(
    "unfolded",
    [
        b'{"messages":[' + b",".join([b"{}"] * 1_400_000) + b"]}",
        b'{"model":"kimi-k2.6","messages":[{"role":"user","content":"Hi"}],"stop":[%s]}' % b",".join([b"1"] * 900_000),
        b'{"model":"kimi-k2.6","messages":[{"role":"user","content":[%s]}]}' % b",".join([b'{"type":"x"}'] * 90_000),
    ],
    ids=["empty-messages", "wrong-values", "wrong-parts"],
)
async def test_little_that_unfolds_to_much(site, unfolded):
    waits_s = []
    # Other processes may take the core away for a while, but hardly three times in a row.
    while len(waits_s) < 3 and min(waits_s, default=1) >= 1:
        asked = asyncio.create_task(site.http.post(CHAT, content=gzip.compress(unfolded), headers=GZIP))
        waits_s.append(await longest_wait_for_life(site, asked))
        assert (await asked).status_code in (400, 413)
    # 0.1 s on a machine with a core of its own.
    assert min(waits_s) < 1


async def test_a_body_of_the_largest_size_leaves_the_loop_free(site):
    image = "data:image/png;base64," + "A" * (40 << 20)
    content = [{"type": "image_url", "image_url": {"url": image}}]
    body = json.dumps({"model": "kimi-k2.6", "messages": [{"role": "user", "content": content}]}).encode()
    asked = asyncio.create_task(site.http.post(CHAT, content=body, headers=JSON))
    assert await longest_wait_for_life(site, asked) < 1
    assert "vision service not configured" in (await asked).json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x" * 600}, {"role": "assistant", "content": "x" * 600}]},
            "messages",
        ),
        ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": "x" * 1200}]}, "messages"),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "x" * 1200}]}, "messages"),
        ("/v1/responses", {"input": "x" * 1200}, "input"),
        ("/v1/completions", {"prompt": ["x" * 600, "y" * 600]}, "prompt"),
        ("/tokenize", {"prompt": "x" * 1200}, "prompt"),
    ],
)
async def test_texts_that_no_context_holds(start_site, path, body, field):
    site = await start_site(max_text_chars=1000)
    response = await site.http.post(path, json={"model": "kimi-k2.6", **body})
    assert response.status_code == 413, response.text
    assert f"{field}: 1200 characters of text, at most 1000 are accepted" in response.json()["error"]["message"]


@pytest.mark.parametrize("depth", [100, 255, 400, 1000])
@pytest.mark.parametrize(
    ("path", "field"),
    [
        (CHAT, "tools.0.function.parameters"),
        ("/v1/messages", "tools.0.input_schema.properties"),
        ("/v1/responses", "tools.0.parameters.properties"),
    ],
)
async def test_deep_schemas_are_refused_by_name(site, depth, path, field):
    body = {**BODY, **tools_of(path, depth)}
    if path == "/v1/responses":
        body = {"model": "kimi-k2.6", "input": "Hi", **tools_of(path, depth)}
    response = await site.http.post(path, content=_dumps(body), headers=JSON)
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert "more than 100 deep" in message
    if depth < 500:
        assert message.startswith(f"{field}:")


@pytest.mark.parametrize(
    ("path", "count"), [(CHAT, "/v1/tokenizers/estimate-token-count"), ("/v1/messages", "/v1/messages/count_tokens")]
)
async def test_schemas_below_the_bound_are_rendered(site, path, count):
    body = {**BODY, **tools_of(path, 46)}
    assert (await site.http.post(count, content=_dumps(body), headers=JSON)).status_code == 200


async def test_bodies_of_one_key(start_site, keys_file):  # noqa: F811
    site = await start_site(keys_file=keys_file, max_key_bodies_bytes=5000)
    site.decodes[0].token_s = 0.2
    one, two = {"x-api-key": "sk-one"}, {"x-api-key": "sk-two"}
    body = {**BODY, "messages": [{"role": "user", "content": " " * 3000}]}
    first = asyncio.create_task(site.http.post(CHAT, json=body, headers=one))
    while not site.decodes[0].num_running:
        await asyncio.sleep(0.01)
    refused = await site.http.post(CHAT, json=body, headers=one)
    assert refused.status_code == 429
    assert "5000 bytes" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    site.decodes[0].token_s = 0
    assert (await site.http.post(CHAT, json=body, headers=two)).status_code == 200
    assert (await first).status_code == 200
    assert (await site.http.post(CHAT, json=body, headers=one)).status_code == 200


async def test_all_bodies_together(start_site):
    site = await start_site(max_bodies_bytes=5000, max_key_bodies_bytes=5000)
    big = {**BODY, "messages": [{"role": "user", "content": " " * 5000}]}
    assert (await site.http.post(CHAT, json=big)).status_code == 429
    packed = gzip.compress(json.dumps(big).encode())
    assert (await site.http.post(CHAT, content=packed, headers=GZIP)).status_code == 429
    assert (await site.http.post(CHAT, json=BODY)).status_code == 200


def _dumps(body):
    """As json.dumps, which gives up where the schema nests deep."""
    deepest = body["tools"]
    body = {**body, "tools": "TOOLS"}
    return json.dumps(body).replace('"TOOLS"', _text_of(deepest)).encode()


def _text_of(value):
    if isinstance(value, dict) and value.get("type") == "object":
        depth = 0
        while value.get("type") == "object":
            value, depth = value["properties"]["a"], depth + 1
        return '{"type":"object","properties":{"a":' * depth + '{"type":"string"}' + "}}" * depth
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{_text_of(inner)}" for name, inner in value.items()) + "}"
    return "[" + ",".join(map(_text_of, value)) + "]" if isinstance(value, list) else json.dumps(value)
