"""What only Kimi has: its web search, its rules about parameters, partial messages, ways to spell thinking."""

import pytest

HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
SEARCH = {"type": "builtin_function", "function": {"name": "$web_search"}}
INSTANT = {"thinking": {"type": "disabled"}}
CALLED = {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "{}"}}]}
ANSWERED = {"role": "tool", "tool_call_id": "x", "content": "1"}


def prompt(site):
    return site.vocabulary.decode(site.prefills[0].prefills[-1].prompt.token_ids)


async def test_web_search_is_declared_and_called(site):
    call = '<|tool_call_begin|>functions.$web_search:0<|tool_call_argument_begin|>{"query": "news"}<|tool_call_end|>'
    site.say(f"</think><|tool_calls_section_begin|>{call}<|tool_calls_section_end|><|im_end|>")
    choice = (await site.chat(tools=[TOOL, SEARCH])).json()["choices"][0]
    assert "$web_search" in prompt(site)
    assert "query" in prompt(site)
    (made,) = choice["message"]["tool_calls"]
    assert made["function"] == {"name": "$web_search", "arguments": '{"query": "news"}'}
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("result", "seen", "unseen"),
    [('{"query": "news"}', "search is not available", None), ("found it", "found it", "search is not available")],
    ids=["echo", "own-search"],
)
async def test_the_echo_of_a_search_is_answered(site, result, seen, unseen):
    function = {"name": "$web_search", "arguments": '{"query": "news"}'}
    call = {"id": "functions.$web_search:0", "type": "function", "function": function}
    messages = [*HI, {"role": "assistant", "tool_calls": [call]}]
    messages += [{"role": "tool", "tool_call_id": "functions.$web_search:0", "content": result}]
    assert (await site.chat(messages=messages, tools=[SEARCH])).status_code == 200
    assert seen in prompt(site)
    assert unseen is None or unseen not in prompt(site)


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "builtin_function", "function": {"name": "$code"}}, "tools.0.function.name"),
        ({"type": "builtin_function"}, "tools.0.function"),
        ({"type": "mcp"}, "tools.0.type"),
    ],
)
async def test_other_builtins(site, tool, param):
    response = await site.chat(tools=[tool])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


