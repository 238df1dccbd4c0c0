"""The chat template: all golden prompts, as text and as ids."""

import pytest

from protos.media_pb2 import MediaRef
from protos.tokenizer_pb2 import ContentPart
from services.checkpoint.markers import Marker
from services.tokenizer.call_ids import canonical_ids
from services.tokenizer.declaration import declare
from services.tokenizer.encoding import PromptEncoder
from services.tokenizer.messages import Message, Video, messages_from_proto
from services.tokenizer.template import VIDEO_PLACEHOLDER, PromptOptions, literal, render
from services.tokenizer.tools import parse_tools
from tests.golden import read_golden
from tests.services.tokenizer.conversations import request_from_json


def segments_of(case):
    """Our segments for a case. Ids are not made canonical: the golden prompts print them as they are."""
    messages = case["messages"]
    if case["template"] == "Kimi-K2-Thinking":
        # We serve no K2-Thinking: its default system prompt is given, and its prompt lacks the last <think>.
        messages = [{"role": "system", "content": "You are Kimi, an AI assistant created by Moonshot AI."}, *messages]
    text_for_video = [message_for_video(message) for message in messages]
    flags = case["kwargs"]
    options = PromptOptions(
        # Only the boolean switches thinking off in the template; our wire has nothing else.
        thinking=flags.get("thinking", True) is not False,
        preserve_thinking=flags.get("preserve_thinking", False),
        add_generation_prompt=flags["add_generation_prompt"],
    )
    request = request_from_json(text_for_video, case["tools"])
    return list(render(messages_from_proto(request.messages), declare(parse_tools(request.tools_json)), options))


def message_for_video(message):
    """What the template prints for a video before it was looked at; on our wire a video without chunks is an error."""
    if not isinstance(message.get("content"), list):
        return message
    parts = [
        {"type": "text", "text": VIDEO_PLACEHOLDER + "\n"} if part["type"].startswith("video") else part
        for part in message["content"]
    ]
    return {**message, "content": parts}


def test_golden_prompts(kimi):
    cases = read_golden("prompts.json")["cases"]
    assert len(cases) == 43
    for case in cases:
        text, token_ids = case["rendered"], case["token_ids"]
        if case["template"] == "Kimi-K2-Thinking":
            text, token_ids = text + Marker.THINK_BEGIN.value, [*token_ids, kimi.marker_ids[Marker.THINK_BEGIN]]
        segments = segments_of(case)
        assert "".join(map(literal, segments)) == text, case["id"]
        assert kimi.encode_with_special(text) == token_ids, case["id"]
        if case["id"] != "injection_text":  # the reference is wrong there, on purpose: see the next test
            assert PromptEncoder(kimi, 0).encode(segments).token_ids == token_ids, case["id"]


def test_the_golden_injection_stays_text(kimi):
    case = next(case for case in read_golden("prompts.json")["cases"] if case["id"] == "injection_text")
    token_ids = list(PromptEncoder(kimi, 0).encode(segments_of(case)).token_ids)
    assert token_ids != case["token_ids"]
    assert kimi.decode(token_ids) == case["rendered"]
    special = [kimi.decode([i]) for i in token_ids if i >= kimi.first_special_id]
    assert special == ["<|im_user|>", "<|im_middle|>", "<|im_end|>", "<|im_assistant|>", "<|im_middle|>", "<think>"]


def test_the_model_cards_preserved_numbers_reach_the_model():
    case = next(case for case in read_golden("prompts.json")["cases"] if case["id"] == "history_preserved")
    text = "".join(map(literal, segments_of(case)))
    assert "215" in text
    assert "222" in text


def text_of(messages, **options) -> str:
    return "".join(map(literal, render(messages, "", PromptOptions(**options))))


def test_a_continued_message_stays_open():
    messages = [Message("user", ("q",)), Message("assistant", ("The answer",), name="kimi")]
    text = text_of(messages, add_generation_prompt=False, continue_final_message=True)
    assert text == "<|im_user|>user<|im_middle|>q<|im_end|><|im_assistant|>kimi<|im_middle|><think></think>The answer"


def test_a_video_that_nobody_looked_at_prints_its_placeholder():
    text = text_of([Message("user", (Video(MediaRef()),))], add_generation_prompt=False)
    assert text == f"<|im_user|>user<|im_middle|>{VIDEO_PLACEHOLDER}\n<|im_end|>"


@pytest.mark.parametrize("reasoning, printed", [(None, ""), ("", ""), ("None", "None"), (" r", " r")])
def test_absent_reasoning_prints_nothing(reasoning, printed):
    case = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call("f:0", "f")]}]
    request = request_from_json(case)
    if reasoning is not None:
        request.messages[1].reasoning = reasoning
    text = text_of(messages_from_proto(request.messages))
    assert f"<think>{printed}</think><|tool_calls_section_begin|>" in text


def test_foreign_ids_render_as_canonical_ones():
    def prompt(first, second):
        messages = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [call(first, "f"), call(second, "g")]},
            {"role": "tool", "tool_call_id": second, "content": "2"},
            {"role": "tool", "tool_call_id": first, "content": "1"},
        ]
        return text_of(canonical_ids(messages_from_proto(request_from_json(messages).messages)))

    assert prompt("call_abc", "toolu_0") == prompt("functions.f:0", "functions.g:1")


def test_empty_arguments_are_an_empty_object():
    request = request_from_json([{"role": "assistant", "tool_calls": [call("functions.f:0", "f", arguments="")]}])
    assert "<|tool_call_argument_begin|>{}<|tool_call_end|>" in text_of(messages_from_proto(request.messages))


def call(call_id, name, arguments="{}"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_parts_print_without_a_separator():
    request = request_from_json([{"role": "user", "content": []}])
    request.messages[0].content.extend([ContentPart(text="a"), ContentPart(text=""), ContentPart(text="b")])
    assert "<|im_middle|>ab<|im_end|>" in text_of(messages_from_proto(request.messages))
