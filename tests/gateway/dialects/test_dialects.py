"""One conversation, three dialects: the prompt is the same, whatever ids and forms the client used."""

import pytest

from gateway.dialects.opaque_reasoning import seal, unseal
from protos.attention_pb2 import TOOL_USE_REQUIRED
from tests.gateway.dialects.message_streams import anthropic_client

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
OMITTED = {"type": "adaptive", "display": "omitted"}


def chat_history(first: str, second: str) -> dict:
    calls = [
        {"id": first, "function": {"name": "get_weather", "arguments": '{"city": "Bärn"}'}},
        {"id": second, "function": {"name": "get_weather", "arguments": "{}"}},
    ]
    return {
        "tools": [{"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": SCHEMA}}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "Looking.", "reasoning": "Hm.", "tool_calls": calls},
            {"role": "tool", "content": "rain", "tool_call_id": first},
            {"role": "tool", "content": "sun", "tool_call_id": second},
            {"role": "user", "content": "And?"},
        ],
    }


def anthropic_history(first: str, second: str) -> dict:
    return {
        "max_tokens": 100,
        "thinking": {"type": "adaptive"},
        "tools": [
            {"name": "get_weather", "description": "d", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cc_entrypoint=cli;"},
            {"type": "text", "text": "Be ", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "brief."},
        ],
        "messages": [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "foreign"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "Look"},
                    {"type": "text", "text": "ing."},
                    {"type": "tool_use", "id": first, "name": "get_weather", "input": {"city": "Bärn"}},
                    {"type": "tool_use", "id": second, "name": "get_weather", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": first, "content": "rain"},
                    {"type": "text", "text": "And?"},
                    {"type": "tool_result", "tool_use_id": second, "content": [{"type": "text", "text": "sun"}]},
                ],
            },
        ],
    }


def responses_history(first: str, second: str) -> dict:
    call = {"type": "function_call", "name": "get_weather"}
    return {
        "tools": [
            {"type": "function", "name": "get_weather", "description": "d", "parameters": SCHEMA},
            {"type": "web_search"},
        ],
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "Weather?"},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Looking."}]},
            {**call, "call_id": first, "arguments": '{"city": "Bärn"}'},
            {**call, "call_id": second, "arguments": ""},
            {"type": "function_call_output", "call_id": first, "output": "rain"},
            {"type": "function_call_output", "call_id": second, "output": [{"type": "input_text", "text": "sun"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "And?"}]},
        ],
    }


DIALECTS = [
    ("/v1/chat/completions", chat_history),
    ("/v1/messages", anthropic_history),
    ("/v1/responses", responses_history),
]


async def prompt_of(site, path, fields):
    response = await site.http.post(path, json={"model": "kimi-k2.6", **fields})
    assert response.status_code == 200, response.text
    return list(site.prefills[0].prefills[-1].prompt.token_ids)


@pytest.mark.parametrize(
    ("first", "second"),
    [("toolu_01AbCd", "toolu_02"), ("call_9", "functions_get_weather_1"), ("x", "functions.other:7")],
)
async def test_foreign_ids_render_the_canonical_prompt(site, first, second):
    canonical = await prompt_of(
        site, *DIALECTS[0][:1], chat_history("functions.get_weather:0", "functions.get_weather:1")
    )
    assert "functions.get_weather:1" in site.vocabulary.decode(canonical)
    for path, history in DIALECTS:
        prompt = await prompt_of(site, path, history(first, second))
        assert site.vocabulary.decode(prompt) == site.vocabulary.decode(canonical), path
        assert prompt == canonical


async def test_counting_tells_what_the_answer_will_say(site):
    site.prefills[0].num_cached = 9
    fields = {"model": "kimi-k2.6", **anthropic_history("toolu_1", "toolu_2")}
    count_fields = {name: value for name, value in fields.items() if name != "max_tokens"}
    async with anthropic_client(site.url) as client, anthropic_client(f"{site.url}/anthropic") as other:
        for asking in (client, other):
            count = await asking.messages.count_tokens(**count_fields)
            usage = (await asking.messages.create(**fields)).usage
            assert usage.cache_read_input_tokens == 9
            assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    raw = await site.http.post("/v1/messages/count_tokens", json=count_fields)
    assert raw.json() == {"input_tokens": count.input_tokens}


