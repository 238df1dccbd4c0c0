"""POST /v1/chat/completions: what comes out, streamed and not."""

import json

import pytest
from openai.types.chat import ChatCompletion

from tests.gateway.dialects.sdk_types import check_completion
from tests.gateway.streams import events_of, stream_chat

HI = [{"role": "user", "content": "Hi"}]
HELLO = "Hello, wörld! 👋"
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def call(name: str, arguments: str) -> str:
    return f"<|tool_call_begin|>functions.{name}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


def section(*calls: str) -> str:
    return f"<|tool_calls_section_begin|>{''.join(calls)}<|tool_calls_section_end|>"


TWO_CALLS = "Which?</think>Looking." + section(call("get_weather:0", '{"city": "Bärn"}'), call("clock:1", ""))

ANSWERS = [
    pytest.param({}, "Let me see.</think>Hello, wörld! 👋<|im_end|>", id="thinking"),
    pytest.param({"thinking": {"type": "disabled"}}, "Hello!<|im_end|>", id="instant"),
    pytest.param({}, "</think><|im_end|>", id="empty"),
    pytest.param({}, "<|im_end|>", id="stop-at-once"),
    pytest.param({}, "only thoughts<|im_end|>", id="only-thoughts"),
    pytest.param({"tools": [WEATHER, CLOCK]}, TWO_CALLS + "<|im_end|>", id="calls"),
    pytest.param({"tools": [CLOCK]}, "Which?" + section(call("clock:0", "{}")) + "<|im_end|>", id="call-in-thoughts"),
    pytest.param({"max_tokens": 3}, "Let me see.</think>Hello<|im_end|>", id="cut-in-thoughts"),
    pytest.param({"tools": [WEATHER, CLOCK], "max_tokens": 12}, TWO_CALLS + "<|im_end|>", id="cut-in-call"),
    pytest.param({"stop": ["wör"]}, "Let me see.</think>Hello, wörld! 👋<|im_end|>", id="stop-string"),
    pytest.param({"n": 3}, "Let me see.</think>Hello, wörld! 👋<|im_end|>", id="three-choices"),
]


@pytest.mark.parametrize("num_at_once", [1, 5])
@pytest.mark.parametrize(("fields", "answer"), ANSWERS)
async def test_stream_equals_whole(site, fields, answer, num_at_once):
    site.say(answer)
    site.decodes[0].num_at_once = num_at_once
    fields = {**fields, "seed": 7}
    whole = check_completion((await site.chat(**fields)).json())
    streamed = await stream_chat(site.http, **fields, stream_options={"include_usage": True})
    for choice in whole.choices:
        index, message = choice.index, choice.message
        assert streamed.text[index] == message.content
        assert streamed.finish[index] == choice.finish_reason
        assert streamed.thoughts[index] == (getattr(message, "reasoning_content", None) or "")
        if choice.finish_reason != "length":
            calls = [[call.id, call.function.name, call.function.arguments] for call in message.tool_calls or ()]
            assert streamed.calls[index] == calls
    assert streamed.finish.keys() == {choice.index for choice in whole.choices}
    assert streamed.usage[-1] == streamed.usage[-2] == whole.usage.model_dump(exclude_none=True)


async def test_the_sdk_reads_both(site):
    whole = await site.openai.chat.completions.create(model="kimi-k2.6", messages=HI)
    assert isinstance(whole, ChatCompletion)
    assert whole.choices[0].message.content == HELLO
    assert whole.choices[0].message.reasoning == whole.choices[0].message.reasoning_content == "Let me see."
    stream = await site.openai.chat.completions.create(model="kimi-k2.6", messages=HI, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == HELLO
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_the_sdk_puts_a_stream_of_calls_together(site):
    site.say(TWO_CALLS + "<|im_end|>")
    async with site.openai.chat.completions.stream(model="kimi-k2.6", messages=HI, tools=[WEATHER, CLOCK]) as stream:
        completion = await stream.get_final_completion()
    calls = completion.choices[0].message.tool_calls
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        ("functions.get_weather:0", "get_weather", '{"city": "Bärn"}'),
        ("functions.clock:1", "clock", "{}"),
    ]
    assert completion.choices[0].finish_reason == "tool_calls"
    assert completion.choices[0].message.content == "Looking."


