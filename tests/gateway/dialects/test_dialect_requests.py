"""Demands of the Anthropic and the Responses dialect in the internal form, which the engines are held to."""

import pytest

from gateway.dialects.messages.request import parse_count, parse_messages
from gateway.dialects.responses.request import parse_responses
from gateway.request.chat_model import ForcedCall, JsonAnswer, Media
from services.runtime.errors import InvalidRequest

HI = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
SCHEMA_JSON = '{"type":"object","properties":{"a":{"type":"integer"}}}'


def anthropic(**fields):
    body = {"model": "m", "max_tokens": 5, "messages": [HI], "tools": [{"name": "f", "input_schema": {}}], **fields}
    return parse_messages(body, default_thinking=False)


def responses(**fields):
    return parse_responses({"model": "m", "input": "Hi", "tools": [{"type": "function", "name": "f"}], **fields})


@pytest.mark.parametrize(
    ("choice", "forced"),
    [
        (None, None),
        ({"type": "auto"}, None),
        ({"type": "none"}, None),
        ({"type": "any"}, ForcedCall("", "tool_choice")),
        ({"type": "tool", "name": "f"}, ForcedCall("f", "tool_choice")),
    ],
)
def test_forced_calls_in_anthropics_words(choice, forced):
    request = anthropic(tool_choice=choice).request
    assert request.forced_call == forced
    assert request.output.drop_tool_calls == (choice == {"type": "none"})
    assert request.json_answer is None


@pytest.mark.parametrize(
    ("choice", "forced"),
    [
        ("auto", None),
        ("required", ForcedCall("", "tool_choice")),
        ({"type": "function", "name": "f"}, ForcedCall("f", "tool_choice")),
    ],
)
def test_forced_calls_in_the_words_of_responses(choice, forced):
    assert responses(tool_choice=choice).request.forced_call == forced


def test_forms_of_the_answer():
    form = {"type": "json_schema", "schema": SCHEMA}
    named = {**form, "name": "s"}
    answers = [
        anthropic(output_config={"format": form, "effort": "low"}).request.json_answer,
        anthropic(output_format=form).request.json_answer,
        responses(text={"format": named}).request.json_answer,
        responses(text={"format": {"type": "json_object"}}).request.json_answer,
        responses(text={"format": {"type": "text"}}).request.json_answer,
    ]
    assert answers == [
        JsonAnswer(SCHEMA_JSON, "output_config.format.schema"),
        JsonAnswer(SCHEMA_JSON, "output_format.schema"),
        JsonAnswer(SCHEMA_JSON, "text.format.schema"),
        JsonAnswer("", "text.format"),
        None,
    ]
    with pytest.raises(InvalidRequest, match="continue"):
        anthropic(output_config={"format": form}, messages=[HI, {"role": "assistant", "content": "{"}])


def test_a_schema_without_a_type_is_an_objects():
    assert anthropic().request.conversation.tools[0].parameters == {"type": "object"}
    assert anthropic(tools=[{"type": "bash_20250124", "name": "bash"}]).request.conversation.tools == ()
    assert responses().request.conversation.tools[0].parameters is None


def test_images_name_their_field():
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/.png", "data": " aGk="}}
    linked = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "a"}, block]}
    asked = parse_count(
        {"model": "m", "messages": [{"role": "user", "content": [result, linked]}]}, default_thinking=True
    )
    tool, user = asked.conversation.messages
    assert tool.content[1] == Media("image", "data:image;base64, aGk=", "messages.0.content.0.content.1.source")
    assert user.content == (Media("image", "https://x/y.png", "messages.0.content.1.source"),)
    part = {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "auto"}
    (message,) = responses(input=[{"role": "user", "content": [part]}]).request.conversation.messages
    assert message.content == (Media("image", part["image_url"], "input.0.content.0.image_url"),)


@pytest.mark.parametrize(("effort", "thinks"), [(None, True), ("none", False), ("high", True), ("max", True)])
def test_effort(effort, thinks):
    assert responses(reasoning={"effort": effort}).request.conversation.thinking is thinks


def test_thoughts_that_led_to_nothing_are_dropped():
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    messages = responses(input=[HI, thought, HI, thought]).request.conversation.messages
    assert [message.role for message in messages] == ["user", "user"]
    spoken = {"role": "assistant", "content": "Yes."}
    messages = responses(input=[HI, thought, spoken, thought, spoken]).request.conversation.messages
    assert [message.reasoning for message in messages] == [None, "Hm.", "Hm."]
