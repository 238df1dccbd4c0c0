"""Requests to the Responses dialect that can never be served: a 4xx in OpenAI's form that names the field."""

import pytest

HI = {"role": "user", "content": "Hi"}
BASE = {"model": "kimi-k2.6", "input": "Hi"}
TOOL = {"type": "function", "name": "f"}


def items(*added):
    return {"input": [HI, *added]}


def part(**fields):
    return {"input": [{"role": "user", "content": [fields]}]}


def form(**fields):
    return {"text": {"format": fields}}


MALFORMED = [
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input.0.type"),
    (items("Hi"), "input.1"),
    (items({}), "input.1.role"),
    (items({"role": "robot", "content": "x"}), "input.1.role"),
    (items({"role": "user"}), "input.1.content"),
    (items({"role": "user", "content": 5}), "input.1.content"),
    (items({"type": "message", "content": "x"}), "input.1.role"),
    (items({"type": 5}), "input.1.type"),
    (items({"type": "item_reference", "id": "x"}), "input.1.type"),
    (items({"type": "function_call", "name": "f"}), "input.1.call_id"),
    (items({"type": "function_call", "call_id": "", "name": "f"}), "input.1.call_id"),
    (items({"type": "function_call", "call_id": "c"}), "input.1.name"),
    (items({"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}), "input.1.arguments"),
    (items({"type": "function_call_output", "output": "x"}), "input.1.call_id"),
    (items({"type": "function_call_output", "call_id": "c"}), "input.1.output"),
    (items({"type": "function_call_output", "call_id": "c", "output": 5}), "input.1.output"),
    (items({"type": "reasoning", "content": "x"}), "input.1.content"),
    (items({"type": "reasoning", "summary": [{}]}), "input.1.summary.0.text"),
    (items({"type": "reasoning", "encrypted_content": 5}), "input.1.encrypted_content"),
    (part(text="x"), "input.0.content.0.type"),
    (part(type="input_audio"), "input.0.content.0.type"),
    (part(type="input_text"), "input.0.content.0.text"),
    (part(type="input_image", file_id="x"), "input.0.content.0.image_url"),
    (part(type="input_image", image_url="data:image/png;base64,aa"), "input.0.content.0.image_url"),
    ({"instructions": 5}, "instructions"),
    ({"tools": {}}, "tools"),
    ({"tools": ["f"]}, "tools.0"),
    ({"tools": [{}]}, "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.name"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools.0.name"),
    ({"tools": [{**TOOL, "parameters": []}]}, "tools.0.parameters"),
    ({"tools": [TOOL, TOOL]}, "tools.1.name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": "5"}, "max_output_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": "3"}, "top_logprobs"),
    ({"text": "x"}, "text"),
    (form(type="yaml"), "text.format.type"),
    (form(type="json_schema", schema={}), "text.format.name"),
    (form(type="json_schema", name="s"), "text.format.schema"),
    ({"reasoning": "high"}, "reasoning"),
    ({"reasoning": {"effort": 5}}, "reasoning.effort"),
    ({"include": "x"}, "include"),
    ({"metadata": {"a": 5}}, "metadata.a"),
    ({"stream": 1}, "stream"),
    ({"background": True}, "background"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
]


@pytest.mark.slow
async def test_malformed_requests_name_their_field(site):
    wrong = []
    for fields, param in MALFORMED:
        for stream in (False, True):
            response = await site.http.post("/v1/responses", json={**BASE, "stream": stream, **fields})
            assert response.status_code == 400, (fields, response.text)
            error = response.json()["error"]
            assert error.keys() == {"message", "type", "param", "code"}
            assert error["type"] == "invalid_request_error"
            if error["param"] != param or param.rpartition(".")[2] not in error["message"]:
                wrong.append((fields, param, error))
    assert wrong == []
    assert not any(engine.prefills or engine.decodes for engine in site.engines)


async def test_what_asks_for_nothing_passes(site):
    for fields in (
        {"previous_response_id": None, "conversation": None, "background": False, "top_logprobs": 0},
        {"include": ["reasoning.encrypted_content", "x"], "truncation": "auto", "user": "u", "store": True},
        {"client_metadata": {"a": [1]}, "prompt_cache_retention": "24h", "stream_options": {}, "unheard_of": 1},
        {"tools": [], "tool_choice": "none", "text": {"verbosity": "low"}},
        {"text": {"format": {"type": "text"}}, "tools": [{"type": "custom", "name": "apply_patch"}]},
    ):
        response = await site.http.post("/v1/responses", json={**BASE, **fields})
        assert response.status_code == 200, response.text
