"""Tools of the Responses dialect that are no plain functions, and reasoning as a summary, with OpenAI's own client."""

import json

import pytest

from gateway.dialects.responses.request import parse_responses
from services.runtime.errors import InvalidRequest
from tests.gateway.dialects.response_streams import read_response_stream
from tests.gateway.dialects.test_chat import call, section

PATCH = "*** Begin Patch\n*** End Patch"
TOOLS = [
    {"type": "custom", "name": "apply_patch", "description": "Edits files."},
    {
        "type": "namespace",
        "name": "crm",
        "description": "Customers.",
        "tools": [{"type": "function", "name": "find", "parameters": {"type": "object"}, "strict": False}],
    },
    {"type": "web_search"},
]
CALLS = "Hm.</think>" + section(
    call("apply_patch:0", json.dumps({"input": PATCH})), call("crm.find:1", '{"name": "Ada"}')
)


def declared(*tools, **fields):
    return parse_responses({"model": "m", "input": "Hi", "tools": list(tools), **fields})


def test_the_model_sees_functions():
    asked = declared(*TOOLS)
    patch, find = asked.request.conversation.tools
    assert patch.declaration["function"]["description"] == "Edits files."
    assert patch.parameters["required"] == ["input"]
    assert (find.name, find.declaration["function"]["description"]) == ("crm.find", "Customers.")
    assert asked.ignored == ("tools.web_search",)


def test_a_regular_expression_is_enforced_and_a_grammar_is_shown():
    form = {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}
    (tool,) = declared({"type": "custom", "name": "t", "format": form}).request.conversation.tools
    assert tool.parameters["properties"]["input"]["pattern"] == "^(?:[0-9]+)$"
    asked = declared({"type": "custom", "name": "t", "format": {**form, "syntax": "lark", "definition": "start: X"}})
    assert "start: X" in asked.request.conversation.tools[0].declaration["function"]["description"]
    assert asked.ignored == ("tools.format",)


def test_a_choice_names_any_kind():
    for kind, name, called in (("custom", "apply_patch", "apply_patch"), ("function", "find", "crm.find")):
        forced = declared(*TOOLS, tool_choice={"type": kind, "name": name}).request.forced_call
        assert forced.name == called
    for choice in ({"type": "function", "name": "apply_patch"}, {"type": "custom", "name": "find"}):
        with pytest.raises(InvalidRequest) as caught:
            declared(*TOOLS, tool_choice=choice)
        assert caught.value.field == "tool_choice.name"
    with pytest.raises(InvalidRequest) as caught:
        declared({"type": "web_search"}, tool_choice="required")
    assert caught.value.field == "tool_choice"


async def test_calls_come_back_as_the_client_declared_them(site):
    site.say(CALLS + "<|im_end|>")
    whole = await site.openai.responses.create(model="kimi-k2.6", input="Hi", tools=TOOLS)
    reasoning, patch, find = whole.output
    assert reasoning.type == "reasoning"
    assert (patch.type, patch.name, patch.input) == ("custom_tool_call", "apply_patch", PATCH)
    assert (find.type, find.name, find.namespace, find.arguments) == ("function_call", "find", "crm", '{"name": "Ada"}')
    raw = await site.http.post(
        "/v1/responses", json={"model": "kimi-k2.6", "input": "Hi", "tools": TOOLS, "stream": True}
    )
    streamed = read_response_stream(raw.content).response
    kept = [{key: value for key, value in item.items() if key != "id"} for item in streamed["output"]]
    assert kept == [item.model_dump(exclude={"id"}, exclude_unset=True) for item in whole.output]


async def test_the_calls_of_a_turn_are_found_in_the_next(site):
    site.say(CALLS + "<|im_end|>")
    first = (await site.http.post("/v1/responses", json={"model": "kimi-k2.6", "input": "Hi", "tools": TOOLS})).json()
    results = [
        {"type": "custom_tool_call_output", "call_id": first["output"][1]["call_id"], "output": "Done!"},
        {"type": "function_call_output", "call_id": first["output"][2]["call_id"], "output": "found"},
    ]
    history = [{"role": "user", "content": "Hi"}, *first["output"], *results]
    await site.http.post("/v1/responses", json={"model": "kimi-k2.6", "input": history, "tools": TOOLS})
    prompt = site.vocabulary.decode(list(site.prefills[0].prefills[-1].prompt.token_ids))
    assert CALLS.split("</think>")[1] in prompt
    assert "Done!" in prompt
    assert "found" in prompt


@pytest.mark.parametrize("summary", ["auto", "concise", "detailed"])
async def test_a_summary_is_filled_where_it_is_asked_for(site, summary):
    asked = {"model": "kimi-k2.6", "input": "Hi", "reasoning": {"effort": "high", "summary": summary}}
    whole = await site.openai.responses.create(**asked)
    (part,) = whole.output[0].summary
    assert (part.type, part.text) == ("summary_text", "Let me see.")
    assert whole.reasoning.summary == summary
    deltas, kinds = [], []
    async with site.openai.responses.stream(**asked) as stream:
        async for event in stream:
            kinds.append(event.type)
            if event.type == "response.reasoning_summary_text.delta":
                deltas.append(event.delta)
        final = await stream.get_final_response()
    assert "".join(deltas) == final.output[0].summary[0].text == "Let me see."
    summaries = [kind.removeprefix("response.reasoning_summary_") for kind in kinds if "summary" in kind]
    assert [kind for kind in summaries if kind != "text.delta"] == ["part.added", "text.done", "part.done"]
    assert not any(kind.startswith("response.reasoning_text") for kind in kinds)


async def test_a_summary_that_comes_back_is_reasoning(site):
    asked = {"model": "kimi-k2.6", "reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"]}
    first = (await site.http.post("/v1/responses", json={**asked, "input": "Hi"})).json()
    turn = parse_responses({**asked, "input": [*first["output"], {"role": "user", "content": "And?"}]})
    assert turn.request.conversation.messages[0].reasoning == "Let me see."
