"""What a request demands of its answer reaches the engines, prefill and decode alike."""

import json

import pytest

from gateway.dialects.chat.request import parse_chat
from gateway.dialects.completions.request import parse_completion
from gateway.request.constraint import constraint_of
from protos import attention_pb2 as pb
from protos.tokenizer_pb2 import CONTENT, REASONING, RenderResponse

HI = [{"role": "user", "content": "Hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
LOOSE = {"type": "function", "function": {"name": "loose", "parameters": {}, "strict": False}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, LOOSE, CLOCK]


def constraint(**fields):
    request = parse_chat({"model": "kimi-k2.6", "messages": HI, **fields}, max_choices=8).request
    return constraint_of(request, RenderResponse(parser_state=REASONING, num_history_calls=3))


def names(found):
    return [tool.name for tool in found.tools]


@pytest.mark.parametrize(
    "fields", [{}, {"tools": []}, {"response_format": {"type": "text"}}, {"structured_outputs": {}}]
)
def test_nothing_asked_is_nothing_enforced_but_that_no_call_comes(fields):
    found = constraint(**fields)
    assert found.WhichOneof("content") is None
    assert found.tool_use == pb.TOOL_USE_UNSPECIFIED


def test_after_raw_prompts_anything_may_come():
    request = parse_completion({"model": "kimi-k2.6", "prompt": "Hi"}, max_choices=8, max_prompts=8).request
    assert constraint_of(request, RenderResponse(parser_state=CONTENT)) is None


def test_declared_tools_are_enforced_by_themselves():
    found = constraint(tools=TOOLS)
    assert found.tool_use == pb.TOOL_USE_AUTO
    assert found.starts_in_reasoning
    assert found.first_call_index == 3
    assert names(found) == ["weather", "loose", "clock"]
    assert json.loads(found.tools[0].parameters_json) == CITY
    assert [tool.loose for tool in found.tools] == [False, True, False]
    assert found.tools[2].parameters_json == ""


@pytest.mark.parametrize(
    "fields, use, called, max_calls",
    [
        pytest.param({"tool_choice": "none"}, pb.TOOL_USE_UNSPECIFIED, [], 0, id="none"),
        pytest.param(
            {"tool_choice": "required"}, pb.TOOL_USE_REQUIRED, ["weather", "loose", "clock"], 0, id="required"
        ),
        pytest.param(
            {"tool_choice": {"type": "function", "function": {"name": "clock"}}},
            pb.TOOL_USE_REQUIRED,
            ["clock"],
            1,
            id="named",
        ),
        pytest.param({"parallel_tool_calls": False}, pb.TOOL_USE_AUTO, ["weather", "loose", "clock"], 1, id="one"),
    ],
)
def test_tool_choice(fields, use, called, max_calls):
    found = constraint(tools=TOOLS, **fields)
    assert (found.tool_use, names(found), found.max_tool_calls) == (use, called, max_calls)


@pytest.mark.parametrize(
    "fields, kind, field",
    [
        ({"response_format": {"type": "json_object"}}, "json_object", "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": CITY}}},
            "json_schema",
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"json": CITY}}, "json_schema", "structured_outputs.json"),
        ({"structured_outputs": {"json": json.dumps(CITY)}}, "json_schema", "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choices", "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "grammar", "structured_outputs.grammar"),
    ],
)
def test_forms_of_the_text(fields, kind, field):
    found = constraint(**fields)
    assert found.WhichOneof("content") == kind
    assert found.content_field == field


def test_without_thinking_the_form_begins_at_once():
    fields = {"model": "kimi-k2.6", "messages": HI, "response_format": {"type": "json_object"}}
    request = parse_chat(fields, max_choices=8).request
    assert not constraint_of(request, RenderResponse(parser_state=CONTENT)).starts_in_reasoning


def asked_of(site):
    return [
        *(call for engine in site.prefills for call in engine.prefills),
        *(call for engine in site.decodes for call in engine.decodes),
    ]


async def test_it_reaches_prefill_and_decode(site):
    assert (await site.chat(tools=TOOLS, tool_choice="required")).status_code == 200
    assert asked_of(site)
    assert all(call.sampling.constraint.tool_use == pb.TOOL_USE_REQUIRED for call in asked_of(site))


async def test_that_no_call_may_come_is_said(site):
    assert (await site.chat()).status_code == 200
    assert asked_of(site)
    assert all(call.sampling.HasField("constraint") for call in asked_of(site))
