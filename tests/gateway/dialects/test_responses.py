"""POST /v1/responses: what comes out, streamed and not."""

import openai
import pytest

from services.runtime.errors import NumericError
from tests.gateway.dialects.response_streams import check_response, stream_response
from tests.gateway.dialects.test_chat import TWO_CALLS, call, section

PATH = "/v1/responses"
BASE = {"model": "kimi-k2.6", "input": "Hi"}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
CLOCK = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}, "strict": True}
TOOLS = [WEATHER, CLOCK, {"type": "web_search"}]
INSTANT = {"reasoning": {"effort": "none"}}

ANSWERS = [
    pytest.param({}, "Let me see.</think>Hello, wörld! 👋<|im_end|>", ["reasoning", "message"], id="thinking"),
    pytest.param(INSTANT, "Hello!<|im_end|>", ["message"], id="instant"),
    pytest.param(INSTANT, "<|im_end|>", [], id="nothing"),
    pytest.param({}, "only thoughts<|im_end|>", ["reasoning"], id="only-thoughts"),
    pytest.param(
        {"tools": TOOLS},
        TWO_CALLS + "<|im_end|>",
        ["reasoning", "message", "function_call", "function_call"],
        id="calls",
    ),
    pytest.param(
        {"tools": TOOLS, **INSTANT},
        "A" + section(call("clock:0", "")) + "B<|im_end|>",
        ["message", "function_call", "message"],
        id="text-on-both-sides",
    ),
    pytest.param({"max_output_tokens": 3}, "Let me see.</think>Hello<|im_end|>", ["reasoning"], id="cut-in-thoughts"),
    pytest.param(
        {"tools": TOOLS, "max_output_tokens": 75, **INSTANT},
        "A" + section(call("clock:0", '{"a": "' + "x" * 200 + '"}')) + "<|im_end|>",
        ["message"],
        id="cut-in-call",
    ),
]


def said(items):
    """The items without their ids."""
    return [{key: value for key, value in item.items() if key != "id"} for item in items]


@pytest.mark.slow
async def test_stream_equals_whole(site):
    for case in ANSWERS:
        fields, answer, kinds = case.values
        site.say(answer)
        for num_at_once in (1, 5):
            site.decodes[0].num_at_once = num_at_once
            body = {**BASE, **fields}
            whole = (await site.http.post(PATH, json=body)).json()
            check_response(whole)
            streamed = await stream_response(site.http, body)
            assert [item["type"] for item in whole["output"]] == kinds, case.id
            assert said(streamed.response["output"]) == said(whole["output"]), case.id
            assert streamed.items[: len(kinds)] == streamed.response["output"]
            assert streamed.response["usage"] == whole["usage"]
            cut = "max_output_tokens" in fields
            assert whole["status"] == streamed.response["status"] == ("incomplete" if cut else "completed")
            assert whole["incomplete_details"] == ({"reason": "max_output_tokens"} if cut else None)
            assert (whole["completed_at"] is None) == cut


async def test_the_sdk_reads_both(site):
    site.say(TWO_CALLS + "<|im_end|>")
    whole = await site.openai.responses.create(**BASE, tools=TOOLS)
    async with site.openai.responses.stream(**BASE, tools=[WEATHER, CLOCK]) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert whole.output_text == final.output_text == "Looking."
    for response in (whole, final):
        calls = [(item.call_id, item.name, item.arguments) for item in response.output if item.type == "function_call"]
        assert calls == [
            ("functions.get_weather:0", "get_weather", '{"city": "Bärn"}'),
            ("functions.clock:1", "clock", "{}"),
        ]
        assert response.output[0].content[0].text == "Which?"
    texts = [event.snapshot for event in events if event.type == "response.output_text.delta"]
    assert texts[-1] == "Looking."