async def test_message_fields(site):
    body = (await site.chat()).json()
    message = body["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": HELLO,
        "refusal": None,
        "reasoning": "Let me see.",
        "reasoning_content": "Let me see.",
    }
    assert body["model"] == "kimi-k2.6"
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"include_reasoning": False}, id="not-shown"),
        pytest.param({"thinking": {"type": "disabled"}}, id="instant"),
    ],
)
async def test_no_reasoning_fields(site, fields):
    if "thinking" in fields:
        site.say("Hello<|im_end|>")
    body = (await site.chat(**fields)).json()
    assert not body["choices"][0]["message"].keys() & {"reasoning", "reasoning_content"}
    streamed = await stream_chat(site.http, **fields)
    assert streamed.thoughts == {0: ""}
    assert streamed.text[0] == body["choices"][0]["message"]["content"] != ""


async def test_reasoning_is_there_even_if_empty(site):
    site.say("</think>Hello<|im_end|>")
    message = (await site.chat()).json()["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == ""


async def test_usage(site):
    site.prefills[0].num_cached = 5
    usage = (await site.chat()).json()["usage"]
    num_prompt = len(site.prefills[0].prefills[0].prompt.token_ids)
    thoughts = site.vocabulary.encode("Let me see.")
    assert usage == {
        "prompt_tokens": num_prompt,
        "completion_tokens": len(site.answer_ids),
        "total_tokens": num_prompt + len(site.answer_ids),
        "cached_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": len(thoughts)},
    }


async def test_usage_of_three_choices_counts_the_prompt_once(site):
    usage = (await site.chat(n=3)).json()["usage"]
    assert usage["prompt_tokens"] == len(site.prefills[0].prefills[0].prompt.token_ids)
    assert usage["completion_tokens"] == 3 * len(site.answer_ids)


@pytest.mark.parametrize("num_at_once", [1, 7, 1000])
async def test_a_stop_string_ends_generation(site, num_at_once):
    site.decodes[0].num_at_once = num_at_once
    site.say("</think>abc STOP " + "x" * 400 + "<|im_end|>")
    body = (await site.chat(stop="STOP")).json()
    assert body["choices"][0]["message"]["content"] == "abc "
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == len(site.vocabulary.encode_with_special("</think>abc STOP"))


async def test_a_stop_string_may_stay(site):
    body = (await site.chat(stop="wör", include_stop_str_in_output=True)).json()
    assert body["choices"][0]["message"]["content"] == "Hello, wör"


async def test_one_call_only(site):
    site.say(TWO_CALLS + "<|im_end|>")
    choice = (await site.chat(tools=[WEATHER, CLOCK], parallel_tool_calls=False)).json()["choices"][0]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["get_weather"]
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": [WEATHER, CLOCK], "tool_choice": "none"}])
async def test_unwanted_calls_are_dropped(site, fields):
    site.say(TWO_CALLS + "<|im_end|>")
    choice = (await site.chat(**fields)).json()["choices"][0]
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == "Looking."


async def test_a_call_that_the_budget_cuts_is_left_out(site):
    site.say(TWO_CALLS + "<|im_end|>")
    num_tokens = len(site.answer_ids) - 5
    choice = (await site.chat(tools=[WEATHER, CLOCK], max_tokens=num_tokens)).json()["choices"][0]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["get_weather"]
    assert choice["finish_reason"] == "length"


async def test_continuous_usage(site):
    streamed = await stream_chat(site.http, stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [chunk["usage"]["completion_tokens"] for chunk in streamed.chunks]
    assert counts == sorted(counts)
    assert counts[-1] == len(site.answer_ids)


async def test_usage_is_null_until_the_end(site):
    streamed = await stream_chat(site.http, stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in streamed.chunks[:-1]] == [None] * (len(streamed.chunks) - 1)
    assert streamed.chunks[-1]["choices"] == []


async def test_without_options_only_the_finish_has_usage(site):
    streamed = await stream_chat(site.http)
    assert not any("usage" in chunk for chunk in streamed.chunks)
    assert len(streamed.usage) == 1


@pytest.mark.parametrize(
    ("setting", "names"),
    [("reasoning", {"reasoning"}), ("both", {"reasoning", "reasoning_content"})],
)
async def test_names_of_streamed_reasoning_are_a_setting(start_site, setting, names):
    site = await start_site(stream_reasoning_fields=setting)
    body = {"model": "kimi-k2.6", "messages": HI, "stream": True}
    raw = (await site.http.post("/v1/chat/completions", json=body)).content
    found = {name for chunk in events_of(raw)[:-1] for name in json.loads(chunk)["choices"][0]["delta"]}
    assert found == {"role", "content", *names}
