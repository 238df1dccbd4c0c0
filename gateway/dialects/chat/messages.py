"""The messages of a chat request as the messages of the internal form."""

import json
from collections.abc import Sequence

from gateway.dialects.chat.message_schema import (
    AssistantMessage,
    ChatMessage,
    ImagePart,
    MediaUrl,
    MessageCall,
    RefusalPart,
    TextPart,
    VideoPart,
)
from gateway.request.chat_model import Call, Media, Message, Text
from services.runtime.errors import InvalidRequest

Part = TextPart | RefusalPart | ImagePart | VideoPart


def messages_of(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Every message in order; InvalidRequest if one but the last says that it is partial."""
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
            return Message(
                "assistant",
                content,
                name,
                reasoning=_reasoning_of(message),
                tool_calls=tuple(_call_of(call) for call in message.tool_calls or ()),
            )
        case "tool":
            return Message("tool", content, name, tool_call_id=message.tool_call_id)
        case "user":
            return Message("user", content, name)
        case _:
            return Message("system", content, name)


def _reasoning_of(message: AssistantMessage) -> str | None:
    return message.reasoning if message.reasoning is not None else message.reasoning_content


def _call_of(call: MessageCall) -> Call:
    arguments = call.function.arguments
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return Call(call.id or "", call.function.name, arguments or "{}")


def _content_of(content: str | list[Part] | None, field: str) -> tuple[Text | Media, ...]:
    match content:
        case None:
            return ()
        case str():
            return (Text(content),)
        case _:
            return tuple(_part_of(part, f"{field}.{index}") for index, part in enumerate(content))


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
