"""What a history says on any dialect reaches the model: nothing that a model or a tool wrote vanishes."""

import json

import pytest

from gateway.dialects.chat.request import parse_chat
from gateway.dialects.messages.request import parse_messages
from gateway.dialects.opaque_reasoning import seal
from gateway.dialects.responses.request import parse_responses
from gateway.request.chat_model import Call, Media, Text
from services.runtime.errors import InvalidRequest

HI = {"role": "user", "content": "Hi"}


def chat(*messages):
    return parse_chat({"model": "m", "messages": list(messages)}, 8).request.conversation.messages


def anthropic(*messages):
    body = {"model": "m", "max_tokens": 9, "messages": list(messages)}
    return parse_messages(body, default_thinking=False).request.conversation.messages


def responses(*items):
    return parse_responses({"model": "m", "input": list(items)}).request.conversation.messages


def text_of(message):
    return "".join(part.text for part in message.content)


@pytest.mark.parametrize(
    "fields",
    [
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Yes."}]},
        {"content": [{"type": "thinking", "thinking": "", "signature": seal("Hm.")}, {"type": "text", "text": "Yes."}]},
        {"content": "Yes.", "thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}]},
        {"content": "Yes.", "reasoning_details": [{"type": "reasoning.text", "text": "Hm.", "index": 0}]},
        {"content": "Yes.", "reasoning_details": [{"type": "reasoning.summary", "summary": "Hm."}]},
        {"content": "Yes.", "reasoning_content": "Hm.", "thinking_blocks": [{"type": "thinking", "thinking": "Else."}]},
    ],
)
def test_every_spelling_of_reasoning_in_a_chat_is_reasoning(fields):
    (_, message) = chat(HI, {"role": "assistant", **fields})
    assert (message.reasoning, text_of(message)) == ("Hm.", "Yes.")


def test_thinking_is_an_assistants():
    with pytest.raises(InvalidRequest) as caught:
        chat({"role": "user", "content": [{"type": "thinking", "thinking": "Hm."}]})
    assert caught.value.field == "messages.0.content.0.type"


def test_a_refusal_is_text_and_a_developer_is_system():
    developer, assistant = chat({"role": "developer", "content": "Be brief."}, {"role": "assistant", "refusal": "No."})
    assert (developer.role, text_of(assistant)) == ("system", "No.")
    assert [message.role for message in anthropic({"role": "developer", "content": "x"}, HI)] == ["system", "user"]
    assert responses({"role": "developer", "content": "x"}, HI)[0].role == "system"


def test_a_call_in_the_old_form_is_refused_by_name():
    with pytest.raises(InvalidRequest) as caught:
        chat(HI, {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}})
    assert caught.value.field == "messages.1.function_call"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no such file", "Error:\nno such file"),
        ([{"type": "text", "text": "no such file"}], "Error:\nno such file"),
        ("", "Error: the tool failed and returned nothing"),
        (None, "Error: the tool failed and returned nothing"),
    ],
)
def test_a_failed_tool_does_not_look_like_a_success(content, said):
    result = {"type": "tool_result", "tool_use_id": "t", "content": content}
    (failed,) = anthropic({"role": "user", "content": [{**result, "is_error": True}]})
    assert text_of(failed) == said
    (fine,) = anthropic({"role": "user", "content": [{**result, "is_error": False}]})
    assert not text_of(fine).startswith("Error")


def test_calls_that_another_server_answered_stay_calls_with_results():
    found = [{"type": "web_search_result", "title": "T", "url": "u", "encrypted_content": "x" * 9}]
    messages = anthropic(
        HI,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}},
                {"type": "web_search_tool_result", "tool_use_id": "s", "content": found},
                {"type": "text", "text": "Found."},
                {"type": "mcp_tool_use", "id": "m", "name": "look", "server_name": "x", "input": {}},
                {"type": "mcp_tool_result", "tool_use_id": "m", "is_error": True, "content": "gone"},
            ],
        },
        HI,
    )
    assert [message.role for message in messages] == ["user", "assistant", "tool", "assistant", "tool", "user"]
    assert messages[1].tool_calls == (Call("s", "web_search", '{"query": "q"}'),)
    assert messages[1].reasoning == "Hm."
    assert json.loads(text_of(messages[2])) == [{"type": "web_search_result", "title": "T", "url": "u"}]
    assert (text_of(messages[3]), messages[3].tool_calls) == ("Found.", (Call("m", "look", "{}"),))
    assert text_of(messages[4]) == "Error:\ngone"


def test_custom_calls_are_calls_with_one_text():
    patch = '*** Begin Patch\n"ü"'
    assistant, tool = responses(
        {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": patch},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "Done!"},
    )
    (call,) = assistant.tool_calls
    assert (call.id, call.name, json.loads(call.arguments)) == ("c", "apply_patch", {"input": patch})
    assert (tool.tool_call_id, text_of(tool)) == ("c", "Done!")


def test_calls_in_a_namespace_have_its_name():
    (assistant,) = responses(
        {"type": "function_call", "call_id": "c", "namespace": "crm", "name": "find", "arguments": "{}"}
    )
    assert assistant.tool_calls == (Call("c", "crm.find", "{}"),)


def test_calls_of_other_servers_tools_stay():
    picture = {"type": "computer_screenshot", "image_url": "data:image/png;base64,aGk="}
    action = {"type": "exec", "command": ["ls", "-l"], "env": {}}
    messages = responses(
        {"type": "local_shell_call", "id": "l", "call_id": "c", "action": action, "status": "completed"},
        {"type": "local_shell_call_output", "call_id": "c", "output": "a.txt"},
        {"type": "web_search_call", "id": "w", "status": "completed", "action": {"type": "search", "query": "q"}},
        {"type": "file_search_call", "id": "f", "queries": ["q"], "results": [{"text": "found"}]},
        {"type": "mcp_call", "id": "m", "server_label": "s", "name": "n", "arguments": '{"a":1}', "output": "o"},
        {"type": "computer_call", "call_id": "k", "action": {"type": "click"}},
        {"type": "computer_call_output", "call_id": "k", "output": picture},
    )
    called = [call for message in messages for call in message.tool_calls]
    assert called[:2] == [
        Call("c", "local_shell", json.dumps(action)),
        Call("w", "web_search", '{"type": "search", "query": "q"}'),
    ]
    assert called[2:4] == [Call("f", "file_search", '{"queries": ["q"]}'), Call("m", "s.n", '{"a":1}')]
    results = [message.content[0] for message in messages if message.role == "tool"]
    assert results[:4] == [Text("a.txt"), Text("(the result was not kept)"), Text('[{"text": "found"}]'), Text("o")]
    assert results[4] == Media("image", "data:image/png;base64,aGk=", "input.6.output.image_url")


@pytest.mark.parametrize("kind", ["item_reference", "compaction", "mcp_list_tools", "nonsense"])
def test_items_that_cannot_be_read_are_refused_by_name(kind):
    with pytest.raises(InvalidRequest) as caught:
        responses(HI, {"type": kind, "id": "x"})
    assert caught.value.field == "input.1.type"
