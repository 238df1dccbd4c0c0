"""POST /v1/messages: what comes out, streamed and not."""

import anthropic
import pytest

from gateway.dialects.messages.answer import BlockWriter
from gateway.request.answer_model import Finish, Usage
from services.runtime.errors import NumericError, Unavailable
from tests.gateway.dialects.message_streams import anthropic_client, check_message, read_message_stream, stream_message
from tests.gateway.dialects.test_chat import TWO_CALLS, call, section

PATH = "/v1/messages"
ON = {"type": "adaptive"}
BASE = {"model": "kimi-k2.6", "max_tokens": 500, "messages": [{"role": "user", "content": "Hi"}]}
WEATHER = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CLOCK = {"name": "clock", "input_schema": {}}

ANSWERS = [
    pytest.param({"thinking": ON}, "Let me see.</think>Hello, wörld! 👋<|im_end|>", "end_turn", id="thinking"),
    pytest.param({}, "Hello!<|im_end|>", "end_turn", id="instant"),
    pytest.param({}, "<|im_end|>", "end_turn", id="nothing"),
    pytest.param({"thinking": ON}, "only thoughts<|im_end|>", "end_turn", id="only-thoughts"),
    pytest.param({"thinking": {**ON, "display": "omitted"}}, "Hm.</think>Yes.<|im_end|>", "end_turn", id="omitted"),
    pytest.param({"thinking": ON, "tools": [WEATHER, CLOCK]}, TWO_CALLS + "<|im_end|>", "tool_use", id="calls"),
    pytest.param(
        {"tools": [CLOCK]}, "A" + section(call("clock:0", "")) + "B<|im_end|>", "tool_use", id="text-on-both-sides"
    ),
    pytest.param({"thinking": ON, "max_tokens": 3}, "Let me see.</think>Hello<|im_end|>", "max_tokens", id="cut"),
    pytest.param({"stop_sequences": ["wör"]}, "Hello, wörld!<|im_end|>", "stop_sequence", id="stop-sequence"),
]


def contents(message):
    return (
        "".join(block.thinking for block in message.content if block.type == "thinking"),
        "".join(block.text for block in message.content if block.type == "text"),
        [(block.name, block.input) for block in message.content if block.type == "tool_use"],
    )


@pytest.mark.slow
async def test_stream_equals_whole(site):
    for case in ANSWERS:
        fields, answer, reason = case.values
        site.say(answer)
        for num_at_once in (1, 5):
            site.decodes[0].num_at_once = num_at_once
            body = {**BASE, **fields}
            whole = check_message((await site.http.post(PATH, json=body)).json())
            streamed = await stream_message(site.http, body)
            assert whole.stop_reason == streamed.message["stop_reason"] == reason, case.id
            assert whole.stop_sequence == streamed.message["stop_sequence"]
            assert contents(whole) == (streamed.thoughts, streamed.text, streamed.calls), case.id
            assert streamed.message["usage"] == whole.usage.model_dump(exclude_none=True)
            assert [block.type for block in whole.content][:1] == [streamed.blocks[0]["type"]]


async def test_the_sdk_accumulates_what_it_gets_whole(site):
    site.say(TWO_CALLS + "<|im_end|>")
    fields = {**BASE, "tools": [WEATHER, CLOCK], "thinking": ON}
    async with anthropic_client(site.url) as client:
        whole = await client.messages.create(**fields)
        async with client.messages.stream(**fields) as stream:
            final = await stream.get_final_message()
        chunks = [event async for event in await client.messages.create(**fields, stream=True)]
    assert (
        contents(final)
        == contents(whole)
        == (
            "Which?",
            "Looking.",
            [("get_weather", {"city": "Bärn"}), ("clock", {})],
        )
    )
    assert final.stop_reason == whole.stop_reason == "tool_use"
    assert final.usage == whole.usage
    assert chunks[0].type == "message_start"
    assert all(block.id.startswith("toolu_") and len(block.id) == 30 for block in final.content[2:])


async def test_usage_tells_cached_tokens_apart(site):
    site.prefills[0].num_cached = 5
    usage = (await site.http.post(PATH, json={**BASE, "thinking": ON})).json()["usage"]
    num_prompt = len(site.prefills[0].prefills[0].prompt.token_ids)
    assert usage == {
        "input_tokens": num_prompt - 5,
        "cache_read_input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "output_tokens": len(site.answer_ids),
        "output_tokens_details": {"thinking_tokens": len(site.vocabulary.encode("Let me see."))},
    }
    streamed = await stream_message(site.http, BASE)
    assert streamed.num_pings == 1