ONLY_1 = "invalid temperature: only 1 is allowed for this model"
REFUSED = [
    ("kvv", {"temperature": 1.1}, "temperature", None),
    ("kvv", {"top_p": 0.9}, "top_p", None),
    ("kvv", {"n": 2}, "n", None),
    ("kvv", {"presence_penalty": 0.5}, "presence_penalty", None),
    ("kvv", {"frequency_penalty": -1}, "frequency_penalty", None),
    ("fixed", {"temperature": 0}, "temperature", ONLY_1),
    ("fixed", {"temperature": 0.6}, "temperature", ONLY_1),
    ("fixed", {"temperature": 1, **INSTANT}, "temperature", ONLY_1.replace("1", "0.6")),
    ("fixed", {"top_p": 1.0}, "top_p", "invalid top_p: only 0.95 is allowed for this model"),
    ("fixed", {"n": 2}, "n", "invalid n: only 1 is allowed for this model"),
    ("fixed", {"stop": ["a"] * 6}, "stop", None),
    ("fixed", {"stop": "ä" * 17}, "stop", None),
    (
        "fixed",
        {"tools": [TOOL], "tool_choice": "required"},
        "tool_choice",
        "tool_choice 'required' is incompatible with thinking enabled",
    ),
    (
        "fixed",
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tool_choice",
        "tool_choice 'specified' is incompatible with thinking enabled",
    ),
    (
        "fixed",
        {"messages": [*HI, CALLED, ANSWERED]},
        "messages.1.reasoning_content",
        "thinking is enabled but reasoning_content is missing in assistant tool call message at index 1",
    ),
]
ALLOWED = [
    ("kvv", {"temperature": 0, "top_p": 0.95, "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0}),
    ("kvv", {"messages": [*HI, CALLED, ANSWERED], "stop": ["a"] * 6}),
    ("fixed", {}),
    ("fixed", {"temperature": 1, "top_p": 0.95}),
    ("fixed", {"temperature": 0.6, **INSTANT}),
    ("fixed", {"messages": [*HI, CALLED, ANSWERED], **INSTANT}),
    ("fixed", {"messages": [*HI, {**CALLED, "reasoning_content": ""}, ANSWERED]}),
    ("fixed", {"stop": ["ä" * 16] * 5}),
]


@pytest.mark.parametrize("policy", ["open", "kvv", "fixed"])
@pytest.mark.slow
async def test_policies(start_site, policy):
    site = await start_site(param_policy=policy)
    for asked, fields, param, message in REFUSED:
        response = await site.chat(**fields)
        if asked == policy:
            assert response.status_code == 400, fields
            error = response.json()["error"]
            assert error["param"] == param
            assert message is None or error["message"] == message
        elif policy == "open" and "tool_choice" not in fields:
            assert response.status_code == 200, fields
    for asked, fields in ALLOWED:
        if asked == policy:
            assert (await site.chat(**fields)).status_code == 200, fields


async def test_unset_parameters_have_the_models_defaults(site):
    await site.chat()
    await site.chat(**INSTANT)
    drawn = [request.sampling for request in site.prefills[0].prefills]
    assert [round(sampling.temperature, 3) for sampling in drawn] == [1.0, 0.6]
    assert [round(sampling.top_p, 3) for sampling in drawn] == [0.95, 0.95]


@pytest.mark.parametrize("asked", [{"partial": True}, {}], ids=["partial", "continue_final_message"])
async def test_a_partial_message_is_continued(site, asked):
    site.say(" and more<|im_end|>")
    messages = [*HI, {"role": "assistant", "name": "Bard", "content": "It began", **asked}]
    fields = {} if asked else {"continue_final_message": True}
    body = (await site.chat(messages=messages, **fields)).json()
    assert body["choices"][0]["message"]["content"] == " and more"
    assert prompt(site).endswith("It began")
    assert "Bard" in prompt(site)


async def test_a_partial_message_has_no_format(site):
    messages = [*HI, {"role": "assistant", "content": "{", "partial": True}]
    response = await site.chat(messages=messages, response_format={"type": "json_object"})
    assert response.json()["error"]["param"] == "response_format"


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({}, True),
        ({"thinking": {"type": "enabled"}}, True),
        (INSTANT, False),
        ({"thinking": {"type": "enabled", "effort": "max"}}, True),
        ({"chat_template_kwargs": {"thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"thinking": True, "enable_thinking": False}}, True),
        ({"chat_template_kwargs": {"thinking": False}, "thinking": {"type": "enabled"}}, True),
        ({"chat_template_kwargs": {"unknown": 1}}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, True),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"thinking": True}}, True),
    ],
    ids=str,
)
async def test_spellings_of_thinking(site, fields, thinks):
    message = (await site.chat(**fields)).json()["choices"][0]["message"]
    assert ("reasoning_content" in message) is thinks
    assert prompt(site).rstrip().endswith("<think>" if thinks else "</think>")


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, False),
        ({"thinking": {"type": "enabled", "keep": "all"}}, True),
        ({"thinking": {"type": "disabled", "keep": "all"}}, False),
        ({"thinking": {"type": "enabled", "keep": None}}, False),
        ({"chat_template_kwargs": {"thinking": True, "preserve_thinking": True}}, True),
    ],
    ids=str,
)
async def test_reasoning_of_earlier_turns(site, fields, kept):
    earlier = {"role": "assistant", "reasoning_content": "215 and 222", "content": "Done."}
    await site.chat(messages=[*HI, earlier, *HI], **fields)
    assert ("215 and 222" in prompt(site)) is kept
