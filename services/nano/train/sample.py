"""One conversation that the model learns from or is examined with, whatever the skill."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

Split = Literal["train", "held_out"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Video:
    """Frames in order, all of one size, and how many of them pass in a second."""

    frames: tuple[Image.Image, ...]
    fps: float


@dataclass(frozen=True)
class Answer:
    """What came back from the model, as an assistant message of the OpenAI API has it."""

    content: str
    reasoning: str
    tool_calls: Sequence[Json] = ()


@dataclass(frozen=True)
class Sample:
    """A conversation whose last message is the assistant's answer as it should be.

    skill              which generator made it
    messages           in the OpenAI wire form: `reasoning_content`, `content`, `tool_calls` whose ids are
                       "functions.NAME:N" with N counted through the conversation; a picture is a part
                       {"type": "image_url"}, a video a part {"type": "video_url"}, both without a URL
    tools              as in `tools` of a request
    thinking           whether the last message was thought about; in a sample without, no message has reasoning
                       that the template would print
    preserve_thinking  whether the template keeps the reasoning of earlier answers
    images, videos     what the parts stand for, in order of appearance
    answer_schema      what `response_format` of a request demands of the content; None for free text
    check              whether an answer to all messages but the last is right
    """

    skill: str
    messages: Sequence[Json]
    check: Callable[[Answer], bool]
    tools: Sequence[Json] = ()
    thinking: bool = True
    preserve_thinking: bool = False
    images: Sequence[Image.Image] = field(default=())
    videos: Sequence[Video] = field(default=())
    answer_schema: Json | None = None


# The same arguments give the same sample; no instance is in both splits.
Generator = Callable[[Split, int], Sample]
