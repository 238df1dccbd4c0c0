"""The messages of an Anthropic request as the messages of the internal form."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from gateway.dialects.messages.block_schema import (
    AssistantMessage,
    CompactionBlock,
    DocumentBlock,
    ImageBlock,
    InputMessage,
    SearchResultBlock,
    ServerCallBlock,
    ServerResultBlock,
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

# Claude Code's note to its maker. It varies between versions, which would spoil the prefix cache.
BILLING = "x-anthropic-billing-header"
FAILED = "Error:\n"
FAILED_SILENTLY = "Error: the tool failed and returned nothing"

Shown = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock


def messages_of(messages: Sequence[InputMessage], system: str | Sequence[object] | None) -> tuple[Message, ...]:
    """Return the instructions, then every message in order; what tools returned becomes messages of its own."""
    translated = [] if system is None else _system(system)
    for index, message in enumerate(messages):
        match message:
            case SystemMessage():
                translated += _system(message.content)
            case AssistantMessage():
                translated += _assistant(message)
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


def _assistant(message: AssistantMessage) -> list[Message]:
    """Return one message, or more where results of another server's tools stand between its blocks."""
    if isinstance(message.content, str):
        return [Message("assistant", (Text(message.content),))]
    messages: list[Message] = []
    turn = _Turn()
    for block in message.content:
        match block:
            case ThinkingBlock():
                turn.thoughts.append(block.thinking or unseal(block.signature) or "")
            case TextBlock():
                turn.texts.append(block.text)
            case CompactionBlock():
                turn.texts += [block.content] if block.content else []
            case ToolUseBlock() | ServerCallBlock():
                # Written as the model writes it, so that its own calls are found in the prefix cache.
                turn.calls.append(Call(block.id, block.name, json.dumps(block.input or {}, ensure_ascii=False)))
            case ServerResultBlock():
                messages += [turn.message(), _server_result(block)]
                turn = _Turn()
    return messages if messages and turn.is_empty else [*messages, turn.message()]


class _Turn:
    """What an assistant did up to the next result."""

    def __init__(self) -> None:
        self.thoughts: list[str] = []
        self.texts: list[str] = []
        self.calls: list[Call] = []

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to say."""
        return not (self.thoughts or self.texts or self.calls)

    def message(self) -> Message:
        """Return the turn as one message."""
        reasoning = "\n".join(self.thoughts) if self.thoughts else None
        return Message("assistant", _joined(self.texts), reasoning=reasoning, tool_calls=tuple(self.calls))


def _server_result(block: ServerResultBlock) -> Message:
    content = _without_secrets(block.content)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    result = Message("tool", (Text(text),), tool_call_id=block.tool_use_id)
    return _failed(result) if block.is_error else result


def _without_secrets(value: Any) -> Any:
    """Return the value without what only its maker can read."""
    if isinstance(value, dict):
        return {key: _without_secrets(inner) for key, inner in value.items() if not key.startswith("encrypted_")}
    return [_without_secrets(inner) for inner in value] if isinstance(value, list) else value


def _failed(result: Message) -> Message:
    """Return the result of a tool that failed, which the model must not take for a success."""
    if not any(part.text.strip() if isinstance(part, Text) else True for part in result.content):
        return replace(result, content=(Text(FAILED_SILENTLY),))
    return replace(result, content=(Text(FAILED), *result.content))


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
    result = Message("tool", content, tool_call_id=block.tool_use_id)
    return _failed(result) if block.is_error else result


def _parts(blocks: Iterable[tuple[str, Shown]]) -> tuple[Text | Media, ...]:
    """Return the blocks with their fields as parts; texts beside each other are joined."""
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
