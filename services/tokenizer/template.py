"""The chat template of K2.6: a conversation as the sequence that the model was trained on (TEMPLATE.md)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from protos.media_pb2 import MediaRef
from services.checkpoint.markers import Marker
from services.tokenizer.messages import Image, Message, Part, Video

# Printed by the released template in place of a video that no processor has seen: ordinary text.
VIDEO_PLACEHOLDER = "<|kimi_k25_video_placeholder|>"


@dataclass(frozen=True)
class Pads:
    """The place of one image or one chunk of a video: `media.num_tokens` times the pad token."""

    media: MediaRef


# A marker is a special token; a string is text, ours or a client's, and never becomes one.
Segment = Marker | str | Pads


@dataclass(frozen=True)
class PromptOptions:
    """Options of rendering a conversation.

    thinking                the answer starts with reasoning
    preserve_thinking       the reasoning of finished answers stays in the prompt
    add_generation_prompt   an assistant message is opened at the end
    continue_final_message  the last message stays open, and generation goes on from it
    """

    thinking: bool = True
    preserve_thinking: bool = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False


def render(messages: Sequence[Message], declaration: str, options: PromptOptions) -> Iterator[Segment]:
    """Yield the prompt in segments. `declaration` declares the tools and is empty without any."""
    if declaration:
        yield from (Marker.SYSTEM, "tool_declare", Marker.MIDDLE, declaration, Marker.END)
    last_answer = _last_answer(messages)
    for index, message in enumerate(messages):
        keeps_reasoning = options.preserve_thinking or (options.thinking and index > last_answer)
        yield from _message(message, (message.reasoning or "") if keeps_reasoning else "")
        if index < len(messages) - 1 or not options.continue_final_message:
            yield Marker.END
    if options.add_generation_prompt:
        yield from (Marker.ASSISTANT, "assistant", Marker.MIDDLE, Marker.THINK_BEGIN)
        if not options.thinking:
            yield Marker.THINK_END


def literal(segment: Segment) -> str:
    """Return the segment as the reference prints it, with one pad where the features of a medium go."""
    match segment:
        case Marker():
            return segment.value
        case Pads():
            return Marker.MEDIA_PAD.value
        case _:
            return segment


def _last_answer(messages: Sequence[Message]) -> int:
    """Return the index of the last assistant message without calls, or -1: no reasoning up to it is kept."""
    answers = (i for i, message in enumerate(messages) if message.role == "assistant" and not message.calls)
    return max(answers, default=-1)


def _message(message: Message, reasoning: str) -> Iterator[Segment]:
    yield {"user": Marker.USER, "assistant": Marker.ASSISTANT}.get(message.role, Marker.SYSTEM)
    yield message.name or message.role
    yield Marker.MIDDLE
    if message.role == "assistant":
        yield from (Marker.THINK_BEGIN, reasoning, Marker.THINK_END)
    elif message.role == "tool":
        yield f"## Return of {message.tool_call_id}\n"
    for part in message.content:
        yield from _part(part)
    if message.calls:
        yield Marker.SECTION_BEGIN
        for call in message.calls:
            yield from (Marker.CALL_BEGIN, call.id, Marker.CALL_ARGUMENTS, call.arguments, Marker.CALL_END)
        yield Marker.SECTION_END


def _part(part: Part) -> Iterator[Segment]:
    match part:
        case Image(media):
            yield from _medium("image", media)
            yield "\n"
        case Video(media):
            for chunk in media.chunks:
                yield chunk.prompt_text
                yield from _medium("video", chunk.media)
            yield "\n" if media.chunks else f"{VIDEO_PLACEHOLDER}\n"
        case _:
            yield part


def _medium(kind: str, media: MediaRef) -> Iterator[Segment]:
    yield from (Marker.MEDIA_BEGIN, kind, Marker.MEDIA_CONTENT, Pads(media), Marker.MEDIA_END)
