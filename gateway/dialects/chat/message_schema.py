"""The messages of a chat request: types only."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from gateway.dialects.tagged_union import LeftOut
from gateway.http.body import Body, Opaque, text_or_list, text_or_object


class TextPart(Body):
    """Text. `input_text` is its name in the Responses API."""

    type: Literal["text", "input_text"]
    text: str


class RefusalPart(Body):
    """A refusal that another model wrote; read as text."""

    type: Literal["refusal"]
    refusal: str


class MediaUrl(Body):
    """Where a picture or a video is: a data: URL, or a remote one where the server allows it."""

    url: str


Url = Annotated[
    Annotated[str, Tag("~text")] | Annotated[MediaUrl, Tag("~object")],
    Discriminator(
        text_or_object,
        custom_error_type="url_form",
        custom_error_message="must be a string or an object with `url`",
    ),
]


class ImagePart(Body):
    """An image."""

    type: Literal["image_url"]
    image_url: Url


class VideoPart(Body):
    """A video."""

    type: Literal["video_url"]
    video_url: Url


Part = Annotated[TextPart | RefusalPart | ImagePart | VideoPart, Field(discriminator="type")]
Content = Annotated[
    Annotated[str, Tag("~text")] | Annotated[list[Part], Tag("~list"), Field(fail_fast=True)],
    Discriminator(
        text_or_list,
        custom_error_type="content_form",
        custom_error_message="must be a string or a list of parts",
    ),
]


class ThinkingPart(Body):
    """Reasoning of an assistant, as Anthropic's dialect and its translators write it. The signature is not verified."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedPart(LeftOut):
    """Reasoning that only its maker can read; it is left out."""

    type: Literal["redacted_thinking"]


Thought = Annotated[ThinkingPart | RedactedPart, Field(discriminator="type")]
AssistantContent = Annotated[
    Annotated[str, Tag("~text")]
    | Annotated[
        list[
            Annotated[
                TextPart | RefusalPart | ImagePart | VideoPart | ThinkingPart | RedactedPart,
                Field(discriminator="type"),
            ]
        ],
        Tag("~list"),
        Field(fail_fast=True),
    ],
    Discriminator(
        text_or_list,
        custom_error_type="content_form",
        custom_error_message="must be a string or a list of parts",
    ),
]


class ReasoningDetail(Opaque):
    """A piece of reasoning as OpenRouter writes it; what is encrypted has neither field."""

    text: str | None = None
    summary: str | None = None


class AnyMessage(Body):
    """What every message may carry. Only the last one, an assistant's, may be partial."""

    name: str | None = None
    partial: bool | None = None


class SystemMessage(AnyMessage):
    """Instructions. `developer` is another word for `system`."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(AnyMessage):
    """What the user says."""

    role: Literal["user"]
    content: Content


class CalledFunction(Body):
    """Name and arguments of a call. Arguments that are an object instead of text are accepted."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str | dict[str, Any] | None = Field(default=None, union_mode="left_to_right")


class MessageCall(Body):
    """A tool call of the history. The shape of its id is free."""

    id: str | None = None
    type: str | None = None
    function: CalledFunction


class AssistantMessage(AnyMessage):
    """What the model said.

    Of the spellings of its reasoning the first that is there counts: `reasoning`, `reasoning_content`, thinking parts
    of the content, `thinking_blocks`, `reasoning_details`. Null is absent, "" is not.
    """

    role: Literal["assistant"]
    content: AssistantContent | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    thinking_blocks: list[Thought] | None = None
    reasoning_details: list[ReasoningDetail] | None = None
    tool_calls: list[MessageCall] | None = None


class ToolMessage(AnyMessage):
    """What a tool returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Annotated[str, Field(min_length=1)]


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
