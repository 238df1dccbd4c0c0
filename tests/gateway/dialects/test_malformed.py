"""Requests that can never be served: each gets a 4xx in the agreed form, and its `param` names the field."""

import pytest

HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"name": "s", "schema": {"type": "object"}}


def message(**fields):
    return {"messages": [{"role": "user", "content": "Hi"}, fields]}


def part(**fields):
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, fields]}]}


def called(**fields):
    return {"messages": [{"role": "assistant", "tool_calls": [fields]}]}


def function(**fields):
    return {"tools": [{"type": "function", "function": fields}]}


def schema(**fields):
    return {"response_format": {"type": "json_schema", "json_schema": fields}}


MALFORMED = [
    # model and messages
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": {}}, "messages"),
    ({"messages": ["Hi"]}, "messages.0"),
    ({"messages": [None]}, "messages.0"),
    (message(content="x"), "messages.1.role"),
    (message(role="robot", content="x"), "messages.1.role"),
    (message(role=None, content="x"), "messages.1.role"),
    (message(role="user"), "messages.1.content"),
    (message(role="user", content=None), "messages.1.content"),
    (message(role="user", content=5), "messages.1.content"),
    (message(role="user", content={"type": "text"}), "messages.1.content"),
    (message(role="user", content="x", name=5), "messages.1.name"),
    (message(role="assistant", reasoning=5), "messages.1.reasoning"),
    (message(role="assistant", reasoning_content=[]), "messages.1.reasoning_content"),
    (message(role="assistant", tool_calls={}), "messages.1.tool_calls"),
    (message(role="tool", content="x"), "messages.1.tool_call_id"),
    (message(role="tool", content="x", tool_call_id=""), "messages.1.tool_call_id"),
    (message(role="tool", tool_call_id="x"), "messages.1.content"),
    (message(role="user", content="x", partial=True), "messages.1.partial"),
    ({"messages": [{"role": "assistant", "content": "x", "partial": True}, *HI]}, "messages.0.partial"),
    (message(role="assistant", content="x", partial="yes"), "messages.1.partial"),
    (
        message(role="assistant", content="x", partial=True, tool_calls=[{"function": {"name": "f"}}]),
        "messages.1.tool_calls",
    ),
    (part(type="audio", audio={}), "messages.0.content.1.type"),
    (part(text="x"), "messages.0.content.1.type"),
    (part(type="text"), "messages.0.content.1.text"),
    (part(type="text", text=None), "messages.0.content.1.text"),
    (part(type="image_url"), "messages.0.content.1.image_url"),
    (part(type="image_url", image_url={}), "messages.0.content.1.image_url.url"),
    (part(type="image_url", image_url=5), "messages.0.content.1.image_url"),
    (part(type="image_url", image_url={"url": "data:image/png;base64,aa"}), "messages.0.content.1.image_url"),
    (part(type="video_url", video_url="data:video/mp4;base64,aa"), "messages.0.content.1.video_url"),
    (called(id="x"), "messages.0.tool_calls.0.function"),
    (called(id=5, function={"name": "f"}), "messages.0.tool_calls.0.id"),
    (called(function={"arguments": "{}"}), "messages.0.tool_calls.0.function.name"),
    (called(function={"name": ""}), "messages.0.tool_calls.0.function.name"),
    (called(function={"name": "f", "arguments": 5}), "messages.0.tool_calls.0.function.arguments"),
    # numbers
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"min_tokens": 9, "max_tokens": 5}, "min_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 2**40}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"n": "2"}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"logit_bias": {"1024": 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"stop_token_ids": [1024]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
    ({"stop": 5}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop.1"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": [["a"]]}, "stop.0"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": "yes"}, "logprobs"),
    # switches
    ({"stream": "true"}, "stream"),
    ({"stream_options": {}, "stream": False}, "stream_options"),
    ({"stream_options": {"include_usage": True}, "stream": False}, "stream_options"),
    ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options.include_usage"),
    ({"stream_options": [], "stream": True}, "stream_options"),
    ({"thinking": True}, "thinking"),
    ({"thinking": "enabled"}, "thinking"),
    ({"thinking": {"type": "auto"}}, "thinking.type"),
    ({"thinking": {"type": "enabled", "keep": "some"}}, "thinking.keep"),
    ({"chat_template_kwargs": {"thinking": "false"}}, "chat_template_kwargs.thinking"),
    ({"chat_template_kwargs": {"preserve_thinking": 1}}, "chat_template_kwargs.preserve_thinking"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"reasoning_effort": 3}, "reasoning_effort"),
    ({"continue_final_message": True}, "messages.0.role"),
    (
        {
            "messages": [{"role": "assistant", "content": "x"}],
            "continue_final_message": True,
            "add_generation_prompt": True,
        },
        "continue_final_message",
    ),
    # tools
    ({"tools": {}}, "tools"),
    ({"tools": [TOOL] * 129}, "tools"),
    ({"tools": [TOOL, TOOL]}, "tools.1.function.name"),
    ({"tools": ["f"]}, "tools.0"),
    ({"tools": [{"function": {"name": "f"}}]}, "tools.0.type"),
    ({"tools": [{"type": "retrieval"}]}, "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    (function(), "tools.0.function.name"),
    (function(name=""), "tools.0.function.name"),
    (function(name="a b"), "tools.0.function.name"),
    (function(name="x" * 129), "tools.0.function.name"),
    (function(name="f", description=5), "tools.0.function.description"),
    (function(name="f", parameters=[]), "tools.0.function.parameters"),
    (function(name="f", parameters=True), "tools.0.function.parameters"),
    (function(name="f", strict="yes"), "tools.0.function.strict"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "required", "tools": []}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice.function.name"),
    ({"tools": [TOOL], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    # formats of the answer
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (schema(schema={}), "response_format.json_schema.name"),
    (schema(name="s"), "response_format.json_schema.schema"),
    (schema(name="s", schema=[]), "response_format.json_schema.schema"),
    (schema(name="s", schema={}, strict="yes"), "response_format.json_schema.strict"),
    # never done
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"chat_template": "{{ messages }}"}, "chat_template"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
    ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs.regex"),
]


@pytest.fixture
async def refused(site):
    """Sends a body that must be refused, and returns the error."""

    async def send(fields, *, stream):
        body = {"model": "kimi-k2.6", "messages": HI, "stream": stream, **fields}
        response = await site.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 400, response.text
        assert response.headers["content-type"] == "application/json"
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["code"] is None
        assert not any(engine.prefills or engine.decodes for engine in site.engines)
        return error

    return send


@pytest.mark.slow
async def test_malformed_requests_name_their_field(refused):
    # One site for all rows: each is refused before any engine sees it.
    wrong = [
        (fields, param, error["param"], error["message"])
        for fields, param in MALFORMED
        for stream in (False, True)
        if (error := await refused(fields, stream="stream" not in fields and stream))["param"] != param
        or param.rpartition(".")[2] not in error["message"]
    ]
    assert wrong == []
    assert len(MALFORMED) >= 40


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": False, "top_logprobs": 0},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}, "guided_json": None},
        {"functions": None, "chat_template": None, "modalities": ["text"]},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"skip_special_tokens": False},
        {"user": "u", "metadata": {}, "store": True, "service_tier": "auto", "unheard_of": [1]},
        {"stream_options": None, "n": 1, "seed": None},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_what_asks_for_nothing_passes(site, fields):
    assert (await site.chat(**fields)).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "x" * 5000, "content": ""}]},
        {"messages": [{"role": "user", "content": [{"type": "y" * 5000}]}]},
        {"model": "z" * 5000},
        {"tool_choice": "w" * 5000, "tools": [TOOL]},
        {"logit_bias": {"v" * 5000: 1}},
        {"thinking": {"type": "u" * 5000}},
        {"response_format": {"type": "t" * 5000}},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_long_input_is_not_echoed(site, fields):
    response = await site.chat(**fields)
    assert 400 <= response.status_code < 500
    for letter in "xyzwvut":
        assert letter * 100 not in response.text


async def test_invalid_thinking_says_so(refused):
    assert "invalid thinking" in (await refused({"thinking": {"type": "auto"}}, stream=False))["message"]
    assert "invalid thinking" in (await refused({"thinking": 5}, stream=False))["message"]
