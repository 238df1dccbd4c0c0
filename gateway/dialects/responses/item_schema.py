"""The input items of a Responses request: types only."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from gateway.dialects.tagged_union import Refused, kind_in
from gateway.http.body import Body, Opaque, text_or_list


class TextPart(Body):
    """Text, read or written."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class RefusalPart(Body):
    """A refusal that another model wrote; read as text."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(Body):
    """An image: a data: URL, or a remote one where the server allows it."""

    type: Literal["input_image"]
    image_url: str


Part = Annotated[
    Annotated[TextPart, Tag("~input_text")]
    | Annotated[TextPart, Tag("~output_text")]
    | Annotated[TextPart, Tag("~text")]
    | Annotated[RefusalPart, Tag("~refusal")]
    | Annotated[ImagePart, Tag("~input_image")]
    | Annotated[Refused, Tag("~other")],
    Discriminator(kind_in("input_text", "output_text", "text", "refusal", "input_image")),
]
Content = Annotated[
    Annotated[str, Tag("~text")] | Annotated[list[Part], Tag("~list"), Field(fail_fast=True)],
    Discriminator(
        text_or_list,
        custom_error_type="content_form",
        custom_error_message="must be a string or a list of parts",
    ),
]


class MessageItem(Body):
    """A message. `developer` is another word for `system`."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class CallItem(Body):
    """A tool call of the history. The shape of its id is free."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    namespace: str | None = None
    arguments: str | None = None


class CustomCallItem(Body):
    """A call of a tool that takes a text."""

    type: Literal["custom_tool_call"]
    call_id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    namespace: str | None = None
    input: str


class CallOutputItem(Body):
    """What a tool returned."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Annotated[str, Field(min_length=1)]
    output: Content


class ReasoningText(Opaque):
    """A piece of reasoning."""

    text: str


class ReasoningItem(Body):
    """Reasoning of the assistant's turn that follows."""

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None
    summary: list[ReasoningText] | None = None
    encrypted_content: str | None = None


class OtherItem(Opaque):
    """A call of a tool that other servers or clients have, or its output: any fields."""

    model_config = ConfigDict(extra="allow")

    type: str


def _kind_of(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    match kind:
        case None | "message":
            return "~message"
        case "function_call" | "function_call_output" | "reasoning" | "custom_tool_call" | "custom_tool_call_output":
            return f"~{kind}"
        case str() if kind.endswith(("_call", "_call_output")):
            return "~other"
        case _:
            return "~refused"


Item = Annotated[
    Annotated[MessageItem, Tag("~message")]
    | Annotated[CallItem, Tag("~function_call")]
    | Annotated[CallOutputItem, Tag("~function_call_output")]
    | Annotated[CustomCallItem, Tag("~custom_tool_call")]
    | Annotated[CallOutputItem, Tag("~custom_tool_call_output")]
    | Annotated[ReasoningItem, Tag("~reasoning")]
    | Annotated[OtherItem, Tag("~other")]
    # Among them references to what a server keeps; this one keeps nothing.
    | Annotated[Refused, Tag("~refused")],
    Discriminator(_kind_of),
]
