"""One conversation for training or examination, of any skill."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

Split = Literal["train", "held_out"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Video:
    """Frames of one size in order, and their number per second."""

    frames: tuple[Image.Image, ...]
    fps: float


@dataclass(frozen=True)
class Answer:
    """An answer of the model, with the fields of an assistant message of the OpenAI API."""

    content: str
    reasoning: str
    tool_calls: Sequence[Json] = ()


@dataclass(frozen=True)
class Sample:
    """A conversation whose last message is a right answer of the assistant.

    skill              name of its generator
    messages           in the OpenAI wire form: `reasoning_content`, `content`, `tool_calls` whose ids are
                       "functions.NAME:N" with N counted through the conversation; a picture is a part
                       {"type": "image_url"}, a video a part {"type": "video_url"}, both without a URL
    tools              as in `tools` of a request
    thinking           whether the last message has thoughts; if not, no message has reasoning that the template prints
    preserve_thinking  whether the template keeps the reasoning of earlier answers
    images, videos     the media of the parts, in order of appearance
    answer_schema      schema in the request's `response_format`; None for free text
    check              returns whether an answer to all messages except the last is right
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


# Equal arguments give equal samples; no instance is in both splits.
Generator = Callable[[Split, int], Sample]