@pytest.mark.parametrize(
    ("fields", "num_top"),
    [
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, 2),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"top_logprobs": 3}, 3),
    ],
)
@pytest.mark.slow
async def test_logprobs_of_the_text(site, fields, num_top):
    whole = (await site.http.post(PATH, json={**BASE, **fields})).json()
    check_response(whole)
    assert whole["top_logprobs"] == fields.get("top_logprobs", 0)
    (part,) = whole["output"][-1]["content"]
    assert b"".join(bytes(token["bytes"]) for token in part["logprobs"]) == part["text"].encode()
    assert all(len(token["top_logprobs"]) == num_top for token in part["logprobs"])
    streamed = await stream_response(site.http, {**BASE, **fields})
    assert said(streamed.response["output"]) == said(whole["output"])


async def test_usage(site):
    site.prefills[0].num_cached = 5
    usage = (await site.http.post(PATH, json=BASE)).json()["usage"]
    num_prompt = len(site.prefills[0].prefills[0].prompt.token_ids)
    assert usage == {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
        "output_tokens": len(site.answer_ids),
        "output_tokens_details": {"reasoning_tokens": len(site.vocabulary.encode("Let me see."))},
        "total_tokens": num_prompt + len(site.answer_ids),
    }


async def test_what_a_response_repeats(site):
    fields = {
        "instructions": "Be brief.",
        "temperature": 0.5,
        "top_p": 0.25,
        "max_output_tokens": 99,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "reasoning": {"effort": "high", "summary": "auto"},
        "prompt_cache_key": "k",
        "safety_identifier": "s",
    }
    body = (await site.http.post(PATH, json={**BASE, **fields, "tools": TOOLS, "store": True})).json()
    assert {name: body[name] for name in fields} == fields
    assert body["tools"] == [{**WEATHER, "description": None}, {**CLOCK, "description": None}]
    assert body["text"] == {"format": {"type": "text"}}
    assert (body["truncation"], body["store"], body["background"]) == ("disabled", False, False)
    assert body["id"].startswith("resp_")


async def test_one_call_only(site):
    site.say(TWO_CALLS + "<|im_end|>")
    output = (await site.http.post(PATH, json={**BASE, "tools": TOOLS, "parallel_tool_calls": False})).json()["output"]
    assert [item["name"] for item in output if item["type"] == "function_call"] == ["get_weather"]


async def test_sealed_reasoning_comes_if_it_is_asked_for(site):
    whole = (await site.http.post(PATH, json={**BASE, "include": ["reasoning.encrypted_content"]})).json()
    check_response(whole)
    sealed = whole["output"][0]["encrypted_content"]
    history = [
        {"role": "user", "content": "Hi"},
        {"type": "reasoning", "summary": [], "encrypted_content": sealed},
        {"type": "function_call", "call_id": "c", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "5"},
    ]
    await site.http.post(PATH, json={**BASE, "input": history})
    prompt = site.vocabulary.decode(site.prefills[0].prefills[-1].prompt.token_ids)
    assert "<think>Let me see.</think>" in prompt


async def test_silence_gets_the_beginning_and_then_comments(start_site):
    site = await start_site(keep_alive_s=0.05)
    site.prefills[0].prefill_s = 0.3
    streamed = await stream_response(site.http, BASE)
    assert streamed.num_comments >= 1
    assert streamed.response["status"] == "completed"


async def test_an_error_within_the_stream(start_site):
    site = await start_site(prefill_min_tokens=10_000)
    site.decodes[0].fail_after, site.decodes[0].failure = 5, NumericError("NaN")
    streamed = await stream_response(site.http, BASE)
    assert streamed.response["status"] == "failed"
    assert streamed.response["error"]["code"] == "server_error"
    assert "NaN" not in str(streamed.response)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/r_1"), ("DELETE", "/r_1"), ("POST", "/r_1/cancel"), ("GET", "/r_1/input_items")],
)
async def test_nothing_is_kept(site, method, path):
    response = await site.http.request(method, PATH + path)
    assert response.status_code == 404
    assert "not supported" in response.json()["error"]["message"]
    with pytest.raises(openai.NotFoundError):
        await site.openai.responses.retrieve("r_1")
