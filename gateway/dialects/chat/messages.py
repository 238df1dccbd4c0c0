"""The messages of a chat request as the messages of the internal form."""

import json
from collections.abc import Sequence

from gateway.dialects.chat.message_schema import (
    AssistantMessage,
    ChatMessage,
    ImagePart,
    MediaUrl,
    MessageCall,
    RedactedPart,
    RefusalPart,
    TextPart,
    ThinkingPart,
    VideoPart,
)
from gateway.dialects.opaque_reasoning import unseal
from gateway.request.chat_model import Call, Media, Message, Text
from services.runtime.errors import InvalidRequest

Part = TextPart | RefusalPart | ImagePart | VideoPart
Thought = ThinkingPart | RedactedPart


def messages_of(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Return every message in order; InvalidRequest if one but the last says that it is partial."""
    translated: list[Message] = []
    for index, message in enumerate(messages):
        field = f"messages.{index}"
        if message.partial and (index != len(messages) - 1 or message.role != "assistant"):
            raise InvalidRequest(
                f"{field}.partial: only the last message, and only an assistant's, may be partial",
                field=f"{field}.partial",
            )
        translated.append(_message_of(message, field))
    return tuple(translated)


def _message_of(message: ChatMessage, field: str) -> Message:
    content = _content_of(message.content, f"{field}.content")
    name = message.name or ""
    match message.role:
        case "assistant":
            assert isinstance(message, AssistantMessage)
            if message.content is None and message.refusal:
                content = (Text(message.refusal),)
            return Message(
                "assistant",
                content,
                name,
                reasoning=reasoning_of(message),
                tool_calls=tuple(_call_of(call) for call in message.tool_calls or ()),
            )
        case "tool":
            return Message("tool", content, name, tool_call_id=message.tool_call_id)
        case "user":
            return Message("user", content, name)
        case _:
            return Message("system", content, name)


def reasoning_of(message: AssistantMessage) -> str | None:
    """Return the reasoning in the first of the spellings that has it; None if there is none."""
    parts = [] if message.content is None or isinstance(message.content, str) else message.content
    details = [detail.text or detail.summary for detail in message.reasoning_details or ()]
    spellings = (
        message.reasoning,
        message.reasoning_content,
        _joined([_thought(part) for part in parts if isinstance(part, ThinkingPart)]),
        _joined([_thought(block) for block in message.thinking_blocks or () if isinstance(block, ThinkingPart)]),
        _joined([text for text in details if text]),
    )
    return next((text for text in spellings if text is not None), None)


def _thought(part: ThinkingPart) -> str:
    return part.thinking or unseal(part.signature) or ""


def _joined(texts: Sequence[str]) -> str | None:
    return "\n".join(texts) if texts else None


def _call_of(call: MessageCall) -> Call:
    arguments = call.function.arguments
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return Call(call.id or "", call.function.name, arguments or "{}")


def _content_of(content: str | Sequence[Part | Thought] | None, field: str) -> tuple[Text | Media, ...]:
    match content:
        case None:
            return ()
        case str():
            return (Text(content),)
        case _:
            return tuple(
                _part_of(part, f"{field}.{index}")
                for index, part in enumerate(content)
                if not isinstance(part, ThinkingPart | RedactedPart)
            )


def _part_of(part: Part, field: str) -> Text | Media:
    match part:
        case TextPart():
            return Text(part.text)
        case RefusalPart():
            return Text(part.refusal)
        case ImagePart():
            return Media("image", _url_of(part.image_url), f"{field}.image_url")
        case VideoPart():
            return Media("video", _url_of(part.video_url), f"{field}.video_url")


def _url_of(url: str | MediaUrl) -> str:
    return url if isinstance(url, str) else url.url