async def test_omitted_thoughts_come_back_in_the_signature(site):
    site.say("Which?</think><|im_end|>")
    base = {"model": "kimi-k2.6", "max_tokens": 100, "thinking": OMITTED}
    ask = {"role": "user", "content": "Hi"}
    content = (await site.http.post("/v1/messages", json={**base, "messages": [ask]})).json()["content"]
    assert content[0]["thinking"] == ""
    call = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
    answer = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1"}]}
    history = [ask, {"role": "assistant", "content": [content[0], call]}, answer]
    prompt = await prompt_of(site, "/v1/messages", {**base, "messages": history})
    assert "<think>Which?</think>" in site.vocabulary.decode(prompt)


@pytest.mark.parametrize("sealed", [None, "", "x", "moonshard1.", "moonshard1.%", "moonshard1.gA==", "moonshard1.ä"])
def test_what_we_did_not_seal(sealed):
    assert not unseal(sealed)
    assert unseal(seal("Hm. 🙂")) == "Hm. 🙂"


async def test_all_old_thoughts_are_kept_if_asked_for(site):
    old = {"role": "assistant", "content": [{"type": "thinking", "thinking": "215"}, {"type": "text", "text": "473"}]}
    ask = {"role": "user", "content": "Hi"}
    fields = {"max_tokens": 50, "thinking": {"type": "adaptive"}, "messages": [ask, old, ask]}
    kept = []
    for keep in ("all", {"type": "all"}, {"type": "thinking_turns", "value": 2}, None):
        management = {"edits": [{"type": "clear_thinking_20251015", "keep": keep}]}
        prompt = await prompt_of(site, "/v1/messages", {**fields, "context_management": management})
        kept.append("215" in site.vocabulary.decode(prompt))
    assert kept == [True, True, False, False]


async def test_an_answer_goes_on_from_its_beginning(site):
    site.say(" Bern.<|im_end|>")
    messages = [{"role": "user", "content": "Capital?"}, {"role": "assistant", "content": "It is"}]
    body = {"model": "kimi-k2.6", "max_tokens": 50, "messages": messages}
    response = await site.http.post("/v1/messages", json=body)
    assert response.json()["content"] == [{"type": "text", "text": " Bern."}]
    prompt = site.vocabulary.decode(site.prefills[0].prefills[-1].prompt.token_ids)
    assert prompt.endswith("</think>It is")


async def test_instructions_in_mid_conversation(site):
    note = {"type": "text", "text": "Note.", "cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "system", "content": [note, {"type": "tool_addition", "tool": {}}]},
        {"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": "doc"}}]},
    ]
    prompt = await prompt_of(site, "/v1/messages", {"max_tokens": 50, "messages": messages})
    text = site.vocabulary.decode(prompt)
    assert "<|im_system|>system<|im_middle|>Note.<|im_end|>" in text
    assert "doc<|im_end|>" in text


async def test_demands_reach_the_engines(site):
    schema = {"type": "json_schema", "schema": {"type": "object"}}
    tool = {"type": "function", "name": "f"}
    for path, fields in (
        (
            "/v1/messages",
            {"max_tokens": 9, "tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "any"}},
        ),
        ("/v1/responses", {"input": "Hi", "tools": [tool], "tool_choice": "required"}),
        ("/v1/messages", {"max_tokens": 9, "output_config": {"format": schema}}),
        ("/v1/responses", {"input": "Hi", "text": {"format": {**schema, "name": "s"}}}),
    ):
        messages = {} if "input" in fields else {"messages": [{"role": "user", "content": "Hi"}]}
        await prompt_of(site, path, {**fields, **messages})
    constraints = [decode.sampling.constraint for decode in site.decodes[0].decodes]
    assert [constraint.tool_use for constraint in constraints[:2]] == [TOOL_USE_REQUIRED] * 2
    assert [tool.name for constraint in constraints[:2] for tool in constraint.tools] == ["f", "f"]
    assert [constraint.json_schema for constraint in constraints[2:]] == ['{"type":"object"}'] * 2
