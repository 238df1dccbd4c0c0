"""Messages of a conversation, checked: the input of the template and of the call ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from protos.media_pb2 import MediaRef
from protos.tokenizer_pb2 import ChatMessage, ContentPart
from services.tokenizer.invalid import invalid

# Bounds the memory of one request; an hour of video is below it.
MAX_MEDIA_TOKENS = 1 << 22


@dataclass(frozen=True)
class Image:
    """An image in a message: its placeholder takes `media.num_tokens` tokens of the prompt."""

    media: MediaRef


@dataclass(frozen=True)
class Video:
    """A video in a message: each of its chunks has a text and a placeholder of its own."""

    media: MediaRef


Part = str | Image | Video


@dataclass(frozen=True)
class Call:
    """A tool call that the assistant made: arguments are the text of a JSON object, normally."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One message. `reasoning` is None where the client sent none; content without parts prints nothing."""

    role: str
    content: tuple[Part, ...] = ()
    name: str = ""
    reasoning: str | None = None
    calls: tuple[Call, ...] = ()
    tool_call_id: str = ""


def messages_from_proto(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return the checked messages. Raises InvalidRequest that names the field, as `messages[3].tool_call_id`."""
    checked = [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    num_media_tokens = sum(_num_media_tokens(part) for message in checked for part in message.content)
    if num_media_tokens > MAX_MEDIA_TOKENS:
        raise invalid("messages", f"media take {num_media_tokens} tokens, at most {MAX_MEDIA_TOKENS}")
    return checked


def _message(message: ChatMessage, field: str) -> Message:
    if not message.role:
        raise invalid(f"{field}.role", "a message needs a role")
    if message.role == "tool" and not message.tool_call_id:
        raise invalid(f"{field}.tool_call_id", "a tool message needs the id of the call that it answers")
    if message.tool_calls and message.role != "assistant":
        raise invalid(f"{field}.tool_calls", f"a message of role {message.role:.40} cannot call tools")
    for index, call in enumerate(message.tool_calls):
        if not call.name:
            raise invalid(f"{field}.tool_calls[{index}].name", "a tool call needs a name")
    return Message(
        role=message.role,
        content=tuple(_part(part, f"{field}.content[{index}]") for index, part in enumerate(message.content)),
        name=message.name,
        reasoning=message.reasoning if message.HasField("reasoning") else None,
        # A client that echoes an empty text means a call without arguments, which the model writes as {}.
        calls=tuple(Call(call.id, call.name, call.arguments or "{}") for call in message.tool_calls),
        tool_call_id=message.tool_call_id,
    )


def _part(part: ContentPart, field: str) -> Part:
    match part.WhichOneof("part"):
        case "image":
            _check_media(part.image, f"{field}.image")
            return Image(part.image)
        case "video":
            if not part.video.chunks:
                raise invalid(f"{field}.video.chunks", "a video needs at least one chunk")
            for index, chunk in enumerate(part.video.chunks):
                _check_media(chunk.media, f"{field}.video.chunks[{index}].media")
            return Video(part.video)
        case "text":
            return part.text
        case _:
            raise invalid(field, "a content part needs a text, an image or a video")


def _check_media(media: MediaRef, field: str) -> None:
    if not media.num_tokens:
        raise invalid(f"{field}.num_tokens", "a medium takes at least one token")


def _num_media_tokens(part: Part) -> int:
    match part:
        case Image(media):
            return media.num_tokens
        case Video(media):
            return sum(chunk.media.num_tokens for chunk in media.chunks)
        case _:
            return 0
