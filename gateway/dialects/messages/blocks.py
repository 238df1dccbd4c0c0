"""The messages of an Anthropic request as the messages of the internal form."""

import json
import logging
from collections.abc import Iterable, Sequence

from gateway.dialects.messages.block_schema import (
    AssistantMessage,
    DocumentBlock,
    ImageBlock,
    InputMessage,
    SearchResultBlock,
    ServerBlock,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
    UrlSource,
    UserMessage,
)
from gateway.dialects.opaque_reasoning import unseal
from gateway.dialects.tagged_union import Refused
from gateway.request.chat_model import Call, Media, Message, Text

log = logging.getLogger(__name__)

# Claude Code's note to its maker. It varies between versions, which would spoil the prefix cache.
BILLING = "x-anthropic-billing-header"

Shown = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock


def messages_of(messages: Sequence[InputMessage], system: str | Sequence[object] | None) -> tuple[Message, ...]:
    """The instructions, then every message in order; what tools returned becomes messages of its own."""
    translated = [] if system is None else _system(system)
    for index, message in enumerate(messages):
        match message:
            case SystemMessage():
                translated += _system(message.content)
            case AssistantMessage():
                translated.append(_assistant(message))
            case UserMessage():
                translated += _user(message, f"messages.{index}.content")
    return tuple(translated)


def _system(content: str | Sequence[object]) -> list[Message]:
    if isinstance(content, str):
        return [Message("system", (Text(content),))]
    texts = [
        block.text for block in content if isinstance(block, TextBlock) and not block.text.lstrip().startswith(BILLING)
    ]
    return [Message("system", (Text("".join(texts)),))] if texts else []


def _assistant(message: AssistantMessage) -> Message:
    if isinstance(message.content, str):
        return Message("assistant", (Text(message.content),))
    thoughts: list[str] = []
    texts: list[str] = []
    calls: list[Call] = []
    for block in message.content:
        match block:
            case ThinkingBlock():
                thoughts.append(block.thinking or unseal(block.signature) or "")
            case TextBlock():
                texts.append(block.text)
            case ToolUseBlock():
                # Written as the model writes it, so that its own calls are found in the prefix cache.
                calls.append(Call(block.id, block.name, json.dumps(block.input or {}, ensure_ascii=False)))
            case ServerBlock():
                log.info("block dropped", extra={"kind": block.type[:64]})
    return Message(
        "assistant",
        _joined(texts),
        reasoning="\n".join(thoughts) if thoughts else None,
        tool_calls=tuple(calls),
    )


def _user(message: UserMessage, field: str) -> list[Message]:
    if isinstance(message.content, str):
        return [Message("user", (Text(message.content),))]
    results: list[Message] = []
    others: list[tuple[str, Shown]] = []
    for index, block in enumerate(message.content):
        if isinstance(block, ToolResultBlock):
            results.append(_result(block, f"{field}.{index}.content"))
        elif not isinstance(block, Refused):
            others.append((f"{field}.{index}", block))
    if others or not results:
        results.append(Message("user", _parts(others)))
    return results


def _result(block: ToolResultBlock, field: str) -> Message:
    match block.content:
        case None:
            content: tuple[Text | Media, ...] = ()
        case str():
            content = (Text(block.content),)
        case _:
            shown = [(f"{field}.{i}", part) for i, part in enumerate(block.content) if not isinstance(part, Refused)]
            content = _parts(shown)
    return Message("tool", content, tool_call_id=block.tool_use_id)


def _parts(blocks: Iterable[tuple[str, Shown]]) -> tuple[Text | Media, ...]:
    """The blocks with their fields as parts; texts beside each other are joined."""
    parts: list[Text | Media] = []
    for field, block in blocks:
        if isinstance(block, ImageBlock):
            parts.append(_image(block, field))
        elif parts and isinstance(before := parts[-1], Text):
            parts[-1] = Text(before.text + _text(block))
        else:
            parts.append(Text(_text(block)))
    return tuple(parts)


def _image(block: ImageBlock, field: str) -> Media:
    source = block.source
    if isinstance(source, UrlSource):
        return Media("image", source.url, f"{field}.source")
    assert not isinstance(source, Refused)
    return Media("image", f"data:image;base64,{source.data}", f"{field}.source")


def _text(block: TextBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock) -> str:
    match block:
        case TextBlock():
            return block.text
        case ToolReferenceBlock():
            return block.tool_name
        case SearchResultBlock():
            return "\n".join([block.title, block.source, *(part.text for part in block.content)])
        case DocumentBlock():
            assert not isinstance(block.source, Refused)
            return f"{block.title}\n{block.source.data}" if block.title else block.source.data


def _joined(texts: Sequence[str]) -> tuple[Text, ...]:
    return (Text("".join(texts)),) if texts else ()
