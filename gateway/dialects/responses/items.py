"""The input items of a Responses request as the messages of the internal form."""

from collections.abc import Sequence

from gateway.dialects.opaque_reasoning import unseal
from gateway.dialects.responses.item_schema import (
    CallItem,
    CallOutputItem,
    CustomCallItem,
    ImagePart,
    Item,
    MessageItem,
    OtherItem,
    Part,
    ReasoningItem,
    RefusalPart,
    TextPart,
)
from gateway.dialects.responses.other_calls import call_of, output_of, result_of
from gateway.dialects.responses.tools import joined_name, text_arguments
from gateway.request.chat_model import Call, Media, Message, Text


def messages_of(asked: str | Sequence[Item], instructions: str | None) -> tuple[Message, ...]:
    """Return the instructions, then the items in order; what the assistant did in one turn is one message."""
    messages = [] if instructions is None else [Message("system", (Text(instructions),))]
    if isinstance(asked, str):
        return (*messages, Message("user", (Text(asked),)))
    turn = _Turn()
    for index, item in enumerate(asked):
        field = f"input.{index}"
        match item:
            case ReasoningItem():
                messages += turn.end() if turn.has_begun else []
                turn.think(item)
            case MessageItem(role="assistant"):
                messages += turn.end() if turn.has_begun else []
                turn.content = _parts(item.content, f"{field}.content")
            case CallItem():
                turn.calls.append(Call(item.call_id, joined_name(item.namespace, item.name), item.arguments or "{}"))
            case CustomCallItem():
                name = joined_name(item.namespace, item.name)
                turn.calls.append(Call(item.call_id, name, text_arguments(item.input)))
            case MessageItem():
                content = _parts(item.content, f"{field}.content")
                messages += [*turn.end(), Message("user" if item.role == "user" else "system", content)]
            case CallOutputItem():
                output = _parts(item.output, f"{field}.output")
                messages += [*turn.end(), Message("tool", output, tool_call_id=item.call_id)]
            case OtherItem() if item.type.endswith("_output"):
                messages += [*turn.end(), output_of(item.model_extra or {}, field)]
            case OtherItem():
                fields = item.model_extra or {}
                turn.calls.append(call_of(item.type, fields, field))
                result = result_of(item.type, fields, field)
                messages += [*turn.end(), result] if result is not None else []
    return (*messages, *turn.end())


class _Turn:
    """What the assistant did between two messages of others."""

    def __init__(self) -> None:
        self.content: tuple[Text | Media, ...] | None = None
        self.calls: list[Call] = []
        self._thoughts: list[str] = []

    @property
    def has_begun(self) -> bool:
        """Whether more reasoning would belong to another turn."""
        return self.content is not None or bool(self.calls)

    def think(self, item: ReasoningItem) -> None:
        """Add the reasoning of an item: its text, or what we packed for the client, or the summary."""
        text = "".join(part.text for part in item.content or ())
        text = text or unseal(item.encrypted_content) or "\n".join(part.text for part in item.summary or ())
        if text:
            self._thoughts.append(text)

    def end(self) -> list[Message]:
        """Return the turn as a message, and a new turn. Reasoning that led to nothing is dropped."""
        content, calls, thoughts = self.content, tuple(self.calls), "\n".join(self._thoughts)
        self.content, self.calls, self._thoughts = None, [], []
        if content is None and not calls:
            return []
        return [Message("assistant", content or (), reasoning=thoughts or None, tool_calls=calls)]


def _parts(content: str | Sequence[Part], field: str) -> tuple[Text | Media, ...]:
    if isinstance(content, str):
        return (Text(content),)
    parts: list[Text | Media] = []
    for index, part in enumerate(content):
        match part:
            case TextPart():
                parts.append(Text(part.text))
            case RefusalPart():
                parts.append(Text(part.refusal))
            case ImagePart():
                parts.append(Media("image", part.image_url, f"{field}.{index}.image_url"))
    return tuple(parts)