async def test_the_stream_starts_with_true_counts(site):
    site.prefills[0].num_cached = 7
    response = await site.http.post(PATH, json={**BASE, "stream": True})
    start = response.text.split("\n\n")[0]
    num_prompt = len(site.prefills[0].prefills[0].prompt.token_ids)
    assert f'"input_tokens":{num_prompt - 7},"cache_read_input_tokens":7' in start


async def test_the_default_of_thinking_is_a_setting(start_site):
    for setting, kinds in (("off", ["text"]), ("on", ["thinking", "text"])):
        site = await start_site(anthropic_default_thinking=setting)
        site.say("a</think>b<|im_end|>")
        content = (await site.http.post(PATH, json=BASE)).json()["content"]
        assert [block["type"] for block in content] == kinds


@pytest.mark.parametrize("kind", ["enabled", "between_tools", "adaptive"])
async def test_ways_to_turn_thinking_on(site, kind):
    budget = {"budget_tokens": 1024, "max_tokens": 2000} if kind == "enabled" else {}
    body = {**BASE, "max_tokens": budget.pop("max_tokens", 50), "thinking": {"type": kind, **budget}}
    content = (await site.http.post(PATH, json=body)).json()["content"]
    assert [block["type"] for block in content] == ["thinking", "text"]
    assert content[0]["thinking"] == "Let me see."
    assert content[0]["signature"]


async def test_defaults_of_sampling(site):
    await site.http.post(PATH, json=BASE)
    await site.http.post(PATH, json={**BASE, "thinking": ON})
    await site.http.post(PATH, json={**BASE, "temperature": 0, "top_p": 0.5, "top_k": 3, "max_tokens": 10**6})
    drawn = [decode.sampling for decode in site.decodes[0].decodes]
    assert [round(sampling.temperature, 3) for sampling in drawn] == [0.6, 1.0, 0]
    assert [round(sampling.top_p, 3) for sampling in drawn] == [0.95, 0.95, 0.5]
    assert [sampling.top_k for sampling in drawn] == [0, 0, 3]
    assert drawn[2].max_new_tokens < site.context_tokens


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "auto"}, ["get_weather", "clock"]),
        ({"type": "auto", "disable_parallel_tool_use": True}, ["get_weather"]),
        ({"type": "none"}, []),
    ],
)
async def test_tool_choice(site, choice, names):
    site.say("Looking." + section(call("get_weather:0", "{}"), call("clock:1", "")) + "<|im_end|>")
    body = {**BASE, "tools": [WEATHER, CLOCK], "tool_choice": choice}
    content = (await site.http.post(PATH, json=body)).json()["content"]
    assert [block["name"] for block in content if block["type"] == "tool_use"] == names


async def test_ids_of_the_request_are_headers(site):
    for path in (PATH, "/anthropic/v1/messages", "/v1/messages/count_tokens"):
        response = await site.http.post(path, json=BASE, headers={"x-request-id": "abc"})
        assert response.headers["request-id"] == response.headers["x-request-id"] == "abc"
    assert "request-id" not in (await site.chat()).headers


async def test_silence_before_and_within_the_message(start_site):
    site = await start_site(keep_alive_s=0.05, answer="Hi<|im_end|>")
    site.prefills[0].prefill_s = 0.3
    site.decodes[0].token_s = 0.2
    streamed = await stream_message(site.http, BASE)
    assert streamed.num_comments >= 1
    assert streamed.num_pings >= 2
    assert streamed.text == "Hi"


async def test_an_error_within_the_stream(start_site):
    site = await start_site(prefill_min_tokens=10_000, answer="one two three four<|im_end|>")
    site.decodes[0].fail_after, site.decodes[0].failure = 5, NumericError("NaN")
    streamed = await stream_message(site.http, BASE)
    assert streamed.error == {"type": "api_error", "message": "the server failed to answer this request"}
    async with anthropic_client(site.url) as client:
        with pytest.raises(anthropic.APIStatusError):
            async with client.messages.stream(**BASE) as stream:
                await stream.get_final_message()


def test_an_empty_answer_has_an_empty_text():
    writer = BlockWriter("m", Usage(3, completion=[1], reasoning=[0]), show_thinking=True)
    assert read_message_stream(writer.write([Finish(0, "stop")])).blocks == [{"type": "text", "text": ""}]
    assert b"overloaded_error" in writer.fail(Unavailable("x"))
